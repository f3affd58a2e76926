"""A trainer that hangs gives its lease back, and the run does not wait for an evaluator that never ends."""

import os
import signal
from pathlib import Path

import pytest

from pelago.core.notes.gps import EvaluatorLeft, Settled, ValidationReported
from pelago.core.notes.lps import WorkerLeft
from pelago.core.notes.worker import RoundTrained
from pelago.runlog.events import ResultsWritten
from tests.e2e.topology import Daemons, assert_ledger_balances, run_file

pytestmark = [pytest.mark.timeout(180), pytest.mark.slow]


def patient(path: Path, minutes: float) -> Path:
    """The run file with another limit for what is stuck."""
    text = path.read_text(encoding="utf-8")
    path.write_text(
        text.replace("[worker]\n", f"[worker]\nstuck_minutes = {minutes}\n"), encoding="utf-8"
    )
    return path


def test_a_worker_whose_corpus_hangs_ends_and_its_samples_are_trained_by_others(
    tmp_path: Path,
) -> None:
    """
    1. Two workers train; the share from which one reads is gone. Its heartbeats go on.
    2. It ends with an error that says so; its lease is in the other one's hands, and the run comes to its end.
    3. The evaluator, which reads from there too, is not waited for; the results are there before it ends.
    """
    path = run_file(tmp_path, budget=600, interval=10**6, step_ms=10.0, regions={"eu": [1.0, 1.0]})
    gone = tmp_path / "gone"
    with Daemons(patient(path, 0.02), tmp_path / "out") as run:
        run.start_servers("eu")
        run.start_worker("eu", 0)
        stuck = ("tests.e2e.stuck_corpus", str(gone))
        hanging = run.start_module(
            "worker-eu-1", *stuck, "--region", "eu", "--group", "1", "--paced"
        )
        evaluator = run.start_module("evaluator", *stuck, "--evaluate")
        run.until("a first validation", lambda: bool(run.events("gps", ValidationReported)))
        run.until("some rounds", lambda: len(run.events("worker-eu-1", RoundTrained)) > 3)
        gone.touch()
        code, said = run.wait("worker-eu-1")
        assert code == 2, said
        assert "worker: the trainer is stuck: no progress for" in said
        assert hanging.returncode == 2
        (left,) = [e for e in run.events("lps-eu", WorkerLeft) if e.group == 1]
        assert left.why == "stuck"
        code, said = run.wait("evaluator")
        assert code == 2, said
        assert "measuring the model is stuck" in said
        assert evaluator.returncode == 2
        code, said = run.wait("gps")
        assert code == 0, said
        result = run.result()
        kinds = [type(event) for event in run.events("gps", object)]
    assert kinds.index(Settled) < kinds.index(EvaluatorLeft)
    assert ResultsWritten in kinds
    assert_ledger_balances(result)
    assert result["counted_steps"] >= 600
    assert left.spans, "it held no lease"


def test_results_are_there_while_an_evaluator_is_waited_for(tmp_path: Path) -> None:
    """An evaluator that is stopped when the run ends: it is missed, and the run ends without it."""
    path = run_file(tmp_path, budget=60, interval=10**6, step_ms=10.0, regions={"eu": [1.0]})
    with Daemons(path, tmp_path / "out") as run:
        run.start_servers("eu")
        run.start("evaluator", "worker", "--evaluate")
        run.until("a first validation", lambda: bool(run.events("gps", ValidationReported)))
        os.kill(run.processes["evaluator"].pid, signal.SIGSTOP)
        run.start_worker("eu", 0)
        code, said = run.wait("gps")
        assert code == 0, said
        kinds = [type(event) for event in run.events("gps", object)]
    assert_ledger_balances(run.result())
    assert (tmp_path / "out" / "global.safetensors").stat().st_size > 0
    assert EvaluatorLeft in kinds
