"""The interface of what checks everything that happens in a simulation with faults."""

from typing import Protocol

from pelago.core.names import Peer
from pelago.sim.node import SimulatedNode
from pelago.sim.recovery import ReplayedServer
from pelago.wire.messages import Effect, Event, Message


class Observer(Protocol):
    """Checks everything that happens. Its methods raise `AssertionError` if something was wrong."""

    def handled(
        self, node: SimulatedNode, number: int, event: Event, effects: list[Effect]
    ) -> None:
        """A machine handled an event; ``number``: of its record, 0 where none is kept."""
        ...

    def departed(self, node: SimulatedNode, peer: Peer, message: Message) -> None:
        """A message left a node."""
        ...

    def arrived(self, node: SimulatedNode, sender: SimulatedNode, message: Message) -> None:
        """A message has arrived at a node, which handles it next."""
        ...

    def restarted(self, node: SimulatedNode, number: int, recovered: ReplayedServer) -> None:
        """A durable server is back, with all that was recorded up to a number."""
        ...
