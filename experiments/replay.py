"""Replays a run file under the virtual clock and writes what it gave.

run.toml      the run file, every key spelled out
result.json   as the GPS daemon writes it; for `scalar` also ``final {gps, lps {NAME: value}}``
arrivals.csv  time_ms, region, counted_steps, cumulative_steps: a row per update of the GPS
"""

import csv
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from convergence.cluster import Arrival, Cluster
from pelago import config
from pelago.config import RunFile
from pelago.core.errors import ConfigError
from pelago.core.machine import PS_PER_MS


@dataclass(frozen=True, slots=True)
class Replayed:
    """A finished replay."""

    result: dict[str, Any]
    arrivals: Sequence[Arrival]
    events: int
    digest: str
    """Of every event and effect; empty if it was not asked for."""


def load(path: Path) -> RunFile:
    """Read a run file that has a [simulation]. Raises `ConfigError`."""
    run = config.load(path)
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
    on_arrival: Callable[[Arrival], None] | None = None,
) -> Replayed:
    """Run to the budget. ``check``: assert every invariant after every event. ``trace``: digest."""
    cluster = Cluster(run, check=check, trace=trace, on_arrival=on_arrival)
    found = cluster.replay()
    digest = cluster.trace.digest() if cluster.trace is not None else ""
    return Replayed(found, cluster.arrivals, cluster.simulation.events, digest)


def prepare(folder: Path) -> None:
    """Make the folder of the results. Raises `ConfigError` where that cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"cannot write results to {folder}: {error}") from None


def write(folder: Path, run: RunFile, replayed: Replayed) -> None:
    """Write the three files. Raises `ConfigError` where the folder cannot be written to."""
    prepare(folder)
    try:
        (folder / "run.toml").write_text(config.dump(run), encoding="utf-8")
        text = json.dumps(replayed.result, indent=1) + "\n"
        (folder / "result.json").write_text(text, encoding="utf-8")
        with (folder / "arrivals.csv").open("w", encoding="utf-8", newline="") as file:
            rows = csv.writer(file, lineterminator="\n")
            rows.writerow(("time_ms", "region", "counted_steps", "cumulative_steps"))
            for each in replayed.arrivals:
                time_ms = decimal_ms(each.time_ps)
                rows.writerow((time_ms, each.region, each.counted_steps, each.cumulative_steps))
    except OSError as error:
        raise ConfigError(f"cannot write results to {folder}: {error}") from None


def decimal_ms(time_ps: int) -> str:
    """Picoseconds as milliseconds with all nine decimals, so that nothing is rounded."""
    return f"{time_ps // PS_PER_MS}.{time_ps % PS_PER_MS:09d}"


def summary(replayed: Replayed) -> str:
    """What came of it, for a human: a few lines."""
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
    if "final" in found:
        regions = ", ".join(f"{name} {value}" for name, value in found["final"]["lps"].items())
        lines.append(f"final value          {found['final']['gps']} (regions: {regions})")
    if replayed.digest:
        lines.append(f"trace digest         {replayed.digest} over {replayed.events:,} events")
    return "\n".join(lines)
