"""The inner loop: local optimiser steps on a lease, from a server's parameters to a pseudo-gradient."""

import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Final, Protocol

import torch

from pelago.config.run_file import RunFile
from pelago.config.training import WorkerSection
from pelago.core.names import Lease
from pelago.core.ports import Cancellation, TrainingResult
from pelago.core.prng import derive
from pelago.tensor.manifest import Manifest
from pelago.tensor.payload import Payload
from pelago.tensor.slab import Slab
from pelago.wire.messages import TensorSpec
from worker import device as devices
from worker import memory
from worker.data.batches import Batches
from worker.data.corpus import Corpus
from worker.data.sources import open_corpus
from worker.models.build import build, build_empty
from worker.models.language import CompileFault, LanguageModel
from worker.optimiser import WorkerOptimiser
from worker.round_buffers import RoundBuffers, round_buffers
from worker.schedule import Pace, learning_rate, warmed

STEPS_AHEAD: Final = 2
"""Steps that may be queued on a device behind the one that it computes: it never waits for the host, and progress
is told at most so late."""


class StepFigures(Protocol):
    """The loss and the gradient's norm of a step, which may still be computed."""

    def read(self) -> tuple[float, float]:
        """Mean loss of the step's batch in nats per token, and the norm of its gradient. Waits for them."""
        ...


@dataclass(frozen=True, slots=True)
class HostFigures:
    """Figures that are known."""

    loss: float
    norm: float

    def read(self) -> tuple[float, float]:
        """Both."""
        return self.loss, self.norm


class DeviceFigures:
    """Figures on their way from a CUDA device. ``figures``: fp32 of shape (2,), loss and norm."""

    def __init__(self, figures: torch.Tensor) -> None:
        self._copy = torch.empty(2, pin_memory=True)
        self._copy.copy_(figures, non_blocking=True)
        self._copied = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        self._copied.record(torch.cuda.current_stream(figures.device))

    def read(self) -> tuple[float, float]:
        """Both, when the device has come so far."""
        self._copied.synchronize()
        loss, norm = self._copy.tolist()
        return loss, norm


