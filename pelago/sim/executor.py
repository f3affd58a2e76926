"""How effects are carried out: one executor for each part of the vocabulary (`pelago.core`).

A simulation is given the executors of its parts. To add an effect means to add it to the role that emits it
and to the executor of its part.
"""

from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeAlias

from pelago.sim.node import SimulatedNode
from pelago.wire.messages import Event

EffectMethods: TypeAlias = Mapping[type, Callable[[SimulatedNode, Any], None]]
"""How to carry out an effect for a node, by the effect's type."""


class Scheduler(Protocol):
    """What executors need of a simulation."""

    now: int
    """Picoseconds."""
    give: Callable[[tuple[SimulatedNode, Event]], None]
    """Give a node an event now, after all that is due already."""

    def call(self, time_ps: int, action: Callable[[], None]) -> None:
        """Do something at a time, which is not before now."""
        ...


class Executor(Protocol):
    """Carries out the effects of one part."""

    def methods(self) -> EffectMethods:
        """The effects that it knows."""
        ...

    def node_ended(self, node: SimulatedNode) -> None:
        """A node has finished or was lost: stop everything that is under way for it."""
        ...


ExecutorFactory: TypeAlias = Callable[[Scheduler], Executor]
