"""A server's history: a line for each note about the outcome of samples, over all incarnations of the server.

Lines are only appended, with one exception: a node that starts cuts off the lines after its snapshot, since the
replay of the journal writes them again.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Final, TypeAlias, get_args

from pelago.core.errors import CheckpointError
from pelago.core.notes.gps import ExchangeArrived, ExchangeRejected, RegionJoined, RegionLeft
from pelago.core.notes.lps import (
    ExchangeAnswered,
    ExchangeBegun,
    Rejoining,
    RoundRejected,
    UpdateApplied,
    WorkerLeft,
)
from pelago.core.notes.vocabulary import Vocabulary
from pelago.durable import record
from pelago.durable.record import Kind
from pelago.durable.replay import Record, find_later, scan
from pelago.mapped_files import map_file
from pelago.runlog.events import OtherEvent

HISTORY: Final = "history"
"""Name of the file."""


@dataclass(frozen=True, slots=True)
class IncarnationBegun:
    """A server begins without an earlier state."""

    kind: ClassVar[str] = "begun"
    process: str


@dataclass(frozen=True, slots=True)
class RunResumed:
    """A GPS goes on with the state of an earlier incarnation."""

    kind: ClassVar[str] = "resumed"
    version: int
    incarnation: int
    counted_steps: int
    resumed_from: str
    """Folder or URL. Written as ``from``."""


HistoryNote: TypeAlias = (
    ExchangeArrived
    | UpdateApplied
    | ExchangeRejected
    | RoundRejected
    | WorkerLeft
    | RegionJoined
    | RegionLeft
    | Rejoining
    | ExchangeBegun
    | ExchangeAnswered
)
"""Notes that a server keeps: they say what became of samples."""
HistoryEntry: TypeAlias = HistoryNote | IncarnationBegun | RunResumed
VOCABULARY: Final[Vocabulary[HistoryEntry]] = Vocabulary(get_args(HistoryEntry))
"""Writes and reads entries."""


@dataclass(frozen=True, slots=True)
class HistoryLine:
    """A line."""

    number: int
    """Number of the event from which the line follows."""
    entry: HistoryEntry | OtherEvent


def history_line(line: HistoryLine) -> bytes:
    """A line as it is written to the file."""
    entry = line.entry
    fields = entry.fields if isinstance(entry, OtherEvent) else VOCABULARY.fields(entry)
    body = record.pack([entry.kind, fields])
    return record.head(Kind.HISTORY, line.number, body) + body


def read_history(path: Path) -> list[HistoryLine]:
    """All lines but one that was being written. Raises `CheckpointError` for damage, and for a kind of this Pelago with
    other fields."""
    view, _ = map_file(path)
    lines: list[HistoryLine] = []
    end = 0
    for each, stop in scan(view):
        lines.append(_line(path, each, end))
        end = stop
    later = find_later(view, end, 0)
    if later is not None:
        raise _damaged(path, end, later)
    return lines


def history_until(path: Path, number: int) -> bytes:
    """The lines up to those of an event, as they lie in the file: of this incarnation, and all lines of earlier ones,
    but none after damage. Raises `CheckpointError`."""
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
        if each.head.number <= number or _parts(path, each, keep)[0] == IncarnationBegun.kind:
            keep = stop
    return keep, end


def _line(path: Path, found: Record, place: int) -> HistoryLine:
    kind, fields = _parts(path, found, place)
    try:
        entry = VOCABULARY.read(kind, fields)
    except ValueError as error:
        raise CheckpointError(f"{path}: not of this Pelago at byte {place}: {error}") from None
    return HistoryLine(found.head.number, OtherEvent(kind, fields) if entry is None else entry)


def _parts(path: Path, found: Record, place: int) -> tuple[str, dict[str, Any]]:
    """Kind and fields."""
    try:
        kind, fields = record.unpack(found.body)
    except (CheckpointError, ValueError, TypeError) as error:
        raise CheckpointError(f"{path}: damaged at byte {place}: {error}") from None
    return kind, fields


def _number_at(view: memoryview, place: int) -> int:
    head = record.parse_head(view[place : place + record.HEAD_BYTES])
    assert head is not None
    return head.number


def _damaged(path: Path, place: int, later: int) -> CheckpointError:
    return CheckpointError(f"{path}: damaged at byte {place}, and sound again at byte {later}")
