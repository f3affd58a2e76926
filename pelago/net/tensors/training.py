"""The thread in which the trainer of a worker, or of the evaluator, computes."""

import threading

from pelago.core.errors import CheckpointError
from pelago.core.names import PushId
from pelago.core.ports import TrainerPort, TrainingResult
from pelago.core.training_effects import (
    Cancel,
    Progress,
    Rebase,
    Train,
    Trained,
    Validate,
    Validated,
)
from pelago.net.context import NodeContext, NodeEffectMethods
from pelago.net.tensors.lane import Lane
from pelago.net.tensors.tensors import Tensors


class TrainingThread:
    """Runs `Train` and `Validate` one after the other, and posts the events that follow."""

    def __init__(self, port: TrainerPort, context: NodeContext, tensors: Tensors) -> None:
        self._port = port
        self._tensors = tensors
        self._post = context.post
        self._lane = Lane("trainer", context.on_work_fault)
        self._cancels: dict[PushId, threading.Event] = {}
        lane, telemetry = self._lane, context.telemetry
        port.begin(lambda note: lane.post(telemetry.event, note))
        lane.submit(port.prepare)

    def methods(self) -> NodeEffectMethods:
        """Methods that carry out the effects of training."""
        return {
            Train: self.train,
            Rebase: self.rebase,
            Cancel: lambda effect: self.cancel(effect.push),
            Validate: self.validate,
        }

    def train(self, effect: Train) -> None:
        """Train on a lease."""
        cancel = self._cancels[effect.lease.push] = threading.Event()
        if effect.blob is not None:
            self._tensors.use(effect.blob)
        self._train(effect, cancel)

    def rebase(self, effect: Rebase) -> None:
        """Rebase the round under way, or what the last one left."""
        model = self._tensors.plane.payload(effect.blob)
        model.wait()
        self._port.rebase(model)

    def cancel(self, push: PushId) -> None:
        """Stop training on a lease at its next step; no event follows for it from now on."""
        cancel = self._cancels.pop(push, None)
        if cancel is not None:
            cancel.set()

    def validate(self, effect: Validate) -> None:
        """Measure the held-out loss."""
        self._tensors.use(effect.blob)
        plane, post = self._tensors.plane, self._lane.post

        def measured(batches: int) -> None:
            self._post(Progress(None, batches))

        def job() -> Validated:
            parameters = plane.payload(effect.blob)
            parameters.wait()
            loss, tokens = self._port.validate(parameters, lambda batches: post(measured, batches))
            try:
                if effect.export:
                    self._port.export(parameters)
            except CheckpointError as error:
                # The loss is reported all the same.
                return Validated(effect.version, loss, tokens, str(error))
            return Validated(effect.version, loss, tokens)

        def done(found: Validated) -> None:
            self._tensors.drop(effect.blob)
            self._post(found)

        self._lane.submit(job, done)

    def close(self) -> None:
        """Cancel everything and stop the thread."""
        for cancel in self._cancels.values():
            cancel.set()
        self._cancels.clear()
        self._lane.close()

    def _train(self, effect: Train, cancel: threading.Event) -> None:
        origin = effect.blob
        push, plane, post = effect.lease.push, self._tensors.plane, self._lane.post

        def live() -> bool:
            return self._cancels.get(push) is cancel

        def stepped(so_far: tuple[int, int]) -> None:
            if live():
                self._post(Progress(push, *so_far))

        def job() -> TrainingResult | None:
            if cancel.is_set():
                return None
            start = None if origin is None else plane.payload(origin)
            if start is not None:
                start.wait()
            return self._port.train(effect, start, lambda *so_far: post(stepped, so_far), cancel)

        def done(result: TrainingResult | None) -> None:
            if origin is not None:
                self._tensors.drop(origin)
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
