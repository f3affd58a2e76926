"""The interface of a node's sockets for its transfers."""

from typing import Any, Protocol

from pelago.core.names import Peer
from pelago.wire.messages import Frame


class PeerSockets(Protocol):
    """Sends to peers by name. No method waits."""

    def send_frame(self, peer: Peer, frame: Frame) -> bool:
        """Put `Have` or `Abort` on a peer's control socket. False if it cannot leave."""
        ...

    def send_bulk(self, peer: Peer, stripe: int, parts: list[Any]) -> bool:
        """Put parts on the ordered connection of a stripe to a peer, without copying them. While that one is not
        there they leave on another one. False if they cannot leave."""
        ...

    def stripes(self, peer: Peer) -> int:
        """Number of bulk connections to a peer that are there; at least 1."""
        ...

    def dials(self, peer: Peer) -> bool:
        """Whether it is this node that opens the connections to a peer."""
        ...

    def widen(self, peer: Peer, stripes: int) -> None:
        """Have so many bulk connections to a server of this node."""
        ...

    def throttle(self, on: bool) -> None:
        """Stop reading bulk from all peers, or go on reading it."""
        ...
