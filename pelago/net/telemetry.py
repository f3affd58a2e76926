"""What a node tells: counters, a log of events for programs, clear lines for people.

``events.jsonl`` has one JSON object a line: ``t_ms`` (milliseconds since the node started),
``time`` (wall clock, ISO 8601, UTC), ``node``, ``kind``, and the fields of that kind. Lines are
handed to a thread that writes and flushes them at least each second, so that a slow disk never
holds up the event loop.
"""

import json
import math
import sys
import threading
import time
from collections import Counter, deque
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, Final

PENDING_LINES_MAX: Final = 1 << 16
"""Lines that may wait for the disk; more are dropped and counted."""
FLUSH_S: Final = 1.0
CLOSE_S: Final = 5.0
"""How long closing waits for the disk."""
DROP_LINE_S: Final = 5.0
"""At most one line per reason and so many seconds about input that was dropped."""
CONSOLE_KINDS: Final = frozenset(
    {
        "waiting",
        "joined",
        "rejoining",
        "refused",
        "draining",
        "left_unanswered",
        "stopping",
        "finished",
    }
    | {"worker_joined", "worker_left", "worker_lost", "region_joined", "region_left", "region_lost"}
    | {"validation", "update_rejected", "update_fenced", "transfer_failed", "dropped", "crashed"}
    | {"disk_trouble", "disk_well", "snapshot_failed", "archive_trouble"}
)
"""Kinds of events that people want to see as they happen."""


class Telemetry:
    """The event log, the counters and the console of one node.

    ``path``: file to append events to, or None. ``console``: stream for people, or None.
    Call from the event loop's thread only; `close` flushes everything.
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
        self._writer: threading.Thread | None = None
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = path.open("a", encoding="utf-8")
            self._writer = threading.Thread(
                target=self._write, args=(file,), name=f"{name}-events", daemon=True
            )
            self._writer.start()

    def event(self, kind: str, /, **fields: Any) -> None:
        """Log an event; people see it too if its kind is one for them."""
        if self._writer is not None:
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
        if kind in CONSOLE_KINDS:
            self._say(kind, fields)

    def drop(self, reason: str, peer: str, detail: str) -> None:
        """Count bad input that was dropped; tell of it, but not more often than `DROP_LINE_S`."""
        self.counters[f"dropped_{reason}"] += 1
        now = time.monotonic()
        if now - self._dropped_at.get(reason, -DROP_LINE_S) >= DROP_LINE_S:
            self._dropped_at[reason] = now
            total = self.counters[f"dropped_{reason}"]
            self.event("dropped", reason=reason, peer=peer, detail=detail[:200], total=total)

    def count(self) -> None:
        """Log the counters that changed since the last time."""
        changed = {k: v for k, v in self.counters.items() if self._counted.get(k) != v}
        if changed:
            self._counted.update(changed)
            self.event("counters", **changed)

    def line(self, text: str) -> None:
        """Say one line to people."""
        if self._console is not None:
            # A peer may have written part of it: one line stays one line.
            print(f"{self._name}: {' '.join(text.split())}", file=self._console, flush=True)

    def close(self) -> None:
        """Log the counters, write everything out and stop the writer. Idempotent."""
        if self._closing:
            return
        self.count()
        self._closing = True
        self._wake.set()
        if self._writer is not None:
            self._writer.join(CLOSE_S)

    def _say(self, kind: str, fields: dict[str, Any]) -> None:
        if kind == "waiting":
            where = f" ({fields['server']})" if "server" in fields else ""
            text = f"waiting for {fields.get('for', '?')}{where}"
            if text != self._said_waiting:
                self.line(text)
            self._said_waiting = text
            return
        self._said_waiting = None
        # Picoseconds are for programs, and what is empty tells nothing.
        told = " ".join(
            f"{key}={_short(value)}"
            for key, value in fields.items()
            if value != "" and not key.endswith("_ps")
        )
        self.line(f"{kind} {told}".rstrip())

    def _write(self, file: IO[str]) -> None:
        with file:
            while True:
                self._wake.wait(FLUSH_S)
                closing = self._closing
                try:
                    while self._lines:
                        file.write(_json(self._lines.popleft()) + "\n")
                    file.flush()
                except OSError as error:
                    # Training goes on without a log; it is written again when there is room again.
                    if not self.counters["log_faults"]:
                        self.line(f"cannot write the event log: {error}")
                    self.counters["log_faults"] += 1
                if closing:
                    return


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
