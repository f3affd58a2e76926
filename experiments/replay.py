"""Replays a run file under the virtual clock and writes its results.

run.toml       the run file, every key spelled out
result.json    as the GPS daemon writes it; for `scalar` also ``final {gps, lps {NAME: value}}``
arrivals.csv   time_ms, region, counted_steps, cumulative_steps: a row per update of the GPS
staleness.csv  level (gps | lps), staleness, count: how many updates were based on a model that was so
               many versions old when they were applied
"""

import csv
import io
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from convergence.batch_trainer import BatchTrainer
from convergence.cluster import Arrival, Cluster
from pelago.config import run_toml
from pelago.config.run_file import RunFile
from pelago.core.errors import ConfigError
from pelago.core.machine import PS_PER_MS

FILES: Final = ("run.toml", "result.json", "arrivals.csv", "staleness.csv")


@dataclass(frozen=True, slots=True)
class Replayed:
    """A finished replay."""

    result: dict[str, Any]
    arrivals: Sequence[Arrival]
    staleness: Mapping[str, Mapping[int, int]]
    """Per level, "gps" and "lps": versions behind -> updates."""
    events: int
    digest: str
    """Digest of every event and effect; empty if it was not requested."""


def load(path: Path) -> RunFile:
    """Read a run file that has a [simulation]. Raises `ConfigError`."""
    run = run_toml.load(path)
    if run.simulation is None:
        raise ConfigError(
            f"{path}: simulation: this table is missing, so there is nothing to replay"
        )
    return run


def replay(
    run: RunFile,
    *,
    check: bool = False,
    trace: bool = False,
    on_progress: Callable[[int, float | None], None] | None = None,
    batch_trainer: BatchTrainer | None = None,
) -> Replayed:
    """Run to the budget. ``check``: assert every invariant after every event. ``trace``: digest.

    ``on_progress`` is called for every update of the GPS: steps counted so far, last validation's loss.
    ``batch_trainer``: train together with other runs of this process.
    """

    def heard(arrival: Arrival) -> None:
        assert on_progress is not None
        validations = cluster.gps.evaluators.validations
        on_progress(arrival.cumulative_steps, validations[-1][2] if validations else None)

    on_arrival = heard if on_progress else None
    cluster = Cluster(
        run, check=check, trace=trace, on_arrival=on_arrival, batch_trainer=batch_trainer
    )
    found = cluster.replay()
    digest = cluster.trace.digest() if cluster.trace is not None else ""
    return Replayed(found, cluster.arrivals, cluster.staleness, cluster.simulation.events, digest)


def prepare(folder: Path) -> None:
    """Make the folder of the results. Raises `ConfigError` where that cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"cannot write results to {folder}: {error}") from None


def write(folder: Path, run: RunFile, replayed: Replayed) -> None:
    """Write the four files. Raises `ConfigError` where the folder cannot be written to."""
    prepare(folder)
    try:
        for name, text in files(run, replayed).items():
            (folder / name).write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot write results to {folder}: {error}") from None


def files(run: RunFile, replayed: Replayed) -> dict[str, str]:
    """The four files: name -> text. Equal runs give equal texts, wherever they ran."""
    arrivals = [
        (decimal_ms(each.time_ps), each.region, each.counted_steps, each.cumulative_steps)
        for each in replayed.arrivals
    ]
    staleness = [
        (level, behind, count)
        for level, counts in sorted(replayed.staleness.items())
        for behind, count in sorted(counts.items())
    ]
    return {
        "run.toml": run_toml.dump(run),
        "result.json": json.dumps(finite(replayed.result), indent=1, allow_nan=False) + "\n",
        "arrivals.csv": _csv(("time_ms", "region", "counted_steps", "cumulative_steps"), arrivals),
        "staleness.csv": _csv(("level", "staleness", "count"), staleness),
    }


def _csv(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return file.getvalue()


def finite(value: Any) -> Any:
    """JSON knows no NaN: a number that diverged is null, as in what the GPS daemon writes."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: finite(each) for key, each in value.items()}
    return [finite(each) for each in value] if isinstance(value, list | tuple) else value


def decimal_ms(time_ps: int) -> str:
    """Picoseconds as milliseconds with all nine decimals, so that nothing is rounded."""
    return f"{time_ps // PS_PER_MS}.{time_ps % PS_PER_MS:09d}"


def summary(replayed: Replayed) -> str:
    """A summary of the result in a few lines."""
    found = replayed.result
    by_region = ", ".join(
        f"{name} {count}" for name, count in found["gps"]["updates_by_region"].items()
    )
    updates = sum(region["updates"] for region in found["lps"].values())
    in_flight = sum(region["in_flight_updates"] for region in found["lps"].values())
    busy = [each["busy_fraction"] for each in found["workers"].values()]
    lines = [
        f"{found['method']}: {found['counted_steps']:,} local steps"
        f" in {found['elapsed_ms']:,.3f} ms of virtual time",
        f"updates of the GPS   {found['gps']['updates']:,} ({by_region})",
        f"updates of the LPSs  {updates:,}, of which {in_flight:,} while an exchange was in flight",
        f"workers busy         {min(busy):.1%} to {max(busy):.1%} of the time"
        if busy
        else "no worker",
        f"payload bytes        {found['bytes']['wan'] / 1e9:,.1f} GB between regions,"
        f" {found['bytes']['lan'] / 1e9:,.1f} GB inside them",
    ]
    if found["validation"]:
        at_ms, steps, loss = found["validation"][-1]
        lines.append(f"validation loss      {loss:.4f} after {steps:,} steps, {at_ms:,.0f} ms")
    if "final" in found:
        regions = ", ".join(f"{name} {value}" for name, value in found["final"]["lps"].items())
        lines.append(f"final value          {found['final']['gps']} (regions: {regions})")
    if replayed.digest:
        lines.append(f"trace digest         {replayed.digest} over {replayed.events:,} events")
    return "\n".join(lines)
