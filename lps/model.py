"""The region's model: its version, its replies to workers, and the payload bytes that arrived."""

from lps.machine_settings import LpsSettings
from pelago.core.durable import durable
from pelago.core.names import BlobId
from pelago.wire.messages import TensorSpec


@durable(settings=("_wan",))
class RegionModel:
    """Its tensors are the plane's. Every applied update makes one version."""

    def __init__(self, settings: LpsSettings) -> None:
        self.version = 0
        self.staleness_max = 0
        """In versions, of all updates that were applied."""
        self.lan_bytes = 0
        self.wan_bytes = 0
        self._payload_bytes = settings.payload_bytes
        self._wan = settings.wan
        self._next_blob = 1

    def learn(self, manifest: tuple[TensorSpec, ...]) -> None:
        """Take the size of a payload from the manifest, unless the settings tell it."""
        if self._payload_bytes == 0:
            self._payload_bytes = 4 * sum(_elements(spec.shape) for spec in manifest)

    def new_blob(self) -> BlobId:
        """A name for a payload that this node makes."""
        self._next_blob += 1
        return self._next_blob - 1

    def count(self, base: int) -> int:
        """An update that was computed from version ``base`` is applied. Returns its staleness in versions."""
        # A base that is no version of ours yet is a peer's mistake.
        staleness = max(0, self.version - base)
        self.version += 1
        self.staleness_max = max(staleness, self.staleness_max)
        return staleness

    def count_worker_payload(self) -> None:
        """A payload went between a worker and this server."""
        self.lan_bytes += self._payload_bytes

    def count_exchange_payload(self) -> None:
        """A payload went between the GPS and this server."""
        if self._wan:
            self.wan_bytes += self._payload_bytes
        else:
            self.lan_bytes += self._payload_bytes


def _elements(shape: tuple[int, ...]) -> int:
    elements = 1
    for size in shape:
        elements *= size
    return elements
