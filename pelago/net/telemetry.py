"""What a node reports: counters, a log of events for programs, lines for people.

The lines of ``events.jsonl`` are those of `pelago.runlog.log`. They are handed to a thread that writes them at
least each second, so that a slow disk never holds up the event loop. If the disk is full, the lines wait, up
to a limit, and the console says so once.
"""

import json
import math
import os
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, Final

from pelago.core.notes.common import Draining, GivingUp, LeftUnanswered, Waiting
from pelago.core.notes.gps import (
    ExchangeRejected,
    RegionFailed,
    RegionJoined,
    RegionLeft,
    ValidationReported,
)
from pelago.core.notes.lps import (
    LpsJoined,
    Rejoining,
    RoundRejected,
    WorkerJoined,
    WorkerLeft,
    WorkerRefused,
)
from pelago.core.notes.trainer import OptimiserCold, OptimiserNotKept, OptimiserRestored
from pelago.core.notes.worker import (
    Exported,
    ExportFailed,
    RoundFailed,
    UpdateFenced,
    UpdateRejected,
    ValidationMeasured,
    WorkerAdmitted,
)
from pelago.net import disk
from pelago.runlog.events import (
    ArchiveFailed,
    DiskShort,
    InputDropped,
    JournalBlocked,
    JournalUnblocked,
    NodeCrashed,
    NodeFinished,
    NodeStopping,
    PayloadAbandoned,
    ResultNotWritten,
    SnapshotDamaged,
    SnapshotFailed,
    StateDiscarded,
    WaitingForServer,
)
from pelago.runlog.log import VOCABULARY, LoggedEvent

PENDING_LINES_MAX: Final = 1 << 16
"""Lines that may wait for the disk; more are dropped and counted."""
BATCH_LINES: Final = 256
"""Lines that are written with one call."""
FLUSH_S: Final = 1.0
CLOSE_S: Final = 5.0
"""How long closing waits for the disk."""
DROP_LINE_S: Final = 5.0
"""At most one line per reason and so many seconds about input that was dropped."""
SHOWN: Final[frozenset[type[LoggedEvent]]] = frozenset(
    {
        *(Waiting, WaitingForServer, LpsJoined, WorkerAdmitted, Rejoining, WorkerRefused, Draining),
        *(LeftUnanswered, NodeStopping, NodeFinished, NodeCrashed),
        *(WorkerJoined, WorkerLeft, RegionJoined, RegionLeft, StateDiscarded, SnapshotDamaged),
        *(ValidationReported, ValidationMeasured, PayloadAbandoned, InputDropped),
        *(ExchangeRejected, RoundRejected, UpdateRejected, UpdateFenced),
        *(GivingUp, RegionFailed, RoundFailed),
        *(JournalBlocked, JournalUnblocked, DiskShort, SnapshotFailed, ArchiveFailed),
        *(OptimiserRestored, OptimiserCold, OptimiserNotKept),
        *(Exported, ExportFailed, ResultNotWritten),
    }
)
"""Events that people see as they happen."""


class Telemetry:
    """The event log, the counters and the console of one node.

    ``path``: file to append events to, or None. ``console``: stream for people, or None.
    Call from the event loop's thread only; `close` writes everything. Raises `OSError` if the file cannot
    be opened, unless that is for want of room.
    """

    def __init__(
        self, name: str, path: Path | None = None, console: IO[str] | None = sys.stderr
    ) -> None:
        self.counters: Counter[str] = Counter()
        self._name = name
        self._console = console
        self._started_ns = time.monotonic_ns()
        self._lines: deque[dict[str, Any]] = deque()
        self._said_waiting: str | None = None
        self._dropped_at: dict[str, float] = {}
        self._counted: dict[str, int] = {}
        self._wake = threading.Event()
        self._closing = False
        self._log: _Log | None = None
        self._writer: threading.Thread | None = None
        if path is not None:
            self._log = _Log(path, self._lines, self.counters, self.line)
            self._writer = threading.Thread(
                target=self._write, args=(self._log,), name=f"{name}-events", daemon=True
            )
            self._writer.start()

    def event(self, event: LoggedEvent) -> None:
        """Log an event; people see it too if it is one of `SHOWN`."""
        fields = VOCABULARY.fields(event)
        self._append(event.kind, fields)
        if type(event) in SHOWN:
            self._show(event, fields)

    def _append(self, kind: str, fields: dict[str, Any]) -> None:
        """Add a line to the log."""
        if self._log is not None:
            if len(self._lines) < PENDING_LINES_MAX:
                t_ms = (time.monotonic_ns() - self._started_ns) / 1e6
                head = {
                    "t_ms": round(t_ms, 3),
                    "time": time.time(),
                    "node": self._name,
                    "kind": kind,
                }
                # The head comes first, and no field of the same name takes its place.
                self._lines.append(head | fields | head)
            else:
                self.counters["lines_lost"] += 1
            if self._writer is None:
                # The node has closed; events about its results are still logged.
                self._log.write()
                self._log.close()

    def drop(self, reason: str, peer: str, detail: str) -> None:
        """Count bad input that was dropped; tell of it, but not more often than `DROP_LINE_S`."""
        self.counters[f"dropped_{reason}"] += 1
        now = time.monotonic()
        if now - self._dropped_at.get(reason, -DROP_LINE_S) >= DROP_LINE_S:
            self._dropped_at[reason] = now
            total = self.counters[f"dropped_{reason}"]
            self.event(InputDropped(reason, peer, detail[:200], total))

    def count(self) -> None:
        """Log the counters that changed since the last time."""
        changed = {k: v for k, v in self.counters.items() if self._counted.get(k) != v}
        if changed:
            self._counted.update(changed)
            self._append("counters", changed)

    def line(self, text: str) -> None:
        """Say one line to people."""
        if self._console is not None:
            # A peer may have written part of it: one line stays one line.
            say(f"{self._name}: {' '.join(text.split())}", self._console)

    def close(self) -> None:
        """Log the counters, write everything out and stop the writer. Idempotent; what is said later is
        written at once."""
        if self._closing:
            return
        self.count()
        self._closing = True
        self._wake.set()
        if self._writer is not None:
            self._writer.join(CLOSE_S)
            if not self._writer.is_alive():
                self._writer = None

    def _show(self, event: LoggedEvent, fields: dict[str, Any]) -> None:
        if isinstance(event, Waiting | WaitingForServer):
            where = f" ({event.server})" if isinstance(event, WaitingForServer) else ""
            text = f"waiting for {event.awaited}{where}"
            if text != self._said_waiting:
                self.line(text)
            self._said_waiting = text
            return
        self._said_waiting = None
        # Picoseconds are for programs, and empty fields say nothing.
        shown = " ".join(
            f"{key}={_short(value)}"
            for key, value in fields.items()
            if value != "" and not key.endswith("_ps")
        )
        self.line(f"{event.kind} {shown}".rstrip())

    def _write(self, log: "_Log") -> None:
        closing = False
        while not closing:
            self._wake.wait(FLUSH_S)
            closing = self._closing
            log.write()
        log.close()


