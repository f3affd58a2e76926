"""Notes that machines of several roles make."""

from typing import ClassVar

from pelago.core.frozen import frozen
from pelago.core.names import Peer


@frozen
class Waiting:
    """A client waits for its server's answer, or for what its server named."""

    kind: ClassVar[str] = "waiting"
    awaited: str
    """Written as ``for``."""


@frozen
class GoingOn:
    """A client that waited continues."""

    kind: ClassVar[str] = "going_on"


@frozen
class LeftUnanswered:
    """A client said goodbye several times, got no answer, and ends."""

    kind: ClassVar[str] = "left_unanswered"


@frozen
class ServerRestarted:
    """A server continues from the state that it recovered."""

    kind: ClassVar[str] = "restarted"
    phase: str
    version: int


@frozen
class Draining:
    """A server applies no more updates and waits for its clients to leave."""

    kind: ClassVar[str] = "draining"
    why: str


@frozen
class GivingUp:
    """A server ends with an error because no update of its clients can be applied any more."""

    kind: ClassVar[str] = "giving_up"
    why: str


@frozen
class UnexpectedMessage:
    """A client sent a message that its server does not take from it."""

    kind: ClassVar[str] = "unexpected"
    peer: Peer
    message: str
    """Name of the message's class."""


@frozen
class Stuck:
    """A worker's trainer, or an evaluator's measurement, made no progress for too long; the node ends."""

    kind: ClassVar[str] = "stuck"
    why: str
