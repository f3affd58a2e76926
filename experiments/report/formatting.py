"""Figures as columns of text, for the page and for the terminal."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Final

from experiments.report.reading import ReportSection
from experiments.study import compare, table
from experiments.study.compare import Group, Spread, spread
from experiments.study.measure import RunFigures, mean_and_most
from experiments.study.plan import Case
from experiments.study.study_file import Study

NOTHING: Final = "–"
MORE_DECIMALS: Final = 2
"""How many more decimals than usual a deviation gets that would be printed as 0."""


@dataclass(frozen=True, slots=True)
class DisplayUnit:
    """A divisor for figures, and the name of the unit that results."""

    divisor: float
    name: str


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table."""

    head: str
    """A line break in it is one on the page and a space on the terminal."""
    cells: Sequence[str]
    best: int | None = None
    """The row with the best figure, where that makes sense."""

    @property
    def title(self) -> str:
        """The head in one line."""
        return self.head.replace("\n", " ")


def time_unit(most_ms: float) -> DisplayUnit:
    """The unit in which milliseconds up to a maximum read well."""
    if most_ms < 600e3:
        return DisplayUnit(1e3, "s")
    return DisplayUnit(60e3, "min") if most_ms < 600 * 60e3 else DisplayUnit(3600e3, "h")


def byte_unit(most: float) -> DisplayUnit:
    """The unit in which bytes up to a maximum read well."""
    for divisor, name in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB")):
        if most >= divisor or name == "MB":
            return DisplayUnit(divisor, name)
    raise AssertionError


def number(value: float, digits: int = 4) -> str:
    """A figure with a number of significant digits, and at least all digits before its point."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    return f"{value:,.{min(decimals, 12)}f}" if decimals <= 12 else f"{value:.{digits - 1}e}"


def with_spread(found: Spread | None, digits: int = 4) -> str:
    """Mean ± deviation, to the same number of decimals; the mean alone if nothing deviates."""
    if found is None:
        return NOTHING
    mean = number(found.mean, digits)
    # Figures that do not depend on the seed differ by rounding at most.
    if found.deviation <= 1e-12 * abs(found.mean) or "e" in mean:
        return mean
    fewest = len(mean.partition(".")[2])
    wanted = 1 - math.floor(math.log10(found.deviation))
    decimals = min(max(fewest, wanted), fewest + MORE_DECIMALS)
    return f"{found.mean:,.{decimals}f} ± {found.deviation:,.{decimals}f}"


def picks(found: ReportSection) -> list[tuple[str, list[Group]]]:
    """The groups that are compared, under a title: runs, the best of a search, or confirm sets."""
    every = compare.groups(found.rows)
    best = {id(group) for group in compare.best_trials(every).values()}
    titles: dict[str, list[Group]] = {}
    for group in every:
        if group.stage == "search" and id(group) not in best:
            continue
        titles.setdefault(_title(group), []).append(group)
    return list(titles.items())


def _title(group: Group) -> str:
    if group.stage == "run":
        return ""
    if group.stage == "search":
        return "Best of the search"
    return f"Confirmed on fresh seeds{f': {group.set}' if group.set else ''}"


def columns(found: ReportSection, chosen: Sequence[Group]) -> list[Column]:
    """The table of a comparison: for each group its variant and axis values, then its figures over the seeds."""
    study = found.study
    every = compare.groups(found.rows)
    targets = [compare.target(study, every, group) for group in chosen]
    columns = names(study, [group.case for group in chosen])
    columns.append(Column("seeds", [_seeds(group) for group in chosen]))
    losses = [spread(run.final_loss for run in group.runs) for group in chosen]
    if any(losses) or any(run.diverged for group in chosen for run in group.runs):
        columns.append(_losses(chosen, losses))
    values = [spread(run.final_value for run in group.runs) for group in chosen]
    if any(values):
        columns.append(Column("final value", [with_spread(each, 6) for each in values]))
    elapsed = [spread(run.elapsed_ms for run in group.runs) for group in chosen]
    unit = time_unit(max((each.mean for each in elapsed if each), default=0.0))
    scaled = [_scale(each, unit) for each in elapsed]
    columns.append(Column(f"time to\nbudget, {unit.name}", [with_spread(each) for each in scaled]))
    if any(target is not None for target in targets):
        columns += _to_target(study, chosen, targets)
    else:
        columns.append(_ratios(study, chosen, [each.mean if each else None for each in elapsed]))
    return columns + _costs(chosen)


def names(study: Study, cases: Sequence[Case]) -> list[Column]:
    """The columns that name the rows of a table: the variant, then a value per axis."""
    columns = [Column("", [case.variant for case in cases])]
    if len(study.variant) == 1 and study.axis:
        columns = []
    for place, axis in enumerate(study.axis):
        columns.append(Column(axis.title, [axis.name(case.point[place]) for case in cases]))
    return columns


def summary(found: ReportSection) -> str:
    """The tables of a study for a terminal."""
    lines = [found.study.name]
    for title, chosen in picks(found):
        lines += [title] if title else []
        shown = columns(found, chosen)
        widths = [max(len(text) for text in (each.title, *each.cells)) for each in shown]
        for cells in (
            [each.title for each in shown],
            *zip(*(each.cells for each in shown), strict=True),
        ):
            first, *others = zip(cells, widths, strict=True)
            texts = [f"{first[0]:<{first[1]}}", *(f"{text:>{width}}" for text, width in others)]
            lines.append("  ".join(texts).rstrip())
    return "\n".join(lines)


def _seeds(group: Group) -> str:
    done, planned = len(group.runs), len(group.rows)
    return f"{done}" if done == planned else f"{done} of {planned}"


def _losses(chosen: Sequence[Group], losses: Sequence[Spread | None]) -> Column:
    cells = []
    for group, each in zip(chosen, losses, strict=True):
        diverged = sum(run.diverged for run in group.runs)
        said = with_spread(each)
        cells.append(f"{said} ({diverged} diverged)" if diverged else said)
    means = [group.final_loss for group in chosen]
    finite = [mean for mean in means if math.isfinite(mean)]
    best = means.index(min(finite)) if len(finite) > 1 else None
    return Column("final loss", cells, best)


def _to_target(
    study: Study, chosen: Sequence[Group], targets: Sequence[float | None]
) -> list[Column]:
    """When each group reached its target, and how that compares with the first variant."""
    reached = [
        compare.time_to_ms(group.runs, target) if target is not None else None
        for group, target in zip(chosen, targets, strict=True)
    ]
    unit = time_unit(max((each for each in reached if each), default=0.0))
    cells = [
        number(each / unit.divisor)
        if each is not None
        else "never"
        if target and group.runs
        else NOTHING
        for group, target, each in zip(chosen, targets, reached, strict=True)
    ]
    wanted = {f"{target:.4g}" for target in targets if target is not None}
    of = f"loss {wanted.pop()}" if len(wanted) == 1 else "target loss"
    present = [each for each in reached if each is not None]
    best = reached.index(min(present)) if len(present) > 1 else None
    return [
        Column(f"time to\n{of}, {unit.name}", cells, best),
        _ratios(study, chosen, reached),
    ]


def _ratios(study: Study, chosen: Sequence[Group], times: Sequence[float | None]) -> Column:
    """Each time over that of the study's first variant at the same point of the axes."""
    by_case = {group.case: each for group, each in zip(chosen, times, strict=True)}
    first = study.variant[0].name
    # With one variant there is nothing else to compare with than the first point.
    alone = len(study.variant) == 1
    cells = []
    for group in chosen:
        case = chosen[0].case if alone else Case(first, group.case.point)
        mine, theirs = by_case[group.case], by_case.get(case)
        ratio = f"{mine / theirs:.3f} ×" if mine and theirs else NOTHING
        cells.append(ratio)
    name = table.describe(study, chosen[0].case) if alone else first
    return Column(f"relative to\n{name}", cells)


