"""What a simulated node computes with: a plane of payloads and a trainer.

A payload is any object that the planes of one simulation agree on; the driver carries it from one to
another and never looks inside. The plane with tensors is in `convergence.problems.tensors`, because the
tensor plane uses threads; the one without tensors is here.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Protocol

from pelago.core.frozen import frozen
from pelago.core.names import BlobId, Lease
from pelago.core.ports import Payload, TensorPort
from pelago.core.tensor_effects import Operation


class DurablePlane(TensorPort, Protocol):
    """A plane of a server that keeps its state."""

    def image(self, blobs: Collection[BlobId]) -> object:
        """The whole plane as it is now, with these payloads. Later operations do not change the image."""
        ...

    def restore(self, image: object) -> None:
        """Give this fresh plane the contents of an image."""
        ...


@dataclass(frozen=True, slots=True)
class RoundPlan:
    """How long training on a lease will take."""

    steps: int
    duration_ps: int
    """Time of all steps together; they are equally long."""


@frozen
class Round:
    """The result of training on a lease: ``delta`` is start minus end, ``loss`` a mean in nats. ``skipped``:
    steps that changed nothing, since their gradient was not finite."""

    delta: Payload
    tokens: int
    loss: float
    skipped: int = 0


@frozen
class FreshStart:
    """Parameters of a server from which a round begins."""

    payload: Payload


class VirtualTrainer(Protocol):
    """What a worker or the evaluator computes in a simulation.

    It is not `pelago.core.ports.TrainerPort`: that one blocks a thread until a lease is trained, and this one
    plans. `begin` says how long the training takes in virtual time, and `finish` gives the result when that
    time is over, so many rounds that overlap can be computed together, in one batch.
    """

    def begin(self, lease: Lease, start: FreshStart | None) -> RoundPlan:
        """Training on a lease begins: from a server's parameters, or from those that the last round left (None). The
        plan has ``steps`` >= 1."""
        ...

    def rebase(self, model: Payload, done: int | None) -> None:
        """Move the round under way onto a server's model after ``done`` of its plan's steps; None: no round is under
        way, move the parameters that the last one left. See `pelago.core.training_effects.Rebase`."""
        ...

    def finish(self, lease: Lease) -> Round:
        """The result of a round; called when the plan's time is over."""
        ...

    def cancel(self, lease: Lease) -> None:
        """The round was cancelled; its result is not needed."""
        ...

    def validate(self, payload: Payload) -> tuple[float, int]:
        """Held-out loss (nats per token) of parameters, and the number of tokens; takes no time."""
        ...


class TimingPlane:
    """A plane without tensors: it asserts that a name is given once and used only while it exists."""

    def __init__(self) -> None:
        self.live: set[BlobId] = set()

    def apply(
        self,
        operation: Operation,
        blob: BlobId,
        weight: float,
    ) -> None:
        """Only asserts that the payload exists."""
        assert blob in self.live, blob

    def pin(self, blob: BlobId, average: bool = False) -> None:
        """Make a new name."""
        assert blob not in self.live, blob
        self.live.add(blob)

    def difference(self, blob: BlobId) -> None:
        """Make a new name."""
        self.adopt(blob, None)

    def measure(self, blob: BlobId) -> tuple[float, bool]:
        """Norm 0, and finite."""
        assert blob in self.live, blob
        return 0.0, True

    def release(self, blob: BlobId) -> None:
        """Forget the name, which must exist."""
        self.live.remove(blob)

    def lend(self, blob: BlobId) -> Payload:
        """An empty payload, under a name that must exist."""
        assert blob in self.live, blob
        return None

    def adopt(self, blob: BlobId, payload: Payload) -> None:
        """Make a new name."""
        assert blob not in self.live, blob
        self.live.add(blob)

    def image(self, blobs: Collection[BlobId]) -> object:
        """The names."""
        assert self.live.issuperset(blobs)
        return tuple(blobs)

    def restore(self, image: object) -> None:
        """Take over the names of an image."""
        assert isinstance(image, tuple)
        self.live = set(image)
