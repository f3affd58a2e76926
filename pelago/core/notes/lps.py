"""Notes of the LPS."""

from typing import ClassVar, Literal

from pelago.core.dedupe import Outcome
from pelago.core.frozen import frozen
from pelago.core.names import Peer, Spans


@frozen
class LpsJoined:
    """The GPS welcomed this LPS."""

    kind: ClassVar[str] = "joined"
    fence: int


@frozen
class Rejoining:
    """The LPS gives up its leases and what it has not exchanged, and joins the GPS again."""

    kind: ClassVar[str] = "rejoining"


@frozen
class WorkerRefused:
    """A worker may not join: it has another model, corpus or region."""

    kind: ClassVar[str] = "refused"
    peer: Peer
    why: str


@frozen
class WorkerJoined:
    """A worker was admitted."""

    kind: ClassVar[str] = "worker_joined"
    group: int
    peer: Peer


@frozen
class WorkerLeft:
    """A worker left, was lost or was removed; the samples of its lease are lent again."""

    kind: ClassVar[str] = "worker_left"
    group: int
    peer: Peer
    why: str
    lease: int | None = None
    """The oldest lease that it held; None: it held none."""
    spans: Spans | None = None
    """The samples of all leases that it held."""


@frozen
class UnexpectedPull:
    """A worker asked for more samples than a round of this run has."""

    kind: ClassVar[str] = "unexpected"
    peer: Peer
    samples: int


@frozen
class UpdateApplied:
    """A worker's update was applied to the region's model."""

    kind: ClassVar[str] = "update"
    version: int
    """The region's model's version after the update."""
    lease: int
    spans: Spans
    steps: int
    staleness: int
    """Versions between the update's base and the model that it was applied to."""
    norm: float
    loss: float
    """Mean training loss, in nats a token."""


@frozen
class RoundRejected:
    """A worker's round gave no accepted update; its samples are lent again."""

    kind: ClassVar[str] = "update_rejected"
    peer: Peer
    group: int
    why: str


@frozen
class ExchangeBegun:
    """The LPS offers the GPS the movement of its model since the last exchange."""

    kind: ClassVar[str] = "exchange"
    number: int
    fence: int
    updates: int
    version: int
    """The region's model's version."""
    spans: Spans
    """Samples that the movement was trained on."""
    dropped: Spans
    """Samples whose movement was lost while the previous exchange was in flight."""


@frozen
class ExchangeAnswered:
    """The LPS knows the outcome of an exchange."""

    kind: ClassVar[str] = "exchange_answered"
    number: int
    fence: int
    outcome: Outcome | Literal["unknown"]
    """``unknown``: the GPS's model arrived, the outcome did not."""


@frozen
class GlobalMerged:
    """The global model was merged into the region's."""

    kind: ClassVar[str] = "merge"
    global_version: int
    """The global model's version. Written as ``global``."""
    version: int
    """The region's model's version after the merge."""
