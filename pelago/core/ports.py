"""What drivers need of a node's tensors and of its trainer; the numbers themselves are behind these protocols.

A payload is opaque here: an update or a model, in whatever form the planes and the trainer of one run agree on.
The daemons' are chunks of fp32 on the CPU (`pelago.tensor.payload`); a simulation's may be less.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

from pelago.core.names import BlobId
from pelago.core.notes.trainer import TrainerNote
from pelago.core.tensor_effects import Operation
from pelago.core.training_effects import Train

Payload: TypeAlias = Any
"""Immutable: a plane that lent one never changes it."""

LogEvent: TypeAlias = Callable[[TrainerNote], None]
"""Logs a note of a trainer; may be called from any thread."""


class TensorPort(Protocol):
    """A node's parameters and named payloads: what carries out the effects of `pelago.core.tensor_effects`."""

    def apply(self, operation: Operation, blob: BlobId, weight: float) -> None:
        """Change the parameters with a payload, as `Apply` says."""
        ...

    def pin(self, blob: BlobId, average: bool = False) -> None:
        """Name the parameters as they are now, or their running mean if the plane keeps one."""
        ...

    def difference(self, blob: BlobId) -> None:
        """Name ``snapshot - model`` as it is now."""
        ...

    def measure(self, blob: BlobId) -> tuple[float, bool]:
        """Euclidean norm of a payload, and whether every element is finite."""
        ...

    def release(self, blob: BlobId) -> None:
        """Forget a name; a part that was lent the payload keeps it."""
        ...

    def lend(self, blob: BlobId) -> Payload:
        """The payload behind a name, for a transfer or the trainer; not to be written to."""
        ...

    def adopt(self, blob: BlobId, payload: Payload) -> None:
        """Name a payload that another plane lent or the trainer made; it is not written to any more."""
        ...


class Cancellation(Protocol):
    """How a thread learns that its work is not wanted any more (`threading.Event` is one)."""

    def is_set(self) -> bool:
        """Whether the work is cancelled."""
        ...

    def wait(self, timeout: float) -> bool:
        """Wait until the work is cancelled, for at most ``timeout`` seconds; whether it is."""
        ...


@dataclass(frozen=True, slots=True)
class TrainingResult:
    """The result of training on a lease.

    ``delta``: the pseudo-gradient, start minus end. ``steps``: local steps made. ``tokens``: predicted in
    all steps. ``loss``: mean training loss in nats per token, over the steps that were not skipped; NaN if
    all were. ``skipped``: how many of the steps changed nothing, since their gradient was not finite.
    """

    delta: Payload
    steps: int
    tokens: int
    loss: float
    skipped: int = 0


class TrainerPort(Protocol):
    """What a worker or the evaluator computes. All methods but `begin` and `rebase` are called from one thread of
    their own.

    Parameters are passed as payloads, not to be written to.
    """

    def begin(self, log: LogEvent) -> None:
        """Called once, before anything else, by the driver's thread."""
        ...

    def prepare(self) -> None:
        """Called once, before any work, while the first parameters are on their way: what can be made ready
        without them."""
        ...

    def train(
        self,
        work: Train,
        start: Payload | None,
        on_step: Callable[[int, int], None],
        cancel: Cancellation,
    ) -> TrainingResult | None:
        """Train on a lease from the parameters ``start``, or from those that the last round left. None if cancelled.

        Calls ``on_step(steps, skipped)``, the numbers so far, after each step, and between its parts to show
        that it is alive.
        """
        ...

    def rebase(self, model: Payload) -> None:
        """Rebase the round on a model before its next step, see `pelago.core.training_effects.Rebase`. Called from any
        thread."""
        ...

    def rest(self) -> None:
        """Called after each round, when its result is being offered: parts of it that are still missing have to come
        now. Then there is time for what is not urgent."""
        ...

    def validate(self, parameters: Payload, on_batch: Callable[[int], None]) -> tuple[float, int]:
        """Held-out loss in nats per token, and the number of tokens that it is a mean of. Calls
        ``on_batch(batches)``, the number so far, after each batch."""
        ...

    def export(self, parameters: Payload) -> None:
        """Write the model out for users. Raises `CheckpointError`."""
        ...
