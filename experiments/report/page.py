"""The page: one HTML file without scripts that loads nothing."""

import base64
import io
import re
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Final

import pelago
from experiments.report import formatting, plots, searches
from experiments.report.canvas import STYLE, Plot
from experiments.report.formatting import Column
from experiments.report.reading import ReportSection
from pelago.core.errors import ConfigError

PNG_DPI: Final = 160

CSS: Final = """
:root { color-scheme: light }
body { margin: 0; background: #f4f5f7; color: #1f2328; font: 15px/1.5 system-ui, "Segoe UI", Roboto,
  "Helvetica Neue", "DejaVu Sans", sans-serif }
main { max-width: 1240px; margin: 0 auto; padding: 28px 24px 64px }
h1 { font-size: 25px; margin: 0 0 2px }
h2 { font-size: 21px; margin: 0 0 4px }
h3 { font-size: 16.5px; margin: 30px 0 8px }
section { background: #fff; border: 1px solid #dfe2e6; border-radius: 8px; padding: 22px 26px; margin-top: 22px }
p { margin: 4px 0 }
.quiet { color: #5f6670; font-size: 13.5px }
.wide { overflow-x: auto; margin: 12px 0 }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 14px }
th { font-weight: 600; color: #454b54; border-bottom: 2px solid #cfd4da; vertical-align: bottom;
  white-space: nowrap; line-height: 1.3 }
th, td { padding: 6px 10px; text-align: right }
th:first-child, td:first-child { text-align: left; padding-left: 2px }
td { border-bottom: 1px solid #eceef1; white-space: nowrap }
td:first-child { font-weight: 600 }
.best { color: #00694b; font-weight: 700 }
figure { margin: 20px 0 8px }
figure img { width: 100%; height: auto; display: block }
figcaption { color: #5f6670; font-size: 13.5px; margin-top: 4px }
.failed { color: #a3260f }
code { font: 13px ui-monospace, "DejaVu Sans Mono", monospace }
nav a { margin-right: 16px }
a { color: #0b5cad; text-decoration: none }
"""


def write(path: Path, found: Sequence[ReportSection], pictures: Path | None = None) -> list[Path]:
    """Write the page, and each plot as PNG into a folder if one is given; returns those files.

    Raises `ConfigError` where they cannot be written.
    """
    import matplotlib as mpl

    with mpl.rc_context(STYLE):
        made = [(each, _all_plots(each)) for each in found]
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(_page(made), encoding="utf-8")
            return _write_pictures(pictures, made) if pictures is not None else []
        except OSError as error:
            raise ConfigError(f"cannot write the report {path}: {error}") from None


Drawn = dict[str, list[Plot]]
"""Title of a part -> its plots."""
SEARCH: Final = "Search"
BEST: Final = ' class="best"'


def _all_plots(found: ReportSection) -> Drawn:
    drawn: Drawn = {}
    if of_search := searches.plots(found):
        drawn[SEARCH] = of_search
    for title, chosen in formatting.picks(found):
        drawn[title] = plots.plots(found, chosen)
    return drawn


def _page(made: Sequence[tuple[ReportSection, Drawn]]) -> str:
    title = made[0][0].study.name if len(made) == 1 else "Experiments"
    links = ""
    if len(made) > 1:
        each = (
            f'<a href="#part-{place}">{escape(found.study.name)}</a>'
            for place, (found, _) in enumerate(made)
        )
        links = f"<nav>{''.join(each)}</nav>"
    sections = "".join(_section(place, found, drawn) for place, (found, drawn) in enumerate(made))
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{CSS}</style></head><body><main>"
        f"<h1>{escape(title) if len(made) > 1 else 'Experiment report'}</h1>"
        f'<p class="quiet">Pelago {escape(pelago.__version__)}. Times are virtual unless a run was made by '
        f"daemons; figures are mean ± sample standard deviation over seeds;"
        f" a target loss is reached when the mean over seeds reaches it.</p>"
        f"{links}{sections}</main></body></html>\n"
    )


def _section(place: int, found: ReportSection, drawn: Drawn) -> str:
    study = found.study
    done = sum(row.measured is not None for row in found.rows)
    facts = f"{done:,} of {len(found.rows):,} runs" if done < len(found.rows) else f"{done:,} runs"
    facts += f"; {found.facts}" if found.facts else ""
    parts = [f'<section id="part-{place}"><h2>{escape(study.name)}</h2>']
    if study.description:
        parts.append(f"<p>{escape(study.description)}</p>")
    parts.append(f'<p class="quiet">{escape(facts)}.</p>')
    for title, chosen in formatting.picks(found):
        parts.append(f"<h3>{escape(title)}</h3>" if title else "")
        parts.append(_table(formatting.columns(found, chosen)))
        parts += [_figure(each) for each in drawn.get(title, [])]
    if best := searches.settings(found):
        parts.append(f"<h3>{SEARCH}: best settings of each</h3>{_table(best)}")
        parts += [_figure(each) for each in drawn.get(SEARCH, [])]
    parts.append(_failures(found))
    return "".join([*parts, "</section>"])


def _table(columns: Sequence[Column]) -> str:
    head = "".join(f"<th>{escape(column.head).replace(chr(10), '<br>')}</th>" for column in columns)
    rows = []
    for place in range(len(columns[0].cells)):
        cells = (
            f"<td{BEST if column.best == place else ''}>{escape(column.cells[place])}</td>"
            for column in columns
        )
        rows.append(f"<tr>{''.join(cells)}</tr>")
    return (
        f'<div class="wide"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _figure(plot: Plot) -> str:
    image = io.BytesIO()
    # No date: the same runs give the same page.
    plot.figure.savefig(image, format="svg", metadata={"Date": None, "Creator": None})
    text = base64.b64encode(image.getvalue()).decode()
    said = escape(plot.caption)
    return (
        f'<figure><img alt="{said}" src="data:image/svg+xml;base64,{text}">'
        f"<figcaption>{said}</figcaption></figure>"
    )


def _failures(found: ReportSection) -> str:
    failed = [row for row in found.rows if row.error]
    if not failed:
        return ""
    lines = "".join(
        f"<li><code>{escape(row.folder)}</code> {escape(row.error)}</li>" for row in failed
    )
    return f'<h3 class="failed">{len(failed):,} failed</h3><ul>{lines}</ul>'


def _write_pictures(folder: Path, made: Sequence[tuple[ReportSection, Drawn]]) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for found, drawn in made:
        for title, every in drawn.items():
            for plot in every:
                words_of_name = (found.study.name, "" if title == SEARCH else title, plot.name)
                name = "-".join(_slug(each) for each in words_of_name if each)
                path = folder / f"{name}.png"
                plot.figure.savefig(path, dpi=PNG_DPI)
                written.append(path)
    return written


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
