"""Regions that join late, leave in good order, or are lost for good while a run goes on; with real processes."""

import signal
from pathlib import Path

import pytest

from pelago.cli.audit import audit
from pelago.config import run_toml
from pelago.core.machine import Received
from pelago.core.notes.common import Draining
from pelago.core.notes.gps import ExchangeArrived, RegionJoined, RegionLeft
from pelago.core.spans import SpanSet
from pelago.durable import record
from pelago.durable.record import Kind
from pelago.net.durability.state_folder import StateFolder
from pelago.wire.messages import LeaseGrant
from tests.e2e.topology import Daemons, assert_ledger_balances, run_file

pytestmark = pytest.mark.timeout(180)

REGIONS = {"eu": [1.0], "us": [1.0], "ap": [1.0, 1.0]}
BUDGET = 800
"""Local steps; paced workers do at most five a second each."""


def a_run(folder: Path, *, budget: int) -> Path:
    """Three regions with slow workers, so that the budget is not reached while they change; an exchange
    every other update. A region that is silent for five seconds is lost."""
    path = run_file(
        folder,
        budget=budget,
        interval=10**6,
        step_ms=200.0,
        network="region_lost_after_ms = 5000",
        regions=REGIONS,
    )
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace("per_exchange = 4", "per_exchange = 2"), encoding="utf-8")
    return path


@pytest.mark.slow
def test_a_region_is_added_and_another_one_drained_while_the_run_goes_on(tmp_path: Path) -> None:
    """1. Of three regions in the run file one is there; it trains. 2. The second one comes, with a worker.
    3. The first is drained: it and its worker leave, and the second goes on with its samples.
    4. The first is started again, and takes part. 5. The third never comes: SIGTERM to the GPS ends the run
    in good order."""
    path = a_run(tmp_path, budget=10**6)
    with Daemons(path, tmp_path / "out") as daemons:
        daemons.start_servers("eu")
        daemons.start_worker("eu", 0)
        updates_arrive(daemons, "eu")
        add(daemons, "us")
        drain(daemons, "eu")
        held = inheritance(daemons, "eu")
        daemons.until("us trained on it", lambda: spent(daemons, "us").holds(held))
        add(daemons, "eu")
        daemons.processes["gps"].terminate()
        assert_all_end_well(daemons, "gps", "lps-us", "worker-us-0", "lps-eu", "worker-eu-0")
        joined = [event.region for event in daemons.events("gps", RegionJoined)]
        assert joined == ["eu", "us", "eu"]
        assert audit(daemons.out) == 0


@pytest.mark.slow
def test_a_region_is_added_one_drained_and_one_lost_for_good_and_the_budget_completes(
    tmp_path: Path,
) -> None:
    """1. Of three regions in the run file two are there, and train. 2. The third one comes.
    3. One is drained. 4. One is killed with its worker, and never comes back: the GPS parts it and
       lends its samples again. 5. The remaining region completes the budget with one more worker."""
    path = a_run(tmp_path, budget=BUDGET)
    with Daemons(path, tmp_path / "out") as daemons:
        daemons.start_servers("eu", "us")
        for region in ("eu", "us"):
            daemons.start_worker(region, 0)
        updates_arrive(daemons, "eu", "us")
        add(daemons, "ap")
        drain(daemons, "eu")
        inherited = inheritance(daemons, "eu")
        updates_arrive(daemons, "us", "ap")
        lose(daemons, "us")
        others = inheritance(daemons, "us")
        assert not daemons.events("gps", Draining), "the budget was reached too soon to show this"
        # One that is not paced, so that the rest of the budget takes seconds.
        daemons.start("late", "worker", "--region", "ap", "--group", "1")
        assert_all_end_well(daemons, "gps", "lps-ap", "worker-ap-0", "late")
        result = daemons.result()
        assert result["counted_steps"] >= BUDGET
        assert_ledger_balances(result)
        updates = result["gps"]["updates_by_region"]
        assert all(updates[region] > 0 for region in REGIONS), updates
        assert spent(daemons, "ap").holds(others)
        left = SpanSet(inherited)
        left.remove(left.common(spent(daemons, "us")))
        assert spent(daemons, "ap").holds(left)
        assert audit(daemons.out) == 0


# --- what is done to regions ---------------------------------------------------------------------


def updates_arrive(daemons: Daemons, *regions: str, count: int = 2) -> None:
    """Wait until the GPS has applied new exchanges of each region."""
    for region in regions:
        wanted = arrivals(daemons, region) + count
        daemons.until(
            f"{count} updates of {region} arrive",
            lambda r=region, n=wanted: arrivals(daemons, r) >= n,
        )


def add(daemons: Daemons, region: str) -> None:
    """Start a region's server and a worker, and wait until they take part."""
    daemons.start(f"lps-{region}", "lps", "--region", region)
    daemons.start_worker(region, 0)
    updates_arrive(daemons, region)


def drain(daemons: Daemons, region: str) -> None:
    """SIGTERM to a region's server: it sends its worker away, says goodbye and ends."""
    daemons.processes[f"lps-{region}"].send_signal(signal.SIGTERM)
    assert_all_end_well(daemons, f"lps-{region}", f"worker-{region}-0")
    daemons.until(f"{region} has left", lambda: departures(daemons, region) == ["drained"])


def lose(daemons: Daemons, region: str) -> None:
    """SIGKILL to all processes of a region, for good; wait until the GPS takes it for lost."""
    for node in (f"lps-{region}", f"worker-{region}-0"):
        daemons.kill(node)
    lost = ["lost: no heartbeat"]
    daemons.until(f"{region} is missed", lambda: departures(daemons, region) == lost)


def arrivals(daemons: Daemons, region: str) -> int:
    return sum(event.region == region for event in daemons.events("gps", ExchangeArrived))


def departures(daemons: Daemons, region: str) -> list[str]:
    """The reason of each departure of a region, as the GPS logged it."""
    events = daemons.events("gps", RegionLeft)
    return [event.why for event in events if event.region == region]


# --- and what must hold --------------------------------------------------------------------------


def assert_all_end_well(daemons: Daemons, *nodes: str) -> None:
    for node in nodes:
        code, output = daemons.wait(node)
        assert code == 0, (node, output)
        assert "Traceback" not in output, (node, output)


def inheritance(daemons: Daemons, gone: str) -> SpanSet:
    """What was lent to a region that is gone and is in no exchange of its: the GPS lends it again. The GPS
    logged all of its exchanges before it noted that it left."""
    run, node = run_toml.load(daemons.path), f"lps-{gone}"
    held = SpanSet()
    store = StateFolder(daemons.out / node / "state", run.run_id, node)
    recovered = store.recovered()
    store.close()
    assert recovered is not None
    assert recovered.snapshot is None, "the events before it are not in the journal"
    for each in recovered.records:
        if each.head.kind is Kind.EVENT:
            event = record.unpack_event(run.run_id, each.body)
            if isinstance(event, Received) and isinstance(event.message, LeaseGrant):
                held.add(event.message.spans)
    held.remove(spent(daemons, gone))
    assert held.total > 0, f"{gone} had nothing in hand"
    return held


def spent(daemons: Daemons, region: str) -> SpanSet:
    """Samples of a region's exchanges, those included whose movement was dropped in flight."""
    found = SpanSet()
    for event in daemons.events("gps", ExchangeArrived):
        if event.region == region:
            for start, stop in (*event.spans, *event.dropped):
                assert found.add([(start, stop)]) == 0, event
    return found
