"""Frozen dataclasses that are made quickly: the vocabulary that a simulation makes by the million.

``__init__`` of a frozen dataclass sets every field through ``object.__setattr__`` and takes five times
as long as that of a plain one. Here the slots' own setters do it; all else is `dataclasses`'.
"""

from dataclasses import MISSING, dataclass, fields
from typing import Any, TypeVar, dataclass_transform

T = TypeVar("T")


@dataclass_transform(frozen_default=True)
def frozen(kind: type[T]) -> type[T]:
    """``@dataclass(frozen=True, slots=True)`` with a fast ``__init__``.

    Fields have plain defaults or none; there is no ``__post_init__``.
    """
    made: Any = dataclass(frozen=True, slots=True)(kind)
    assert not hasattr(made, "__post_init__"), made
    scope: dict[str, Any] = {}
    parameters, body = [], []
    for index, field in enumerate(fields(made)):
        assert field.default_factory is MISSING, field
        scope[f"set_{index}"] = getattr(made, field.name).__set__
        has_default = field.default is not MISSING
        scope[f"default_{index}"] = field.default
        parameters.append(f"{field.name}=default_{index}" if has_default else field.name)
        body.append(f"    set_{index}(self, {field.name})")
    source = [f"def __init__({', '.join(['self', *parameters])}):", *(body or ["    pass"])]
    exec("\n".join(source), scope)
    made.__init__ = scope["__init__"]
    result: type[T] = made
    return result
