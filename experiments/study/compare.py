"""Compares runs: groups them over seeds, finds the best trials, and the targets."""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from experiments.study.measure import RunFigures
from experiments.study.plan import Case, Stage
from experiments.study.study_file import Study


@dataclass(frozen=True, slots=True)
class RunRow:
    """A run of a study and its result."""

    folder: str
    """Its name below runs/."""
    stage: Stage
    case: Case
    set: str
    trial: int | None
    drawn: Mapping[str, Any]
    seed: int
    measured: RunFigures | None = None
    """None: it failed, or has not run."""
    error: str = ""


@dataclass(slots=True)
class Group:
    """The runs that differ by their seed only."""

    stage: Stage
    set: str
    case: Case
    trial: int | None
    rows: list[RunRow] = field(default_factory=list)

    @property
    def runs(self) -> list[RunFigures]:
        """The runs that finished."""
        return [row.measured for row in self.rows if row.measured is not None]

    @property
    def final_loss(self) -> float:
        """Mean over the seeds; infinite if a run failed or diverged, NaN if nothing was validated."""
        if len(self.runs) < len(self.rows) or any(run.diverged for run in self.runs):
            return math.inf
        losses = [run.final_loss for run in self.runs]
        found = [loss for loss in losses if loss is not None]
        return statistics.fmean(found) if len(found) == len(losses) and found else math.nan


@dataclass(frozen=True, slots=True)
class Spread:
    """A figure over the seeds."""

    mean: float
    deviation: float
    """Standard deviation of the sample; 0 for one value."""
    count: int


def spread(values: Iterable[float | None]) -> Spread | None:
    """Mean and deviation of the values that are not None; None if there are none."""
    found = [value for value in values if value is not None]
    if not found:
        return None
    deviation = statistics.stdev(found) if len(found) > 1 else 0.0
    return Spread(statistics.fmean(found), deviation, len(found))


def groups(rows: Iterable[RunRow]) -> list[Group]:
    """Rows by all but their seed, in the order of their first row."""
    found: dict[tuple[object, ...], Group] = {}
    for row in rows:
        key = (row.stage, row.set, row.case, row.trial)
        group = found.setdefault(key, Group(row.stage, row.set, row.case, row.trial))
        group.rows.append(row)
    return list(found.values())


def best_trials(every: Sequence[Group]) -> dict[Case, Group]:
    """For each case that was searched the trial with the lowest mean final loss, the first of equals.

    A trial of which a run failed or diverged is no candidate, whatever its other seeds' losses.
    """
    found: dict[Case, Group] = {}
    for group in every:
        if group.stage != "search" or not math.isfinite(group.final_loss):
            continue
        if group.case not in found or group.final_loss < found[group.case].final_loss:
            found[group.case] = group
    return found


def mean_curve(runs: Sequence[RunFigures]) -> list[tuple[float, float]]:
    """(elapsed ms, mean loss over the runs), at every time at which one of them validated.

    Seeds validate at different times: between its validations a run's loss lies on straight lines,
    after the last one it stays. Empty if a run never validated, or diverged on the way.
    """
    if not runs or not all(run.validation for run in runs):
        return []
    start = max(run.validation[0].elapsed_ms for run in runs)
    every = {point.elapsed_ms for run in runs for point in run.validation}
    times = sorted(at for at in every if at >= start)
    columns = []
    for run in runs:
        losses = [point.loss for point in run.validation if point.loss is not None]
        if len(losses) < len(run.validation):
            return []
        columns.append(np.interp(times, [point.elapsed_ms for point in run.validation], losses))
    return list(zip(times, np.mean(columns, axis=0).tolist(), strict=True))


def time_to_ms(runs: Sequence[RunFigures], target: float) -> float | None:
    """When the mean loss over the runs first reached a target; None: never.

    Of the mean and not the mean of the times: the seeds of a variant whose mean final loss is the
    target do not all reach it, their mean does.
    """
    before: tuple[float, float] | None = None
    for at, loss in mean_curve(runs):
        # The last point is the mean final loss, but summed in another order.
        if loss <= target * (1 + 1e-12):
            if before is None or before[1] <= loss or loss >= target:
                return at
            return before[0] + (before[1] - target) / (before[1] - loss) * (at - before[0])
        before = (at, loss)
    return None


def target(study: Study, every: Sequence[Group], group: Group) -> float | None:
    """The loss whose time is asked for in a group; None if there is none.

    With `targets_from` it is that variant's mean final loss at the same point of the axes, in the same
    confirm set; in a search that of its best trial.
    """
    if study.target_loss:
        return study.target_loss
    if not study.targets_from:
        return None
    wanted = Case(study.targets_from, group.case.point)
    if group.stage == "search":
        best = best_trials(every).get(wanted)
        return best.final_loss if best is not None else None
    for each in every:
        if each.case == wanted and (each.stage, each.set) == (group.stage, group.set):
            return each.final_loss if math.isfinite(each.final_loss) else None
    return None
