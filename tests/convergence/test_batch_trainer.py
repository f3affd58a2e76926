"""Simulations that train together compute what they compute alone."""

import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from convergence.batch_trainer import BatchTrainer
from convergence.cluster import Cluster
from convergence.lm.problem import LanguageModelling
from convergence.problems.problem import Job
from convergence.problems.registry import build
from pelago.config.run_file import RunFile
from pelago.sim.planes import Round
from tests.convergence.paper import PAPER, run_file
from tests.worker.corpora import TINY, write_texts

torch.set_num_threads(1)


def together(runs: Sequence[RunFile]) -> list[dict[str, Any]]:
    """The results of runs that train in one batch, each in a thread of its own."""
    batch_trainer, results = BatchTrainer(len(runs)), [{} for _ in runs]

    def work(index: int) -> None:
        try:
            results[index] = Cluster(runs[index], batch_trainer=batch_trainer).replay()
        finally:
            batch_trainer.leave()

    threads = [threading.Thread(target=work, args=(index,)) for index in range(len(runs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=50)
        assert not thread.is_alive(), "a simulation waits without end"
    return results


def test_problems_that_gain_nothing_from_batches_are_trained_one_by_one_with_equal_results() -> (
    None
):
    """The runs are of different lengths, so that some leave while others go on."""
    runs = [run_file(replace(PAPER, budget=budget)) for budget in (300, 900, 600)]
    assert together(runs) == [Cluster(run).replay() for run in runs]


def language(folder: Path, seed: int, **worker: Any) -> RunFile:
    return RunFile.model_validate(
        {
            "run": {"budget_local_steps": 60, "seed": seed},
            "model": {"preset": "llama3-tiny", "overrides": TINY},
            "data": {
                "source": f"text:{folder}",
                "sequence_length": 16,
                "validation_samples": 8,
            },
            "worker": {
                "local_steps": 4,
                "batch_size": 2,
                "global_batch_size": 8,
                "total_iterations": 40,
                "warmup_iterations": 4,
                "device": "cpu",
                **worker,
            },
            "lps": {"updates_per_exchange": 2},
            "gps": {"validation_interval_steps": 20},
            "region": [
                {"name": "eu", "worker_speeds": [1.0, 0.5]},
                {"name": "us", "worker_speeds": [0.8]},
            ],
            "network": {"bandwidth_gbps": [[10.0, 0.1], [0.1, 10.0]]},
            "simulation": {"problem": "lm", "model_bytes": 1_000_000, "step_ms": 20.0},
        }
    )


def test_language_models_of_several_runs_train_in_one_batch_as_they_do_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two seeds, two learning rates and another optimiser: runs that share the last train together."""
    folder = write_texts(tmp_path / "texts")
    runs = [
        language(folder, 0),
        language(folder, 1),
        language(folder, 0, max_lr=3e-3),
        language(folder, 0, optimiser="muon"),
    ]
    alone = [Cluster(run).replay() for run in runs]
    sizes: list[int] = []
    train_together = LanguageModelling.train_together

    def counting(self: LanguageModelling, requests: Any) -> list[list[Round]]:
        sizes.append(len(requests))
        return train_together(self, requests)

    monkeypatch.setattr(LanguageModelling, "train_together", counting)
    for ours, theirs in zip(together(runs), alone, strict=True):
        assert ours["elapsed_ms"] == theirs["elapsed_ms"]
        assert ours["ledger"] == theirs["ledger"]
        losses = [[row[2] for row in found["validation"]] for found in (ours, theirs)]
        assert losses[0] == pytest.approx(losses[1], rel=1e-4)
        assert losses[0][-1] < losses[0][0]
    assert max(sizes) == 3


class BrokenProblem:
    """A problem whose training always fails."""

    def __init__(self, run: RunFile) -> None:
        self._inner = build(run, 16)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def train(self, jobs: Sequence[Job]) -> list[Round]:
        raise ArithmeticError("planted")


def test_a_failure_of_the_training_reaches_all_simulations_and_none_waits() -> None:
    run = run_file(replace(PAPER, budget=300))
    batch_trainer, failures = BatchTrainer(2), []

    def work(problem: Any) -> None:
        try:
            Cluster(run, batch_trainer=batch_trainer, problem=problem).replay()
        except RuntimeError as error:
            failures.append(str(error))
        finally:
            batch_trainer.leave()

    threads = [
        threading.Thread(target=work, args=(problem,))
        for problem in (BrokenProblem(run), build(run, 16))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=50)
        assert not thread.is_alive()
    assert failures == ["training together failed: planted"] * 2
