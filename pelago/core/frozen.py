"""Frozen dataclasses that are made quickly: the vocabulary that a simulation makes by the million.

With a guard that refuses assignments while the program runs an object takes twice as long to make,
because ``__init__`` has to go around it field by field: about 15 % of a whole replay. mypy proves that
this code assigns to none, so the guard stands in the tests only.
"""

from dataclasses import dataclass
from typing import TypeVar, dataclass_transform

from pelago.core.durable import durable

T = TypeVar("T")

guarded = False
"""Whether the types that are made from now on refuse assignments while the program runs, too."""


@dataclass_transform(frozen_default=True)
def frozen(kind: type[T]) -> type[T]:
    """``@dataclass(frozen=True, slots=True)``, as type checkers see it; a value that may stand in an image."""
    if guarded:
        return durable()(dataclass(frozen=True, slots=True)(kind))
    return durable()(dataclass(unsafe_hash=True, slots=True)(kind))
