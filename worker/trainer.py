"""The inner loop: local optimiser steps on a lease, from a server's parameters to a pseudo-gradient."""

import math
import time
from collections.abc import Callable
from functools import partial
from itertools import chain

import torch

from pelago.config.run_file import RunFile
from pelago.config.training import WorkerSection
from pelago.core.names import Lease
from pelago.core.ports import Cancellation, TrainingResult
from pelago.core.prng import derive
from pelago.wire.messages import TensorSpec
from worker import device as devices
from worker import memory
from worker.data.corpus import Corpus
from worker.data.sources import open_corpus
from worker.models.build import build
from worker.models.language import CompileFault, LanguageModel
from worker.optimiser import WorkerOptimiser
from worker.schedule import Pace, learning_rate, warmed


class Trainer:
    """One worker's model, optimiser and corpus. Not thread-safe: one `train` at a time.

    The inner loop of HALoS (arXiv 2506.04531): AdamW (or Muon, which HALoS does not use) whose moments
    stay with the worker from round to round, never averaged and never reset; weight decay on matrices
    only; gradients clipped by their global norm; a learning-rate clock that counts the samples handed
    out in the whole run.
    """

    def __init__(
        self,
        run: RunFile,
        *,
        pace: Pace | None = None,
        slot: int = 0,
        tell: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Open the corpus and build the model. Raises `ConfigError`.

        ``pace``: emulate a slower worker (`pelago local`); without it every step runs as fast as it
        can. ``slot``: see `worker.device.choose`. ``tell`` gets lines for the user, in the thread that trains.
        """
        self._tell = tell
        self.settings: WorkerSection = run.worker
        self._seed = run.run.seed
        self.pace = pace
        device = devices.choose(run.worker.device, slot)
        self.memory_step = memory.Step.of(run, device)
        self.corpus: Corpus = open_corpus(run.data, run.run.seed)
        self.model: LanguageModel = build(
            run.model, self.corpus.vocabulary, run.run.seed, device, run.data.sequence_length
        )
        self.corpus.limit_vocabulary(self.model.vocabulary)
        self._cuda = device.type == "cuda"
        if self._cuda and self.settings.compile:
            self.model.compile()
        self.optimiser = WorkerOptimiser(self.settings, self.model)
        self.steps = 0
        """Optimiser steps so far, including those before it was restored."""
        self._cold_steps: int | None = None
        """Steps of the warm-up of an optimiser that began without moments in the middle of a run; None: no warm-up."""

    def manifest(self) -> tuple[TensorSpec, ...]:
        """Names and shapes of the model's tensors, in the order of the flat tensors."""
        return self.model.manifest()

    def initial(self) -> torch.Tensor:
        """A copy of the parameters, fp32, on the CPU; before any `train` the run's initial ones."""
        out = torch.empty(self.model.elements)
        self.model.read_flat(out)
        return out

    @memory.explaining
    def train(
        self,
        lease: Lease,
        flat_start: torch.Tensor,
        on_step: Callable[[int, int], None],
        cancel: Cancellation,
    ) -> TrainingResult | None:
        """Train on a lease, one local step per batch (the last may be smaller). None if cancelled.

        ``flat_start``: fp32, shape (elements,), on the CPU, unchanged until this returns.
        ``on_step(steps, skipped)`` is called by this thread after each step and between micro-batches, with the
        numbers so far; skipped steps are those whose gradient was not finite. Setting ``cancel`` ends the
        training before the next micro-batch, or at once while it waits for the pace; the optimiser is then
        as the last whole step left it. Raises `ConfigError` for token ids that the
        model does not know.
        """
        samples = list(chain.from_iterable(range(start, stop) for start, stop in lease.spans))
        if not samples:
            raise ValueError(f"lease {lease.push} holds no samples")
        devices.use(self.model.device)
        self.model.load_flat(flat_start)
        clock = lease.clock // self.settings.global_batch_size
        size = self.settings.batch_size
        loss_sum, applied, steps, skipped = 0.0, 0, 0, 0
        due_s = time.perf_counter()
        with self.model.training():
            for first in range(0, len(samples), size):
                started_s = time.perf_counter()
                batch = samples[first : first + size]
                clock += 1
                rate = learning_rate(self.settings, clock)
                step = self._step(batch, rate, cancel, partial(on_step, steps, skipped))
                if step is None:
                    return None
                loss, finite = step
                steps += 1
                if finite:
                    loss_sum += loss * len(batch)
                    applied += len(batch)
                else:
                    skipped += 1
                ended_s = time.perf_counter()
                on_step(steps, skipped)
                if self.pace is not None:
                    due_s = self.pace.due_s(due_s, started_s, ended_s)
                    if cancel.wait(max(0.0, due_s - time.perf_counter())):
                        return None
        delta = torch.empty(self.model.elements)
        self.model.read_flat(delta)
        torch.sub(flat_start, delta, out=delta)
        return TrainingResult(
            delta=delta,
            steps=steps,
            tokens=len(samples) * self.corpus.sequence_length,
            loss=loss_sum / applied if applied else math.nan,
            skipped=skipped,
        )

    def _step(
        self,
        batch: list[int],
        rate: float,
        cancel: Cancellation,
        on_micro_batch: Callable[[], None],
    ) -> tuple[float, bool] | None:
        """One optimiser step on a batch. Returns its mean loss, and whether the gradient was finite; if it was
        not, nothing changed. None if cancelled, before anything changed. ``on_micro_batch`` is called
        between two micro-batches.
        """
        try:
            return self._try_step(batch, rate, cancel, on_micro_batch)
        except CompileFault as fault:
            # Training goes on without it. Part of the gradient may be there already, so the step starts again.
            self._tell(f"training without torch.compile, which failed: {fault}")
            self.model.stop_compiling()
            return self._try_step(batch, rate, cancel, on_micro_batch)

    def _try_step(
        self,
        batch: list[int],
        rate: float,
        cancel: Cancellation,
        on_micro_batch: Callable[[], None],
    ) -> tuple[float, bool] | None:
        gradient = self.model.gradient().zero_()
        micro = self.settings.micro_batch_size or len(batch)
        losses: list[torch.Tensor] = []
        # Dropout follows from the samples, so training a lease again gives the same result.
        self.model.draw_from(derive("dropout", self._seed, batch[0]))
        for first in range(0, len(batch), micro):
            if cancel.is_set():
                return None
            if first:
                on_micro_batch()
            part = self.corpus.batch(batch[first : first + micro])
            # Parts may differ in size, so each is weighted by its share: the mean is over all tokens.
            losses.append(self.model.backward(part, len(part) / len(batch), mixed=self._cuda))
        norm = float(gradient.norm())
        finite = math.isfinite(norm)
        if finite:
            self._update(gradient, norm, rate)
        return float(torch.stack(losses).sum()), finite

    def _update(self, gradient: torch.Tensor, norm: float, rate: float) -> None:
        """Clip and step. The gradient is finite: one that is not would stay in the moments for good."""
        # The factor of torch.nn.utils.clip_grad_norm_.
        gradient.mul_(min(1.0, self.settings.clip_norm / (norm + 1e-6)))
        if self._cold_steps is not None:
            self._cold_steps += 1
            rate *= warmed(self._cold_steps, self.settings.cold_start_steps)
            if self._cold_steps >= self.settings.cold_start_steps:
                self._cold_steps = None
        self.optimiser.step(rate)
        self.steps += 1

    def restore(self, moments: dict[str, torch.Tensor], steps: int) -> None:
        """Continue with the moments of an earlier process, whose optimiser had made ``steps`` steps. Raises
        `ValueError` for moments that do not fit this optimiser and model.
        """
        self.optimiser.restore(moments)
        self.steps = steps

    def warm_up(self) -> None:
        """Warm the learning rate up if the optimiser has made only few steps, in the middle of a run."""
        if self.steps < self.settings.cold_start_steps:
            self._cold_steps = self.steps
