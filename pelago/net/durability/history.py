"""A node's history: a line for each note that is kept for ever, one file over all of the node's lives.

It is only ever appended to. What follows from the journal is told again, so it is cut at a snapshot's event
when a node starts.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pelago.core.errors import CheckpointError
from pelago.durable import record
from pelago.durable.record import Kind
from pelago.durable.replay import Record, find_later, scan
from pelago.net.files import map_file

HISTORY: Final = "history"
"""Name of the file."""
BEGUN: Final = "begun"
"""Kind of the line with which a life begins."""


@dataclass(frozen=True, slots=True)
class HistoryLine:
    """A line."""

    number: int
    """Of the event from which it follows."""
    kind: str
    fields: dict[str, Any]


def history_line(told: HistoryLine) -> bytes:
    """A line as it lies in the file."""
    body = record.pack([told.kind, told.fields])
    return record.head(Kind.HISTORY, told.number, body) + body


def read_history(path: Path) -> list[HistoryLine]:
    """All lines but one that was being written. Raises `CheckpointError` for damage."""
    view, _ = map_file(path)
    told: list[HistoryLine] = []
    end = 0
    for each, stop in scan(view):
        told.append(_told(path, each, end))
        end = stop
    later = find_later(view, end, 0)
    if later is not None:
        raise _damaged(path, end, later)
    return told


def history_until(path: Path, number: int) -> bytes:
    """The lines up to those of an event, as they lie in the file: of this life, and all of lives before; but
    not what is behind damage. Raises `CheckpointError`."""
    if not path.exists():
        return b""
    view, _ = map_file(path)
    return bytes(view[: _certain(path, view, number)[0]])


def certain_bytes(path: Path, number: int) -> int:
    """How many bytes `history_until` wants. Raises `CheckpointError` if damage is before their end."""
    if not path.exists():
        return 0
    view, _ = map_file(path)
    keep, end = _certain(path, view, number)
    later = find_later(view, end, 0)
    if later is not None and _number_at(view, later) <= number:
        raise _damaged(path, end, later)
    return keep


def _certain(path: Path, view: memoryview, number: int) -> tuple[int, int]:
    """Where the lines end that `history_until` wants, and where all that are sound end."""
    keep = end = 0
    for each, stop in scan(view):
        end = stop
        if each.head.number <= number or _told(path, each, keep).kind == BEGUN:
            keep = stop
    return keep, end


def _told(path: Path, found: Record, place: int) -> HistoryLine:
    try:
        kind, fields = record.unpack(found.body)
    except (CheckpointError, ValueError, TypeError) as error:
        raise CheckpointError(f"{path}: damaged at byte {place}: {error}") from None
    return HistoryLine(found.head.number, kind, fields)


def _number_at(view: memoryview, place: int) -> int:
    head = record.parse_head(view[place : place + record.HEAD_BYTES])
    assert head is not None
    return head.number


def _damaged(path: Path, place: int, later: int) -> CheckpointError:
    return CheckpointError(f"{path}: damaged at byte {place}, and sound again at byte {later}")
