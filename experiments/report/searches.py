"""The result of a search: the best settings, and the spread of the trials."""

import math
import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from experiments.report.canvas import COLOURS, Plot, figure, legend, logarithmic
from experiments.report.formatting import NOTHING, Column
from experiments.report.reading import ReportSection
from experiments.study import compare, table
from experiments.study.compare import Group
from experiments.study.plan import Case
from pelago.config import toml_writer

if TYPE_CHECKING:
    from matplotlib.axis import Axis

KEYS_MAX = 12
"""Panels of the plot over searched keys."""


def settings(found: ReportSection) -> list[Column]:
    """The best trial of each case: its settings, its loss, and the range of the other trials; empty: no search."""
    every = [group for group in compare.groups(found.rows) if group.stage == "search"]
    if not every:
        return []
    best = compare.best_trials(every)
    cases = list(dict.fromkeys(group.case for group in every))
    keys = list(dict.fromkeys(key for group in every for row in group.rows for key in row.drawn))
    # A row per key: searches have many keys, and their names are long.
    figures = ("number of the trial", "its loss", "median loss", "trials", "failed or diverged")
    columns = [Column("", [*keys, *figures])]
    for case in cases:
        drawn = best[case].rows[0].drawn if case in best else {}
        losses = _losses(every, case)
        cells = [toml_writer.value(drawn[key]) if key in drawn else NOTHING for key in keys]
        cells += [
            str(best[case].trial) if case in best else NOTHING,
            _loss(losses, min),
            _loss(losses, statistics.median),
            str(sum(group.case == case for group in every)),
            str(_lost(every, case)),
        ]
        columns.append(Column(table.describe(found.study, case).replace(", ", ",\n"), cells))
    return columns


def plots(found: ReportSection) -> list[Plot]:
    """The trials of each case side by side, and over each searched key."""
    every = [group for group in compare.groups(found.rows) if group.stage == "search"]
    if not any(math.isfinite(group.final_loss) for group in every):
        return []
    cases = list(dict.fromkeys(group.case for group in every))
    made = [_strip(found, every, cases)]
    keys = list(
        dict.fromkeys(
            key
            for group in every
            for row in group.rows
            for key, value in row.drawn.items()
            if isinstance(value, int | float | str)
        )
    )
    if keys:
        made.append(_over_keys(found, every, cases, keys[:KEYS_MAX]))
    return made


def _strip(found: ReportSection, every: Sequence[Group], cases: Sequence[Case]) -> Plot:
    made, (panel,) = figure(1.4 + 0.5 * len(cases))
    for place, case in enumerate(cases):
        losses = _losses(every, case)
        # A fixed pattern of heights keeps equal losses apart and the page the same every time.
        heights = [place + 0.26 * (((index * 7) % 11) / 5 - 1) for index in range(len(losses))]
        colour = COLOURS[place % len(COLOURS)]
        panel.plot(losses, heights, "o", color=colour, ms=4.5, alpha=0.55, mew=0)
        if losses:
            panel.plot(
                [min(losses)],
                [heights[losses.index(min(losses))]],
                "D",
                color=colour,
                ms=7,
                mec="white",
            )
            median = statistics.median(losses)
            panel.plot([median, median], [place - 0.36, place + 0.36], color="#333333", lw=1.4)
    labels = []
    for case in cases:
        lost = _lost(every, case)
        labels.append(table.describe(found.study, case) + (f"\n({lost} lost)" if lost else ""))
    panel.set_yticks(range(len(cases)), labels)
    panel.set_ylim(len(cases) - 0.4, -0.6)
    panel.grid(visible=False, axis="y")
    panel.set_xlabel(f"final {found.loss}")
    _scale(panel.xaxis, [loss for case in cases for loss in _losses(every, case)])
    return Plot(
        "trials",
        "Final loss of every trial, mean over the search's seeds; diamond: the best, line: the median; "
        "lost: failed or diverged.",
        made,
    )


def _over_keys(
    found: ReportSection, every: Sequence[Group], cases: Sequence[Case], keys: Sequence[str]
) -> Plot:
    columns = min(3, len(keys))
    rows = math.ceil(len(keys) / columns)
    made, panels = figure(2.9 * rows + 0.4, rows, columns, sharey=True)
    for panel, key in zip(panels, keys, strict=False):
        texts = any(isinstance(value, str | bool) for value in _values(every, key))
        for place, case in enumerate(cases):
            points = [
                (group.rows[0].drawn[key], group.final_loss)
                for group in every
                if group.case == case
                and key in group.rows[0].drawn
                and math.isfinite(group.final_loss)
            ]
            panel.plot(
                [str(value) if texts else value for value, _ in points],
                [loss for _, loss in points],
                "o",
                color=COLOURS[place % len(COLOURS)],
                ms=4.5,
                alpha=0.6,
                mew=0,
                label=table.describe(found.study, case),
            )
        panel.set_xlabel(key)
        if not texts:
            _scale(panel.xaxis, _values(every, key))
    for panel in panels[len(keys) :]:
        panel.remove()
    for panel in panels[: len(keys) : columns]:
        panel.set_ylabel("final loss")
    _scale(
        panels[0].yaxis, [group.final_loss for group in every if math.isfinite(group.final_loss)]
    )
    legend(made, panels[: len(keys)])
    return Plot("trials-over-keys", "The same over each searched key.", made)


def _values(every: Sequence[Group], key: str) -> list[Any]:
    return [group.rows[0].drawn[key] for group in every if key in group.rows[0].drawn]


def _scale(axis: "Axis", values: Sequence[float]) -> None:
    if values and min(values) > 0 and max(values) > 8 * min(values):
        logarithmic(axis)


def _losses(every: Sequence[Group], case: Case) -> list[float]:
    losses = [group.final_loss for group in every if group.case == case]
    return [loss for loss in losses if math.isfinite(loss)]


def _lost(every: Sequence[Group], case: Case) -> int:
    return sum(group.case == case and math.isinf(group.final_loss) for group in every)


def _loss(losses: Sequence[float], of: Any) -> str:
    return f"{of(losses):.4f}" if losses else NOTHING
