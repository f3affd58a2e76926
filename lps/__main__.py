"""`lps --run RUN.toml --region NAME`: a local parameter server's command line."""

import argparse
import sys
from typing import TYPE_CHECKING

from pelago.net import command

if TYPE_CHECKING:
    from pelago.config.run_file import RunFile


def parser() -> argparse.ArgumentParser:
    """The command line."""
    flags = command.flags("lps", "A region's local parameter server: merges its workers' updates.")
    flags.add_argument("--region", required=True, metavar="NAME", help="the region that it serves")
    flags.add_argument(
        "--bind", metavar="HOST:PORT", help="where to listen; bulk data uses the next port"
    )
    flags.add_argument("--connect", metavar="HOST:PORT", help="where the GPS is")
    flags.add_argument(
        "--resume",
        action="store_true",
        help="begin anew where the folder has a state of the run before the run file was changed, or a damaged"
        " one",
    )
    return flags


def _check(options: argparse.Namespace, run: "RunFile") -> None:
    region = run.region_index(options.region)
    command.address(options.bind, run.lps_bind(region), "--bind")
    command.address(options.connect, run.gps_connect(), "--connect")
    command.require_out(options.out, run)


def _service() -> command.Role:
    from lps.service import serve

    return serve


def main() -> int:
    """Console script."""
    return command.main("lps", parser(), _check, _service)


if __name__ == "__main__":
    sys.exit(main())
