"""The last events of a machine and what it answered, for the report of a crash."""

import json
import traceback
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pelago.wire.messages import Effect, Event

RING_MAX: Final = 256
TEXT_MAX: Final = 4_000
"""Characters told of one event or effect."""


@dataclass(slots=True)
class Entry:
    """One event, when it came (the driver's picoseconds), and the answer, if there was one."""

    now: int
    event: Event
    effects: list[Effect] | None = None


class Ring:
    """Remembers the latest `RING_MAX` events."""

    def __init__(self) -> None:
        self._entries: deque[Entry] = deque(maxlen=RING_MAX)

    def begin(self, now: int, event: Event) -> Entry:
        """An event is about to be handled; the caller enters the effects."""
        entry = Entry(now, event)
        self._entries.append(entry)
        return entry

    def report(self, error: BaseException, path: Path) -> str:
        """Write what happened to ``path``, as JSON, and return it in one line.

        Events and effects are written as Python expressions, so that a test can replay them.
        """
        frames = traceback.extract_tb(error.__traceback__)
        where = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
        text = " ".join(str(error).split())[:TEXT_MAX]
        summary = f"{type(error).__name__}{': ' if text else ''}{text}{where}"
        story: dict[str, Any] = {
            "error": summary,
            "traceback": traceback.format_exception(error),
            "events": [
                {
                    "now": entry.now,
                    "event": repr(entry.event)[:TEXT_MAX],
                    "effects": None
                    if entry.effects is None
                    else [repr(effect)[:TEXT_MAX] for effect in entry.effects],
                }
                for entry in self._entries
            ],
        }
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(story, indent=1), encoding="utf-8")
        except OSError as fault:
            summary += f" [no report written: {fault}]"
        return summary
