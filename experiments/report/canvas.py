"""Shared by all plots of a report: colours, style, panels, and a legend that covers nothing."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from experiments.report.reading import ReportSection
from experiments.study.compare import Group

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

COLOURS: Final = (
    *("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#8C6D1F", "#56B4E9", "#4D4D4D", "#E69F00"),
)
"""The palette of Okabe and Ito, which colour-blind readers can distinguish, the darkest colour first."""
Colour = str | tuple[float, float, float]
DASHES: Final = ("-", "--", ":", "-.")
WIDE: Final = 10.5
"""Width and height in inches."""
STYLE: Final[Any] = {
    "font.size": 10.5,
    "axes.titlesize": 11.5,
    "axes.labelcolor": "#333333",
    "axes.edgecolor": "#999999",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E4E4E4",
    "legend.frameon": False,
    "xtick.color": "#555555",
    "ytick.color": "#555555",
    "figure.facecolor": "white",
    # Equal data give equal bytes.
    "svg.hashsalt": "pelago",
}


@dataclass(frozen=True, slots=True)
class Plot:
    """A figure and its caption."""

    name: str
    """Its name, as a part of a file's name."""
    caption: str
    figure: "Figure"


def figure(
    height: float, rows: int = 1, columns: int = 1, sharey: bool = False
) -> "tuple[Figure, list[Axes]]":
    """A wide figure with panels."""
    # Neither pyplot nor a backend with windows: reports are made where there is no display.
    from matplotlib.figure import Figure

    made = Figure(figsize=(WIDE, height), layout="constrained")
    panels = made.subplots(rows, columns, squeeze=False, sharey=sharey)
    return made, list(panels.flat)


def line(found: ReportSection, group: Group, place: int, lines: int) -> tuple[Colour, str]:
    """Colour and dash of a line: of its variant, or along a scale where all are of one variant."""
    names = [variant.name for variant in found.study.variant]
    if len(names) == 1 and lines > 1 and found.study.axis:
        from matplotlib import colormaps

        red, green, blue, _ = colormaps["viridis"](0.88 * place / (lines - 1))
        return (red, green, blue), "-"
    if len(names) == 1 or not found.study.axis:
        return COLOURS[place % len(COLOURS)], DASHES[place // len(COLOURS) % len(DASHES)]
    which = names.index(group.case.variant)
    return COLOURS[which % len(COLOURS)], DASHES[which // len(COLOURS) % len(DASHES)]


def logarithmic(axis: "Axis") -> None:
    """Make an axis logarithmic, with plain numbers at as many ticks as fit, also within a decade."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    across = axis is axis.axes.xaxis
    (axis.axes.set_xscale if across else axis.axes.set_yscale)("log")
    low, high = sorted(axis.get_data_interval())
    subs = (1.0,) if high > 1e3 * low else (1.0, 2.0, 5.0)
    axis.set_major_locator(LogLocator(subs=subs, numticks=8))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def width(place: int, lines: int) -> float:
    """Width of a line: earlier ones are wider, so that one that lies under another still shows."""
    return 2.9 - 1.5 * place / max(1, lines - 1) if lines > 1 else 1.9


def legend(made: "Figure", axes: "Sequence[Axes]") -> None:
    """One legend for all panels, below them, where it covers nothing."""
    entries: dict[str, Artist] = {}
    for panel in axes:
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    if not entries:
        return
    columns = max(1, min(len(entries), int(125 / (max(map(len, entries)) + 8))))
    made.legend(list(entries.values()), list(entries), loc="outside lower center", ncols=columns)
