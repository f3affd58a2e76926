"""Replay of a durable node's journal, for both drivers.

A fresh machine handles every recorded event again, with the payloads that arrived with some of them, and its
tensor effects are performed again. Nothing is sent: peers have the messages, or ask for them again.
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
"""Messages that promise nothing, so they need not wait until the journal holds their cause."""


# --- events -------------------------------------------------------------------------------


def perform(plane: TensorPort, effect: Pin | Difference | Apply) -> None:
    """Perform a tensor effect of a machine on its plane."""
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
    """Let a machine handle a recorded event, and perform its tensor effects.

    ``plane``: None as long as the model is not known. ``held``: the payloads that the machine holds, which is
    updated; the caller adds those that arrive. Returns all effects.
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


# --- records ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Record:
    """A record whose checksums are right."""

    head: Head
    body: memoryview


def scan(view: memoryview, place: int = 0, salt: int = 0) -> Iterator[tuple[Record, int]]:
    """The sound records with this salt from an offset on, each with the offset of its end, up to the first that is
    not sound."""
    while (found := at(view, place, salt)) is not None:
        place += HEAD_BYTES + found.head.length
        yield found, place


def find_later(view: memoryview, place: int, number: int, salt: int | None = 0) -> int | None:
    """The offset of a later sound record, behind ``place``, where a record should begin and is not sound. Later
    means that its number is at least ``number``. None: there is none, so the bytes at ``place`` may be a record
    that was being written."""
    head = None if salt is None else record.parse_head(view[place : place + HEAD_BYTES], salt)
    # Its body holds bytes that a peer chose.
    place += 1 if head is None else HEAD_BYTES + head.length
    data: Any = view.obj
    while (place := data.find(record.MAGIC, place)) >= 0:
        found = at(view, place, salt)
        if found is not None and found.head.number >= number:
            return place
        place += 1 if found is None else HEAD_BYTES + found.head.length
    return None


def at(view: memoryview, place: int, salt: int | None = 0) -> Record | None:
    """The sound record that begins at an offset; None: there is none. ``salt`` None: any salt."""
    head = record.parse_head(view[place : place + HEAD_BYTES], salt)
    if head is None:
        return None
    start = place + HEAD_BYTES
    body = view[start : start + head.length]
    if len(body) != head.length or record.checksum(body) != head.checksum:
        return None
    return Record(head, body)
