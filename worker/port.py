"""What the driver calls in a worker's trainer thread, see `pelago.core.ports.TrainerPort`."""

from collections.abc import Callable
from pathlib import Path

import torch

from pelago.config.run_file import RunFile
from pelago.core.notes.trainer import OptimiserCold, OptimiserRestored
from pelago.core.ports import Cancellation, LogEvent, TrainingResult
from pelago.core.training_effects import Train
from pelago.tensor.manifest import Manifest
from pelago.tensor.payload import Payload
from worker.moments import MomentsFile, MomentsOwner, SavedMoments
from worker.schedule import begins_late
from worker.trainer import Trainer


class WorkerPort:
    """Trains rounds. The worker's machine never asks it to measure or to export.

    It saves the optimiser's moments in ``folder``, unless that is None, and begins with those that an earlier
    process of the same group saved there.
    """

    def __init__(self, trainer: Trainer, run: RunFile, region: str, folder: Path | None) -> None:
        self._trainer = trainer
        self._run = run
        self._region = region
        self._folder = folder
        self._model = Manifest(trainer.manifest()).fingerprint
        self._log: LogEvent = lambda note: None
        self._group: int | None = None
        self._file: MomentsFile | None = None
        self._clock = 0
        self._saved_steps = 0

    def begin(self, log: LogEvent) -> None:
        """Use this log from now on."""
        self._log = log

    def prepare(self) -> None:
        """Compile the model."""
        self._trainer.prepare()

    def train(
        self,
        work: Train,
        start: Payload | None,
        on_step: Callable[[int, int], None],
        cancel: Cancellation,
    ) -> TrainingResult | None:
        """One round on a lease, from the parameters ``start`` or those that the last one left; None if cancelled."""
        torch.set_num_threads(1)
        if self._group != work.group:
            first, self._group = self._group is None, work.group
            if self._file is not None:
                self._file.give_up()
            self._file = self._file_of(work.group)
            if first:
                self._begin_optimiser(work.lease.clock)
        self._clock = work.lease.clock
        return self._trainer.train(work.lease, start, on_step, cancel)

    def rebase(self, model: Payload) -> None:
        """Rebase the round before its next step."""
        self._trainer.rebase(model)

    def rest(self) -> None:
        """Complete the result of the round. Save the moments, or a part of them, if it is time."""
        trainer, file = self._trainer, self._file
        trainer.hand_over()
        if file is None or not file.due():
            return
        if trainer.steps == self._saved_steps and not file.is_writing:
            return
        self._saved_steps = trainer.steps
        file.save(trainer.optimiser.state(), self._clock, trainer.steps)

    def _file_of(self, group: int) -> MomentsFile | None:
        if self._folder is None:
            return None
        optimiser = self._run.worker.optimiser
        owner = MomentsOwner(self._run.run_id, self._model, optimiser, self._region, group)
        return MomentsFile(self._folder, owner, self._log)

    def _begin_optimiser(self, clock: int) -> None:
        """Restore the moments that an earlier process of this group saved, or begin without."""
        found = "worker.keep_optimiser = false" if self._file is None else self._file.load(clock)
        if isinstance(found, SavedMoments):
            try:
                self._trainer.restore(found.tensors, found.steps)
                age_s, samples = round(found.age_s, 1), clock - found.clock
                self._log(OptimiserRestored(age_s, samples, found.steps, found.dtype))
            except (ValueError, KeyError) as error:
                found = str(error)
        self._saved_steps = self._trainer.steps
        if begins_late(self._run, clock):
            self._trainer.warm_up()
            if isinstance(found, str):
                steps = self._run.worker.cold_start_steps
                self._log(OptimiserCold(found, steps))

    def validate(self, parameters: Payload, on_batch: Callable[[int], None]) -> tuple[float, int]:
        """Never called."""
        raise AssertionError("a worker measures nothing")

    def export(self, parameters: Payload) -> None:
        """Never called."""
        raise AssertionError("a worker exports nothing")
