"""`pelago COMMAND ...`: what the command line understands."""

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pelago
from pelago import children, reading
from pelago.core.errors import ConfigError, PelagoError
from pelago.net.command import EXIT_INTERRUPTED, EXIT_USER, ended, one_line
from pelago.net.telemetry import say

if TYPE_CHECKING:
    from pelago.config.run_file import RunFile


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(
        prog="pelago", description="Train one language model asynchronously across regions."
    )
    top.add_argument("--version", action="version", version=f"pelago {pelago.__version__}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    local = commands.add_parser(
        "local",
        help="run the whole topology of a run file on this machine",
        description="Start the GPS, an LPS per region, their workers and an evaluator as processes on this "
        "machine, with the links between regions emulated, until the run's budget is reached.",
    )
    local.add_argument("run", metavar="RUN.toml", type=reading.expanded, help="the run file")
    local.add_argument(
        "--overwrite",
        action="store_true",
        help="replace the results of an earlier run in that folder",
    )

    resume = commands.add_parser(
        "resume",
        help="go on with a run, from its folder or a snapshot, on this machine",
        description="As `pelago local`, but the GPS goes on from an earlier incarnation of the run: with a larger "
        "budget, another learning rate, other regions. On hosts of their own, start the daemons with --resume "
        "instead.",
    )
    resume.add_argument(
        "run",
        metavar="RUN.toml",
        type=reading.expanded,
        help="the run file, as it is to be from now on",
    )
    resume.add_argument(
        "--from",
        dest="source",
        metavar="SOURCE",
        type=reading.expanded,
        help="a folder of results, or where gps.snapshots went (default: the folder of the results)",
    )
    for command in (local, resume):
        command.add_argument(
            "--out",
            metavar="DIR",
            type=reading.expanded,
            help="folder of the results (default: [run] out)",
        )
        command.add_argument(
            "--plain",
            action="store_true",
            help="print lines instead of a live table, as without a terminal",
        )

    check = commands.add_parser(
        "check",
        help="validate a run file and say what would run",
        description="Validate a run file whole: keys and values, that files exist, ports are free and shapes "
        "fit; one micro-batch is trained on, if this machine has room for it. Starts nothing.",
    )
    check.add_argument("run", metavar="RUN.toml", type=reading.expanded, help="the run file")
    check.add_argument(
        "--no-step", action="store_true", help="do not try a micro-batch, forward and backward"
    )

    plan = commands.add_parser(
        "plan",
        help="say what a run will need and how fast it can be",
        description="Parameters, memory of each process, bytes and seconds of each transfer, disk, and the share of "
        "the time in which workers compute; what cannot work, and what would. From the model's shape alone: starts "
        "nothing. Exit code 0: nothing is impossible, 1: something is.",
    )
    plan.add_argument("run", metavar="RUN.toml", type=reading.expanded, help="the run file")
    plan.add_argument("--json", action="store_true", help="one JSON object instead of tables")
    plan.add_argument(
        "--step-seconds",
        type=_positive,
        metavar="S",
        help="measured time of a local step of the fastest worker (default: from --gpu and --mfu)",
    )
    plan.add_argument(
        "--gpu",
        metavar="NAME",
        help="what workers compute on, such as H100 (default: what is here)",
    )
    plan.add_argument(
        "--gpus", type=_count, default=0, metavar="N", help="GPUs of each host (default: enough)"
    )
    plan.add_argument(
        "--mfu",
        type=_share,
        metavar="SHARE",
        help="share of the GPU's peak that training uses (default 0.4, an assumption)",
    )
    plan.add_argument(
        "--host-memory",
        type=_positive,
        metavar="GB",
        help="memory of each host (default: of this machine, if all nodes are here)",
    )

    audit = commands.add_parser(
        "audit",
        help="prove that nothing was lost or applied twice",
        description="Read the histories of a run's servers, which name every update, and prove that each range of "
        "samples was applied once, or name the exceptions. Exit code 0: clean, 1: exceptions.",
    )
    audit.add_argument(
        "out", metavar="DIR", type=reading.expanded, help="folder of the run's results"
    )

    export = commands.add_parser(
        "export",
        help="write the model of a run that goes on, or that ended before its time",
        description="Write model/ as the evaluator does, from the newest state that the run's GPS has kept, while "
        "it runs or when it is gone; global.safetensors where the model cannot be built. On the GPS's host.",
    )
    export.add_argument(
        "source",
        metavar="RUN",
        type=reading.expanded,
        help="folder of the run's results, or of its GPS's state",
    )
    export.add_argument(
        "--out",
        metavar="DIR",
        type=reading.expanded,
        help="where to (default: the results' folder)",
    )
    export.add_argument(
        "--run",
        metavar="RUN.toml",
        type=reading.expanded,
        help="a run file that says where model and corpus are, if not where the GPS found them",
    )
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit code. An error that a user can mend is one line on stderr."""
    children.leave_working_folder()
    return ended(_run(parser().parse_args(arguments)))


def _run(options: argparse.Namespace) -> int:
    try:
        if options.command == "audit":
            from pelago.cli.audit import audit

            return audit(Path(options.out))
        if options.command == "export":
            _require_state(Path(options.source))
            flag = options.out
            out = None if flag is None else reading.require_expanded(flag, "--out")
            if out is not None:
                reading.require_folder(out)
            from pelago.cli.export import export

            return export(Path(options.source), out, options.run)
        from pelago.config import run_toml

        run = run_toml.load(options.run)
        if options.command == "plan":
            return _plan(run, options)
        if options.command == "check":
            from pelago.cli.check import check

            return check(run, step=not options.no_step)
        from pelago.cli.local.command import local, resume

        out = reading.require_expanded(options.out, "--out") if options.out else run.out
        reading.require_folder(out)
        live = sys.stdout.isatty() and not options.plain
        if options.command == "resume":
            return resume(run, out, options.source or str(out), live=live)
        return local(run, out, overwrite=options.overwrite, live=live)
    except PelagoError as error:
        say(f"pelago: {one_line(error)}", sys.stderr)
        return EXIT_USER
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED


def _plan(run: "RunFile", options: argparse.Namespace) -> int:
    from pelago.cli.plan.command import plan
    from pelago.cli.plan.facts import gpu_named
    from pelago.cli.plan.forecast import Assumptions

    assumed = Assumptions(
        step_seconds=options.step_seconds,
        gpu=None if options.gpu is None else gpu_named(options.gpu),
        gpus=options.gpus,
        mfu=options.mfu,
        host_bytes=None if options.host_memory is None else round(options.host_memory * 1e9),
    )
    return plan(run, assumed, as_json=options.json)


def _positive(text: str) -> float:
    """A number above 0. Raises `argparse.ArgumentTypeError`."""
    try:
        found = float(text)
    except ValueError:
        found = math.nan
    if not 0 < found < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r}: must be a number above 0")
    return found


def _share(text: str) -> float:
    """A number above 0 and at most 1. Raises `argparse.ArgumentTypeError`."""
    found = _positive(text)
    if found > 1:
        raise argparse.ArgumentTypeError(f"{text!r}: must be at most 1")
    return found


def _count(text: str) -> int:
    """A whole number above 0. Raises `argparse.ArgumentTypeError`."""
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r}: must be a whole number above 0")
    return int(text)


def _require_state(source: Path) -> None:
    """Raises `ConfigError` unless a folder has a GPS's state, or is one. Cheap: to read the state takes seconds."""
    if not source.is_dir():
        raise ConfigError(f"{source}: no such folder")
    for state in (source / "gps" / "state", source):
        if any(state.glob("journal-*")) or any(state.glob("snapshot-*")):
            return
    raise ConfigError(
        f"{source}: holds no state of a GPS: name a folder of results or of state, of a run whose"
        " gps.durability is not 'none', on the GPS's host"
    )


if __name__ == "__main__":
    sys.exit(main())
