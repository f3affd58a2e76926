"""A real worker process that is killed: its successor has its optimiser's moments."""

from pathlib import Path

import pytest

from pelago.core.notes.lps import UpdateApplied
from pelago.core.notes.trainer import OptimiserCold, OptimiserRestored
from pelago.core.notes.worker import RoundTrained
from tests.e2e.topology import Daemons, run_file

pytestmark = [pytest.mark.timeout(180), pytest.mark.slow]


def test_the_successor_of_a_killed_worker_goes_on_with_its_moments(tmp_path: Path) -> None:
    """1. It trains, and keeps its moments. 2. It is killed (kill -9), and another process takes its group: that
    one has them, and its next updates are applied. 3. Without the file it warms up again."""
    path = run_file(tmp_path, budget=10**6, interval=10**6, step_ms=20.0, regions={"eu": [1.0]})
    with Daemons(path, tmp_path / "out") as daemons:
        daemons.start_servers("eu")
        worker, kept = "worker-eu-0", tmp_path / "out" / "optimiser" / "eu-0.moments"
        daemons.start_worker("eu", 0)
        daemons.until("moments are kept", kept.exists)
        daemons.until("it trains", lambda: len(daemons.events(worker, RoundTrained)) > 20)
        assert not daemons.events(worker, OptimiserCold)
        daemons.kill(worker)
        rounds = len(daemons.events("lps-eu", UpdateApplied))
        daemons.start_worker("eu", 0)
        daemons.until("it took them", lambda: bool(daemons.events(worker, OptimiserRestored)))
        [event] = daemons.events(worker, OptimiserRestored)
        assert event.steps > 0
        assert event.samples >= 0
        daemons.until(
            "it trains", lambda: len(daemons.events("lps-eu", UpdateApplied)) > rounds + 2
        )
        daemons.kill(worker)
        kept.unlink()
        daemons.start_worker("eu", 0)
        daemons.until("it is cold", lambda: bool(daemons.events(worker, OptimiserCold)))
        [event] = daemons.events(worker, OptimiserCold)
        assert event.why == "there are none"
        daemons.processes["gps"].terminate()
        for node in ("gps", "lps-eu", worker):
            code, said = daemons.wait(node)
            assert code == 0, said
