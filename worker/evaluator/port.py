"""What the driver calls in the evaluator's trainer thread, see `pelago.core.ports.TrainerPort`."""

from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from pelago.core.ports import Cancellation, LogEvent, TrainingResult
from pelago.core.training_effects import Train
from pelago.tensor.payload import Payload
from worker.evaluator.held_out_loss import HeldOutLoss


class EvaluatorPort:
    """Measures the held-out loss and exports. The evaluator's machine never asks it to train."""

    def __init__(self, held_out_loss: HeldOutLoss, folder: Path) -> None:
        """``folder``: where the model is exported to."""
        self._held_out_loss = held_out_loss
        self._folder = folder

    def begin(self, log: LogEvent) -> None:
        """Does nothing: it logs nothing."""

    def prepare(self) -> None:
        """Does nothing: it does not compile."""

    def rebase(self, model: Payload) -> None:
        """Never called."""
        raise AssertionError("the evaluator trains nothing")

    def rest(self) -> None:
        """Does nothing: it keeps no moments."""

    def train(
        self,
        work: Train,
        start: Payload | None,
        on_step: Callable[[int, int], None],
        cancel: Cancellation,
    ) -> TrainingResult | None:
        """Never called."""
        raise AssertionError("the evaluator trains nothing")

    def validate(self, parameters: Payload, on_batch: Callable[[int], None]) -> tuple[float, int]:
        """Held-out loss in nats per token, and the number of tokens that it is a mean of."""
        torch.set_num_threads(1)
        return self._held_out_loss.validate(_pieces(parameters), on_batch)

    def export(self, parameters: Payload) -> None:
        """Write the model to the folder. Raises `CheckpointError`."""
        self._held_out_loss.export(_pieces(parameters), self._folder)


def _pieces(parameters: Payload) -> Iterator[torch.Tensor]:
    return (chunk.tensor for chunk in parameters.complete_chunks())
