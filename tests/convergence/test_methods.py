"""Every method is an arrangement of the daemons' machines, and gives the published values."""

from collections.abc import Callable
from dataclasses import replace
from random import Random
from typing import Any

import pytest
import torch

from convergence.cluster import Arrival, Cluster
from convergence.methods import all_reduce_ps, layout, ring_of_regions
from pelago.config import run_toml
from pelago.config.run_file import RunFile
from pelago.core.errors import ConfigError
from pelago.core.machine import PS_PER_MS
from tests.convergence import reference_simulator
from tests.convergence.paper import PAPER, run_file
from tests.convergence.reference_simulator import ReferenceResult, Setting
from tests.convergence.test_conformance import exactly

torch.set_num_threads(1)

ASYNC = replace(PAPER, local_steps=32, gps=(0.05, 0.9, 32))
DILOCO = replace(PAPER, local_steps=32, gps=(0.7, 0.9, 1))


def with_simulation(run: RunFile, **keys: Any) -> RunFile:
    assert run.simulation is not None
    return run.model_copy(update={"simulation": run.simulation.model_copy(update=keys)})


def play(setting: Setting, method: str, **keys: Any) -> tuple[Cluster, dict[str, Any], list[float]]:
    """The cluster, its result, and the GPS's value after every arrival."""
    values: list[float] = []

    def on_arrival(arrival: Arrival) -> None:
        value = cluster.problem.value(cluster.plane("gps"))
        assert value is not None
        values.append(value)

    check = setting.budget < 10_000
    run = with_simulation(run_file(setting), method=method, **keys)
    cluster = Cluster(run, check=check, on_arrival=on_arrival)
    return cluster, cluster.replay(), values


PUBLISHED = {
    "Async-Local-SGD": ("async-local-sgd", ASYNC, 4_875, 98_328, 4098168.680, -0.18767254028336483),
    "DiLoCo+DynUpd": ("diloco", DILOCO, 303, 98_475, 12623067.968, 0.008422387095240876),
    "DiLoCo": (
        "diloco",
        replace(DILOCO, rescale=False),
        192,
        98_304,
        18803815.013,
        6.552643559523176e-07,
    ),
    "synchronous": ("synchronous", PAPER, 6_144, 98_304, 216841263.5, None),
}


@pytest.mark.parametrize(
    ("method", "setting", "updates", "steps", "elapsed_ms", "value"),
    PUBLISHED.values(),
    ids=PUBLISHED,
)
def test_the_papers_environment_gives_the_published_values(
    method: str, setting: Setting, updates: int, steps: int, elapsed_ms: float, value: float | None
) -> None:
    _, found, values = play(setting, method)
    assert found["gps"]["updates"] == len(values) == updates
    assert found["counted_steps"] == steps
    assert found["elapsed_ms"] == pytest.approx(elapsed_ms, rel=1e-9)
    if value is not None:
        assert found["final"]["gps"] == exactly(value)
    assert found["method"] == method
    assert found["ledger"]["dropped_in_flight"] == found["ledger"]["duplicated"] == 0


def test_without_communication_the_papers_run_would_take_the_published_bound() -> None:
    """The ideal group divides whole samples only, so it stays a little above the bound."""
    bound_ms = 2_367_229.480
    run = run_file(PAPER, "timing")
    coarse, fine = (
        Cluster(with_simulation(run, method="ideal", group_batch=batch)).replay()["elapsed_ms"]
        for batch in (0, 64 * 4096)
    )
    assert bound_ms < fine < bound_ms * 1.01
    assert fine < coarse < bound_ms * 1.03


