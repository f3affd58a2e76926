"""What a virtual node computes with, as the driver sees it: a plane of payloads and a trainer.

A payload is whatever the planes of one simulation agree on; the driver carries it from one to
another and never looks inside. The real ports with tensors live above (`convergence`), because the
tensor plane knows threads; the one without tensors is here.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Protocol

from pelago.core.frozen import frozen
from pelago.core.names import BlobId, Lease
from pelago.core.tensor_effects import Operation

Payload = object
"""Immutable: a plane that lent one never changes it."""


class PlanePort(Protocol):
    """A node's parameters and named payloads; the operations are those of `pelago.core.machine`."""

    def apply(
        self,
        operation: Operation,
        blob: BlobId,
        weight: float,
    ) -> None:
        """Change the parameters with a payload."""
        ...

    def pin(self, blob: BlobId, average: bool = False) -> None:
        """Name the parameters as they are now, or their running mean if the plane keeps one."""
        ...

    def difference(self, blob: BlobId) -> None:
        """Name snapshot - model as it is now."""
        ...

    def measure(self, blob: BlobId) -> tuple[float, bool]:
        """Norm of a payload, and whether every element is finite."""
        ...

    def release(self, blob: BlobId) -> None:
        """Forget a name; the payload lives on for those to whom it was lent."""
        ...

    def lend(self, blob: BlobId) -> Payload:
        """The payload behind a name, for a transfer or the trainer."""
        ...

    def adopt(self, blob: BlobId, payload: Payload) -> None:
        """Name a payload that another plane lent or the trainer made."""
        ...


class DurablePlane(PlanePort, Protocol):
    """A plane of a server that keeps its state."""

    def image(self, blobs: Collection[BlobId]) -> object:
        """All of it as it is now, with these payloads: what later operations do does not touch it."""
        ...

    def restore(self, image: object) -> None:
        """Become the plane that the image was taken of; this one is fresh."""
        ...


@dataclass(frozen=True, slots=True)
class RoundPlan:
    """How long training on a lease will take."""

    steps: int
    duration_ps: int
    """Of all steps together; they are equally long."""


@frozen
class Round:
    """What training on a lease gave: ``delta`` is start minus end, ``loss`` a mean in nats. ``skipped``:
    steps that changed nothing, since their gradient was not finite."""

    delta: Payload
    tokens: int
    loss: float
    skipped: int = 0


class VirtualTrainer(Protocol):
    """What a worker does with parameters. It takes no time of its own: the plan says how long."""

    def begin(self, lease: Lease, payload: Payload) -> RoundPlan:
        """Training on a lease from the parameters ``payload`` begins. ``steps`` >= 1."""
        ...

    def finish(self, lease: Lease) -> Round:
        """What it gave; called when the plan's time is over."""
        ...

    def cancel(self, lease: Lease) -> None:
        """It was broken off; nobody asks for what it gave."""
        ...

    def validate(self, payload: Payload) -> tuple[float, int]:
        """Held-out loss (nats per token) of parameters, and the number of tokens; takes no time."""
        ...


class TimingPlane:
    """A plane without tensors: it minds that a name is given once and used while it lives."""

    def __init__(self) -> None:
        self.live: set[BlobId] = set()

    def apply(
        self,
        operation: Operation,
        blob: BlobId,
        weight: float,
    ) -> None:
        """Nothing changes, but the payload must be there."""
        assert blob in self.live, blob

    def pin(self, blob: BlobId, average: bool = False) -> None:
        """A new name."""
        assert blob not in self.live, blob
        self.live.add(blob)

    def difference(self, blob: BlobId) -> None:
        """A new name."""
        self.adopt(blob, None)

    def measure(self, blob: BlobId) -> tuple[float, bool]:
        """Nothing is always finite."""
        assert blob in self.live, blob
        return 0.0, True

    def release(self, blob: BlobId) -> None:
        """The name is gone; it must have been there."""
        self.live.remove(blob)

    def lend(self, blob: BlobId) -> Payload:
        """Nothing, under a name that must be there."""
        assert blob in self.live, blob
        return None

    def adopt(self, blob: BlobId, payload: Payload) -> None:
        """A new name."""
        assert blob not in self.live, blob
        self.live.add(blob)

    def image(self, blobs: Collection[BlobId]) -> object:
        """The names."""
        assert self.live.issuperset(blobs)
        return tuple(blobs)

    def restore(self, image: object) -> None:
        """The names again."""
        assert isinstance(image, tuple)
        self.live = set(image)
