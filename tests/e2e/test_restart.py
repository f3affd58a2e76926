"""Servers that are killed and started again in the middle of a run, with real processes."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pelago.cli.audit import examine, histories
from pelago.core.notes.common import ServerRestarted
from pelago.core.notes.gps import ExchangeArrived, RegionJoined
from pelago.core.notes.lps import Rejoining, UpdateApplied
from tests.e2e.topology import Daemons, assert_ledger_balances, run_file

pytestmark = pytest.mark.timeout(180)


def test_servers_that_are_killed_go_on_where_they_were(tmp_path: Path) -> None:
    """1. The GPS and one LPS are killed with SIGKILL at once, and started again; then the other LPS is
       stopped with SIGHUP, as for a rolling restart.
    2. They have their state: no client has to join again, nothing is trained twice or lost.
    3. SIGTERM to the GPS ends the run in good order, and the ledger balances."""
    path = run_file(tmp_path, budget=10**6, interval=10**6, step_ms=10.0)
    with Daemons(path, tmp_path / "out") as daemons:
        daemons.start_servers("eu", "us")
        for region, group in (("eu", 0), ("eu", 1), ("us", 0)):
            daemons.start_worker(region, group)
        for nodes in (("gps", "lps-eu"), ("lps-us",)):
            arrivals = len(daemons.events("gps", ExchangeArrived))
            daemons.until(
                "updates arrive",
                lambda n=arrivals: len(daemons.events("gps", ExchangeArrived)) > n + 2,
            )
            for node in nodes:
                if node == "lps-us":
                    daemons.processes[node].send_signal(signal.SIGHUP)
                    code, output = daemons.wait(node)
                    assert code == 0, output
                else:
                    daemons.kill(node)
            for node in nodes:
                daemons.start(node, *_command(node))
            for node in nodes:
                daemons.until("it is back", lambda n=node: bool(daemons.events(n, ServerRestarted)))
        daemons.until("all train", lambda: _trained_after_restarts(daemons))
        daemons.processes["gps"].terminate()
        for node in ("gps", "lps-eu", "lps-us", "worker-eu-0", "worker-eu-1", "worker-us-0"):
            code, output = daemons.wait(node)
            assert code == 0, (node, output)
        result = daemons.result()
        assert_ledger_balances(result)
        for node in ("lps-eu", "lps-us", "worker-eu-0", "worker-eu-1", "worker-us-0"):
            assert not daemons.events(node, Rejoining), node
        assert len(daemons.events("gps", RegionJoined)) == 2
        found = examine(histories(tmp_path / "out"))
        assert not found.exceptions
        assert found.applied == result["ledger"]["applied"]


def _trained_after_restarts(daemons: Daemons) -> bool:
    """Whether each LPS has applied updates, and the GPS one of each region, since it was last restarted."""
    for node in ("lps-eu", "lps-us", "gps"):
        events = daemons.events(node, object)
        last = max(i for i, event in enumerate(events) if isinstance(event, ServerRestarted))
        updates = [each for each in events[last:] if isinstance(each, UpdateApplied)]
        regions = {each.region for each in events[last:] if isinstance(each, ExchangeArrived)}
        if len(regions if node == "gps" else updates) < 2:
            return False
    return True


def _command(node: str) -> tuple[str, ...]:
    return ("gps",) if node == "gps" else ("lps", "--region", node.removeprefix("lps-"))


@pytest.mark.slow
def test_pelago_local_starts_killed_servers_again(tmp_path: Path) -> None:
    """1. The GPS and an LPS of a `pelago local` are killed with SIGKILL in the middle of a run.
    2. It says so and starts them again, and the run ends as if they had not been killed."""
    path = run_file(tmp_path, budget=500, interval=250, step_ms=10.0)
    out = tmp_path / "out"
    command = [sys.executable, "-m", "pelago.cli.main", "local", str(path), "--out", str(out)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as local:
        try:
            logs = Daemons(path, out)
            logs.until("updates arrive", lambda: len(logs.events("gps", ExchangeArrived)) > 3)
            for role in ("gps", "lps"):
                os.kill(_child(local.pid, role), signal.SIGKILL)
            output, _ = local.communicate(timeout=150)
        finally:
            local.kill()
    assert local.returncode == 0, output
    assert "gps ended with exit code -9; starting it again" in output
    assert_ledger_balances(logs.result())
    assert not examine(histories(out)).exceptions


def _child(parent: int, role: str) -> int:
    """Process id of a child that runs a role."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            line = (folder / "cmdline").read_bytes().split(b"\0")
            its_parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue  # It has ended by now.
        if its_parent == parent and role.encode() in line[1:4]:
            return int(folder.name)
    raise AssertionError(f"no {role} below process {parent}")
