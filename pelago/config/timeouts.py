"""The [network] table on the machines' clock: the only place where its times become picoseconds."""

from dataclasses import dataclass
from typing import Self

from pelago.config.topology import NetworkSection
from pelago.core.machine import PS_PER_MS


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Periods and limits of silence that machines keep, in picoseconds."""

    tick_ps: int
    """Between two ticks, at each of which a heartbeat is sent; 0: no ticks and no heartbeats."""
    retry_ps: int
    """Time after which an unanswered request is sent again."""
    lost_after_ps: int
    """Silence after which a peer is lost."""
    region_lost_after_ps: int
    """Silence after which a region forfeits its leases."""
    give_up_after_ps: int
    """Silence of its server after which a node ends with an error."""

    @classmethod
    def of(cls, network: NetworkSection, *, lossless: bool = False) -> Self:
        """From a run file. ``lossless``: for a driver that loses nothing, so that no machine needs ticks."""
        heartbeat_ps = network.heartbeat_ms * PS_PER_MS
        return cls(
            tick_ps=0 if lossless else heartbeat_ps,
            retry_ps=2 * heartbeat_ps,
            lost_after_ps=network.lost_after_ms * PS_PER_MS,
            region_lost_after_ps=network.region_lost_after_ms * PS_PER_MS,
            give_up_after_ps=network.give_up_after_ms * PS_PER_MS,
        )
