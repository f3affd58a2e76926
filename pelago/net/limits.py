"""What a node's driver grants its peers: sizes, numbers, patience."""

from dataclasses import dataclass

from pelago.core.machine import PS_PER_MS


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of one node; see also the constants of `pelago.net.sockets`."""

    window_bytes: int = 32 << 20
    """Payload bytes of one transfer that may be on their way, unconfirmed."""
    incoming_max: int = 4
    """Payloads that may be arriving at once, one per peer; memory for so many models."""
    staging_bytes_max: int = 64 << 20
    """Bytes that may wait for the staging thread before the sockets are left to TCP."""
    model_bytes_max: int = 256 << 30
    """The largest model that a server's manifest may make this node hold."""
    retry_ms: int = 2_000
    """Silence after which a sender asks what has arrived."""
    give_up_ms: int = 300_000
    """Silence after which a sender gives up: outlasts a long cut of the network."""
    idle_ms: int = 10_000
    """A payload that stopped arriving for so long may be dropped if its place is wanted."""

    @property
    def retry_ps(self) -> int:
        """`retry_ms` on the machines' clock."""
        return self.retry_ms * PS_PER_MS

    @property
    def give_up_ps(self) -> int:
        """`give_up_ms` on the machines' clock."""
        return self.give_up_ms * PS_PER_MS

    @property
    def idle_ps(self) -> int:
        """`idle_ms` on the machines' clock."""
        return self.idle_ms * PS_PER_MS
