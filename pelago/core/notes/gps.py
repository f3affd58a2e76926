"""Notes of the GPS."""

from typing import ClassVar

from pelago.core.frozen import frozen
from pelago.core.names import Spans


@frozen
class Serving:
    """The GPS has its first model, and regions may join."""

    kind: ClassVar[str] = "serving"
    regions: tuple[str, ...]


@frozen
class RegionJoined:
    """An LPS serves a region from now on."""

    kind: ClassVar[str] = "region_joined"
    region: str
    fence: int
    returned: int
    """Samples that the process before it held, and that are lent again."""


@frozen
class RegionLeft:
    """A region's LPS left, was lost or was replaced."""

    kind: ClassVar[str] = "region_left"
    region: str
    why: str


@frozen
class RegionFailed:
    """A region's LPS left with an error."""

    kind: ClassVar[str] = "region_failed"
    region: str
    why: str


@frozen
class UnexpectedOfRegion:
    """A region's LPS sent a message that the GPS does not take from it."""

    kind: ClassVar[str] = "unexpected"
    region: str
    message: str
    """Name of the message's class."""


@frozen
class ExchangeArrived:
    """A region's exchange was applied to the global model."""

    kind: ClassVar[str] = "arrival"
    region: str
    version: int
    """The global model's version after the exchange."""
    exchange: int
    """The exchange's number in its region."""
    fence: int
    spans: Spans
    dropped: Spans
    """Samples whose movement the region lost."""
    steps: int
    cumulative_steps: int
    """Counted local steps of the run, these included."""
    elapsed_ps: int
    """Picoseconds since the first lease."""
    staleness: int
    """Versions between the update's base and the model that it was applied to."""
    norm: float
    loss: float
    """Mean training loss, in nats a token."""


@frozen
class ExchangeRejected:
    """A region's exchange was not applied; its samples are lent again."""

    kind: ClassVar[str] = "update_rejected"
    region: str
    why: str
    norm: float


@frozen
class EvaluatorLeft:
    """An evaluator left, or was lost."""

    kind: ClassVar[str] = "evaluator_left"
    why: str


@frozen
class ValidationReported:
    """An evaluator reported the held-out loss of a version of the global model."""

    kind: ClassVar[str] = "validation"
    version: int
    counted_steps: int
    elapsed_ps: int
    """When the version was reached, in picoseconds since the first lease."""
    loss: float
    tokens: int


@frozen
class RegionSummary:
    """A region's progress, a part of `RunStatus`."""

    serving: bool
    exchanges: int
    updates: int
    staleness_max: int
    exchanging: bool
    workers: int
    steps: int
    tokens: int
    loss: float | None
    """Mean training loss of its workers, in nats a token; None: no round is done yet."""


@frozen
class RunStatus:
    """How far the run is; at every tick of the GPS, and at its end."""

    kind: ClassVar[str] = "status"
    phase: str
    elapsed_ps: int
    version: int
    counted_steps: int
    tokens: int
    regions: dict[str, RegionSummary]
    """The progress of each region, by its name."""


@frozen
class Settled:
    """The run is over and all regions have left; the GPS waits for evaluators only."""

    kind: ClassVar[str] = "settled"
    waiting_for: int
