"""`experiments list | replay | report`: the command line of the virtual clock."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pelago import children
from pelago.core.errors import ConfigError, PelagoError
from pelago.net.command import ended
from pelago.net.telemetry import say
from pelago.reading import expanded

if TYPE_CHECKING:
    from pelago.config.run_file import RunFile


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(
        prog="experiments",
        description="Replays training runs under a virtual clock, on the daemons' own machines.",
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_parser("list", help="name the experiments that come with Pelago, a line for each")
    _add_replay(commands.add_parser("replay", help="replay one run file, or all runs of a study"))
    report = commands.add_parser(
        "report",
        help="make one page of figures, tables and plots",
        description="Makes one self-contained HTML page of any number of folders that `experiments "
        "replay` (runs and studies) or a GPS (runs) wrote.",
    )
    report.add_argument(
        "folders",
        metavar="DIR",
        nargs="+",
        type=expanded,
        help="folder of a run or of a study",
    )
    report.add_argument(
        "--out",
        metavar="FILE",
        type=expanded,
        help="the page (default: DIR/report.html, or report.html for several folders)",
    )
    report.add_argument(
        "--png",
        metavar="DIR",
        type=expanded,
        help="also write each plot into a folder, as PNG",
    )
    return top


def _add_replay(command: argparse.ArgumentParser) -> None:
    command.description = (
        "Replays a run file that has a [simulation] table and writes run.toml (every key spelled "
        "out), result.json, arrivals.csv (a row per update of the GPS) and staleness.csv. Or "
        "replays all runs of a study file, on all cores, and writes runs/, table.csv and "
        "report.html; what an earlier, interrupted time finished is not done again."
    )
    command.add_argument(
        "file",
        metavar="NAME|FILE",
        type=expanded,
        help="a run file or a study, or the name of a shipped one",
    )
    command.add_argument(
        "--out",
        metavar="DIR",
        type=expanded,
        help="folder of the results (default: [run] out, or runs/NAME)",
    )
    command.add_argument(
        "--check",
        action="store_true",
        help="assert every invariant after every event (several times slower)",
    )
    command.add_argument(
        "--trace",
        action="store_true",
        help="also print a digest of every event and effect: equal for equal courses (slower; not "
        "of a study)",
    )
    many = command.add_argument_group("for studies")
    many.add_argument(
        "--engine",
        choices=("local", "ray"),
        help="processes of this machine (default), or Ray, of the cluster that RAY_ADDRESS names",
    )
    many.add_argument(
        "--jobs", metavar="N", type=_jobs, help="runs at once on this machine (default: its cores)"
    )
    many.add_argument(
        "--together",
        metavar="N",
        type=_jobs,
        help="runs that share a process and train in one batch, for `lm` on a GPU (default: 1); equal "
        "to runs on their own but for the rounding of sums",
    )
    many.add_argument(
        "--fresh", action="store_true", help="do all runs again, also those that are done"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Console script: 0 if all went well, 1 if a run failed, 2 for what the user got wrong."""
    children.leave_working_folder()
    return ended(_run(parser().parse_args(arguments)))


def _run(options: argparse.Namespace) -> int:
    try:
        if options.command == "list":
            _list()
        elif options.command == "report":
            _report(options)
        else:
            from experiments import catalogue
            from experiments.study import study_file

            path = catalogue.find(options.file)
            return _study(path, options) if study_file.is_study(path) else _replay(path, options)
    except PelagoError as error:
        say(f"experiments: {error}", sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


def _list() -> None:
    from experiments import catalogue

    every = catalogue.catalogue()
    width = max(len(each.name) for each in every)
    for each in every:
        say(f"{each.name:<{width}}  {each.kind:<7}  {each.line}")


def _replay(path: Path, options: argparse.Namespace) -> int:
    from contextlib import nullcontext

    from experiments import replay

    for flag in ("engine", "jobs", "together", "fresh"):
        if getattr(options, flag):
            raise ConfigError(f"--{flag}: {path} is one run; this is for studies")
    run = replay.load(path)
    folder = Path(options.out) if options.out else run.out
    # Before the run, so that it is not run in vain if its results cannot be written.
    replay.prepare(folder)
    _use_one_thread(run)
    bar = None
    if sys.stderr.isatty():
        from experiments.study.progress import RunBar

        bar = RunBar(run)
    with bar.progress if bar is not None else nullcontext():
        replayed = replay.replay(
            run,
            check=options.check,
            trace=options.trace,
            on_progress=bar.on_progress if bar is not None else None,
        )
    replay.write(folder, run, replayed)
    say(replay.summary(replayed))
    say(f"results in {folder}: {', '.join(replay.FILES)}")
    return 0


def _use_one_thread(run: "RunFile") -> None:
    """Compute with one thread, as studies do: sums then have one order, so a run gives the same bytes everywhere."""
    # torch takes as long to import as a whole run without tensors takes.
    if run.simulation is not None and run.simulation.problem != "timing":
        import torch

        torch.set_num_threads(1)


def _study(path: Path, options: argparse.Namespace) -> int:
    from experiments.report import formatting, page, reading
    from experiments.study import engines, ray_engine, study_file
    from experiments.study.plan import StudyPlan
    from experiments.study.progress import watch
    from experiments.study.runner import StudyRunner

    if options.trace:
        raise ConfigError(f"--trace: {path} is a study; this is for one run")
    plan = StudyPlan(study_file.load(path), path)
    jobs = options.jobs or engines.processors()
    if options.engine == "ray":
        if options.together:
            raise ConfigError("--together: runs share a process with --engine local only")
        engine = ray_engine.engine(jobs)
    else:
        engine = engines.local(jobs, options.together or 1)
    out = Path(options.out) if options.out else Path("runs") / plan.study.name
    runner = StudyRunner(plan, out, check=options.check)
    try:
        with watch(plan.study.name) as seen:
            rows = runner.run(engine, seen, fresh=options.fresh)
    except KeyboardInterrupt:
        done = sum(row.measured is not None for row in runner.rows)
        total = len(plan.runs) + plan.confirmations
        say(
            f"experiments: interrupted with {done:,} of {total:,} runs done;"
            " the same command goes on from there",
            sys.stderr,
        )
        return 130
    found = reading.read(out)
    page.write(out / "report.html", [found])
    say(formatting.summary(found))
    say(f"results in {out}: study.toml, table.csv, report.html, runs")
    failed = [row for row in rows if row.error]
    for row in failed:
        say(f"experiments: runs/{row.folder} failed: {row.error}", sys.stderr)
    return 1 if failed else 0


def _report(options: argparse.Namespace) -> None:
    from experiments.report import page, reading

    folders = [Path(each) for each in options.folders]
    default = folders[0] / "report.html" if len(folders) == 1 else Path("report.html")
    out = Path(options.out) if options.out else default
    pictures = Path(options.png) if options.png else None
    written = page.write(out, reading.read_all(folders), pictures)
    say(f"report in {out}")
    for path in written:
        say(str(path))


def _jobs(text: str) -> int:
    if not text.isdigit() or not 1 <= int(text) <= 4096:
        raise argparse.ArgumentTypeError(f"{text!r} must be an integer from 1 to 4096")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
