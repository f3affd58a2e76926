"""A digest of everything that happened: equal if and only if two runs took the same course."""

import hashlib
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import msgpack

from pelago.core.notes.note import NOTES, VOCABULARY
from pelago.wire.messages import Effect, Event


class Trace:
    """SHA-256 over (picosecond, node, event, effects) of every event, in one canonical form."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()

    def record(self, now: int, node: str, event: Event, effects: Sequence[Effect]) -> None:
        """Add what a node did at an event."""
        plain = (now, node, canonical(event), [canonical(effect) for effect in effects])
        self._hash.update(msgpack.packb(plain))

    def digest(self) -> str:
        """The hexadecimal digest of everything that was recorded so far."""
        return self._hash.hexdigest()


def canonical(value: Any) -> Any:
    """A value as lists, numbers and strings: a dataclass as name and fields, a dict by key, a note as it is written.

    Nothing in it depends on `repr`, on an address or on the order of a set.
    """
    if isinstance(value, NOTES):
        return ["Note", value.kind, canonical(VOCABULARY.fields(value))]
    if is_dataclass(value) and not isinstance(value, type):
        return [
            type(value).__name__,
            *(canonical(getattr(value, each.name)) for each in fields(value)),
        ]
    if isinstance(value, dict):
        return [[key, canonical(value[key])] for key in sorted(value)]
    if isinstance(value, list | tuple):
        return [canonical(each) for each in value]
    assert value is None or isinstance(value, int | float | str | bytes), type(value)
    return value
