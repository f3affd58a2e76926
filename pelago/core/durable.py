"""Marks classes whose objects are part of the state that a durable server saves (`pelago.durable.image`)."""

from collections.abc import Callable
from dataclasses import is_dataclass
from typing import Final, TypeVar

T = TypeVar("T")

CLASSES: Final[dict[str, type]] = {}
"""Every marked class, by its qualified name: no two have the same."""
SETTINGS: Final[dict[type, tuple[str, ...]]] = {}
"""For each marked class, its attributes that are not part of the state."""


def durable(*, settings: tuple[str, ...] = ()) -> Callable[[type[T]], type[T]]:
    """Mark a class whose objects are part of the state. Its attributes ``settings`` are not: they come from the
    run file or follow from other attributes, so a restored object keeps the values of the fresh one."""

    def mark(kind: type[T]) -> type[T]:
        name = kind.__qualname__
        known = CLASSES.get(name, kind)
        assert known.__module__ == kind.__module__, f"two durable classes are called {name}"
        assert not (settings and is_record(kind)), f"{name} is made from all its fields"
        CLASSES[name], SETTINGS[kind] = kind, settings
        return kind

    return mark


def is_record(kind: type) -> bool:
    """Whether objects of a class are constructed from all their fields: a dataclass or a named tuple."""
    return is_dataclass(kind) or issubclass(kind, tuple)
