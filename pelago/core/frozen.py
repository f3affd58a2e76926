"""Frozen dataclasses that are fast to construct: a simulation makes millions of messages, events and effects.

A dataclass that refuses assignments at run time takes twice as long to construct, because its ``__init__``
has to set each field through ``object.__setattr__``: about 15 % of a whole simulation. mypy proves that no
code here assigns to a field, so only the tests make these classes refuse assignments.
"""

from dataclasses import dataclass
from typing import TypeVar, dataclass_transform

from pelago.core.durable import durable

T = TypeVar("T")

guarded = False
"""Whether classes defined from now on refuse assignments at run time too."""


@dataclass_transform(frozen_default=True)
def frozen(kind: type[T]) -> type[T]:
    """``@dataclass(frozen=True, slots=True)`` to a type checker; its objects may be part of an image."""
    if guarded:
        return durable()(dataclass(frozen=True, slots=True)(kind))
    return durable()(dataclass(unsafe_hash=True, slots=True)(kind))
