"""What a server calls a connection: the client's name, and on bulk which stripe the connection is for.

A client's first bulk connection, and its control connection, have its name as their routing identity. Each further
bulk connection has the name, a unit separator, which no name contains, and the number of the stripe.
"""

from dataclasses import dataclass
from typing import Final

from pelago.core.names import Peer
from pelago.wire.messages import STRIPES_MAX

IDENTITY_BYTES_MAX: Final = 64
"""Of a name."""
SEPARATOR: Final = "\x1f"


@dataclass(frozen=True, slots=True)
class Identity:
    """Names one connection of a client."""

    peer: Peer
    stripe: int = 0

    def pack(self) -> bytes:
        """As a routing identity."""
        return (f"{self.peer}{SEPARATOR}{self.stripe}" if self.stripe else self.peer).encode()


def name_of(identity: bytes) -> Peer | None:
    """A client's name; None if it is none that a node of ours would take."""
    if not 0 < len(identity) <= IDENTITY_BYTES_MAX or not identity.isascii():
        return None
    text = identity.decode()
    return text if text.isprintable() else None


def parse(routing_id: bytes) -> Identity | None:
    """Which connection of which client a routing identity names; None if it is none of ours."""
    name, separator, number = routing_id.partition(SEPARATOR.encode())
    peer = name_of(name)
    if peer is None or not separator:
        return None if peer is None else Identity(peer)
    stripe = int(number) if len(number) <= 2 and number.isdigit() else 0
    return (
        Identity(peer, stripe)
        if str(stripe).encode() == number and 0 < stripe < STRIPES_MAX
        else None
    )
