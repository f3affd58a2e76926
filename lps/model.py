"""The region's model: its version, the names of payloads, and the payload bytes that arrived."""

from lps.machine_settings import LpsSettings
from pelago.core.durable import durable
from pelago.core.names import BlobId


@durable(settings=("_wan",))
class RegionModel:
    """Its tensors are the plane's. Every applied update makes one version."""

    def __init__(self, settings: LpsSettings) -> None:
        self.version = 0
        self.staleness_max = 0
        """In versions, of all updates that were applied."""
        self.lan_bytes = 0
        self.wan_bytes = 0
        self._wan = settings.wan
        self._next_blob = 1

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

    def count_worker_payload(self, payload_bytes: int) -> None:
        """A payload of this size went between a worker and this server."""
        self.lan_bytes += payload_bytes

    def count_exchange_payload(self, payload_bytes: int) -> None:
        """A payload of this size went between the GPS and this server."""
        if self._wan:
            self.wan_bytes += payload_bytes
        else:
            self.lan_bytes += payload_bytes