SHORT = replace(PAPER, budget=2_000)
UNEVEN = replace(
    SHORT,
    speeds=((0.9,), (0.31, 0.77, 0.52, 0.44, 0.68), (0.21, 0.83)),
    bandwidth_gbps=((100.0, 0.5, 0.2), (0.5, 80.0, 0.3), (0.2, 0.3, 60.0)),
)
SETTINGS = {
    "the paper's, short": SHORT,
    "H 3": replace(SHORT, local_steps=3),
    "not rescaled": replace(SHORT, rescale=False, local_steps=12),
    "other server": replace(SHORT, gps=(0.3, 0.6, 4), gps_region=2),
    "uneven regions": UNEVEN,
    "one region": replace(SHORT, speeds=((0.5, 1.0, 0.7),), bandwidth_gbps=((10.0,),)),
    "another model": replace(SHORT, model_bytes=1_000_000_003, step_ms=117.3),
}


@pytest.mark.parametrize(
    ("method", "refer"),
    [
        ("async-local-sgd", reference_simulator.one_server),
        ("diloco", reference_simulator.diloco),
        ("synchronous", reference_simulator.synchronous),
    ],
)
@pytest.mark.parametrize("setting", SETTINGS.values(), ids=SETTINGS)
def test_other_settings_agree_with_the_reference(
    setting: Setting, method: str, refer: Callable[[Setting], ReferenceResult]
) -> None:
    cluster, found, values = play(setting, method)
    expected = refer(setting)
    times = [arrival.time_ps / PS_PER_MS for arrival in cluster.arrivals]
    assert times == exactly([each[0] for each in expected.arrivals])
    assert [each.cumulative_steps for each in cluster.arrivals] == [
        each[2] for each in expected.arrivals
    ]
    assert values == exactly(expected.values)
    parts = ("applied", "dropped_in_flight", "unexchanged", "returned")
    assert found["ledger"]["issued"] == sum(found["ledger"][part] for part in parts)


GROUPS = replace(
    PAPER, budget=4_000, lps=(1.0, 0.0, 1), gps=(0.4, 0.0, 1), every=1, alpha=0.4, local_steps=8
)


def grouped(setting: Setting, **keys: Any) -> RunFile:
    run = run_file(setting)
    lps = run.lps.model_copy(update={"in_flight": "replay"})
    return with_simulation(run.model_copy(update={"lps": lps}), method="regional-groups", **keys)


def test_a_regions_group_divides_each_step_in_proportion_to_speed() -> None:
    for unit, table in zip(layout(grouped(GROUPS)).units, PAPER.speeds, strict=True):
        assert sum(member.batch for member in unit.members) == 4 * 64
        for member, speed in zip(unit.members, table, strict=True):
            assert abs(member.batch - 256 * speed / sum(table)) < 1
        assert all(member.steps == 8 for member in unit.members)


def test_a_groups_step_lasts_as_long_as_its_slowest_member_and_an_all_reduce() -> None:
    run = grouped(GROUPS, group_batch=96)
    unit = layout(run).units[1]
    assert unit.all_reduce_ps == all_reduce_ps(PAPER.model_bytes, 4, 100.0)
    slowest = max(member.batch / 64 * 238.391 / member.speed for member in unit.members)
    expected = 8 * (slowest + unit.all_reduce_ps / PS_PER_MS)
    assert unit.duration_ps(238.391, 64, [1.0] * 4) / PS_PER_MS == pytest.approx(expected)


def test_a_group_too_small_for_all_leaves_the_slowest_out() -> None:
    unit = layout(grouped(replace(GROUPS, local_steps=64), group_batch=3)).units[2]
    # Speeds .852 .132 .896 .107: exactly 1.29 0.20 1.35 0.16 samples.
    assert [(member.worker, member.batch) for member in unit.members] == [(8, 1), (10, 2)]


def test_a_round_of_a_group_is_a_whole_number_of_local_steps() -> None:
    with pytest.raises(ConfigError, match=r"group_batch = 100: a round of 8 steps has 800 samples"):
        Cluster(grouped(GROUPS, group_batch=100))


