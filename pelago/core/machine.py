"""The vocabulary that machines and drivers share: events go in, effects come out.

A machine is ``handle(event, now) -> list[Effect]`` and ``check()``. An event says what happened, an
effect what the driver shall do. ``now`` and every delay are integer picoseconds of the driver's
clock, whose origin means nothing. Effects on tensors (`Pin`, `Difference`, `Apply`, `Release`) and
`Send`s with a blob run in the order in which they were emitted; nothing in this vocabulary carries a tensor.

``M`` is the union of messages (`pelago.wire.messages.Message`), which lies one layer up.
"""

from typing import Any, Final, Generic, Protocol, TypeAlias, TypeVar, Union

from pelago.core.frozen import frozen
from pelago.core.names import BlobId, Peer
from pelago.core.notes.note import Note
from pelago.core.tensor_effects import Apply, Difference, Loaded, Measure, Measured, Pin, Release
from pelago.core.training_effects import (
    Cancel,
    Progress,
    Rebase,
    Train,
    Trained,
    Validate,
    Validated,
)

PS_PER_MS = 10**9
"""Picoseconds in a millisecond."""
PS_PER_S = 1000 * PS_PER_MS
"""Picoseconds in a second."""
PS_PER_MINUTE = 60 * PS_PER_S
"""Picoseconds in a minute."""

M = TypeVar("M")


# --- events --------------------------------------------------------------------------------------


@frozen
class Started:
    """The driver runs; first event of every machine."""


@frozen
class Restarted:
    """The process was gone and another one has its state, bit for bit; first event of a machine that
    was restored. What was on its way to and from it is lost, and so is the time in between."""


@frozen
class Received(Generic[M]):
    """A message came; if it has a payload, all of it is staged and its checksums held."""

    peer: Peer
    message: M
    blob: BlobId | None = None
    payload_bytes: int = 0
    """Size of the payload as it travelled, in its encoding; 0 without one."""


@frozen
class Delivered:
    """All of a payload that this node sent has arrived."""

    peer: Peer
    blob: BlobId
    payload_bytes: int = 0
    """Its size as it travelled, in its encoding."""


@frozen
class PeerLost:
    """The driver gave up on a peer, or a transfer to it."""

    peer: Peer
    reason: str


@frozen
class Tick:
    """The one periodic timer of a machine fired."""


@frozen
class StopRequested:
    """The user or the operating system asks this node to end in good order."""

    reason: str


Event: TypeAlias = Union[
    Started,
    Loaded,
    Received[M],
    Delivered,
    PeerLost,
    Measured,
    Tick,
    Progress,
    Trained,
    Validated,
    StopRequested,
    Restarted,
]
"""Append only: an event's place in this union is its tag in journals."""


# --- effects -------------------------------------------------------------------------------------


@frozen
class Send(Generic[M]):
    """Send a message, with a payload or without. The driver keeps the payload until it left."""

    peer: Peer
    message: M
    blob: BlobId | None = None


@frozen
class SetTick:
    """Fire `Tick` every so many picoseconds from now on."""

    interval_ps: int


FAILED: Final = "failed"
"""`Finish.reason` of a node that cannot go on through no fault of its own."""


@frozen
class Finish:
    """This node is done. ``error`` is empty when all went well."""

    reason: str
    error: str = ""


Effect: TypeAlias = Union[
    Send[M],
    SetTick,
    Measure,
    Apply,
    Pin,
    Difference,
    Release,
    Train,
    Rebase,
    Cancel,
    Validate,
    Note,
    Finish,
]


class Machine(Protocol[M]):
    """What a driver drives."""

    def handle(self, event: Any, now: int) -> list[Effect[M]]:
        """Handle one event, and return the effects that follow from it, in order.

        ``event``: of a type that this machine's role knows, such as `pelago.wire.messages.ServerEvent`. A driver
        posts others only after effects that other roles have.
        """
        ...

    def expects(self, peer: Peer, message: M) -> bool:
        """Whether this node wants the payload that comes with a message. One that is not expected is refused
        before a byte of it is kept. Changes nothing."""
        ...

    def check(self) -> None:
        """Assert every invariant of this machine."""
        ...
