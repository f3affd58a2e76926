"""Event logs: the lines of `events.jsonl`, written by `pelago.net.telemetry` and read here.

A line is a JSON object with ``t_ms`` (milliseconds since the node started), ``time`` (wall clock, ISO 8601,
UTC), ``node``, ``kind``, and the fields of that kind.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final, TypeAlias, TypeVar, get_args

from pelago.core.notes.note import NOTES, Note
from pelago.core.notes.trainer import TrainerNote
from pelago.core.notes.vocabulary import Vocabulary
from pelago.runlog.events import DRIVER_EVENTS, DriverEvent, OtherEvent

LOG_NAME: Final = "events.jsonl"
"""Name of the file in a node's folder."""


LoggedEvent: TypeAlias = Note | TrainerNote | DriverEvent
"""Events that a node logs."""
VOCABULARY: Final[Vocabulary[LoggedEvent]] = Vocabulary(
    (*NOTES, *get_args(TrainerNote), *DRIVER_EVENTS)
)
"""Writes and reads logged events."""

E = TypeVar("E")
_HEAD: Final = ("t_ms", "time", "node", "kind")


@dataclass(frozen=True, slots=True)
class LogLine:
    """A line of a log."""

    time_s: float
    """Wall clock, in seconds since the epoch."""
    node: str
    event: LoggedEvent | OtherEvent


@dataclass(frozen=True, slots=True)
class DamagedLine:
    """A line that is none: torn, since its writer was killed or found no room, or not of this Pelago."""

    text: bytes
    why: str


def parse_line(text: bytes) -> LogLine | DamagedLine:
    """A line of a log, without its end."""
    try:
        written = json.loads(text)
        kind, node, time = written["kind"], written["node"], written["time"]
        time_s = datetime.fromisoformat(time).timestamp()
        fields = {key: value for key, value in written.items() if key not in _HEAD}
        event = VOCABULARY.read(kind, fields)
        return LogLine(time_s, node, OtherEvent(kind, fields) if event is None else event)
    except (ValueError, TypeError, KeyError) as error:
        return DamagedLine(text, f"{type(error).__name__}: {error}")


class LogReader:
    """Reads a log that grows: every call of `read` returns the lines that were ended since the last one."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0

    def read(self, bytes_max: int = -1) -> list[LogLine | DamagedLine]:
        """The next lines, from at most so many bytes (-1: all); none if there is no such file yet. Raises `OSError`."""
        if not self._path.exists():
            return []
        with self._path.open("rb") as file:
            file.seek(self._offset)
            *whole, _ = file.read(bytes_max).split(b"\n")
        self._offset += sum(len(line) + 1 for line in whole)
        return [parse_line(line) for line in whole]


def read_log(path: Path, bytes_max: int = -1) -> list[LogLine | DamagedLine]:
    """The lines of a log that are ended. Raises `OSError`."""
    return LogReader(path).read(bytes_max)


def lines_of(kind: type[E], lines: Iterable[LogLine | DamagedLine]) -> Iterator[tuple[float, E]]:
    """The time (seconds since the epoch) and the event of each line whose event is of a class."""
    for line in lines:
        if isinstance(line, LogLine) and isinstance(line.event, kind):
            yield line.time_s, line.event
