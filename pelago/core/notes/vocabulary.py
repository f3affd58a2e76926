"""Writes frozen classes that have a ``kind`` as that kind and a dictionary of their fields, and reads them again.

What is read may come from JSON or msgpack: there, lists stand for tuples, and strings for numbers that are not
finite.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, fields
from types import NoneType, UnionType
from typing import (
    Any,
    ClassVar,
    Final,
    Generic,
    Literal,
    Protocol,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

WRITTEN_AS: Final = {
    "awaited": "for",
    "global_version": "global",
    "resumed_from": "from",
    "disks": "told",
}
"""Fields that are written under another name: Python reserves that word, or the files have an older name."""

Read = Callable[[Any], Any]
"""From the written value of a field to the value. Raises `ValueError` if it is of another type."""


class Kinded(Protocol):
    """A frozen dataclass with a kind."""

    kind: ClassVar[str]


K = TypeVar("K", bound=Kinded)


class Vocabulary(Generic[K]):
    """Some classes that are written and read. Those of the same kind have fields with different names."""

    def __init__(self, classes: Iterable[type[K]]) -> None:
        self._forms = {each: _Form(each) for each in classes}
        self._of_kind: dict[str, list[_Form]] = {}
        for each, form in self._forms.items():
            self._of_kind.setdefault(each.kind, []).append(form)

    def fields(self, value: K) -> dict[str, Any]:
        """The fields as they are written, in their order. A field that has its default value is left out."""
        return self._forms[type(value)].write(value)

    def read(self, kind: str, written: Mapping[str, Any]) -> K | None:
        """The object that was written as this kind and these fields; None if no class has this kind.

        Raises `ValueError` for fields of other names or types than those of the classes.
        """
        forms = self._of_kind.get(kind, ())
        for form in forms:
            if form.fits(written):
                found: K = form.read(written)
                return found
        if forms:
            raise ValueError(f"{kind} has no such fields: {', '.join(written)}")
        return None


class _Form:
    """How the fields of a class are written."""

    def __init__(self, kind: type) -> None:
        hints = get_type_hints(kind)
        self._kind = kind
        self._names = [
            (each.name, WRITTEN_AS.get(each.name, each.name), each.default) for each in fields(kind)
        ]
        self._readers = {written: (name, _reader(hints[name])) for name, written, _ in self._names}
        self._required = {written for _, written, default in self._names if default is MISSING}

    def write(self, value: Any) -> dict[str, Any]:
        """The fields of an object of this class."""
        record = {}
        for name, written, default in self._names:
            each = getattr(value, name)
            if each != default:
                record[written] = _plain(each)
        return record

    def fits(self, written: Mapping[str, Any]) -> bool:
        """Whether these are the names of its fields; those with a default value may be missing."""
        return self._required <= written.keys() <= self._readers.keys()

    def read(self, written: Mapping[str, Any]) -> Any:
        """An object of this class. Raises `ValueError`."""
        values = {}
        for key, value in written.items():
            name, read = self._readers[key]
            try:
                values[name] = read(value)
            except ValueError as error:
                raise ValueError(f"{self._kind.__name__}.{name}: {error}") from None
        return self._kind(**values)


def _plain(value: Any) -> Any:
    """The value of a field as plain data, without classes of Pelago."""
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    inner = _INNER.get(type(value))
    return value if inner is None else inner.write(value)


_INNER: Final[dict[type, _Form]] = {}
"""Forms of the classes of nested fields."""


def _reader(kind: Any) -> Read:
    """The function that reads a value of an annotated type."""
    origin, inner = get_origin(kind), get_args(kind)
    if kind is Any:
        return lambda value: value
    if kind is float:
        return _float
    if kind in (int, str, bool, NoneType):
        return lambda value: _exactly(kind, value)
    if origin in (Union, UnionType):
        readers = [_reader(each) for each in inner]
        return lambda value: _any_of(readers, value)
    if origin is Literal:
        return lambda value: _one_of(inner, value)
    if origin is tuple and inner[-1] is Ellipsis:
        each = _reader(inner[0])
        return lambda value: tuple(each(one) for one in _sequence(value))
    if origin is tuple:
        each_reader = [_reader(each) for each in inner]
        return lambda value: _tuple(each_reader, value)
    if origin is dict:
        of = _reader(inner[1])
        return lambda value: {key: of(one) for key, one in _exactly(dict, value).items()}
    assert isinstance(kind, type), kind
    form = _INNER[kind] = _Form(kind)
    return lambda value: _record(form, value)


def _exactly(kind: type, value: Any) -> Any:
    if type(value) is not kind:
        raise ValueError(f"{value!r:.100} is no {kind.__name__}")
    return value


def _float(value: Any) -> float:
    if isinstance(value, str) and value not in ("nan", "inf", "-inf"):
        raise ValueError(f"{value!r:.100} is no number")
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError(f"{value!r:.100} is no number")
    return float(value)


def _any_of(readers: list[Read], value: Any) -> Any:
    faults = []
    for read in readers:
        try:
            return read(value)
        except ValueError as error:
            faults.append(str(error))
    raise ValueError(" and ".join(faults))


def _one_of(values: tuple[Any, ...], value: Any) -> Any:
    if value not in values:
        raise ValueError(f"{value!r:.100} is none of {values}")
    return value


def _sequence(value: Any) -> list[Any] | tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        raise ValueError(f"{value!r:.100} is no list")
    return value


def _tuple(readers: list[Read], value: Any) -> tuple[Any, ...]:
    if len(_sequence(value)) != len(readers):
        raise ValueError(f"{value!r:.100} has not {len(readers)} elements")
    return tuple(read(each) for read, each in zip(readers, value, strict=True))


def _record(form: _Form, value: Any) -> Any:
    if not form.fits(_exactly(dict, value)):
        raise ValueError(f"{value!r:.100} has other fields")
    return form.read(value)
