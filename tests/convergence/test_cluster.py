"""Clusters built from run files."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import gps.settings
import lps.settings
import worker.settings
from convergence.cluster import Cluster, SimulatedTrainer
from convergence.problems.timing import Timing
from gps.result import result
from gps.state import Gps
from lps.state import Lps
from pelago.config import run_toml
from pelago.config.run_file import RunFile
from pelago.core.errors import ConfigError
from pelago.core.machine import PS_PER_MS, Started
from pelago.core.names import Lease, PushId, Version
from pelago.core.tensor_effects import Loaded
from pelago.sim.links import Links
from pelago.sim.node import SimulatedNode
from pelago.sim.planes import FreshStart, TimingPlane
from pelago.sim.simulation import Simulation
from pelago.sim.tensor_executor import TensorExecutor
from pelago.sim.training_executor import TrainingExecutor
from tests.convergence.paper import PAPER, run_file
from worker.evaluator.state import Evaluator
from worker.state import Worker

SHORT = replace(PAPER, budget=2_000)
ROOT = Path(__file__).parents[2]

DIGEST = """
from convergence.cluster import Cluster
from pelago.config import run_toml
run = run_toml.parse(open(0).read())
cluster = Cluster(run, trace=True)
cluster.replay()
print(cluster.trace.digest(), cluster.simulation.events)
"""


def test_one_seed_gives_one_trace_whatever_the_hash_seed() -> None:
    text = run_toml.dump(run_file(SHORT, "timing"))
    seen = {
        subprocess.run(
            [sys.executable, "-c", DIGEST],
            input=text,
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=True,
            timeout=50,
        ).stdout
        for seed in ("0", "1", "4242")
    }
    assert len(seen) == 1
    digest, events = seen.pop().split()
    assert len(digest) == 64
    assert int(events) > 5_000


def test_another_setting_gives_another_trace() -> None:
    digests = set()
    for every in (32, 31):
        cluster = Cluster(run_file(replace(SHORT, every=every), "timing"), trace=True)
        cluster.replay()
        assert cluster.trace is not None
        digests.add(cluster.trace.digest())
    assert len(digests) == 2


def test_timing_takes_the_same_course_as_scalar() -> None:
    clusters = [Cluster(run_file(SHORT, problem), check=True) for problem in ("timing", "scalar")]
    results = [cluster.replay() for cluster in clusters]
    assert clusters[0].arrivals == clusters[1].arrivals
    for key in ("elapsed_ms", "counted_steps", "gps", "lps", "workers", "ledger", "bytes"):
        assert results[0][key] == results[1][key]
    assert "final" not in results[0]
    assert set(results[1]["final"]["lps"]) == {"r0", "r1", "r2", "r3"}


def test_a_region_is_never_idle_while_its_exchange_is_in_flight() -> None:
    """Nothing waits for the WAN: at a tenth of the bandwidth the workers are as busy as before."""
    slow = tuple(
        tuple(rate / 10 if rate < 100 else rate for rate in row) for row in PAPER.bandwidth_gbps
    )
    results = [
        Cluster(run_file(setting, "timing")).replay()
        for setting in (SHORT, replace(SHORT, bandwidth_gbps=slow))
    ]
    for usual, slowed in zip(*(each["workers"].values() for each in results), strict=True):
        assert slowed["busy_fraction"] == pytest.approx(usual["busy_fraction"], abs=0.01)
    assert results[1]["gps"]["updates"] < results[0]["gps"]["updates"]


def test_no_payload_is_left_behind() -> None:
    cluster = Cluster(run_file(SHORT, "timing"))
    cluster.replay()
    for node in cluster.simulation.nodes.values():
        assert isinstance(node.plane, TimingPlane)
        assert len(node.plane.live) <= 1, (node.name, node.plane.live)


def test_what_the_result_counts_fits_together() -> None:
    found = Cluster(run_file(SHORT, "timing")).replay()
    assert (found["method"], found["clock"], found["seed"]) == ("halos", "virtual", 0)
    assert found["samples"] == found["counted_steps"] * 64
    assert found["tokens"] == found["samples"] * 128
    assert found["model"]["parameters"] == 70_426_624
    assert list(found["workers"]) == [f"r{r}/{w}" for r in range(4) for w in range(4)]
    assert sum(found["gps"]["updates_by_region"].values()) == found["gps"]["updates"]
    rounds = sum(each["rounds"] for each in found["workers"].values())
    updates = sum(each["updates"] for each in found["lps"].values())
    assert rounds == updates
    steps = sum(each["steps"] for each in found["workers"].values())
    assert steps >= found["counted_steps"]
    assert found["validation"] == []
    exchanges = sum(each["exchanges"] for name, each in found["lps"].items() if name != "r0")
    assert found["bytes"]["wan"] % PAPER.model_bytes == 0
    # Each exchange brings an update there and a model back; the last ones may lack their model.
    assert 2 * exchanges <= found["bytes"]["wan"] // PAPER.model_bytes <= 2 * exchanges + 3


def test_a_budget_of_minutes_ends_the_run_at_that_time() -> None:
    run = run_file(PAPER, "timing", budget_minutes=0.5)
    found = Cluster(run, check=True).replay()
    assert found["elapsed_ms"] == 30_000
    assert found["gps"]["updates"] == 4


def test_a_round_of_a_worker_lasts_its_steps_at_its_speed_and_a_trace_of_its_index() -> None:
    cluster = Cluster(run_file(SHORT, "timing"))
    spans = []
    cluster.on_lease = spans.append
    trainer = cluster.simulation.nodes["r1/0"].trainer
    assert isinstance(trainer, SimulatedTrainer)
    plan = trainer.begin(Lease(PushId(1, 1), ((0, 6 * 64),), 0), FreshStart(None))
    assert plan.steps == 6
    expected_ms = 6 * 238.391 / (0.574 / 0.907) + 4e-6
    assert plan.duration_ps == pytest.approx(expected_ms * PS_PER_MS, rel=1e-12)
    assert len(spans) == 1


def test_a_run_file_without_a_simulation_is_refused() -> None:
    run = RunFile.model_validate({"region": [{"name": "eu", "worker_speeds": [1.0]}]})
    with pytest.raises(ConfigError, match="simulation"):
        Cluster(run)


DAEMONS = """
[run]
budget_local_steps = 60
[worker]
local_steps = 4
batch_size = 2
[lps]
updates_per_exchange = 3
lease_seconds = 1.0
staged_max = 1
[gps]
staged_max = 1
validation_interval_steps = 20
[[region]]
name = "eu"
worker_speeds = [1.0, 0.6]
[[region]]
name = "us"
worker_speeds = [0.8, 0.5]
[network]
bandwidth_gbps = [[10.0, 0.05], [0.02, 10.0]]
heartbeat_ms = 100
lost_after_ms = 1000
[simulation]
model_bytes = 1000000
step_ms = 20.0
"""


def test_the_machines_as_the_daemons_set_them_up_run_whatever_the_order_of_starting() -> None:
    """The daemons' own settings: heartbeats, retries, one staging place, leases ahead of need.

    Workers start first, then regions and evaluator, at last the GPS; regions pull the model.
    """
    run = run_toml.parse(DAEMONS)
    assert run.simulation is not None
    problem = Timing(run)
    cluster = Cluster(run)
    links = Links(run.simulation.model_bytes, 2, run.network.bandwidth_gbps)
    simulation = Simulation(run.run_id, links, (TensorExecutor, TrainingExecutor), check=True)
    server = Gps(
        gps.settings.settings(
            run, incarnation=3, manifest=problem.specs, fingerprint="f", corpus="c"
        )
    )
    nodes = [SimulatedNode("gps", 0, server, TimingPlane())]
    trainers: list[SimulatedTrainer] = []
    for place, region in enumerate(run.region):
        machine = Lps(lps.settings.settings(run, place, incarnation=5))
        nodes.append(SimulatedNode(f"lps/{region.name}", place, machine, TimingPlane()))
        for group in range(2):
            settings = worker.settings.worker_settings(
                run,
                place,
                group,
                incarnation=7,
                fingerprint="f",
                corpus="c",
                server=f"lps/{region.name}",
            )
            trainer = SimulatedTrainer(cluster, cluster.layout.units[len(trainers)], len(trainers))
            trainers.append(trainer)
            name = f"{region.name}/{group}"
            nodes.append(SimulatedNode(name, place, Worker(settings), TimingPlane(), trainer))
    evaluator = Evaluator(
        worker.settings.evaluator_settings(run, incarnation=9, fingerprint="f", corpus="c")
    )
    nodes.append(SimulatedNode("evaluator", 0, evaluator, TimingPlane(), trainers[0]))
    for node in nodes:
        simulation.add(node)
    order = sorted(
        nodes, key=lambda node: ("/0" not in node.name, "/1" not in node.name, node.name == "gps")
    )
    for delay, node in enumerate(order):
        simulation.at(delay * 250 * PS_PER_MS, node.name, Started())
        if node.name == "gps":
            simulation.at(delay * 250 * PS_PER_MS, node.name, Loaded(Version(3, 0)))
    simulation.run()
    assert all(node.finished is not None and not node.finished.error for node in nodes)
    found = result(server, run, clock="virtual", model_parameters=250_000)
    assert found["counted_steps"] >= 60
    assert all(row[1] >= 20 * index for index, row in enumerate(found["validation"]))
    assert len(found["validation"]) >= 3
    assert found["validation"][-1][1] == found["counted_steps"]
    ledger = found["ledger"]
    parts = ("applied", "dropped_in_flight", "unexchanged", "returned")
    assert ledger["issued"] == sum(ledger[part] for part in parts)
    assert ledger["duplicated"] == 0
    assert len(found["workers"]) == 4