class RoundTotals:
    """The figures of a round's steps, told one step after the other. ``tell``: gets (steps, skipped) so far."""

    def __init__(self, tell: Callable[[int, int], None]) -> None:
        self.steps = self.skipped = self.samples = 0
        self.loss_sum = 0.0
        self._tell = tell
        self._pending: deque[tuple[StepFigures, int]] = deque()

    def add(self, figures: StepFigures, samples: int) -> None:
        """One more step was queued, on so many samples."""
        self._pending.append((figures, samples))

    def settle(self, left: int = 0) -> int:
        """Count all steps but the last ``left``. Returns how many of them changed the model."""
        applied = 0
        while len(self._pending) > left:
            figures, samples = self._pending.popleft()
            loss, norm = figures.read()
            self.steps += 1
            if math.isfinite(norm):
                applied += 1
                self.loss_sum += loss * samples
                self.samples += samples
            else:
                self.skipped += 1
            self._tell(self.steps, self.skipped)
        return applied

    @property
    def loss(self) -> float:
        """Mean over the steps that were not skipped; NaN if all were."""
        return self.loss_sum / self.samples if self.samples else math.nan


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
        empty: bool = False,
    ) -> None:
        """Open the corpus and build the model. Raises `ConfigError`.

        ``pace``: emulate a slower worker (`pelago local`); without it every step runs as fast as it
        can. ``slot``: see `worker.device.choose`. ``tell`` gets lines for the user, in the thread that trains.
        ``empty``: the parameters come from a server, and none are made here.
        """
        self._tell = tell
        self.settings: WorkerSection = run.worker
        self._seed = run.run.seed
        self.pace = pace
        device = devices.choose(run.worker.device, slot)
        self.memory_step = memory.Step.of(run, device)
        self.corpus: Corpus = open_corpus(run.data, run.run.seed)
        made = build_empty if empty else build
        self.model: LanguageModel = made(
            run.model, self.corpus.vocabulary, run.run.seed, device, run.data.sequence_length
        )
        self.corpus.limit_vocabulary(self.model.vocabulary)
        self._cuda = device.type == "cuda"
        if self._cuda and self.settings.compile:
            self.model.compile()
        if self.settings.checkpoint_activations:
            self.model.checkpoint_activations()
        self.optimiser = WorkerOptimiser(self.settings, self.model)
        self.slab = Slab(torch.float32, page_locked=self._cuda)
        """Memory for what arrives and what leaves."""
        pieces = Manifest(self.manifest()).chunks
        self._buffers: RoundBuffers = round_buffers(
            self.model, pieces, self.slab, run.worker.overlap
        )
        self._models: deque[Payload] = deque()
        """Models to rebase on."""
        self._on_device = self.optimiser.decides_on_device
        self._micro = self.settings.sequences_at_once
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

    def prepare(self) -> None:
        """Let the model be compiled now, on tokens that mean nothing, so that the first round has not to wait for it.

        A fault is left to the first round, which tells it.
        """
        devices.use(self.model.device)
        while self.model.is_compiled:
            tokens = torch.zeros(self._micro, self.corpus.sequence_length + 1, dtype=torch.int64)
            try:
                with self.model.training():
                    self.model.backward(tokens, 1.0, mixed=self._cuda)
                return
            except Exception as error:
                if not self._fewer_at_once(error):
                    return

    @memory.explaining
    def train(
        self,
        lease: Lease,
        start: Payload | None,
        on_step: Callable[[int, int], None],
        cancel: Cancellation,
    ) -> TrainingResult | None:
        """Train on a lease, one local step per batch (the last may be smaller). None if cancelled.

        ``start``: the parameters, fp32, in the chunks of the manifest; unchanged until this returns. None: those that
        the last round left. Chunks of the result may be missing until `hand_over` has returned.
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
        if start is None:
            self._rebase()
            self._buffers.stay()
        else:
            self._models.clear()
            self._buffers.load(start)
        clock = lease.clock // self.settings.global_batch_size
        totals = RoundTotals(on_step)
        ahead = STEPS_AHEAD if self._on_device and self.pace is None else 0
        due_s = time.perf_counter()
        batches = Batches(self.corpus, samples, self.settings.batch_size, ahead=self._cuda)
        with self.model.training(), batches:
            for batch in batches:
                started_s = time.perf_counter()
                self._rebase()
                clock += 1
                rate = learning_rate(self.settings, clock)
                told = partial(on_step, totals.steps, totals.skipped)
                figures = self._step(batch.tokens, batch.samples[0], rate, cancel, told)
                if figures is None:
                    self.steps += totals.settle()
                    return None
                totals.add(figures, len(batch.samples))
                self.steps += totals.settle(left=ahead)
                ended_s = time.perf_counter()
                if self.pace is not None:
                    due_s = self.pace.due_s(due_s, started_s, ended_s)
                    if cancel.wait(max(0.0, due_s - time.perf_counter())):
                        return None
        delta = self._buffers.delta()
        self.steps += totals.settle()
        return TrainingResult(
            delta=delta,
            steps=totals.steps,
            tokens=len(samples) * self.corpus.sequence_length,
            loss=totals.loss,
            skipped=totals.skipped,
        )

    def expect(self, coming: Payload) -> None:
        """A payload has begun to arrive, with which a round may begin. Any thread may call this."""
        if not self.settings.overlap:  # Else most models do not begin a round, but rebase one.
            self._buffers.expect(coming)

    def rebase(self, model: Payload) -> None:
        """Rebase the round on a model before its next step, or what the last round left before the next one begins
        there. Any thread may call this."""
        self._models.append(model)

    def _rebase(self) -> None:
        while self._models:
            self._buffers.rebase(self._models.popleft())

    @memory.explaining
    def hand_over(self) -> None:
        """Wait until all chunks of the last result are here."""
        self._buffers.hand_over()

    def _step(
        self,
        tokens: torch.Tensor,
        seed: int,
        rate: float,
        cancel: Cancellation,
        on_micro_batch: Callable[[], None],
    ) -> StepFigures | None:
        """One optimiser step on a batch. Returns its figures; if the gradient was not finite, nothing changed. None if
        cancelled, before anything changed. ``seed``: for dropout. ``on_micro_batch`` is called between two
        micro-batches.
        """
        loss = self._gradient_of(tokens, seed, cancel, on_micro_batch)
        if loss is None:
            return None
        gradient = self.model.gradient()
        if self._on_device:
            return DeviceFigures(self._update_on_device(gradient, loss, rate))
        figures = HostFigures(float(loss), float(gradient.norm()))
        if math.isfinite(figures.norm):
            self._update(gradient, figures.norm, rate)
        return figures

    def _gradient_of(
        self,
        tokens: torch.Tensor,
        seed: int,
        cancel: Cancellation,
        on_micro_batch: Callable[[], None],
    ) -> torch.Tensor | None:
        """Compute the gradient of a batch, again if it fails and can be computed in another way. Returns the mean
        loss; None if cancelled."""
        while True:
            # After a failure part of the gradient may be there already, so it begins again.
            try:
                return self._try_gradient(tokens, seed, cancel, on_micro_batch)
            except Exception as error:
                if not self._fewer_at_once(error):
                    if not isinstance(error, CompileFault):
                        raise
                    self._tell(f"training without torch.compile, which failed: {error}")
                    self.model.stop_compiling()

    def _fewer_at_once(self, error: Exception) -> bool:
        """After an error: whether a step may be tried again with fewer sequences of a forward pass."""
        fewer = self.memory_step.fewer()
        if self.settings.micro_batch_size != "auto" or not fewer or not memory.is_lack(error):
            return False
        self._tell(
            f"{self._micro} sequences at once do not fit into the memory of {devices.name(self.model.device)};"
            f" worker.micro_batch_size = 'auto' goes on with {fewer}"
        )
        self._micro = fewer
        self.memory_step = self.memory_step.of_sequences(fewer)
        if self._cuda:
            torch.cuda.empty_cache()
        return True

    def _try_gradient(
        self,
        tokens: torch.Tensor,
        seed: int,
        cancel: Cancellation,
        on_micro_batch: Callable[[], None],
    ) -> torch.Tensor | None:
        self.model.gradient().zero_()
        losses: list[torch.Tensor] = []
        # Dropout follows from the samples, so training a lease again gives the same result.
        self.model.draw_from(derive("dropout", self._seed, seed))
        for first in range(0, len(tokens), self._micro):
            if cancel.is_set():
                return None
            if first:
                on_micro_batch()
            part = tokens[first : first + self._micro]
            # Parts may differ in size, so each is weighted by its share: the mean is over all tokens.
            losses.append(self.model.backward(part, len(part) / len(tokens), mixed=self._cuda))
        return torch.stack(losses).sum()

    def _update(self, gradient: torch.Tensor, norm: float, rate: float) -> None:
        """Clip and step. The gradient is finite: one that is not would stay in the moments for good."""
        # The factor of torch.nn.utils.clip_grad_norm_.
        gradient.mul_(min(1.0, self.settings.clip_norm / (norm + 1e-6)))
        self.optimiser.step(self._warmed(rate))

    def _update_on_device(
        self, gradient: torch.Tensor, loss: torch.Tensor, rate: float
    ) -> torch.Tensor:
        """The same without waiting for the norm. Returns loss and norm, fp32 of shape (2,)."""
        norm = gradient.norm()
        divisor = ((norm + 1e-6) / self.settings.clip_norm).clamp_(min=1.0)
        self.optimiser.step_on_device(self._warmed(rate), divisor, (~norm.isfinite()).float())
        return torch.stack([loss.float(), norm])

    def _warmed(self, rate: float) -> float:
        """The rate of the next step, while an optimiser that began without moments warms up."""
        if self._cold_steps is not None:
            self._cold_steps += 1
            rate *= warmed(self._cold_steps, self.settings.cold_start_steps)
            if self._cold_steps >= self.settings.cold_start_steps:
                self._cold_steps = None
        return rate

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
