"""Whole runs over real sockets, in real processes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from pelago.config import run_toml
from pelago.core.notes.lps import UpdateApplied, WorkerJoined, WorkerLeft
from pelago.core.notes.worker import RoundTrained
from pelago.core.spans import SpanSet
from tests.e2e.topology import Daemons, assert_ledger_balances, run_file
from tests.worker.exported_model import held_out_loss

pytestmark = pytest.mark.timeout(180)


def test_a_model_trains_across_two_regions_and_the_export_has_the_loss_of_the_last_validation(
    tmp_path: Path,
) -> None:
    """1. `pelago local` runs two regions with three workers over an emulated WAN to the budget.
    2. The loss falls, the ledger balances, every promised file is there.
    3. model/ opens with transformers and has the loss that was validated last."""
    network = "bandwidth_gbps = [[10, 0.02], [0.02, 10]]\nlatency_ms = [[0, 20], [20, 0]]"
    path = run_file(tmp_path, network=network)
    out = tmp_path / "out"
    command = [sys.executable, "-m", "pelago.cli.main", "local", str(path), "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=170, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr

    result = json.loads((out / "result.json").read_text(encoding="utf-8"))
    assert result["clock"] == "real"
    assert result["counted_steps"] >= 200
    assert_ledger_balances(result)
    losses = [loss for _, _, loss in result["validation"]]
    assert losses[-1] < losses[0] - 0.5, losses
    assert set(result["workers"]) == {"eu/0", "eu/1", "us/0"}
    assert all(worker["rounds"] > 0 for worker in result["workers"].values())
    assert all(count > 0 for count in result["gps"]["updates_by_region"].values())
    assert result["bytes"]["wan"] > 0 < result["bytes"]["lan"]
    for name in (
        "run.toml",
        "loss.png",
        "global.safetensors",
        "gps/events.jsonl",
        "lps-us/events.jsonl",
    ):
        assert (out / name).stat().st_size > 0, name

    run = run_toml.load(out / "run.toml")
    assert abs(held_out_loss(run, out / "model") - losses[-1]) < 1e-5

    again = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert again.returncode == 2
    assert "--overwrite" in again.stderr


def test_a_killed_worker_costs_nothing_and_a_late_one_is_used(tmp_path: Path) -> None:
    """1. Daemons are started by hand, the workers before their server.
    2. A worker is killed with SIGKILL in the middle of a round: the others go on.
    3. Its lease is revoked and trained by others.
    4. A worker that joins late gets the free group, and trains.
    5. SIGTERM to the GPS ends the run: all settle and exit with 0, the ledger balances."""
    path = run_file(tmp_path, budget=10**6, interval=500, regions={"eu": [1.0, 1.0]})
    with Daemons(path, tmp_path / "out") as daemons:
        for group in (0, 1):
            daemons.start_worker("eu", group)
        daemons.start_servers("eu")
        daemons.start("evaluator", "worker", "--evaluate")
        daemons.until(
            "both workers train", lambda: len(daemons.events("worker-eu-1", RoundTrained)) >= 3
        )
        daemons.kill("worker-eu-1")
        daemons.until("it is missed", lambda: len(daemons.events("lps-eu", WorkerLeft)) == 1)
        before = len(daemons.events("worker-eu-0", RoundTrained))
        daemons.start("late", "worker", "--region", "eu")
        daemons.until(
            "the late one joins", lambda: len(daemons.events("lps-eu", WorkerJoined)) == 3
        )
        assert daemons.events("lps-eu", WorkerJoined)[-1].group == 1
        folders = {each.name for each in daemons.out.glob("worker-eu-*")}
        (log,) = folders - {"worker-eu-0", "worker-eu-1"}
        daemons.until("the late one trains", lambda: len(daemons.events(log, RoundTrained)) >= 3)
        daemons.processes["gps"].terminate()
        for node in ("gps", "lps-eu", "worker-eu-0", "late", "evaluator"):
            code, output = daemons.wait(node)
            assert code == 0, (node, output)
            assert "Traceback" not in output
        assert len(daemons.events("worker-eu-0", RoundTrained)) > before
        result = daemons.result()
        killed = daemons.events("lps-eu", WorkerLeft)[0]
        updates = daemons.events("lps-eu", UpdateApplied)
    assert_ledger_balances(result)
    leases = [update.lease for update in updates]
    assert len(set(leases)) == len(leases)
    assert killed.lease not in leases
    trained = SpanSet()
    for update in updates:
        assert trained.add(update.spans) == 0
    assert trained.common(killed.spans) == killed.spans
