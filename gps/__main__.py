"""`gps --run RUN.toml`: the global parameter server's command line."""

import argparse
import sys
from typing import TYPE_CHECKING

from pelago import reading
from pelago.net import command

if TYPE_CHECKING:
    from pelago.config.run_file import RunFile


def parser() -> argparse.ArgumentParser:
    """The command line."""
    flags = command.flags(
        "gps", "The global parameter server of a run: merges the regions' updates."
    )
    flags.add_argument(
        "--bind", metavar="HOST:PORT", help="where to listen; bulk data uses the next port"
    )
    flags.add_argument(
        "--resume",
        metavar="SOURCE",
        type=reading.expanded,
        help="go on from a folder of results, or from where gps.snapshots went: on another host, or with a"
        " larger budget or another learning rate",
    )
    return flags


def _check(options: argparse.Namespace, run: "RunFile") -> None:
    command.address(options.bind, run.gps_bind(), "--bind")
    command.require_out(options.out, run)


def _service() -> command.Role:
    from gps.service import serve

    return serve


def main() -> int:
    """Console script."""
    return command.main("gps", parser(), _check, _service)


if __name__ == "__main__":
    sys.exit(main())
