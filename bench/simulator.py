"""The virtual driver's speed: the HALoS paper's 98,304-step run without tensors, against a plain loop.

The loop is ten million iterations of ``x += i`` at module level. The run's time divided by the loop's is nearly the
same on every machine. ``--long``: how memory grows over ten million events.
"""

import argparse
import json
import os
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

from parts.machine import describe, summary

from convergence.cluster import Arrival, Cluster
from pelago.config import run_toml
from pelago.config.run_file import RunFile

PAPER = Path(__file__).parents[1] / "experiments" / "halos_paper.toml"
LOOP = compile("x = 0\nfor i in range(10**7): x += i", "loop", "exec")
LONGER = 52
"""The paper's budget times this gives ten million events."""
POINTS = 10
"""How often the memory of the long run is measured."""


def seconds(job: Callable[[], object]) -> float:
    """Processor time of a call."""
    begin = time.process_time()
    job()
    return time.process_time() - begin


def measure(rounds: int) -> dict[str, Any]:
    """Alternate loops and runs: each run is divided by the mean of the loops before and after it."""
    run = run_toml.load(PAPER)
    runs: list[float] = []
    loops = [seconds(lambda: exec(LOOP, {}))]
    events = 0
    for _ in range(rounds + 1):
        cluster = Cluster(run)
        runs.append(seconds(cluster.replay))
        loops.append(seconds(lambda: exec(LOOP, {})))
        events = cluster.simulation.events
    around = [(before + after) / 2 for before, after in pairwise(loops)]
    ratios = [each / loop for each, loop in zip(runs, around, strict=True)]
    # The first of each warms up.
    return {
        "events": events,
        "seconds": summary(runs[1:], 3),
        "loop_seconds": summary(loops[1:], 3),
        "ratio": summary(ratios[1:], 3),
        "events_per_second": summary([events / each for each in runs[1:]], 0),
    }


def measure_memory() -> dict[str, Any]:
    """Resident megabytes after each tenth of a run of ten million events."""
    paper = run_toml.load(PAPER)
    budget = paper.run.budget_local_steps * LONGER
    run: RunFile = paper.model_copy(
        update={"run": paper.run.model_copy(update={"budget_local_steps": budget})}
    )
    resident = [resident_mb()]

    def on_arrival(arrival: Arrival) -> None:
        if arrival.cumulative_steps * POINTS >= budget * len(resident):
            resident.append(resident_mb())

    cluster = Cluster(run, on_arrival=on_arrival)
    took = seconds(cluster.replay)
    return {
        "events": cluster.simulation.events,
        "seconds": round(took, 1),
        "arrivals": len(cluster.arrivals),
        "resident_mb": [round(each, 1) for each in resident],
    }


def resident_mb() -> float:
    """Resident memory of this process, in MB."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7, help="rounds (default 7)")
    parser.add_argument(
        "--long", action="store_true", help="also the memory of ten million events (two minutes)"
    )
    options = parser.parse_args()
    machine = describe()
    # Before anything else has filled the heap.
    memory = {"long": measure_memory()} if options.long else {}
    found = {**measure(options.rounds), **memory}
    print(json.dumps({"benchmark": "simulator", "machine": machine, **found}))


if __name__ == "__main__":
    main()
