"""How a durable node's past becomes its present again: what both drivers do alike.

The driver tells a fresh machine every event that its predecessor was told, with the payloads that came
with them, and does again what its answers change of tensors. What was sent was sent, or is asked for again.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, assert_never

from pelago.core.machine import Machine
from pelago.core.names import BlobId
from pelago.core.ports import TensorPort
from pelago.core.tensor_effects import Apply, Difference, Pin, Release
from pelago.durable import record
from pelago.durable.record import HEAD_BYTES, Head
from pelago.wire.messages import Busy, Effect, Event, Heartbeat, Message, Refuse, Wait

UNCOMMITTED: Final = (Heartbeat, Wait, Busy, Refuse)
"""Messages that promise nothing, and so leave before the journal holds their cause."""


# --- what was told -------------------------------------------------------------------------------


def perform(plane: TensorPort, effect: Pin | Difference | Apply) -> None:
    """Do what a machine wished of the plane."""
    match effect:
        case Pin(blob, average):
            plane.pin(blob, average)
        case Difference(blob):
            plane.difference(blob)
        case Apply(operation, blob, weight):
            plane.apply(operation, blob, weight)
        case _:
            assert_never(effect)


def replay_event(
    machine: Machine[Message],
    event: Event,
    now: int,
    plane: TensorPort | None,
    held: dict[BlobId, None],
) -> list[Effect]:
    """Tell a machine what its predecessor was told, and do what its answer changes of tensors.

    ``plane``: None as long as the model is not known. ``held``: the payloads that the machine
    needs, kept up to date; the driver adds those that it is told of. Returns the whole answer.
    """
    effects = machine.handle(event, now)
    for effect in effects:
        match effect:
            case Pin() | Difference() | Apply():
                assert plane is not None, "a tensor effect before the model is known"
                perform(plane, effect)
                if not isinstance(effect, Apply):
                    held[effect.blob] = None
            case Release(blob):
                assert plane is not None, "a tensor effect before the model is known"
                plane.release(blob)
                del held[blob]
            case _:
                pass
    return effects


# --- what was written ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Record:
    """A sound record of a file."""

    head: Head
    body: memoryview


def scan(view: memoryview, place: int = 0, salt: int = 0) -> Iterator[tuple[Record, int]]:
    """Sound records with this salt from a place on, each with where it ends; over where one is not."""
    while (found := at(view, place, salt)) is not None:
        place += HEAD_BYTES + found.head.length
        yield found, place


def find_later(view: memoryview, place: int, number: int, salt: int | None = 0) -> int | None:
    """Where behind ``place``, at which a sound record should begin and does not, one lies that must have
    been written after it, since its number is at least ``number``; None: nowhere, so it may be one that was
    being written."""
    head = None if salt is None else record.parse_head(view[place : place + HEAD_BYTES], salt)
    # What lies in its body is a peer's.
    place += 1 if head is None else HEAD_BYTES + head.length
    data: Any = view.obj
    while (place := data.find(record.MAGIC, place)) >= 0:
        found = at(view, place, salt)
        if found is not None and found.head.number >= number:
            return place
        place += 1 if found is None else HEAD_BYTES + found.head.length
    return None


def at(view: memoryview, place: int, salt: int | None = 0) -> Record | None:
    """The sound record that begins at a place; None: there is none. ``salt`` None: whatever it has."""
    head = record.parse_head(view[place : place + HEAD_BYTES], salt)
    if head is None:
        return None
    start = place + HEAD_BYTES
    body = view[start : start + head.length]
    if len(body) != head.length or record.checksum(body) != head.checksum:
        return None
    return Record(head, body)
