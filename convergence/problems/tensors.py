"""The daemons' own tensor plane, as a plane of the virtual driver."""

from collections.abc import Callable, Collection

import torch

from pelago.config.fields import InFlight
from pelago.config.servers import GpsSection, ServerSection
from pelago.core.names import BlobId
from pelago.core.ports import Payload
from pelago.core.tensor_effects import Operation
from pelago.tensor.manifest import Manifest
from pelago.tensor.optim import DelayedNesterov
from pelago.tensor.plane import Plane
from pelago.tensor.slab import Slab
from pelago.tensor.snapshot import PlaneSnapshot


class TensorPlane:
    """`pelago.tensor.plane.Plane` as a port; payloads are flat tensors, shape [numel]."""

    def __init__(self, blank: Callable[[], Plane]) -> None:
        self.plane = blank()
        self._blank = blank

    @classmethod
    def loaded(cls, blank: Callable[[], Plane], flat: torch.Tensor) -> "TensorPlane":
        """``flat``: the parameters, as if they had been loaded before the start; shape [numel]."""
        made = cls(blank)
        made.plane.adopt(0, flat)
        made.plane.apply("load", 0)
        made.plane.release(0)
        return made

    def apply(
        self,
        operation: Operation,
        blob: BlobId,
        weight: float,
    ) -> None:
        """Change the parameters with a payload."""
        self.plane.apply(operation, blob, weight)

    def pin(self, blob: BlobId, average: bool = False) -> None:
        """Name the parameters as they are now, or their running mean if the plane keeps one."""
        self.plane.pin(blob, average)

    def difference(self, blob: BlobId) -> None:
        """Name the present difference snapshot - model."""
        self.plane.difference(blob)

    def measure(self, blob: BlobId) -> tuple[float, bool]:
        """Norm of a payload, and whether every element is finite."""
        return self.plane.measure(blob)

    def release(self, blob: BlobId) -> None:
        """Forget a name."""
        self.plane.release(blob)

    def lend(self, blob: BlobId) -> Payload:
        """The payload as one tensor, not to be written to."""
        return self.plane.lend(blob)

    def adopt(self, blob: BlobId, payload: Payload) -> None:
        """Name a tensor of another plane or of the trainer; the planes share its memory."""
        assert isinstance(payload, torch.Tensor)
        self.plane.adopt(blob, payload)

    def image(self, blobs: Collection[BlobId]) -> object:
        """The whole plane as it is now, with these payloads."""
        return self.plane.snapshot(blobs)

    def restore(self, image: object) -> None:
        """Give this fresh plane the contents of an image."""
        assert isinstance(image, PlaneSnapshot)
        self.plane = self._blank()
        self.plane.restore(image.layout(), [chunk.buffer() for chunk in image.chunks])


def server_plane(
    manifest: Manifest, server: ServerSection, in_flight: InFlight | None, initial: torch.Tensor
) -> TensorPlane:
    """A server's plane with ``initial``, shape [numel], in it; ``in_flight`` None: it never exchanges."""
    outer = DelayedNesterov.from_eta(
        server.lr, server.momentum, server.momentum_delay, server.momentum_activation
    )

    def blank() -> Plane:
        return Plane(
            manifest,
            outer,
            remember=in_flight in ("carry", "replay"),
            exchanges=in_flight is not None,
            average=server.average if isinstance(server, GpsSection) else 0.0,
            slab=Slab(initial.dtype),
        )

    return TensorPlane.loaded(blank, initial)


def client_plane(manifest: Manifest, dtype: torch.dtype) -> TensorPlane:
    """The plane of a worker or the evaluator: payloads only."""
    return TensorPlane(lambda: Plane(manifest, None, exchanges=False, slab=Slab(dtype)))