def _costs(chosen: Sequence[Group]) -> list[Column]:
    wan = [spread(float(run.wan_bytes) for run in group.runs) for group in chosen]
    # Of a middling run: methods differ by magnitudes, and thousands read better than thousandths.
    unit = byte_unit(median([each.mean for each in wan if each] or [0.0]))
    found = [
        Column(
            "GPS\nupdates",
            [_mean(group, lambda run: run.gps_updates, "{:,.0f}") for group in chosen],
        ),
        Column(f"WAN,\n{unit.name}", [with_spread(_scale(each, unit)) for each in wan]),
        Column("busy", [_mean(group, lambda run: run.busy_fraction, "{:.1%}") for group in chosen]),
    ]
    if any(run.in_flight_updates for group in chosen for run in group.runs):
        shares = [_mean(group, _in_flight, "{:.0%}") for group in chosen]
        found.append(Column("in\nflight", shares))
    for level in ("gps", "lps"):
        if any(level in run.staleness for group in chosen for run in group.runs):
            cells = [_staleness(group, level) for group in chosen]
            found.append(Column(f"{level.upper()} stale,\nmean (max)", cells))
    return found


def _mean(group: Group, figure: Callable[[RunFigures], float | None], form: str) -> str:
    found = spread(figure(run) for run in group.runs)
    return form.format(found.mean) if found is not None else NOTHING


def _in_flight(run: RunFigures) -> float | None:
    """Share of the LPSs' updates that were applied while an exchange was under way."""
    return run.in_flight_updates / run.lps_updates if run.lps_updates else None


def _staleness(group: Group, level: str) -> str:
    together: dict[int, int] = {}
    for run in group.runs:
        for behind, count in run.staleness.get(level, {}).items():
            together[behind] = together.get(behind, 0) + count
    found = mean_and_most(together)
    return f"{found[0]:.2f} ({found[1]})" if found is not None else NOTHING


def _scale(found: Spread | None, unit: DisplayUnit) -> Spread | None:
    if found is None:
        return None
    return Spread(found.mean / unit.divisor, found.deviation / unit.divisor, found.count)
