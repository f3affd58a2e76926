"""Every process of a run is replaced by another one while the run goes on; with real processes."""

import signal
from pathlib import Path

import pytest

from pelago.cli.audit import audit
from pelago.core.notes.common import Draining, ServerRestarted
from pelago.core.notes.gps import EvaluatorLeft, RegionJoined, RegionLeft
from pelago.core.notes.lps import LpsJoined, Rejoining, WorkerJoined, WorkerLeft
from pelago.core.notes.worker import ValidationMeasured, WorkerAdmitted
from tests.e2e.test_regions import assert_all_end_well, updates_arrive
from tests.e2e.topology import Daemons, assert_ledger_balances, run_file

pytestmark = [pytest.mark.timeout(300), pytest.mark.slow]

BUDGET = 800
"""Local steps; paced workers do at most five a second each."""

SERVERS = {
    "gps": ("gps",),
    "lps-eu": ("lps", "--region", "eu"),
    "lps-us": ("lps", "--region", "us"),
}
CLIENTS = {
    "evaluator": ("worker", "--evaluate"),
    "worker-eu-0": ("worker", "--region", "eu", "--group", "0", "--paced"),
    # The last one is not paced, so that the rest of the budget takes seconds.
    "worker-us-0": ("worker", "--region", "us", "--group", "0"),
}


def test_a_rolling_restart_of_every_process_under_load(tmp_path: Path) -> None:
    """1. SIGHUP to the GPS, then to each LPS: it ends, and the same command starts it again.
    2. SIGTERM to the evaluator and to each worker: it leaves, and another process takes its place.
    3. Updates of both regions arrive before and after each of these. 4. The run goes on to its budget:
       only the replaced processes joined again or left, and the ledger balances."""
    path = run_file(
        tmp_path, budget=BUDGET, interval=200, step_ms=200.0, regions={"eu": [1.0], "us": [1.0]}
    )
    path.write_text(path.read_text(encoding="utf-8").replace("exchange = 4", "exchange = 2"))
    with Daemons(path, tmp_path / "out") as daemons:
        daemons.start_servers("eu", "us")
        daemons.start("evaluator", "worker", "--evaluate")
        for region in ("eu", "us"):
            daemons.start_worker(region, 0)
        updates_arrive(daemons, "eu", "us", count=1)

        for node, command in SERVERS.items():
            replace(daemons, node, signal.SIGHUP, command, ServerRestarted)
            updates_arrive(daemons, "eu", "us", count=1)
        for node, command in CLIENTS.items():
            updates_arrive(daemons, "eu", "us", count=1)
            kind = ValidationMeasured if node == "evaluator" else WorkerAdmitted
            replace(daemons, node, signal.SIGTERM, command, kind)
            assert not daemons.events("gps", Draining), "the budget was reached too soon"

        assert_all_end_well(daemons, *SERVERS, *CLIENTS)
        assert_no_other_node_noticed(daemons)
        result = daemons.result()
        assert result["counted_steps"] >= BUDGET
        assert result["validation"][-1][1] == result["counted_steps"]
        assert_ledger_balances(result)
        assert audit(daemons.out) == 0


def replace(
    daemons: Daemons, node: str, farewell: signal.Signals, command: tuple[str, ...], kind: type
) -> None:
    """End a process in good order and start another one; wait until that logs a kind of event."""
    daemons.processes[node].send_signal(farewell)
    assert_all_end_well(daemons, node)
    before = len(daemons.events(node, kind))
    daemons.start(node, *command)
    daemons.until(f"{kind.__name__} of {node}", lambda: len(daemons.events(node, kind)) > before)


def assert_no_other_node_noticed(daemons: Daemons) -> None:
    """No server joined again, nor was let go of before the end; of the others only those that were stopped."""
    for node in (*SERVERS, *CLIENTS):
        assert not daemons.events(node, Rejoining), node
    assert len(daemons.events("gps", RegionJoined)) == 2
    kinds = [type(event) for event in daemons.events("gps", object)]
    until_the_end = kinds[: kinds.index(Draining)]
    assert RegionLeft not in until_the_end
    assert until_the_end.count(EvaluatorLeft) == 1
    for node in SERVERS:
        assert len(daemons.events(node, ServerRestarted)) == 1, node
        if node != "gps":
            assert len(daemons.events(node, LpsJoined)) == 1, node
            assert len(daemons.events(node, WorkerJoined)) == 2, node
            left = [event.why for event in daemons.events(node, WorkerLeft)]
            assert left == ["SIGTERM", "budget of local steps reached"], node