def test_regional_groups_lose_no_movement_and_never_wait_for_the_slow_links() -> None:
    cluster = Cluster(grouped(GROUPS), check=True)
    found = cluster.replay()
    assert found["ledger"]["dropped_in_flight"] == 0
    assert min(each["busy_fraction"] for each in found["workers"].values()) > 0.97
    assert found["counted_steps"] >= 4_000
    assert abs(found["final"]["gps"]) < 1


def test_the_ring_is_the_best_there_is() -> None:
    time_ps, wan_bytes = ring_of_regions(run_file(PAPER), PAPER.model_bytes)
    assert time_ps == all_reduce_ps(PAPER.model_bytes, 16, 0.127)
    assert wan_bytes == round(4 * 2 * 15 / 16 * PAPER.model_bytes)
    one_way = replace(
        PAPER,
        speeds=((1.0,),) * 3,
        bandwidth_gbps=((9.0, 5.0, 1.0), (1.0, 9.0, 4.0), (3.0, 1.0, 9.0)),
    )
    assert ring_of_regions(run_file(one_way), 1000)[0] == all_reduce_ps(1000, 3, 3.0)
    alone = replace(PAPER, speeds=((1.0,),), bandwidth_gbps=((9.0,),))
    assert ring_of_regions(run_file(alone), 1000) == (0, 0)


def test_too_many_regions_for_a_ring_are_refused() -> None:
    regions = [{"name": f"r{i}", "worker_speeds": [1.0]} for i in range(13)]
    run = RunFile.model_validate({"region": regions, "simulation": {"method": "diloco"}})
    with pytest.raises(ConfigError, match="at most 12 regions, and there are 13"):
        Cluster(run)


@pytest.mark.parametrize("seed", range(24))
def test_any_arrangement_under_any_settings_keeps_all_invariants_and_balances_its_ledger(
    seed: int,
) -> None:
    """One to four uneven regions; slow, long or shared links; ideal servers or the daemons' settings."""
    draw = Random(seed)
    n = draw.randint(1, 4)
    setting = replace(
        PAPER,
        speeds=tuple(
            tuple(draw.uniform(0.1, 1) for _ in range(draw.randint(1, 4))) for _ in range(n)
        ),
        bandwidth_gbps=tuple(
            tuple(100.0 if a == b else draw.uniform(0.05, 2) for b in range(n)) for a in range(n)
        ),
        budget=draw.choice([200, 800]),
        every=draw.choice([1, 2, 8]),
        carry=draw.random() < 0.5,
        local_steps=draw.choice([1, 3, 8]),
        gps_region=draw.randrange(n),
    )
    run = run_file(setting, draw.choice(["timing", "scalar"]))
    latency = [[0 if a == b else draw.choice([0, 5.0, 80.0]) for b in range(n)] for a in range(n)]
    network = {"share_links": draw.random() < 0.5, "latency_ms": draw.choice([latency, ()])}
    run = with_simulation(
        run.model_copy(update={"network": run.network.model_copy(update=network)}),
        method=draw.choice(
            ["halos", "async-local-sgd", "regional-groups", "diloco", "synchronous", "ideal"]
        ),
        daemons=draw.random() < 0.4,
        step_jitter=draw.choice([0.0, 0.2]),
    )
    found = Cluster(run, check=True).replay()
    assert found["counted_steps"] >= setting.budget
    parts = ("applied", "dropped_in_flight", "unexchanged", "returned")
    assert found["ledger"]["issued"] == sum(found["ledger"][part] for part in parts)


def test_a_workers_round_does_not_wait_for_a_far_gps() -> None:
    """With 200 ms to the GPS, regions train as many steps in a given time as beside it."""
    far = [[0.0 if a == b else 200.0 for b in range(4)] for a in range(4)]
    results = []
    for daemons, latency_ms in ((False, ()), (False, far), (True, ()), (True, far)):
        run = run_file(replace(PAPER, budget=10**6), "timing", budget_minutes=2)
        run = run.model_copy(
            update={"network": run.network.model_copy(update={"latency_ms": latency_ms})}
        )
        found = Cluster(with_simulation(run, daemons=daemons)).replay()
        results.append(sum(each["steps"] for each in found["workers"].values()))
    assert results[0] == pytest.approx(results[1], rel=0.01)
    assert results[2] == pytest.approx(results[3], rel=0.01)


