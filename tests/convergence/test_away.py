"""A GPS that is away for a minute stops no worker, and no region takes more in hand than it trains on."""

from dataclasses import dataclass
from itertools import pairwise

import pytest

from convergence.cluster import Cluster, HandedOut
from pelago.config import run_toml
from pelago.config.run_file import RunFile
from pelago.core.machine import PS_PER_MS, Machine, Restarted
from pelago.wire.messages import Effect, Event, Message

PS_PER_S = 1000 * PS_PER_MS
LATENCY_S = 0.1


@dataclass
class Away:
    """A GPS that receives nothing from ``since`` to ``until``, and then the events of a restarted process."""

    machine: Machine[Message]
    since: int
    until: int
    back: bool = False

    def handle(self, event: Event, now: int) -> list[Effect]:
        if self.since <= now < self.until:
            return []
        effects: list[Effect] = []
        if now >= self.until and not self.back:
            self.back = True
            effects = self.machine.handle(Restarted(), now)
        return [*effects, *self.machine.handle(event, now)]

    def check(self) -> None:
        self.machine.check()


def run(round_s: float, minutes: float, speeds: str = "1.0" + ", 1.0" * 7) -> RunFile:
    """Two regions with the daemons' defaults: the first with eight equal workers, or with ``speeds``."""
    return run_toml.parse(f"""
[run]
budget_local_steps = {round(2 * 8 * minutes * 60 / round_s * 4)}
[worker]
local_steps = 4
batch_size = 8
[[region]]
name = "eu"
worker_speeds = [{speeds}]
[[region]]
name = "us"
worker_speeds = [1.0{", 1.0" * 7}]
[network]
bandwidth_gbps = [[10.0, 1.0], [1.0, 10.0]]
latency_ms = [[0.0, {1000 * LATENCY_S}], [{1000 * LATENCY_S}, 0.0]]
[simulation]
model_bytes = 1000000
step_ms = {1000 * round_s / 4}
daemons = true
""")


def leases(cluster: Cluster) -> dict[int, list[HandedOut]]:
    """The leases of each worker, filled while the cluster runs."""
    found: dict[int, list[HandedOut]] = {}
    cluster.on_lease = lambda each: found.setdefault(each.worker, []).append(each)
    return found


@pytest.mark.parametrize(("round_s", "since_s"), [(0.25, 12), (1.0, 12), (1.0, 60), (20.0, 100)])
def test_a_minute_without_the_gps_stops_no_worker(round_s: float, since_s: int) -> None:
    """No worker waits longer between two rounds than at other times, and the ledger is exact at the end."""
    cluster = Cluster(run(round_s, minutes=4), check=True)
    node = cluster.simulation.nodes["gps"]
    node.machine = Away(node.machine, since_s * PS_PER_S, (since_s + 60) * PS_PER_S)
    handed_out = leases(cluster)
    found = cluster.replay()
    assert len(handed_out) == 16
    for each in handed_out.values():
        times = [lease.time_ps / PS_PER_S for lease in each]
        assert times[-1] > since_s + 60
        # The first rounds wait for the WAN, before it is known how long they take.
        steady = [(a, b) for a, b in pairwise(times) if a > 5 * round_s]
        assert max(b - a for a, b in steady) < round_s + 0.1
    ledger = found["ledger"]
    parts = ("applied", "dropped_in_flight", "unexchanged", "returned")
    assert ledger["issued"] == sum(ledger[part] for part in parts)
    assert ledger["duplicated"] == 0
    assert found["counted_steps"] >= cluster.run.run.budget_local_steps


def test_a_slow_region_keeps_no_more_in_hand_than_it_trains_on_in_that_time() -> None:
    """A region of two workers at a tenth of the speed, beside a region of eight: it keeps less than two minutes of
    its own work, and a round or two."""
    cluster = Cluster(run(1.0, minutes=4, speeds="0.1, 0.1"), check=True)
    most = {"eu": 0, "us": 0}

    def look(second: int) -> None:
        for region in most:
            most[region] = max(most[region], cluster.lps[region].workers.leases.pool.total)
        cluster.simulation.call((second + 1) * PS_PER_S, lambda: look(second + 1))

    look(0)
    cluster.replay()
    # Of us eight rounds of 32 samples a second; a worker of eu takes 2.5 s for one of 8 samples.
    assert 8 * 32 * 75 <= most["us"] <= 8 * 32 * (75 + 1) * 17 / 16
    assert most["eu"] <= 2 * 8 * (30 + 1) * 17 / 16


def test_the_clock_of_a_lease_is_what_workers_were_given_not_what_regions_keep_in_hand() -> None:
    """It is never ahead, and behind by what other regions handed out since their last reports to the GPS."""
    cluster = Cluster(run(1.0, minutes=3), check=True)
    given, late = 0, []

    def look(each: HandedOut) -> None:
        nonlocal given
        late.append(given - each.lease.clock)
        given += each.lease.samples

    cluster.on_lease = look
    cluster.replay()
    # A region holds 19,200 samples at the least, and asks again when a sixteenth was given to its workers.
    assert min(late) >= -8 * 32
    assert max(late) <= 2 * 8 * 32 * 75 // 16 + 2 * 8 * 32
