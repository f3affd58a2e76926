"""`worker --run RUN.toml --region NAME`: a worker's command line, the evaluator's too."""

import argparse
import sys
from typing import TYPE_CHECKING

from pelago import reading
from pelago.core.errors import ConfigError
from pelago.net import command

if TYPE_CHECKING:
    from pelago.config.run_file import RunFile


def parser() -> argparse.ArgumentParser:
    """The command line."""
    flags = command.flags("worker", "A worker of a region: trains on leases of samples.")
    flags.add_argument("--region", metavar="NAME", help="the region that it belongs to")
    flags.add_argument(
        "--group",
        type=command.natural,
        default=-1,
        metavar="N",
        help="which of the region's groups (default: a free one)",
    )
    flags.add_argument("--connect", metavar="HOST:PORT", help="where its server is")
    flags.add_argument(
        "--paced",
        action="store_true",
        help="run at the group's speed of the run file, as `pelago local` does",
    )
    flags.add_argument(
        "--slot",
        type=command.natural,
        default=0,
        metavar="N",
        help="which of this machine's workers it is: they are spread over the GPUs that are visible",
    )
    modes = flags.add_mutually_exclusive_group()
    modes.add_argument(
        "--evaluate",
        action="store_true",
        help="measure the global model and export it; trains nothing",
    )
    modes.add_argument(
        "--initialise",
        metavar="FILE",
        type=reading.expanded,
        help="write the run's initial parameters into this file, which is there, print what they are, and end",
    )
    modes.add_argument(
        "--describe", action="store_true", help="say what model and corpus would be used, and end"
    )
    flags.add_argument(
        "--no-step", action="store_true", help="with --describe: try no training step"
    )
    return flags


def _check(options: argparse.Namespace, run: "RunFile") -> None:
    if options.initialise or options.describe:
        return
    if options.evaluate:
        command.address(options.connect, run.gps_connect(), "--connect")
    elif not options.region:
        raise ConfigError("--region: a worker needs to know its region (or --evaluate)")
    else:
        region = run.region_index(options.region)
        command.address(options.connect, run.lps_connect(region), "--connect")
    command.require_out(options.out, run)


def _service() -> command.Role:
    from worker.service import work

    return work


def main() -> int:
    """Console script."""
    return command.main("worker", parser(), _check, _service)


if __name__ == "__main__":
    sys.exit(main())