def test_jitter_makes_rounds_uneven_but_not_longer_and_the_same_for_one_seed() -> None:
    seen = [
        Cluster(
            with_simulation(run_file(replace(PAPER, budget=8_000), "timing"), step_jitter=jitter)
        )
        for jitter in (0.0, 0.2, 0.2)
    ]
    elapsed = [cluster.replay()["elapsed_ms"] for cluster in seen]
    assert elapsed[1] == elapsed[2] != elapsed[0]
    assert elapsed[1] == pytest.approx(elapsed[0], rel=0.05)


LOSSES = """
[run]
budget_local_steps = 600
[worker]
local_steps = 4
batch_size = 2
[lps]
updates_per_exchange = 3
in_flight = "replay"
[[region]]
name = "eu"
worker_speeds = [1.0, 0.6]
[[region]]
name = "us"
worker_speeds = [0.8, 0.5]
[network]
bandwidth_gbps = [[10.0, 0.05], [0.02, 10.0]]
latency_ms = [[0.0, 20.0], [20.0, 0.0]]
heartbeat_ms = 100
lost_after_ms = 500
region_lost_after_ms = 1000
[simulation]
problem = "scalar"
model_bytes = 1000000
step_ms = 20.0
daemons = true
"""


def event(at_ms: float, node: str, kind: str) -> str:
    return f'[[simulation.event]]\nat_ms = {at_ms}\nnode = "{node}"\nkind = "{kind}"\n'


@pytest.mark.parametrize(
    "events",
    [
        event(700, "eu/0", "lose"),
        event(700, "eu/0", "lose") + event(1500, "eu/0", "join"),
        event(700, "lps/us", "lose") + event(1200, "lps/us", "join"),
        event(700, "lps/us", "lose"),
        event(900, "us/1", "join"),
        event(650, "eu/1", "join") + event(655, "eu/1", "lose") + event(660, "eu/1", "join"),
    ],
    ids=["worker lost", "worker back", "LPS back", "LPS lost", "late worker", "restarts"],
)
def test_a_run_with_losses_and_joins_ends_and_its_ledger_balances(events: str) -> None:
    cluster = Cluster(run_toml.parse(LOSSES + events), check=True)
    clocks: dict[int, list[int]] = {}
    cluster.on_lease = lambda each: clocks.setdefault(each.worker, []).append(each.lease.clock)
    found = cluster.replay()
    assert found["counted_steps"] >= 600
    assert all(each == sorted(each) for each in clocks.values()), "a learning rate went back"
    ledger = found["ledger"]
    parts = ("applied", "dropped_in_flight", "unexchanged", "returned")
    assert ledger["issued"] == sum(ledger[part] for part in parts)
    assert ledger["duplicated"] == 0


def test_an_event_of_an_unknown_node_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"simulation\.event\.node = 'eu/7': no such node"):
        Cluster(run_toml.parse(LOSSES + event(5, "eu/7", "lose")))


def test_a_run_without_a_worker_at_the_start_is_refused() -> None:
    names = ("eu/0", "eu/1", "us/0", "us/1")
    with pytest.raises(ConfigError, match="no worker starts the run"):
        Cluster(run_toml.parse(LOSSES + "".join(event(5, name, "join") for name in names)))


def test_events_need_the_daemons_heartbeats() -> None:
    text = LOSSES.replace("daemons = true", "daemons = false") + event(5, "eu/0", "lose")
    with pytest.raises(ConfigError, match="daemons = true"):
        run_toml.parse(text)
