"""A process of a simulation with faults: its clock, its disk, and the events that wait for it."""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from pelago.core.machine import Finish, Machine, Tick
from pelago.core.names import BlobId
from pelago.sim.disk import Disk
from pelago.sim.fault_profile import Clock
from pelago.sim.node import SimulatedNode
from pelago.sim.planes import DurablePlane
from pelago.wire.messages import Event, Message

DOWN: Final = Finish("down", error="down")
"""The end of a durable server that will be started again."""


@dataclass(slots=True)
class SimulatedStore:
    """What a durable server has besides its machine."""

    disk: Disk
    plane: DurablePlane
    make: Callable[[], tuple[Machine[Message], DurablePlane]]
    """A fresh machine and its plane, as at the very start."""
    first: tuple[Event, ...] = ()
    """The events that follow `Started` or `Restarted`."""


@dataclass(slots=True)
class ProcessState:
    """A process and its faults. ``slot``: the place in the run that it takes, process after process."""

    node: SimulatedNode
    slot: str
    clock: Clock
    store: SimulatedStore | None = None
    incarnation: int = 0
    """Grows when it dies."""
    held: deque[tuple[int, Callable[[], None]]] = field(default_factory=deque)
    """Messages that wait for the disk: (number of the event that caused it, how to send it)."""
    writing: bool = False
    blobs: dict[BlobId, None] = field(default_factory=dict)
    """Payloads that the machine of a durable server holds."""
    frozen_until: int = 0
    """When it continues; 0: it runs."""
    tick_is_late: bool = False
    """Its tick was put off, so that it first listens."""
    waiting: deque[Event] = field(default_factory=deque)
    """Events that came while it was frozen; its tick first."""
    deferred: list[Callable[[], None]] = field(default_factory=list)
    """Actions that were due while it was frozen."""

    def unfreeze(self) -> None:
        """It continues, or another process takes its place."""
        self.frozen_until, self.tick_is_late = 0, False
        self.waiting.clear()
        self.deferred.clear()

    def keep_waiting(self, event: Event) -> None:
        """Keep an event until the process continues."""
        if type(event) is not Tick:
            self.waiting.append(event)
        elif not self.waiting or type(self.waiting[0]) is not Tick:
            self.waiting.appendleft(event)  # A timer fires once, however late.
