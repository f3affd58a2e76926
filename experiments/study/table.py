"""table.csv: a row per run of a study, for spreadsheets and for the report.

The first columns say which run it is (axes under their keys), the others are its results, in the units
of their names; a cell without a figure is empty. time_to_target_ms is of the
run itself, while reports give the time at which the mean over the seeds reaches the target.
"""

import csv
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from experiments.study import compare
from experiments.study.compare import RunRow
from experiments.study.measure import RunFigures, mean_and_most, measure
from experiments.study.plan import Case
from experiments.study.study_file import Study
from pelago.config import toml_writer
from pelago.core.errors import CheckpointError, ConfigError

IDENTITY: Final = ("folder", "stage", "variant", "set", "trial", "seed")
DRAWN: Final = "drawn"
"""The drawn settings as one JSON object, because variants may search different keys."""


def _staleness(level: str, which: int) -> Callable[[RunFigures], float | None]:
    def read(run: RunFigures) -> float | None:
        found = mean_and_most(run.staleness.get(level, {}))
        return found[which] if found is not None else None

    return read


FIGURES: Final[dict[str, Callable[[RunFigures], float | None]]] = {
    "elapsed_ms": lambda run: run.elapsed_ms,
    "counted_steps": lambda run: run.counted_steps,
    "tokens": lambda run: run.tokens,
    "gps_updates": lambda run: run.gps_updates,
    "lps_updates": lambda run: run.lps_updates,
    "in_flight_updates": lambda run: run.in_flight_updates,
    "final_loss": lambda run: run.final_loss,
    "wan_bytes": lambda run: run.wan_bytes,
    "lan_bytes": lambda run: run.lan_bytes,
    "busy_fraction": lambda run: run.busy_fraction,
    "gps_staleness_mean": _staleness("gps", 0),
    "gps_staleness_max": _staleness("gps", 1),
    "lps_staleness_mean": _staleness("lps", 0),
    "lps_staleness_max": _staleness("lps", 1),
    "final_value": lambda run: run.final_value,
}


def write(path: Path, study: Study, rows: Sequence[RunRow]) -> None:
    """Write the table. Raises `ConfigError` where the file cannot be written."""
    axes = [axis.key for axis in study.axis]
    header = [*IDENTITY, *axes, *FIGURES, "target_loss", "time_to_target_ms", DRAWN, "error"]
    every = compare.groups(rows)
    targets = {
        row.folder: compare.target(study, every, group) for group in every for row in group.rows
    }
    try:
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(header)
            writer.writerows(_cells(study, row, targets[row.folder]) for row in rows)
    except OSError as error:
        raise ConfigError(f"cannot write results to {path}: {error}") from None


def _cells(study: Study, row: RunRow, target: float | None) -> list[object]:
    run = row.measured
    points = [axis.name(place) for axis, place in zip(study.axis, row.case.point, strict=True)]
    figures = [read(run) if run is not None else None for read in FIGURES.values()]
    reached = compare.time_to_ms([run], target) if run is not None and target is not None else None
    trial = "" if row.trial is None else row.trial
    return [
        *(row.folder, row.stage, row.case.variant, row.set, trial, row.seed),
        *points,
        *("" if figure is None else figure for figure in figures),
        "" if target is None else target,
        "" if reached is None else reached,
        json.dumps(row.drawn) if row.drawn else "",
        row.error,
    ]


def read(folder: Path, study: Study) -> list[RunRow]:
    """The rows of a study's folder, with what its runs' folders say now. Raises `CheckpointError`."""
    path = folder / "table.csv"
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return [_row(folder, study, cells) for cells in csv.DictReader(file)]
    except OSError as error:
        raise CheckpointError(f"{path}: cannot read this table: {error}") from None
    except (ValueError, LookupError, TypeError) as error:
        raise CheckpointError(f"{path}: no table of this study: {error}") from None


def _row(folder: Path, study: Study, cells: dict[str, Any]) -> RunRow:
    point = []
    for axis in study.axis:
        names = [axis.name(place) for place in range(len(axis.values))]
        point.append(names.index(cells[axis.key]))
    place = folder / "runs" / cells["folder"]
    done = (place / "result.json").is_file()
    return RunRow(
        folder=cells["folder"],
        stage=cells["stage"],
        case=Case(cells["variant"], tuple(point)),
        set=cells["set"],
        trial=int(cells["trial"]) if cells["trial"] else None,
        drawn=json.loads(cells[DRAWN]) if cells[DRAWN] else {},
        seed=int(cells["seed"]),
        measured=measure(place) if done else None,
        error=cells["error"] or ("" if done else _error(place)),
    )


def _error(folder: Path) -> str:
    """The error of a run that failed before the table had it."""
    path = folder / "error.txt"
    return path.read_text(encoding="utf-8").partition("\n")[0] if path.is_file() else ""


def describe(study: Study, case: Case) -> str:
    """A case as text: the variant, and the values of the axes."""
    points = [
        f"{axis.title} = {axis.name(place)}"
        for axis, place in zip(study.axis, case.point, strict=True)
    ]
    only = len(study.variant) == 1 and bool(points)
    return ", ".join(points if only else [case.variant, *points])


def settings(drawn: dict[str, Any]) -> str:
    """Drawn settings in one line."""
    return ", ".join(f"{key} = {toml_writer.value(value)}" for key, value in drawn.items())
