"""What the driver's one trainer thread calls: training for a worker, measuring for the evaluator."""

import threading
from collections.abc import Callable
from pathlib import Path

import torch

from pelago.config.run_file import RunFile
from pelago.core.training_effects import Train
from pelago.net.tensors.training import Result
from pelago.tensor.manifest import Manifest
from worker.evaluator.held_out_loss import HeldOutLoss
from worker.moments import MomentsFile, SavedMoments, Tell, Whose
from worker.schedule import begins_late
from worker.trainer import Trainer


class WorkerPort:
    """Trains. It is never asked to measure.

    It keeps the optimiser's moments in ``keep``, if there is such a folder, for the process that takes
    this one's place, and takes up what the one before left there.
    """

    def __init__(self, trainer: Trainer, run: RunFile, region: str, keep: Path | None) -> None:
        self._trainer = trainer
        self._run = run
        self._region = region
        self._folder = keep
        self._model = Manifest(trainer.manifest()).fingerprint
        self._tell: Tell = lambda kind, fields: None
        self._group: int | None = None
        self._shelf: MomentsFile | None = None
        self._clock = 0
        self._kept_steps = 0

    def begin(self, tell: Tell) -> None:
        """The driver is there."""
        self._tell = tell

    def train(
        self,
        work: Train,
        flat: torch.Tensor,
        on_step: Callable[[int, int], None],
        cancel: threading.Event,
    ) -> Result | None:
        """One round on a lease, from ``flat``; None if cancelled."""
        torch.set_num_threads(1)
        if self._group != work.group:
            first, self._group = self._group is None, work.group
            self._shelf = self._shelf_of(work.group)
            if first:
                self._begin_optimiser(work.lease.clock)
        self._clock = work.lease.clock
        return self._trainer.train(work.lease, flat, on_step, cancel)

    def rest(self) -> None:
        """Keep the moments, if it is time."""
        trainer, shelf = self._trainer, self._shelf
        if shelf is None or trainer.steps == self._kept_steps or not shelf.due():
            return
        self._kept_steps = trainer.steps
        shelf.put(trainer.optimiser.state(), self._clock, trainer.steps)

    def _shelf_of(self, group: int) -> MomentsFile | None:
        if self._folder is None:
            return None
        optimiser = self._run.worker.optimiser
        whose = Whose(self._run.run_id, self._model, optimiser, self._region, group)
        return MomentsFile(self._folder, whose, self._tell)

    def _begin_optimiser(self, clock: int) -> None:
        """Take up what an earlier process of this group left, or begin without."""
        found = "worker.keep_optimiser = false" if self._shelf is None else self._shelf.take(clock)
        if isinstance(found, SavedMoments):
            try:
                self._trainer.restore(found.tensors, found.steps)
                fields = {"age_s": round(found.age_s, 1), "samples": clock - found.clock}
                self._tell("optimiser_taken_up", fields | {"steps": found.steps})
            except (ValueError, KeyError) as error:
                found = str(error)
        self._kept_steps = self._trainer.steps
        if begins_late(self._run, clock):
            self._trainer.warm_up()
            if isinstance(found, str):
                steps = self._run.worker.cold_start_steps
                self._tell("optimiser_cold", {"why": found, "warm_up_steps": steps})

    def validate(self, flat: torch.Tensor, on_batch: Callable[[int], None]) -> tuple[float, int]:
        """Not a worker's business."""
        raise AssertionError("a worker measures nothing")

    def export(self, flat: torch.Tensor) -> None:
        """Not a worker's business."""
        raise AssertionError("a worker exports nothing")


class EvaluatorPort:
    """Measures and exports. It is never asked to train."""

    def __init__(self, evaluator: HeldOutLoss, folder: Path) -> None:
        self._evaluator = evaluator
        self._folder = folder

    def begin(self, tell: Tell) -> None:
        """It has nothing to tell."""

    def rest(self) -> None:
        """Nor anything to keep."""

    def train(
        self,
        work: Train,
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
