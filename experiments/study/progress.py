"""Shows the progress of experiments: a bar on a terminal, lines elsewhere; always on stderr."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from experiments.study.measure import RunFigures
from pelago.config.run_file import RunFile
from pelago.net.telemetry import say

SPEED_OVER_S: Final = 3600.0
"""Runs may take minutes each: the time that is left is judged by the last hour, not by half a minute."""


class Watch(Protocol):
    """Shows the progress of a study."""

    def begin(self, total: int) -> None:
        """The total number of runs, including those that were done earlier."""
        ...

    def finished(self, run: str, measured: RunFigures | None, error: str, *, now: bool) -> None:
        """A run is done or failed; ``now``: it just ended; otherwise it was done earlier."""
        ...


@contextmanager
def watch(name: str) -> Iterator[Watch]:
    """A bar if stderr is a terminal, a line per run if not."""
    if not sys.stderr.isatty():
        yield _Lines()
        return
    bar = _StudyBar(name)
    with bar.progress:
        yield bar


class _Lines:
    def __init__(self) -> None:
        self._total = 0
        self._done = 0
        self._resumed = 0

    def begin(self, total: int) -> None:
        self._total = total

    def finished(self, run: str, measured: RunFigures | None, error: str, *, now: bool) -> None:
        self._done += 1
        if not now:
            self._resumed += 1
            return
        if self._resumed:
            say(f"{self._resumed:,} runs were done already", sys.stderr)
            self._resumed = 0
        said = f"failed: {error}" if measured is None else _outcome(measured)
        say(f"[{self._done}/{self._total}] {run}: {said}", sys.stderr)


class _StudyBar:
    def __init__(self, name: str) -> None:
        self.progress = Progress(
            TextColumn(name, markup=False),
            BarColumn(),
            TextColumn("{task.completed:,.0f} of {task.total:,.0f} runs{task.fields[best]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
            speed_estimate_period=SPEED_OVER_S,
        )
        self._task = self.progress.add_task("", total=0, best="")
        self._best = float("inf")
        self._resumed = 0

    def begin(self, total: int) -> None:
        self.progress.update(self._task, total=total)

    def finished(self, run: str, measured: RunFigures | None, error: str, *, now: bool) -> None:
        if now:
            self.progress.advance(self._task)
        else:
            # Not advanced: runs that were done earlier say nothing about the speed now.
            self._resumed += 1
            self.progress.reset(self._task, completed=self._resumed)
        if measured is None:
            self.progress.console.print(f"{run} failed: {error}", markup=False, highlight=False)
        elif measured.final_loss is not None and measured.final_loss < self._best:
            self._best = measured.final_loss
            self.progress.update(self._task, best=f", best loss {self._best:.4f}")


def _outcome(measured: RunFigures) -> str:
    seconds = f"{measured.counted_steps:,} steps in {measured.elapsed_ms / 1e3:,.1f} s"
    if measured.diverged:
        return f"diverged, {seconds}"
    if measured.final_loss is None:
        return seconds
    return f"loss {measured.final_loss:.4f}, {seconds}"


class RunBar:
    """Counted local steps of the budget, while one run is replayed."""

    def __init__(self, run: RunFile) -> None:
        self.progress = Progress(
            TextColumn(run.run.name, markup=False),
            BarColumn(),
            TextColumn("{task.completed:,.0f} of {task.total:,.0f} local steps{task.fields[loss]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
            speed_estimate_period=SPEED_OVER_S,
        )
        self._task = self.progress.add_task("", total=run.run.budget_local_steps, loss="")

    def on_progress(self, counted_steps: int, loss: float | None) -> None:
        """Called for every update of the GPS."""
        said = f", loss {loss:.4f}" if loss is not None else ""
        self.progress.update(self._task, completed=counted_steps, loss=said)
