"""What the driver's one trainer thread calls: training for a worker, measuring for the evaluator."""

import threading
from collections.abc import Callable
from pathlib import Path

import torch

from pelago.core.names import Lease
from pelago.net.trainer import Result
from worker.evaluator import Evaluator
from worker.trainer import Trainer


class WorkerPort:
    """Trains. It is never asked to measure."""

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer

    def train(
        self,
        lease: Lease,
        flat: torch.Tensor,
        on_step: Callable[[int, int], None],
        cancel: threading.Event,
    ) -> Result | None:
        """One round on a lease, from ``flat``; None if cancelled."""
        torch.set_num_threads(1)
        return self._trainer.train(lease, flat, on_step, cancel)

    def validate(self, flat: torch.Tensor, on_batch: Callable[[int], None]) -> tuple[float, int]:
        """Not a worker's business."""
        raise AssertionError("a worker measures nothing")

    def export(self, flat: torch.Tensor) -> None:
        """Not a worker's business."""
        raise AssertionError("a worker exports nothing")


class EvaluatorPort:
    """Measures and exports. It is never asked to train."""

    def __init__(self, evaluator: Evaluator, folder: Path) -> None:
        self._evaluator = evaluator
        self._folder = folder

    def train(
        self,
        lease: Lease,
        flat: torch.Tensor,
        on_step: Callable[[int, int], None],
        cancel: threading.Event,
    ) -> Result | None:
        """Not the evaluator's business."""
        raise AssertionError("the evaluator trains nothing")

    def validate(self, flat: torch.Tensor, on_batch: Callable[[int], None]) -> tuple[float, int]:
        """Held-out loss in nats per token, and the number of tokens it is a mean of."""
        torch.set_num_threads(1)
        return self._evaluator.validate(flat, on_batch)

    def export(self, flat: torch.Tensor) -> None:
        """Write ``model/``."""
        self._evaluator.export(flat, self._folder)
