"""What an LPS's machine must know of the run. `lps.settings` makes it from the run file."""

from dataclasses import dataclass

from lps.exchange import InFlight
from pelago.core.names import Peer
from pelago.protocol.client_session import GIVE_UP_AFTER_PS


@dataclass(frozen=True, slots=True)
class LpsSettings:
    """Constant for one incarnation of an LPS; times in picoseconds."""

    gps: Peer
    region: str
    incarnation: int
    updates_per_exchange: int
    merge_weight: float
    in_flight: InFlight
    lease_ahead_ps: int
    """For so long samples are kept in hand; 0: none are asked for ahead of need."""
    round_samples_max: int
    """Samples of the largest round that a worker of the run file asks for."""
    sample_tokens: int
    """Tokens of one sample."""
    update_norm_max: float
    rejected_max: int
    """Rounds of a worker in a row that may give no accepted update."""
    max_lr: float
    """Of the workers: the first thing to look at when they learn nothing."""
    staged_max: int
    wan: bool
    """Whether the GPS stands in another region."""
    tick_ps: int
    """0: no heartbeats and no retries, for a driver that loses nothing."""
    retry_ps: int
    lost_after_ps: int
    give_up_after_ps: int = GIVE_UP_AFTER_PS
    """So long without a word of the GPS's, and the LPS ends with an error."""
    leases_max: int = 1
    """Leases that a worker may hold at once: 2 where rounds overlap with exchanges."""
    versions_max: int = 0
    """Versions of the model that may be on their way to workers at once; 0: any number."""
    stuck_after_ps: int = 0
    """A worker whose trainer was not heard of for so long loses its lease, if it did not end by itself;
    0: never."""
