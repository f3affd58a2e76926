"""The state of a machine as plain data, and back: the main part of a durable server's snapshot.

An image consists of values that msgpack packs. A value that is not plain is a list that begins with the name
of its class. Classes of Pelago also name their fields, so an image of another version is refused and never
misread:

    ["tuple", 0, 8]                                   a list and a deque likewise
    ["dict", "eu", 1, "us", 2]                        an OrderedDict likewise; the order is kept
    ["Version", "incarnation", 9, "counter", 4]

Only classes marked with `durable` may occur. There are two sorts. *Records* (dataclasses and named tuples)
are constructed from their fields. All others are *parts*: the fresh machine has them already, with the
settings of its run file, and their state is set in place; a part that it lacks is constructed without
arguments.
"""

from collections import OrderedDict, deque
from collections.abc import Iterable
from types import NoneType, UnionType
from typing import (
    Any,
    Final,
    Literal,
    TypeAlias,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

from pelago.core.durable import CLASSES, SETTINGS, is_record
from pelago.core.errors import CheckpointError

Plain: TypeAlias = Union[bool, int, float, str, bytes, list["Plain"], None]
"""Any value of an image."""

Pairs: TypeAlias = Iterable[tuple[Plain, Plain]]

INTEGER_MIN: Final = -(2**63)
INTEGER_MAX: Final = 2**64 - 1
"""The range of integers that msgpack packs."""

_PLAIN: Final = (NoneType, bool, int, float, str, bytes)
_SEQUENCES: Final[dict[str, type]] = {"list": list, "tuple": tuple, "deque": deque}
_MAPPINGS: Final[dict[str, type]] = {"dict": dict, "OrderedDict": OrderedDict}

_types: dict[type, dict[str, Any]] = {}


def take(machine: object) -> Plain:
    """The image of a machine's current state. Equal states give equal images."""
    return _write(machine)


def restore(machine: object, image: Plain) -> None:
    """Set the state of a machine that was just constructed, of the class that the image was taken from.

    The machine keeps its own settings. Entries of its dicts that the image does not have stay, behind
    those of the image: they come from its settings too. Raises `CheckpointError` for an image that
    does not fit; the machine must not be used then.
    """
    _read(image, machine, type(machine).__qualname__)


# --- to plain data -----------------------------------------------------------------------------------------


def _write(value: Any) -> Plain:
    kind = type(value)
    if kind in _PLAIN:
        assert kind is not int or INTEGER_MIN <= value <= INTEGER_MAX, value
        return value  # type: ignore[no-any-return]
    name = kind.__qualname__
    if kind in _SEQUENCES.values():
        assert kind is not deque or value.maxlen is None, value
        return [name, *map(_write, value)]
    if kind in _MAPPINGS.values():
        return [name, *(_write(each) for pair in value.items() for each in pair)]
    assert CLASSES.get(name) is kind, f"{kind} is not durable: {value!r}"
    fields = {field: getattr(value, field) for field in _fields(value)}
    if is_record(kind):
        for field, annotation in _hints(kind).items():
            assert _fits(fields[field], annotation), (name, field, fields[field])
    return [name, *(each for field, held in fields.items() for each in (field, _write(held)))]


# --- from plain data ------------------------------------------------------------------------------------


def _read(image: Plain, fresh: Any, where: str) -> Any:
    """A value. ``fresh``: the value of the fresh machine in its place; None if there is none or it is not known."""
    name = type(image).__qualname__
    if type(image) is list:
        if not image or type(image[0]) is not str:
            raise _misfit(f"{where} holds a list without a class")
        name = image[0]
    elif type(image) not in _PLAIN:
        raise _misfit(f"{where} holds a {name}")
    if fresh is not None and name != type(fresh).__qualname__:
        raise _misfit(f"{where} should be {type(fresh).__qualname__}, not {name}")
    if type(image) is not list:
        return image
    items = image[1:]
    if name in _SEQUENCES:
        return _SEQUENCES[name](_read(each, None, where) for each in items)
    if len(items) % 2:
        raise _misfit(f"{where} has a {name} in which something lacks its value")
    pairs = zip(items[::2], items[1::2], strict=True)
    if name in _MAPPINGS:
        return _read_mapping(pairs, _MAPPINGS[name]() if fresh is None else fresh, where)
    kind = CLASSES.get(name)
    if kind is None:
        raise _misfit(f"{where} is of class {name!r}, which is not known")
    if is_record(kind):
        return _read_record(kind, pairs, where)
    return _read_part(_blank(kind, where) if fresh is None else fresh, pairs, where)


def _read_mapping(pairs: Pairs, fresh: dict[Any, Any], where: str) -> dict[Any, Any]:
    # In place, because an object may hold a bound method of its dict.
    stays = dict(fresh)
    fresh.clear()
    for plain_key, plain in pairs:
        key = _read(plain_key, None, where)
        try:
            hash(key)
        except TypeError:
            raise _misfit(f"{where} has a {type(key).__qualname__} as a key") from None
        fresh[key] = _read(plain, stays.pop(key, None), f"{where}[{key!r}]")
    fresh.update(stays)
    return fresh


def _read_record(kind: type, pairs: Pairs, where: str) -> Any:
    hints = _hints(kind)
    fields = _named(pairs, tuple(hints), where)
    values = {field: _read(plain, None, f"{where}.{field}") for field, plain in fields.items()}
    for field, annotation in hints.items():
        if not _fits(values[field], annotation):
            raise _misfit(f"{where}.{field} has a value of another type or shape")
    return kind(**values)


def _read_part(part: Any, pairs: Pairs, where: str) -> Any:
    for field, plain in _named(pairs, _fields(part), where).items():
        setattr(part, field, _read(plain, getattr(part, field), f"{where}.{field}"))
    return part


def _blank(kind: type, where: str) -> Any:
    try:
        return kind()
    except TypeError:
        raise _misfit(f"{where} is a {kind.__qualname__}, where there is none") from None


def _named(pairs: Pairs, expected: tuple[str, ...], where: str) -> dict[str, Plain]:
    """Fields by name; each of the expected ones must occur once."""
    fields: dict[str, Plain] = {}
    for name, plain in pairs:
        if type(name) is not str or name not in expected:
            raise _misfit(f"{where} has no field {name!r}")
        fields[name] = plain
    for name in expected:
        if name not in fields:
            raise _misfit(f"{where}.{name} is missing")
    return fields


def _misfit(what: str) -> CheckpointError:
    return CheckpointError(f"the image does not fit this version of Pelago: {what}")


# --- classes -------------------------------------------------------------------------------------


def _hints(kind: type) -> dict[str, Any]:
    """A record's fields and their types."""
    # Not when the class is marked, since a field's type may be defined later.
    if kind not in _types:
        _types[kind] = get_type_hints(kind)
    return _types[kind]


def _fields(value: Any) -> tuple[str, ...]:
    """The attributes of a durable object that are part of its state."""
    kind = type(value)
    if is_record(kind):
        return tuple(_hints(kind))
    names = getattr(kind, "__slots__", None) or vars(value)
    settings = SETTINGS[kind]
    assert all(each in names for each in settings), (kind, settings)
    return tuple(each for each in names if each not in settings)


def _fits(value: Any, annotation: Any) -> bool:
    """Whether a value is of the type that a record's field has."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return value in arguments
    if origin in (Union, UnionType):
        return any(_fits(value, each) for each in arguments)
    if annotation is float:
        return type(value) in (float, int)  # As type checkers treat float.
    if origin is tuple and type(value) is tuple:
        if arguments[-1] is Ellipsis:
            return all(_fits(each, arguments[0]) for each in value)
        return len(value) == len(arguments) and all(map(_fits, value, arguments))
    return type(value) is annotation
