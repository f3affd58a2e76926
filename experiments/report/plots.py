"""The plots of a comparison, as figures that draw nothing until they are saved."""

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

import numpy as np

from experiments.report.canvas import (
    COLOURS,
    DASHES,
    Colour,
    Plot,
    figure,
    legend,
    line,
    logarithmic,
    width,
)
from experiments.report.formatting import DisplayUnit, number, time_unit
from experiments.report.reading import ReportSection
from experiments.study import compare, table
from experiments.study.compare import Group, spread
from experiments.study.measure import RunFigures

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PANELS_MAX: Final = 12
LINES_MAX: Final = 16
BARS_MAX: Final = 48
HISTOGRAMS_MAX: Final = 6
GRID: Final = 200
ENDS_LINEAR_MAX: Final = 8.0
"""Runs of one plot that last longer than others by more than this go on a logarithmic axis of time."""
"""Times at which curves of different seeds are averaged."""


def plots(found: ReportSection, chosen: Sequence[Group]) -> list[Plot]:
    """All plots of a comparison that its runs have figures for."""
    made = [losses(found, chosen), times(found, chosen)]
    made += [along(found, chosen, place) for place in range(len(found.study.axis))]
    made.append(staleness(found, chosen))
    return [each for each in made if each is not None]


def losses(found: ReportSection, chosen: Sequence[Group]) -> Plot | None:
    """Held-out loss over time or steps, a line per variant, a panel per point of the axes."""
    chosen = [group for group in chosen if any(_curve(found, run)[0] for run in group.runs)]
    if not chosen:
        return None
    study = found.study
    panels: dict[tuple[int, ...], list[Group]] = {}
    for group in chosen:
        # One variant is best compared with itself, at the other points, in one panel.
        panels.setdefault(group.case.point if len(study.variant) > 1 else (), []).append(group)
    shown = list(panels.items())[:PANELS_MAX]
    columns = min(3, len(shown))
    rows = math.ceil(len(shown) / columns)
    made, axes = figure(4.6 if rows == 1 else 3.1 * rows, rows, columns, sharey=True)
    most = max(
        run.validation[-1].elapsed_ms for group in chosen for run in group.runs if run.validation
    )
    unit = time_unit(most) if study.x == "time" else DisplayUnit(1.0, "")
    for panel, (point, groups) in zip(axes, shown, strict=False):
        for place, group in enumerate(groups[:LINES_MAX]):
            _draw_curve(panel, found, group, unit, place, len(groups), bool(point))
        _draw_targets(panel, found, groups)
        if len(shown) > 1:
            panel.set_title(_point(found, point))
    x = f"virtual time, {unit.name}" if study.x == "time" else "counted local steps"
    ends = [
        curve[0][-1] for group in chosen for run in group.runs if (curve := _curve(found, run))[0]
    ]
    if min(ends) > 0 and max(ends) > ENDS_LINEAR_MAX * min(ends):
        for panel in axes[: len(shown)]:
            _stretch(panel)
    for panel in axes[len(shown) :]:
        panel.remove()
    for place, panel in enumerate(axes[: len(shown)]):
        panel.set_xlabel(x)
        if place % columns == 0:
            panel.set_ylabel(found.loss)
    _scale_losses(
        axes[0], [each for group in chosen for run in group.runs for each in _curve(found, run)[1]]
    )
    legend(made, axes[: len(shown)])
    seeds = max(len(group.rows) for group in chosen)
    band = "; the line is the mean over seeds, the band goes from the lowest to the highest"
    left_out = (
        f"; the first {len(shown)} of {len(panels)} points" if len(panels) > len(shown) else ""
    )
    said = f"{found.loss.partition(',')[0].capitalize()} of the global model over {x.partition(',')[0]}"
    return Plot("loss", f"{said}{band if seeds > 1 else ''}{left_out}.", made)


