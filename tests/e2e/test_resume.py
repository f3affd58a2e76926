"""A GPS whose host is lost with its disk, and a run that continues after its end; with real processes."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pelago.cli.audit import examine, histories
from pelago.core.notes.gps import ExchangeArrived, RegionJoined
from pelago.runlog.events import SnapshotArchived, SnapshotWritten
from pelago.runlog.history import HISTORY, read_history
from tests.e2e.topology import ONE_THREAD, Daemons, assert_ledger_balances, run_file

pytestmark = pytest.mark.timeout(240)


def test_a_gps_that_is_lost_with_its_disk_goes_on_from_a_copy(tmp_path: Path) -> None:
    """1. It is killed, and its folder is gone. Another one, with a folder of its own, goes on from the copy.
    2. The regions join again by themselves, and the budget is reached.
    3. The exchanges acknowledged after the copy's version are lost, and the audit names just these."""
    far, elsewhere = tmp_path / "far", tmp_path / "elsewhere"
    path = run_file(tmp_path, budget=10**6, interval=10**6, step_ms=10.0)
    snapshots = f'[gps]\nsnapshots = "{far}"\nsnapshots_minutes = 0.05\n'
    path.write_text(path.read_text(encoding="utf-8").replace("[gps]\n", snapshots))
    with Daemons(path, tmp_path / "out") as daemons:
        daemons.start_servers("eu", "us")
        daemons.start_worker("eu", 0)
        daemons.start_worker("us", 0)
        daemons.until("copies with updates", lambda: _newest_copy(daemons) >= 4)
        then = _newest_copy(daemons)
        daemons.until("more updates", lambda: _versions(daemons)[-1] >= then + 6)
        daemons.kill("gps")
        lines = read_history(tmp_path / "out" / "gps" / "state" / HISTORY)
        arrivals = [each.entry for each in lines if isinstance(each.entry, ExchangeArrived)]
        assert {each.region for each in arrivals} == {"eu", "us"}
        shutil.rmtree(tmp_path / "out" / "gps")
        daemons.out = elsewhere
        daemons.start("gps", "gps", "--resume", f"file://{far}")
        daemons.until("both join", lambda: len(daemons.events("gps", RegionJoined)) == 2)
        daemons.until("it goes on", lambda: len(daemons.events("gps", ExchangeArrived)) > 6)
        daemons.processes["gps"].terminate()
        for node in ("gps", "lps-eu", "lps-us", "worker-eu-0", "worker-us-0"):
            code, output = daemons.wait(node)
            assert code == 0, (node, output)
        assert_ledger_balances(daemons.result())
    shutil.copytree(elsewhere / "gps", tmp_path / "out" / "gps")
    found = examine(histories(tmp_path / "out"))
    assert not found.exceptions
    assert found.applied == daemons.result()["ledger"]["applied"]
    version = int(found.resumed[0].rpartition(" ")[2])
    assert version > 0
    gone = [each for each in arrivals if each.version > version]
    names = {f"exchange {each.exchange} of {each.region} (fence {each.fence})" for each in gone}
    lost = {each.partition(":")[0] for each in found.lost}
    # Of each region, the last one's acknowledgement may not have got there.
    assert lost <= names
    assert len(names - lost) <= 2


def _versions(daemons: Daemons) -> list[int]:
    return [0, *(each.version for each in daemons.events("gps", ExchangeArrived))]


def _newest_copy(daemons: Daemons) -> int:
    """At least so many updates are in the newest copy."""
    events = daemons.events("gps", object)
    copies = [place for place, each in enumerate(events) if isinstance(each, SnapshotWritten)]
    whole = len([each for each in events if isinstance(each, SnapshotArchived)])
    if not whole:
        return 0
    return len([each for each in events[: copies[whole - 1]] if isinstance(each, ExchangeArrived)])


@pytest.mark.slow
def test_a_run_goes_on_after_its_end_with_a_larger_budget_rate_and_batch(
    tmp_path: Path,
) -> None:
    """1. A local run ends, and the run file is changed. 2. `pelago resume` goes on with it in its folder: the
    ledger of both parts balances, samples are those of either batch size, and the audit of the whole is clean."""
    path = run_file(tmp_path, budget=100, interval=10**6, step_ms=10.0, regions={"eu": [1.0]})
    out = tmp_path / "out"
    first = _pelago("local", path, out)
    text = path.read_text(encoding="utf-8")
    changed = text.replace("budget_local_steps = 100", "budget_local_steps = 200")
    changed = changed.replace("lr = 0.5", "lr = 0.4").replace(
        "\nbatch_size = 8", "\nbatch_size = 4"
    )
    path.write_text(changed, encoding="utf-8")
    second = _pelago("resume", path, out)
    assert 100 <= first["counted_steps"] < 200 <= second["counted_steps"]
    assert second["gps"]["version"] > first["gps"]["version"]
    more = second["counted_steps"] - first["counted_steps"]
    assert second["samples"] == 8 * first["counted_steps"] + 4 * more
    assert second["tokens"] == 32 * second["samples"]
    found = examine(histories(out))
    assert not found.exceptions
    assert not found.lost
    assert found.applied == second["ledger"]["applied"]
    assert len(list((out / "gps").glob("events-until-*.jsonl"))) == 1
    assert not list(out.glob("*.before"))


def test_a_run_that_cannot_go_on_keeps_its_results(tmp_path: Path) -> None:
    path, out = run_file(tmp_path, regions={"eu": [1.0]}), tmp_path / "out"
    out.mkdir()
    (out / "result.json").write_text("{}", encoding="utf-8")
    (out / "global.safetensors").write_text("weights", encoding="utf-8")
    line = [sys.executable, "-m", "pelago.cli.main", "resume", str(path), "--out", str(out)]
    line += ["--from", str(tmp_path / "mistyped")]
    done = subprocess.run(line, capture_output=True, text=True, timeout=55, check=False)
    assert done.returncode == 2, done.stdout
    assert "there is no state of a GPS and no snapshot of one" in done.stderr
    assert (out / "result.json").read_text(encoding="utf-8") == "{}"
    assert (out / "global.safetensors").read_text(encoding="utf-8") == "weights"
    assert not list(out.glob("*.before"))


def _pelago(command: str, path: Path, out: Path) -> dict[str, Any]:
    """Run a command to its end; returns the result."""
    line = [sys.executable, "-m", "pelago.cli.main", command, str(path), "--out", str(out)]
    done = subprocess.run(
        line, env=os.environ | ONE_THREAD, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    result: dict[str, Any] = json.loads((out / "result.json").read_text(encoding="utf-8"))
    assert_ledger_balances(result)
    return result
