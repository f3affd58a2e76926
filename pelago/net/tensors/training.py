"""The one long effect: a thread in which a worker's trainer, or the evaluator, computes."""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from pelago.core.errors import CheckpointError
from pelago.core.names import PushId
from pelago.core.training_effects import (
    Cancel,
    Progress,
    Train,
    Trained,
    Validate,
    Validated,
)
from pelago.net.context import Executors, NodeContext
from pelago.net.tensors.lane import Lane, Tensors


@dataclass(frozen=True, slots=True)
class Result:
    """What training on a lease gave.

    ``delta``: the pseudo-gradient, start minus end, a flat fp32 tensor on the CPU, shape
    (elements,). ``tokens``: predicted in all. ``skipped``: steps among ``steps`` whose gradient was not
    finite, so that they changed nothing. ``loss``: mean training loss of the others' tokens, in nats; not
    a number if there are none.
    """

    delta: Any
    steps: int
    tokens: int
    loss: float
    skipped: int = 0


class TrainerPort(Protocol):
    """What a worker does with parameters. Every method runs in the one trainer thread.

    ``flat`` is the flat fp32 arena of a payload, to be read only.
    """

    def begin(self, tell: Callable[[str, dict[str, Any]], None]) -> None:
        """Before anything else, on the event loop's thread. ``tell`` logs an event, from any thread."""
        ...

    def rest(self) -> None:
        """A round is over, and its result on its way."""
        ...

    def train(
        self,
        work: Train,
        flat: Any,
        on_step: Callable[[int, int], None],
        cancel: threading.Event,
    ) -> Result | None:
        """Train; call ``on_step(steps, skipped ones)`` so far after each step, and within one to say that it
        goes on; None once ``cancel`` is set."""
        ...

    def validate(self, flat: Any, on_batch: Callable[[int], None]) -> tuple[float, int]:
        """Held-out loss, in nats per token, and the number of tokens it is a mean of; call
        ``on_batch(batches so far)`` after each batch."""
        ...

    def export(self, flat: Any) -> None:
        """Write the model out for users. Raises `CheckpointError`."""
        ...


class TrainingThread:
    """Runs `Train` and `Validate` one after the other, and posts the events that follow."""

    def __init__(self, port: TrainerPort, context: NodeContext, tensors: Tensors) -> None:
        self._port = port
        self._tensors = tensors
        self._post = context.post
        self._lane = Lane("trainer", context.on_work_fault)
        self._cancels: dict[PushId, threading.Event] = {}
        lane, telemetry = self._lane, context.telemetry

        def log(entry: tuple[str, dict[str, Any]]) -> None:
            kind, fields = entry
            telemetry.event(kind, **fields)

        port.begin(lambda kind, fields: lane.post(log, (kind, fields)))

    def executors(self) -> Executors:
        """What carries out the effects of training."""
        return {
            Train: self.train,
            Cancel: lambda effect: self.cancel(effect.push),
            Validate: self.validate,
        }

    def train(self, effect: Train) -> None:
        """Train on a lease, after every tensor effect wished before."""
        cancel = self._cancels[effect.lease.push] = threading.Event()
        self._tensors.use(effect.blob)
        self._tensors.after(lambda: self._train(effect, cancel))

    def cancel(self, push: PushId) -> None:
        """Stop training on a lease at its next step; nothing is answered for it from now on."""
        cancel = self._cancels.pop(push, None)
        if cancel is not None:
            cancel.set()

    def validate(self, effect: Validate) -> None:
        """Measure the held-out loss, after every tensor effect wished before."""
        self._tensors.use(effect.blob)
        plane, post = self._tensors.plane, self._lane.post

        def measured(batches: int) -> None:
            self._post(Progress(None, batches))

        def job() -> Validated:
            flat = plane.flat(effect.blob)
            loss, tokens = self._port.validate(flat, lambda batches: post(measured, batches))
            try:
                if effect.export:
                    self._port.export(flat)
            except CheckpointError as error:
                # What was measured is worth telling all the same.
                return Validated(effect.version, loss, tokens, str(error))
            return Validated(effect.version, loss, tokens)

        def done(found: Validated) -> None:
            self._tensors.drop(effect.blob)
            self._post(found)

        self._tensors.after(lambda: self._lane.submit(job, done))

    def close(self) -> None:
        """Cancel everything and stop the thread."""
        for cancel in self._cancels.values():
            cancel.set()
        self._cancels.clear()
        self._lane.close()

    def _train(self, effect: Train, cancel: threading.Event) -> None:
        push, plane, post = effect.lease.push, self._tensors.plane, self._lane.post

        def live() -> bool:
            return self._cancels.get(push) is cancel

        def stepped(so_far: tuple[int, int]) -> None:
            if live():
                self._post(Progress(push, *so_far))

        def job() -> Result | None:
            if cancel.is_set():
                return None
            flat = plane.flat(effect.blob)
            return self._port.train(effect, flat, lambda *so_far: post(stepped, so_far), cancel)

        def done(result: Result | None) -> None:
            self._tensors.drop(effect.blob)
            if result is None or not live():
                return
            del self._cancels[push]
            blob = self._tensors.new_blob()
            self._tensors.created(blob)
            plane.adopt(blob, result.delta)
            steps, skipped = result.steps, result.skipped
            self._post(Trained(push, blob, steps, result.tokens, result.loss, skipped))

        self._lane.submit(job, done)
        self._lane.submit(self._port.rest)