def times(found: ReportSection, chosen: Sequence[Group]) -> Plot | None:
    """Bars: virtual time to the budget, and to the target loss where there is one."""
    all_of_them = [group for group in chosen if group.runs]
    chosen = all_of_them[:BARS_MAX]
    if len(chosen) < 2:
        return None
    every = compare.groups(found.rows)
    bars: list[tuple[str, list[float | None]]] = [
        ("time to the budget", [_mean(group, lambda run: run.elapsed_ms) for group in chosen])
    ]
    targets = [compare.target(found.study, every, group) for group in chosen]
    if any(target is not None for target in targets):
        bars.append(
            ("time to the target loss", [_reached(found, every, group) for group in chosen])
        )
    made, axes = figure(1.3 + 0.36 * len(chosen), 1, len(bars), sharey=True)
    labels = [table.describe(found.study, group.case) for group in chosen]
    colours = [line(found, group, place, len(chosen))[0] for place, group in enumerate(chosen)]
    for panel, (title, values) in zip(axes, bars, strict=True):
        _draw_bars(panel, values, colours)
        panel.set_title(title)
    axes[0].set_yticks(range(len(labels)), labels)
    axes[0].invert_yaxis()
    left_out = (
        f"; the first {BARS_MAX} of {len(all_of_them)}" if len(all_of_them) > BARS_MAX else ""
    )
    return Plot("times", f"Virtual time, mean over seeds{left_out}.", made)


def along(found: ReportSection, chosen: Sequence[Group], place: int) -> Plot | None:
    """Lines along one axis: final loss and times, a line per variant and point of the other axes."""
    axis = found.study.axis[place]
    if len(axis.values) < 2:
        return None
    every = compare.groups(found.rows)
    figures: list[tuple[str, Callable[[Group], list[float | None]]]] = [
        (f"final {found.loss}", lambda group: [run.final_loss for run in group.runs]),
    ]
    if any(compare.target(found.study, every, group) is not None for group in chosen):
        figures.append(("time to the target loss", lambda group: [_reached(found, every, group)]))
    figures.append(("time to the budget", lambda group: [run.elapsed_ms for run in group.runs]))
    figures = [
        each for each in figures if any(spread(each[1](group)) is not None for group in chosen)
    ]
    if not figures:
        return None
    lines: dict[tuple[str, tuple[int, ...]], list[Group]] = {}
    for group in chosen:
        others = (*group.case.point[:place], *group.case.point[place + 1 :])
        lines.setdefault((group.case.variant, others), []).append(group)
    made, axes = figure(3.9, 1, len(figures))
    positions, decades = _positions(axis.values)
    for panel, (title, read) in zip(axes, figures, strict=True):
        _draw_along(panel, found, list(lines.items())[:LINES_MAX], place, positions, read, title)
        if decades:
            panel.set_xscale("log")
        panel.set_xticks(
            positions, [axis.name(each) for each in range(len(positions))], minor=False
        )
        panel.minorticks_off()
        panel.set_xlabel(axis.title)
    if len(lines) > 1:
        legend(made, axes)
    name = f"along-{place + 1}"
    return Plot(name, f"Along {axis.title}; bars show the deviation over seeds.", made)


def staleness(found: ReportSection, chosen: Sequence[Group]) -> Plot | None:
    """Histograms: how many versions old the model was that an update is based on."""
    levels = [
        level
        for level in ("gps", "lps")
        if any(run.staleness.get(level) for group in chosen for run in group.runs)
    ]
    if not levels:
        return None
    from matplotlib.ticker import MaxNLocator

    named = _histograms(found, chosen)
    made, axes = figure(3.7, 1, len(levels))
    for panel, level in zip(axes, levels, strict=True):
        for place, (name, groups) in enumerate(named.items()):
            _draw_histogram(panel, name, groups, level, place, len(named))
        panel.set_title(f"at the {level.upper()}")
        panel.set_xlabel("versions behind")
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes[0].set_ylabel("share of updates, %")
    legend(made, axes)
    return Plot(
        "staleness",
        "Versions applied between the model an update is based on and the update.",
        made,
    )


