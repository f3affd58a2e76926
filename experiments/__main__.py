"""`experiments list | replay`: the command line of the virtual clock."""

import argparse
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from convergence.cluster import Arrival
from experiments import replay, shipped
from pelago.config import RunFile
from pelago.core.errors import PelagoError


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(
        prog="experiments",
        description="Replays training runs under a virtual clock, on the daemons' own machines.",
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_parser("list", help="name the experiments that come with Pelago, a line for each")
    one = commands.add_parser(
        "replay",
        help="replay one run file",
        description="Replays a run file that has a [simulation] table and writes run.toml (every "
        "key spelled out), result.json and arrivals.csv (a row per update of the GPS).",
    )
    one.add_argument(
        "file", metavar="NAME|FILE", help="a run file, or the name of a shipped experiment"
    )
    one.add_argument(
        "--out", metavar="DIR", help="folder of the results (default: [run] out, or runs/NAME)"
    )
    one.add_argument(
        "--check",
        action="store_true",
        help="assert every invariant after every event (several times slower)",
    )
    one.add_argument(
        "--trace",
        action="store_true",
        help="also print a digest of every event and effect: equal for equal courses (slower)",
    )
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Console script: 0 if all went well, 2 for what the user got wrong."""
    options = parser().parse_args(arguments)
    try:
        if options.command == "list":
            width = max(len(name) for name, _ in shipped.catalogue())
            for name, line in shipped.catalogue():
                print(f"{name:<{width}}  {line}")
        else:
            _replay(options)
    except PelagoError as error:
        print(f"experiments: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


def _replay(options: argparse.Namespace) -> None:
    path = shipped.find(options.file)
    run = replay.load(path)
    folder = Path(options.out) if options.out else run.out
    # Before the run: nobody wants to learn after it that there is no place for its results.
    replay.prepare(folder)
    bar = _Bar(run) if sys.stderr.isatty() else None
    with bar.progress if bar is not None else nullcontext():
        replayed = replay.replay(
            run,
            check=options.check,
            trace=options.trace,
            on_arrival=bar.on_arrival if bar is not None else None,
        )
    replay.write(folder, run, replayed)
    print(replay.summary(replayed))
    print(f"results in {folder}: run.toml, result.json, arrivals.csv")


class _Bar:
    """Counted local steps of the budget, while it runs; on stderr, so that stdout stays plain."""

    def __init__(self, run: RunFile) -> None:
        self.progress = Progress(
            TextColumn(run.run.name, markup=False),
            BarColumn(),
            TextColumn("{task.completed:,.0f} of {task.total:,.0f} local steps"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        self._task = self.progress.add_task("", total=run.run.budget_local_steps)

    def on_arrival(self, arrival: Arrival) -> None:
        self.progress.update(self._task, completed=arrival.cumulative_steps)


if __name__ == "__main__":
    sys.exit(main())
