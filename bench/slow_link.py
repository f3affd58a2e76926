"""Are workers slower while their region's exchange is in flight over a slow link?

    python bench/slow_link.py [--mbps 1] [--minutes 1.6]

Runs a topology for real through `pelago local`: two regions with a worker each and a slow link between them. K
(`lps.updates_per_exchange`) is so large that a region has an exchange in flight about half of the time. A round is
the time between two rounds of the far region's worker. Prints the median round while an exchange was in flight
divided by the median round while none was. Nothing may wait for the WAN, so it should be 1.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from itertools import pairwise
from pathlib import Path

from parts.machine import describe, summary

from pelago.core.notes.lps import ExchangeBegun, GlobalMerged
from pelago.core.notes.worker import RoundTrained
from pelago.runlog.log import LOG_NAME, lines_of, read_log

RUN = """
[run]
name = "slow-link"
budget_local_steps = 1000000
budget_minutes = {minutes}
[data]
sequence_length = 32
validation_samples = 16
[worker]
local_steps = 4
batch_size = 4
global_batch_size = 16
[lps]
lr = 0.5
momentum = 0.0
momentum_delay = 1
updates_per_exchange = 100
merge_weight = 0.5
[gps]
validation_interval_steps = 100000
[network]
bandwidth_gbps = [[10, {gbps}], [{gbps}, 10]]
latency_ms = [[0, 50], [50, 0]]
[local]
step_ms = 50
[[region]]
name = "near"
worker_speeds = [1.0]
[[region]]
name = "far"
worker_speeds = [1.0]
"""


def times(out: Path, node: str, kind: type) -> list[float]:
    """The times of a node's events of a class, in seconds of the wall clock that all processes share."""
    return [time_s for time_s, _ in lines_of(kind, read_log(out / node / LOG_NAME))]


def flights(out: Path) -> list[tuple[float, float]]:
    """When the far region's exchanges left, and when their answers were merged."""
    merges = times(out, "lps-far", GlobalMerged)
    # The last exchange may have had no answer.
    return list(zip(times(out, "lps-far", ExchangeBegun), merges, strict=False))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mbps", type=float, default=1.0)
    parser.add_argument("--minutes", type=float, default=1.6)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        out, path = Path(folder) / "out", Path(folder) / "run.toml"
        text = RUN.format(minutes=options.minutes, gbps=options.mbps / 1e3)
        path.write_text(text, encoding="utf-8")
        command = [sys.executable, "-m", "pelago.cli.main", "local", str(path), "--out", str(out)]
        subprocess.run(command, check=True)
        rounds = times(out, "worker-far-0", RoundTrained)
        flying, resting = [], []
        spans = flights(out)
        last_merge = spans[-1][1]
        for before, after in pairwise(rounds):
            inside = any(start <= before and after <= end for start, end in spans)
            touching = any(start < after and before < end for start, end in spans)
            if inside:
                flying.append(after - before)
            elif not touching and after < last_merge:
                resting.append(after - before)
    flight_s = [end - start for start, end in spans]
    figures = {
        "benchmark": "slow_link",
        "mbps": options.mbps,
        "flight_s": summary(flight_s, 2),
        "rounds_in_flight": len(flying),
        "rounds_at_rest": len(resting),
        "round_ms_in_flight": summary([1e3 * each for each in flying], 1),
        "round_ms_at_rest": summary([1e3 * each for each in resting], 1),
        "ratio": round(statistics.median(flying) / statistics.median(resting), 4),
        "machine": describe(),
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
