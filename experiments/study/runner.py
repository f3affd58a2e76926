"""Runs a study: starts what is missing, writes what finishes, confirms the best, sums up.

    OUT/study.toml    the study, with base.toml beside it: both resolved, so that they can be replayed
    OUT/runs/NNNN-DIGEST/   a folder per run, as `experiments replay` writes it; error.txt if it failed
    OUT/table.csv     a row per run
    OUT/report.html   one page

A run's folder appears whole or not at all, so a study that was interrupted at any moment goes on where
it stopped. A study that was changed keeps the runs that it still asks for, at their new places.
"""

import fcntl
import shutil
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Final

from experiments import replay
from experiments.study import compare, table
from experiments.study import study_file as studies
from experiments.study.compare import RunRow
from experiments.study.engines import Engine, Finished, Task
from experiments.study.measure import measure
from experiments.study.plan import Planned, StudyPlan
from experiments.study.progress import Watch
from pelago.config import run_toml
from pelago.core.errors import CheckpointError, ConfigError

PARTIAL: Final = ".part-"


class StudyRunner:
    """A study and its folder."""

    def __init__(self, plan: StudyPlan, out: Path, *, check: bool = False) -> None:
        """Make the folder. ``check``: assert every invariant in every run. Raises `ConfigError`."""
        self.plan = plan
        self.out = out
        self._check = check
        self._rows: dict[str, RunRow] = {}
        """The runs by folder, in the order of the plan."""
        replay.prepare(out / "runs")
        with _writing(out):
            base = plan.study.model_copy(update={"base": "base.toml"})
            (out / "base.toml").write_text(run_toml.dump(plan.base), encoding="utf-8")
            (out / "study.toml").write_text(studies.dump(base), encoding="utf-8")

    @property
    def rows(self) -> list[RunRow]:
        """All runs known so far, in the order of the plan."""
        return list(self._rows.values())

    def run(self, engine: Engine, watch: Watch, *, fresh: bool = False) -> list[RunRow]:
        """Do all runs that are not done, or all runs. The table is written in any case."""
        with _alone(self.out):
            if fresh:
                self._forget()
            return self._run(engine, watch)

    def _run(self, engine: Engine, watch: Watch) -> list[RunRow]:
        watch.begin(len(self.plan.runs) + self.plan.confirmations)
        self._tidy()
        try:
            self._stage(self.plan.runs, engine, watch)
            if self.plan.confirmations:
                best = compare.best_trials(compare.groups(self.rows))
                trials = {
                    case: group.trial for case, group in best.items() if group.trial is not None
                }
                self._stage(self.plan.confirm(trials), engine, watch)
        finally:
            table.write(self.out / "table.csv", self.plan.study, self.rows)
        return self.rows

    def _stage(self, runs: Sequence[Planned], engine: Engine, watch: Watch) -> None:
        self._adopt(runs)
        missing: dict[str, Planned] = {}
        for run in runs:
            row = _row(run)
            if self._is_done(run):
                row = replace(row, measured=measure(self.out / "runs" / run.folder))
                watch.finished(self._describe(row), row.measured, "", now=False)
            else:
                missing[run.folder] = run
            self._rows[run.folder] = row
        # A study that is killed leaves a table, from which a report of the finished runs can be made.
        table.write(self.out / "table.csv", self.plan.study, self.rows)
        tasks = [Task(name, run.text, self._check) for name, run in missing.items()]
        if not tasks:
            return
        with closing(engine(tasks)) as results:
            for finished in results:
                self._take(missing[finished.name], finished, watch)

    def _take(self, run: Planned, finished: Finished, watch: Watch) -> None:
        folder = self.out / "runs" / run.folder
        files = dict(finished.files)
        if finished.error:
            story = f"\n{finished.story}" if finished.story else ""
            files = {"run.toml": run.text, "error.txt": f"{finished.error}\n{story}"}
        with _writing(self.out):
            _write_whole(folder, files)
        row = replace(
            self._rows[run.folder],
            measured=None if finished.error else measure(folder),
            error=finished.error,
        )
        self._rows[run.folder] = row
        watch.finished(self._describe(row), row.measured, row.error, now=True)

    def _forget(self) -> None:
        with _writing(self.out):
            shutil.rmtree(self.out / "runs")
            (self.out / "runs").mkdir()

    def _tidy(self) -> None:
        with _writing(self.out):
            for left in (self.out / "runs").glob(f"{PARTIAL}*"):
                shutil.rmtree(left)

    def _adopt(self, runs: Sequence[Planned]) -> None:
        """Move finished runs of an earlier plan to where this plan has the same run."""
        folder = self.out / "runs"
        wanted = {run.folder for run in (*self.plan.runs, *runs)}
        spare: dict[str, Path] = {}
        for path in sorted(folder.iterdir()):
            if path.name not in wanted and (path / "result.json").is_file():
                spare[path.name.rpartition("-")[2]] = path
        with _writing(self.out):
            for run in runs:
                if run.digest in spare and not (folder / run.folder).exists():
                    spare.pop(run.digest).rename(folder / run.folder)

    def _is_done(self, run: Planned) -> bool:
        folder = self.out / "runs" / run.folder
        try:
            if (folder / "run.toml").read_text(encoding="utf-8") != run.text:
                return False
            measure(folder)
        except (OSError, UnicodeDecodeError, CheckpointError):
            return False
        return True

    def _describe(self, row: RunRow) -> str:
        parts = [table.describe(self.plan.study, row.case)]
        parts += [f"trial {row.trial}"] if row.trial is not None else []
        parts += [row.set] if row.set else []
        return ", ".join([*parts, f"seed {row.seed}"])


def _row(run: Planned) -> RunRow:
    return RunRow(run.folder, run.stage, run.case, run.set, run.trial, run.drawn, run.seed)


def _write_whole(folder: Path, files: dict[str, str]) -> None:
    """Write beside, then rename: a folder that exists is complete."""
    partial = folder.parent / f"{PARTIAL}{folder.name}"
    partial.mkdir()
    for name, text in files.items():
        (partial / name).write_text(text, encoding="utf-8")
    if folder.exists():
        shutil.rmtree(folder)
    partial.rename(folder)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Two processes in one folder would remove each other's unfinished runs; the lock ends with its process."""
    with _writing(folder), (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(f"{folder}: another process runs a study there") from None
        yield


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ConfigError(f"cannot write results to {folder}: {error}") from None
