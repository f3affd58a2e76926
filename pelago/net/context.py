"""The context that all parts of a running node share."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from pelago.core.machine import Machine
from pelago.core.names import Peer
from pelago.net.limits import Limits, Patience
from pelago.net.telemetry import Telemetry
from pelago.tensor.encodings.encoding import Encoding
from pelago.wire.messages import Event, Message

NodeEffectMethods: TypeAlias = Mapping[type, Callable[[Any], None]]
"""How effects are carried out, by their type; called on the event loop's thread."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeContext:
    """The node's settings, clock and log, and how its parts reach the machine; the same for all parts.

    Everything that can be called is called on the event loop's thread.
    """

    run_id: str
    name: Peer
    """Name of this process, unique in the run."""
    machine: Machine[Message]
    limits: Limits
    encoding: Encoding
    """Encoding of the payloads that this node sends, and the only one that it accepts."""
    patience: Patience
    telemetry: Telemetry
    clock: Callable[[], int]
    """The machine's clock, in picoseconds."""
    post: Callable[[Event], None]
    """Gives the machine an event, after those that it has not handled yet."""
    on_fault: Callable[[BaseException], None]
    """Takes an error that ends the node at once."""
    on_work_fault: Callable[[BaseException], None]
    """Takes an error of the node's long work. If it is a `PelagoError`, the node leaves the run in good order;
    any other error ends it at once."""