def _curve(found: ReportSection, run: RunFigures) -> tuple[list[float], list[float]]:
    points = [point for point in run.validation if point.loss is not None]
    if found.study.x == "steps":
        return [float(point.counted_steps) for point in points], [
            point.loss or 0.0 for point in points
        ]
    return [point.elapsed_ms for point in points], [point.loss or 0.0 for point in points]


def _draw_curve(
    panel: "Axes",
    found: ReportSection,
    group: Group,
    unit: DisplayUnit,
    place: int,
    lines: int,
    by_point: bool,
) -> None:
    curves = [curve for run in group.runs if (curve := _curve(found, run))[0]]
    if not curves:
        return
    colour, dash = line(found, group, place, lines)
    label = group.case.variant if by_point else table.describe(found.study, group.case)
    if len(curves) == 1:
        x, y = (np.asarray(each) for each in curves[0])
    else:
        # Seeds validate at different times, so their curves meet on a grid where all of them have one.
        low, high = max(each[0][0] for each in curves), min(each[0][-1] for each in curves)
        x = np.linspace(low, high, GRID)
        every = np.stack([np.interp(x, *curve) for curve in curves])
        y = every.mean(axis=0)
        panel.fill_between(
            x / unit.divisor, every.min(axis=0), every.max(axis=0), color=colour, alpha=0.18, lw=0
        )
    panel.plot(x / unit.divisor, y, dash, color=colour, lw=width(place, lines), label=label)


def _draw_targets(panel: "Axes", found: ReportSection, groups: Sequence[Group]) -> None:
    every = compare.groups(found.rows)
    targets = {compare.target(found.study, every, group) for group in groups} - {None}
    for target in sorted(target for target in targets if target is not None):
        panel.axhline(target, color="#777777", lw=1, ls=(0, (4, 3)), zorder=1)
        panel.annotate(
            f"target {target:.3f}",
            (1, target),
            xycoords=("axes fraction", "data"),
            xytext=(-2, 3),
            textcoords="offset points",
            ha="right",
            fontsize=9,
            color="#555555",
            bbox={"boxstyle": "square,pad=0.1", "fc": "white", "ec": "none", "alpha": 0.7},
        )


def _stretch(panel: "Axes") -> None:
    """A logarithmic axis of time, from the first validation after the start on."""
    for each in panel.get_lines():
        x, y = (np.asarray(values, dtype=float) for values in each.get_data())
        # A target is a line of two points, in other coordinates.
        if len(x) > 2:
            each.set_data(x[x > 0], y[x > 0])
    panel.relim()
    panel.autoscale_view()
    logarithmic(panel.xaxis)


def _scale_losses(panel: "Axes", values: Sequence[float]) -> None:
    # Losses of toy problems fall through many magnitudes, those of language models through one.
    if values and min(values) > 0 and max(values) / min(values) > 30:
        logarithmic(panel.yaxis)


def _draw_bars(panel: "Axes", values: Sequence[float | None], colours: Sequence[Colour]) -> None:
    present = [value for value in values if value is not None]
    unit = time_unit(max(present, default=0.0))
    shown = [(value or 0.0) / unit.divisor for value in values]
    panel.barh(range(len(shown)), shown, color=list(colours), height=0.66)
    if present and max(present) > 30 * min(present) > 0:
        logarithmic(panel.xaxis)
    for place, value in enumerate(values):
        text = "never" if value is None else number(value / unit.divisor)
        panel.annotate(
            text,
            (shown[place] if value is not None else panel.get_xlim()[0], place),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=9.5,
            color="#333333",
        )
    panel.margins(x=0.16)
    panel.grid(visible=False, axis="y")
    panel.tick_params(axis="y", length=0)
    panel.set_xlabel(unit.name)


