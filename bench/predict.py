"""Does the simulator predict what the daemons do?

    python bench/predict.py [--mbps 10 50 500] [--steps 2400] [--run demo.toml]

Runs a topology for real through `pelago local` at several speeds of the links between its regions, then
simulates the same run file, with the same machines and the daemons' settings. Measured, and given to the
simulation, are the time of a step and how much later than the first the other workers joined: how long a
process takes to import its libraries is no part of the prediction, so both clocks start when the first
worker joins. Prints elapsed time and GPS updates of both and their ratios, simulated over real.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, TypeVar

from parts.machine import describe

from convergence.cluster import Cluster
from pelago.config import run_toml
from pelago.config.run_file import RunFile
from pelago.config.simulation import SimulatedEvent, SimulationSection
from pelago.core.notes.common import Draining
from pelago.core.notes.worker import RoundTrained, WorkerAdmitted
from pelago.runlog.log import LOG_NAME, lines_of, read_log

E = TypeVar("E")


def with_links(run: RunFile, mbps: float, steps: int) -> RunFile:
    """The run file with all links between regions at one speed, and another budget."""
    gbps = tuple(
        tuple(value if a == b else mbps / 1e3 for b, value in enumerate(row))
        for a, row in enumerate(run.network.bandwidth_gbps)
    )
    network = run.network.model_copy(update={"bandwidth_gbps": gbps})
    limits = {"budget_local_steps": steps, "budget_minutes": 0.0}
    return run.model_copy(
        update={"run": run.run.model_copy(update=limits), "network": network, "simulation": None}
    )


def events(out: Path, node: str, kind: type[E]) -> list[tuple[float, E]]:
    """A node's events of a class, each with its time in seconds of the clock that all processes share."""
    return list(lines_of(kind, read_log(out / node / LOG_NAME)))


def workers(run: RunFile) -> list[tuple[str, float]]:
    """(REGION/GROUP, relative speed) of every worker."""
    return [
        (f"{region.name}/{group}", run.relative_speed(place, group))
        for place, region in enumerate(run.region)
        for group in range(len(region.worker_speeds))
    ]


def log_of(worker: str) -> str:
    """Folder of a worker below a run's."""
    return f"worker-{worker.replace('/', '-')}"


def step_ms(run: RunFile, out: Path) -> float:
    """Measured time of a step at relative speed 1: the mean over all steps of all workers."""
    rounds = [
        (each.busy_ms * speed, each.steps)
        for worker, speed in workers(run)
        for _, each in events(out, log_of(worker), RoundTrained)
    ]
    return sum(busy_ms for busy_ms, _ in rounds) / sum(steps for _, steps in rounds)


def compare(run: RunFile) -> dict[str, Any]:
    """Run for real, simulate, and compare the two."""
    with tempfile.TemporaryDirectory() as folder:
        out, path = Path(folder) / "out", Path(folder) / "run.toml"
        path.write_text(run_toml.dump(run), encoding="utf-8")
        command = [sys.executable, "-m", "pelago.cli.main", "local", str(path), "--out", str(out)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        real: dict[str, Any] = json.loads((out / "result.json").read_text(encoding="utf-8"))
        measured_ms = step_ms(run, out)
        joined = {each: events(out, log_of(each), WorkerAdmitted)[0][0] for each, _ in workers(run)}
        first_s = min(joined.values())
        elapsed_s = events(out, "gps", Draining)[0][0] - first_s
    simulation = SimulationSection(
        problem="timing",
        model_bytes=4 * real["model"]["parameters"],
        step_ms=measured_ms,
        daemons=True,
        event=tuple(
            SimulatedEvent(at_ms=1e3 * (at_s - first_s), node=each, kind="join")
            for each, at_s in joined.items()
            if at_s > first_s
        ),
    )
    simulated = Cluster(run.model_copy(update={"simulation": simulation})).replay()
    pairs = {
        "elapsed_s": (elapsed_s, simulated["elapsed_ms"] / 1e3),
        "gps_updates": (real["gps"]["updates"], simulated["gps"]["updates"]),
    }
    return {
        "mbps": 1e3 * min(value for row in run.network.bandwidth_gbps for value in row),
        "step_ms": round(measured_ms, 2),
        "last_joined_after_s": round(max(joined.values()) - first_s, 2),
        **{
            key: {"real": round(a, 2), "simulated": round(b, 2), "ratio": round(b / a, 4)}
            for key, (a, b) in pairs.items()
        },
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", default="demo.toml", help="the run file (default: the demo's)")
    parser.add_argument("--mbps", type=float, nargs="+", default=[10.0, 50.0, 500.0])
    parser.add_argument("--steps", type=int, default=2400, help="local steps of each run")
    options = parser.parse_args()
    run = run_toml.load(options.run)
    rows = []
    for mbps in options.mbps:
        rows.append(compare(with_links(run, mbps, options.steps)))
        print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    ratios = [row[key]["ratio"] for row in rows for key in ("elapsed_s", "gps_updates")]
    figures = {
        "benchmark": "predict",
        "runs": rows,
        "farthest_from_1": max(ratios, key=lambda ratio: abs(ratio - 1)),
        "machine": describe(),
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
