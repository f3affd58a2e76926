"""Limits that a node's driver sets for its peers: sizes, numbers, times."""

from dataclasses import dataclass
from typing import Final, Self

from pelago.config.topology import NetworkSection
from pelago.core.machine import PS_PER_MS

CONNECT_MS_MIN: Final = 2_000
CONNECT_MS_MAX: Final = 5_000
"""Bounds of the time for a connection to be made: the far side of the earth needs half a second, and TCP, which
asks again after 1, 3 and 7 seconds, would leave gaps in which a line that has healed is not tried."""
LOST_AFTER_MS_MAX: Final = 3_600_000
"""More is no longer patience, and other numbers than these do not fit ZeroMQ's options."""
BULK_SILENT_MS_MIN: Final = 30_000
"""A full window (`Limits.window_bytes`) takes 27 s at 10 Mbps, and is acknowledged in parts."""
WINDOW_BYTES_MIN: Final = 8 << 20
"""The smallest window that adapts or that a run file sets."""
WINDOW_BYTES: Final = 32 << 20
"""Before anything was measured."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of one node; see also the constants of `pelago.net.sockets`."""

    window_bytes: int = WINDOW_BYTES
    """Payload bytes of one transfer that may be on their way, unconfirmed; at first, if the window adapts."""
    window_adapts: bool = False
    """Whether windows follow what is measured (`pelago.protocol.window`)."""
    windows_bytes_max: int = 1 << 30
    """All windows that adapt, together; each transfer under way has the same part of it."""
    stripes: int = 1
    """Bulk connections to each of the node's servers, 1 to `STRIPES_MAX`; at first, if their number adapts."""
    stripes_adapt: bool = False
    """Whether connections are opened while they add throughput (`pelago.protocol.climber`)."""
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

    @classmethod
    def of(cls, network: NetworkSection, incoming_max: int = 4) -> Self:
        """From a run file."""
        stripes, window = network.stripes, network.window_mib
        return cls(
            window_bytes=WINDOW_BYTES if window == "auto" else int(window * (1 << 20)),
            window_adapts=window == "auto",
            stripes=1 if stripes == "auto" else stripes,
            stripes_adapt=stripes == "auto",
            incoming_max=incoming_max,
        )

    @property
    def acknowledged_window_bytes(self) -> int:
        """The smallest window of a sender for which this node acknowledges often enough."""
        return min(self.window_bytes, WINDOW_BYTES_MIN)

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


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a connection may be silent before there is another: all from the run file's [network]."""

    lost_after_ms: int = 5_000
    """Silence after which a peer counts as lost; and a server's control connection as dead, if something was sent
    to it."""

    @classmethod
    def of(cls, network: NetworkSection) -> Self:
        """From a run file."""
        return cls(min(network.lost_after_ms, LOST_AFTER_MS_MAX))

    @property
    def connect_ms(self) -> int:
        """For TCP to connect, and then as long for the handshake."""
        return min(CONNECT_MS_MAX, max(CONNECT_MS_MIN, self.lost_after_ms))

    @property
    def control_unacknowledged_ms(self) -> int:
        """For TCP to get what was sent on a control connection acknowledged."""
        return max(CONNECT_MS_MIN, self.lost_after_ms)

    @property
    def bulk_silent_ms(self) -> int:
        """Without a sign of progress on a bulk connection that has something under way; doubled where a healthy
        but slow one turns out to need longer."""
        return max(BULK_SILENT_MS_MIN, self.lost_after_ms)