class _Log:
    """The file of events, on whatever disk it lies; in the writer's thread, but for its beginning.

    ``lines`` are taken when they are written; ``tell`` takes a line for people.
    """

    def __init__(
        self,
        path: Path,
        lines: deque[dict[str, Any]],
        counters: Counter[str],
        tell: Callable[[str], None],
    ) -> None:
        self._path, self._lines, self._counters, self._tell = path, lines, counters, tell
        self._descriptor = -1
        self._left = memoryview(b"")
        """Bytes to be written next."""
        self._troubled = False
        try:
            self._open()
        except OSError as error:
            if not disk.is_full(error):
                raise
            self._on_trouble(error)

    def write(self) -> None:
        """Write all lines, or as many as the disk takes."""
        try:
            self._open()
            while self._left or self._lines:
                if not self._left:
                    count = min(len(self._lines), BATCH_LINES)
                    batch = "".join(_json(self._lines.popleft()) + "\n" for _ in range(count))
                    self._left = memoryview(batch.encode())
                self._left = self._left[os.write(self._descriptor, self._left) :]
        except OSError as error:
            self._on_trouble(error)
            return
        if self._troubled:
            lost = self._counters["lines_lost"]
            self._tell(
                f"the event log is written again{f'; {lost} lines are lost' if lost else ''}"
            )
        self._troubled = False

    def close(self) -> None:
        """Say what could not be written."""
        left = len(self._lines) + bytes(self._left).count(b"\n")
        if left:
            self._tell(f"{left} lines of the event log {self._path} could not be written")
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _open(self) -> None:
        if self._descriptor >= 0:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
        self._descriptor = os.open(self._path, flags, 0o666)
        size = os.fstat(self._descriptor).st_size
        if size and os.pread(self._descriptor, 1, size - 1) != b"\n":
            # A process was killed while it wrote here, or found no room: its last line is not ours.
            self._left = memoryview(b"\n")

    def _on_trouble(self, error: OSError) -> None:
        # Training goes on without a log. Said once, and not for each line: the console may be a file too.
        if not self._troubled:
            self._tell(f"cannot write the event log {self._path}: {error.strerror}; trying again")
        self._troubled = True
        self._counters["log_faults"] += 1


def say(text: str, stream: IO[str] | None = None) -> None:
    """Print a line for people, on stdout or ``stream``, if that is possible. A terminal that is gone, a pipe without
    a reader, or a console that is a file on a full disk does not end the process."""
    with suppress(OSError, ValueError):
        print(text, file=stream, flush=True)


def _json(record: dict[str, Any]) -> str:
    record["time"] = datetime.fromtimestamp(record["time"], UTC).isoformat(timespec="milliseconds")
    try:
        return json.dumps(record, allow_nan=False, default=str)
    except ValueError:
        # JSON has no NaN; a loss that diverged must not make the log unreadable.
        return json.dumps(_finite(record), allow_nan=False, default=str)


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    return [_finite(each) for each in value] if isinstance(value, list | tuple) else value


def _short(value: Any) -> str:
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return json.dumps(text) if " " in text else text
