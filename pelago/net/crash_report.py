"""The last events of a machine and their effects, for the report of a crash; and the replay of such a
report."""

import ast
import json
import traceback
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

from pelago import atomic_files
from pelago.core import machine, names, tensor_effects, training_effects
from pelago.core.errors import CheckpointError
from pelago.core.machine import Machine, Started
from pelago.wire import messages
from pelago.wire.messages import Effect, Event, Message

EVENTS_MAX: Final = 256
ERROR_MAX: Final = 4_000
"""Characters of the error's text in a report."""
CHARACTERS_MAX: Final = 16 << 20
"""Characters of events and effects together in a report. An event that is cut short could not be replayed, so the
oldest are left out instead, but never the last one."""


@dataclass(slots=True)
class HandledEvent:
    """One event, when it came (the driver's picoseconds), and the answer, if there was one."""

    now: int
    event: Event
    effects: list[Effect] | None = None


class RecentEvents:
    """Remembers the latest `EVENTS_MAX` events."""

    def __init__(self) -> None:
        self._entries: deque[HandledEvent] = deque(maxlen=EVENTS_MAX)

    def begin(self, now: int, event: Event) -> HandledEvent:
        """An event is about to be handled; the caller enters the effects."""
        entry = HandledEvent(now, event)
        self._entries.append(entry)
        return entry

    def report(self, error: BaseException, path: Path) -> str:
        """Write what happened to ``path``, as JSON, and return it in one line; with the traceback if it
        could not be written.

        Events and effects are written as Python expressions, so that a test can `replay` them.
        """
        summary = summarise(error)
        story: dict[str, Any] = {
            "error": summary,
            "traceback": traceback.format_exception(error),
            "events": self._as_text(),
        }
        try:
            atomic_files.write_text(path, json.dumps(story, indent=1))
        except OSError as fault:
            # Nothing else will be known: the caller prints it.
            frames = [line for each in story["traceback"] for line in each.splitlines()]
            summary += f" [no report written: {fault}] {' | '.join(frames)}"
        return summary

    def _as_text(self) -> list[dict[str, Any]]:
        """The entries as text; the latest ones if there is not room for all."""
        entries: deque[dict[str, Any]] = deque()
        room = CHARACTERS_MAX
        for entry in reversed(self._entries):
            event = repr(entry.event)
            effects = None if entry.effects is None else [repr(each) for each in entry.effects]
            room -= len(event) + sum(len(each) for each in effects or ())
            if room < 0 and entries:
                break
            entries.appendleft({"now": entry.now, "event": event, "effects": effects})
        return list(entries)


def summarise(error: BaseException) -> str:
    """An error in one line: its type, its text, where it was raised."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    text = " ".join(str(error).split())[:ERROR_MAX]
    return f"{type(error).__name__}{': ' if text else ''}{text}{where}"


# --- and again -----------------------------------------------------------------------------------


class ReportedEvent(NamedTuple):
    """One event of a report. The answer is left as text: that is how answers are compared."""

    now: int
    event: Event
    effects: list[str] | None


def read(path: Path) -> list[ReportedEvent]:
    """The events of a report. Raises `CheckpointError` for a file that is none."""
    try:
        events = json.loads(path.read_text(encoding="utf-8"))["events"]
        return [
            ReportedEvent(each["now"], parse(each["event"]), each["effects"]) for each in events
        ]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise CheckpointError(f"{path} is not a report of a crash: {error}") from None


def replay(path: Path, machine: Machine[Message], after: int | None = None) -> int:
    """Give a machine the events of a report again, at the same times, and raise what it raises.

    ``machine``: made with the settings of the one that crashed. Either it is fresh, and the report has
    everything since the start; or it was restored, and ``after`` is its clock: later events are replayed.
    It is checked after each event, which may find what broke sooner than it was found then.

    Returns the number of events replayed, if nothing is raised: the fault is mended, or was the driver's.
    Raises `CheckpointError` if the file is no report, or if an answer before the last differs from the reported
    one: this is not the machine that crashed, or its code has changed since.
    """
    events = read(path)
    if after is not None:
        events = [each for each in events if each.now > after]
    elif not (events and isinstance(events[0].event, Started)):
        raise CheckpointError(
            f"{path} does not have the first events: restore a machine and replay the rest"
        )
    for number, (now, event, effects) in enumerate(events, start=1):
        answer = [repr(effect) for effect in machine.handle(event, now)]
        if number < len(events) and answer != effects:
            raise CheckpointError(
                f"{path}: event {number}, {event!r}, is answered {answer}, not {effects}: other settings,"
                " another state or other code"
            )
        machine.check()
    return len(events)


def parse(text: str) -> Event:
    """An event from its `repr`. What stands in a file is data: nothing but the vocabulary of machines and
    messages is made of it. Raises `CheckpointError`."""
    try:
        event: Event = _value(ast.parse(text, mode="eval").body)
    except (SyntaxError, ValueError, TypeError, KeyError, RecursionError, MemoryError) as error:
        raise CheckpointError(f"not an event of this Pelago: {error!r} in {text[:200]}") from None
    return event


_KINDS: Final[dict[str, type]] = {
    name: kind
    for module in (machine, tensor_effects, training_effects, names, messages)
    for name, kind in vars(module).items()
    if isinstance(kind, type) and kind.__module__ == module.__name__
}


def _value(node: ast.expr) -> Any:
    match node:
        case ast.Constant(value):
            return value
        case ast.Name("nan" | "inf" as number):
            return float(number)
        case ast.UnaryOp(ast.USub(), operand):
            return -_value(operand)
        case ast.Tuple(elements):
            return tuple(map(_value, elements))
        case ast.Call(ast.Name(kind), [], fields):
            return _KINDS[kind](**{str(each.arg): _value(each.value) for each in fields})
        case _:
            raise ValueError(f"an expression that is no value: {ast.unparse(node)[:200]}")
