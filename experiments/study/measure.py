"""Figures of one run, read from its folder: of a replay, or of daemons."""

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pelago.core.errors import CheckpointError


@dataclass(frozen=True, slots=True)
class Point:
    """A validation of the global model."""

    elapsed_ms: float
    counted_steps: int
    loss: float | None
    """Held-out loss in nats per token; None: it was not finite."""


@dataclass(frozen=True, slots=True)
class RunFigures:
    """A finished run."""

    method: str
    elapsed_ms: float
    """Time to the budget, in ms."""
    counted_steps: int
    tokens: int
    gps_updates: int
    lps_updates: int
    in_flight_updates: int
    wan_bytes: int
    lan_bytes: int
    busy_fraction: float | None
    """Share of the time that workers compute, mean over the workers."""
    final_value: float | None
    """Final value of the GPS's parameter, where the model is one number."""
    validation: tuple[Point, ...]
    staleness: Mapping[str, Mapping[int, int]]
    """Per level: versions behind -> updates; empty where nothing was recorded."""

    @property
    def final_loss(self) -> float | None:
        """Loss of the last validation; None if there was none, or if it was not finite."""
        return self.validation[-1].loss if self.validation else None

    @property
    def diverged(self) -> bool:
        """Whether the last validation was not finite."""
        return bool(self.validation) and self.validation[-1].loss is None


def measure(folder: Path) -> RunFigures:
    """Read a run's folder. Raises `CheckpointError` where it holds no sound result."""
    path = folder / "result.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return _measured(found, _staleness(folder / "staleness.csv"))
    except OSError as error:
        raise CheckpointError(f"{path}: cannot read this result: {error}") from None
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path}: no result of a run: {error}") from None


def mean_and_most(counts: Mapping[int, int]) -> tuple[float, int] | None:
    """Mean and maximum of a staleness histogram; None if it is empty."""
    total = sum(counts.values())
    if not total:
        return None
    return sum(behind * count for behind, count in counts.items()) / total, max(counts)


def _measured(found: Mapping[str, Any], staleness: Mapping[str, Mapping[int, int]]) -> RunFigures:
    regions: Sequence[Mapping[str, int]] = list(found["lps"].values())
    busy = [each["busy_fraction"] for each in found["workers"].values()]
    return RunFigures(
        method=found["method"],
        elapsed_ms=float(found["elapsed_ms"]),
        counted_steps=int(found["counted_steps"]),
        tokens=int(found["tokens"]),
        gps_updates=int(found["gps"]["updates"]),
        lps_updates=sum(each["updates"] for each in regions),
        in_flight_updates=sum(each["in_flight_updates"] for each in regions),
        wan_bytes=int(found["bytes"]["wan"]),
        lan_bytes=int(found["bytes"]["lan"]),
        busy_fraction=sum(busy) / len(busy) if busy else None,
        final_value=found.get("final", {}).get("gps"),
        validation=tuple(Point(at, steps, loss) for at, steps, loss in found["validation"]),
        staleness=staleness,
    )


def _staleness(path: Path) -> Mapping[str, Mapping[int, int]]:
    found: dict[str, dict[int, int]] = {}
    # Folders of daemons have no such file.
    if path.is_file():
        with path.open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                found.setdefault(row["level"], {})[int(row["staleness"])] = int(row["count"])
    return found
