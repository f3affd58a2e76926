"""Real servers that are stopped (SIGSTOP) for longer than any node may be silent, and go on."""

import signal
from pathlib import Path

import pytest

from pelago.cli.audit import audit
from pelago.core.notes.gps import RegionJoined, RegionLeft
from pelago.core.notes.lps import Rejoining, WorkerLeft
from pelago.runlog.events import NodePaused, WaitingForServer
from tests.e2e.test_regions import assert_all_end_well, updates_arrive
from tests.e2e.topology import Daemons, run_file

pytestmark = pytest.mark.timeout(180)


def test_servers_that_were_stopped_exclude_no_client_when_they_go_on(tmp_path: Path) -> None:
    """1. Two regions train. 2. The GPS and the LPS of one are stopped until their clients miss them, which is
    longer than any node may be silent. 3. They go on: workers and regions are still there, and train. 4. In all
    this no client was excluded, and none joined again."""
    path = run_file(
        tmp_path,
        budget=10**6,
        interval=10**6,
        network="region_lost_after_ms = 2000",
        regions={"eu": [1.0], "us": [1.0]},
    )
    with Daemons(path, tmp_path / "out") as daemons:
        daemons.start_servers("eu", "us")
        for region in ("eu", "us"):
            daemons.start_worker(region, 0)
        updates_arrive(daemons, "eu", "us", count=1)
        stop_until_missed(daemons, {"lps-eu": "worker-eu-0", "gps": "lps-us"})
        updates_arrive(daemons, "eu", "us", count=1)
        for node in ("gps", "lps-eu", "lps-us"):
            for kind in (WorkerLeft, RegionLeft, Rejoining):
                assert not daemons.events(node, kind), (node, kind)
        for node in ("gps", "lps-eu"):
            assert any(event.seconds > 2 for event in daemons.events(node, NodePaused)), node
        daemons.processes["gps"].terminate()
        assert_all_end_well(daemons, "gps", "lps-eu", "lps-us", "worker-eu-0", "worker-us-0")
        assert len(daemons.events("gps", RegionJoined)) == 2
        assert audit(daemons.out) == 0


def stop_until_missed(daemons: Daemons, clients: dict[str, str]) -> None:
    """SIGSTOP to servers; SIGCONT when a client of each has noted that it does not answer."""

    def waiting() -> list[int]:
        return [len(daemons.events(client, WaitingForServer)) for client in clients.values()]

    more = [each + 1 for each in waiting()]
    for server in clients:
        daemons.processes[server].send_signal(signal.SIGSTOP)
    try:
        daemons.until("they are missed", lambda: all(map(int.__ge__, waiting(), more)))
    finally:
        for server in clients:
            daemons.processes[server].send_signal(signal.SIGCONT)
