"""A simulated process: its machine, and what it works with."""

from dataclasses import dataclass, field
from typing import Final

from pelago.core.machine import Finish, Machine
from pelago.core.names import BlobId, Lease, Peer
from pelago.core.ports import TensorPort
from pelago.sim.links import SharedLink
from pelago.sim.planes import RoundPlan, VirtualTrainer
from pelago.wire.messages import Message

LOST: Final = Finish("lost", error="lost")
"""The end of a node that is lost without a message."""


@dataclass(slots=True, eq=False)
class SimulatedNode:
    """A machine and what it works with: one process. ``place`` is its index for the links.

    ``name``: of this process, never used again. ``serves``: what its clients call it, whichever
    process it is (empty: its name). ``server``: what it calls its own server.
    """

    name: Peer
    place: int
    machine: Machine[Message]
    plane: TensorPort
    trainer: VirtualTrainer | None = None
    serves: Peer = ""
    server: Peer = ""
    finished: Finish | None = None
    training: "TrainingTask | None" = None
    timer: "Timer | None" = None
    blobs: int = 0
    routes: "dict[Peer, Route]" = field(default_factory=dict)
    """Routes to the nodes to which it has sent something, by its names for them."""

    def new_blob(self) -> BlobId:
        """A name for a payload that arrived or was trained: drivers count downwards from -1."""
        self.blobs -= 1
        return self.blobs

    def name_for(self, other: "SimulatedNode") -> Peer:
        """The name that another node has for this one: a client knows its server by its `serves`."""
        return self.serves if self.serves and other.server == self.serves else self.name


@dataclass(slots=True, eq=False)
class Route:
    """From one node to another: all that a message needs to know, looked up once and not for each message."""

    sender: SimulatedNode
    receiver: SimulatedNode
    sender_name: Peer
    """What the receiver calls the sender."""
    receiver_name: Peer
    """What the sender calls the receiver."""
    places: tuple[int, int]
    control_ps: int
    """Latency of a control message."""
    latency_ps: int
    work_ps: int
    """How long a payload occupies the link if it is alone there."""
    link: SharedLink | None


@dataclass(slots=True, eq=False)
class TrainingTask:
    """A lease on which a node trains."""

    lease: Lease
    plan: RoundPlan
    begun_ps: int

    def steps_begun(self, now: int) -> int:
        """Steps that have begun until now: the one under way ends before anything else happens."""
        return -(-(now - self.begun_ps) * self.plan.steps // self.plan.duration_ps)


@dataclass(slots=True, eq=False)
class Timer:
    """The periodic tick of a node."""

    node: SimulatedNode
    interval_ps: int