def _positions(values: Sequence[object]) -> tuple[list[float], bool]:
    """Where the values of an axis stand, and whether on a logarithmic scale."""
    numbers = [
        float(value)
        for value in values
        if isinstance(value, int | float) and not isinstance(value, bool)
    ]
    if len(numbers) < len(values):
        return [float(place) for place in range(len(values))], False
    return numbers, min(numbers) > 0 and max(numbers) >= 8 * min(numbers)


def _draw_along(
    panel: "Axes",
    found: ReportSection,
    lines: Sequence[tuple[tuple[str, tuple[int, ...]], Sequence[Group]]],
    place: int,
    positions: Sequence[float],
    read: Callable[[Group], list[float | None]],
    title: str,
) -> None:
    means = [each.mean for _, groups in lines for group in groups if (each := spread(read(group)))]
    unit = time_unit(max(means)) if title.startswith("time") else DisplayUnit(1.0, "")
    variants = [variant.name for variant in found.study.variant]
    for number_of_line, ((variant, others), groups) in enumerate(lines):
        ordered = sorted(groups, key=lambda group: positions[group.case.point[place]])
        drawn = [
            (positions[group.case.point[place]], each)
            for group in ordered
            if (each := spread(read(group)))
        ]
        by_variant = len(lines) == len(variants)
        index = variants.index(variant) if by_variant else number_of_line
        panel.errorbar(
            [x for x, _ in drawn],
            [each.mean / unit.divisor for _, each in drawn],
            yerr=[each.deviation / unit.divisor for _, each in drawn],
            fmt="o" + DASHES[index // len(COLOURS) % len(DASHES)],
            color=COLOURS[index % len(COLOURS)],
            lw=width(number_of_line, len(lines)),
            ms=4.5,
            capsize=3,
            label=", ".join([variant, *_others(found, place, others)]),
        )
    if unit.name and max(means) > 30 * min(means) > 0:
        logarithmic(panel.yaxis)
    panel.set_title(f"{title}, {unit.name}" if unit.name else title)


def _others(found: ReportSection, place: int, others: Sequence[int]) -> list[str]:
    axes = [*found.study.axis[:place], *found.study.axis[place + 1 :]]
    return [f"{axis.title} = {axis.name(each)}" for axis, each in zip(axes, others, strict=True)]


def _point(found: ReportSection, point: Sequence[int]) -> str:
    pairs = zip(found.study.axis, point, strict=True)
    return ", ".join(f"{axis.title} = {axis.name(place)}" for axis, place in pairs)


def _histograms(found: ReportSection, chosen: Sequence[Group]) -> dict[str, list[Group]]:
    """The groups of each histogram: one group, or all groups of a variant where there would be too many."""
    named: dict[str, list[Group]] = {}
    for group in chosen:
        every = len(chosen) <= HISTOGRAMS_MAX
        name = table.describe(found.study, group.case) if every else group.case.variant
        named.setdefault(name, []).append(group)
    return dict(list(named.items())[:LINES_MAX])


def _draw_histogram(
    panel: "Axes", name: str, groups: Sequence[Group], level: str, place: int, lines: int
) -> None:
    counts: dict[int, int] = {}
    for run in (run for group in groups for run in group.runs):
        for behind, count in run.staleness.get(level, {}).items():
            counts[behind] = counts.get(behind, 0) + count
    total = sum(counts.values())
    if not total:
        return
    most = max(counts)
    panel.stairs(
        [100 * counts.get(behind, 0) / total for behind in range(most + 1)],
        [behind - 0.5 for behind in range(most + 2)],
        color=COLOURS[place % len(COLOURS)],
        ls=DASHES[place // len(COLOURS) % len(DASHES)],
        lw=width(place, lines),
        label=name,
    )


def _mean(group: Group, read: Callable[[RunFigures], float | None]) -> float | None:
    found = spread(read(run) for run in group.runs)
    return found.mean if found is not None else None


def _reached(found: ReportSection, every: Sequence[Group], group: Group) -> float | None:
    target = compare.target(found.study, every, group)
    return compare.time_to_ms(group.runs, target) if target is not None else None
