"""How a value of each annotated type is written on the wire: one pair of functions per type.

`compile_type` makes, once at import, a writer from a Python value to what msgpack packs, and a
reader back. Both check type, range and limits. Types known: ``int float str bytes bool``, `Literal`
of texts, ``X | None``, ``tuple[X, ...]``, pairs of integers (`NamedTuple`), `Spans`, frozen
dataclasses, and unions of those. A nested dataclass is an array of its fields; one of a union
begins with its place in it.

Most values are integers in dataclasses, and a simulation passes millions of messages through here.
So for each dataclass, code without branches is generated that accepts valid values, as
`dataclasses` itself generates ``__init__``. What it does not accept goes field by field through
the plain functions, which find the fault and name it.
"""

from collections.abc import Callable
from dataclasses import fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, Final, Literal, Union, get_args, get_origin, get_type_hints

from pelago.core.errors import WireError
from pelago.core.names import Spans
from pelago.wire.messages import ITEMS_MAX, TEXT_BYTES_MAX

INTEGER_MAX: Final = 2**64 - 1

Convert = Callable[[Any], Any]
"""Checks a value of one type and changes its form; raises `WireError`."""

Codec = tuple[Convert, Convert]
"""Writer and reader of one type."""


def name_of(value: object) -> str:
    """A value's type, for the text of an error."""
    return type(value).__name__


def check_text(value: Any, bytes_max: int) -> str:
    """The value, if it is a text of at most so many bytes of UTF-8. Raises `WireError`."""
    if type(value) is not str:
        raise WireError(f"expected str, got {name_of(value)}")
    if len(value) * 4 > bytes_max:
        try:
            size = len(value.encode())
        except UnicodeEncodeError:
            raise WireError("text is not UTF-8") from None
        if size > bytes_max:
            raise WireError(f"text longer than {bytes_max} bytes")
    return value


def compile_type(annotation: Any, minimum: int) -> Codec:
    """Writer and reader for one annotation; integers in it are at least ``minimum``.

    A type that is not known here is a programming error, and the import fails.
    """
    if annotation == Spans:
        return _spans, _spans
    if annotation is int:
        return _integer(minimum), _integer(minimum)
    if annotation is float:
        return _write_float, _exactly(float)
    if annotation is str:
        return _text, _text
    if annotation is bool or annotation is bytes:
        return _exactly(annotation), _exactly(annotation)
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return _literal(arguments), _literal(arguments)
    if origin in (Union, UnionType):
        present = [each for each in arguments if each is not NoneType]
        pair = compile_type(present[0], minimum) if len(present) == 1 else _union(present, minimum)
        if len(present) == len(arguments):
            return pair
        return _optional(pair[0]), _optional(pair[1])
    if origin is tuple and len(arguments) == 2 and arguments[1] is Ellipsis:
        item = compile_type(arguments[0], minimum)
        return _tuple_of(item[0]), _tuple_of(item[1])
    if isinstance(annotation, type) and issubclass(annotation, tuple):
        return _pair(annotation, minimum)
    assert is_dataclass(annotation), f"the codec knows no type {annotation}"
    return _dataclass(annotation, minimum)


# --- single values -------------------------------------------------------------------------------


def _integer(minimum: int) -> Convert:
    def convert(value: Any) -> int:
        # Not isinstance: bool is an int to Python, not to this protocol.
        if type(value) is int and minimum <= value <= INTEGER_MAX:
            return value
        if type(value) is int:
            raise WireError(f"integer out of {minimum} .. 2**64 - 1")
        raise WireError(f"expected int, got {name_of(value)}")

    return convert


def _exactly(kind: type) -> Convert:
    def convert(value: Any) -> Any:
        if type(value) is kind:
            return value
        raise WireError(f"expected {kind.__name__}, got {name_of(value)}")

    return convert


def _write_float(value: Any) -> float:
    # Type checkers let an int stand for a float; the wire does not.
    if type(value) is float or type(value) is int:
        try:
            return float(value)
        except OverflowError:
            raise WireError("integer too large for a float") from None
    raise WireError(f"expected float, got {name_of(value)}")


def _text(value: Any) -> str:
    return check_text(value, TEXT_BYTES_MAX)


def _literal(choices: tuple[str, ...]) -> Convert:
    allowed = frozenset(choices)

    def convert(value: Any) -> str:
        if type(value) is str and value in allowed:
            return value
        raise WireError(f"expected one of {', '.join(choices)}")

    return convert


def _spans(value: Any) -> Spans:
    if type(value) is not tuple or len(value) > ITEMS_MAX:
        raise WireError(f"expected an array of at most {ITEMS_MAX} spans")
    previous = 0
    for span in value:
        if type(span) is not tuple or len(span) != 2:
            raise WireError("a span is a pair of integers")
        start, stop = span
        if type(start) is not int or type(stop) is not int:
            raise WireError("a span is a pair of integers")
        if not previous <= start < stop:
            raise WireError("spans must be start < stop, sorted and disjoint")
        previous = stop
    if previous > INTEGER_MAX:
        raise WireError("span out of 0 .. 2**64 - 1")
    return value


# --- compound values -----------------------------------------------------------------------------


def _tuple_of(item: Convert) -> Convert:
    def convert(value: Any) -> tuple[Any, ...]:
        if type(value) is not tuple:
            raise WireError(f"expected an array, got {name_of(value)}")
        if len(value) > ITEMS_MAX:
            raise WireError(f"more than {ITEMS_MAX} items")
        return tuple([item(each) for each in value])

    return convert


def _optional(inner: Convert) -> Convert:
    def convert(value: Any) -> Any:
        return None if value is None else inner(value)

    return convert


def _pair(kind: Any, minimum: int) -> Codec:
    """`Version` and `PushId`."""
    assert list(get_type_hints(kind).values()) == [int, int], f"{kind} is no pair of integers"
    make = tuple.__new__

    def check(value: Any) -> Any:
        first, second = value
        if type(first) is int and type(second) is int:
            if minimum <= first <= INTEGER_MAX and minimum <= second <= INTEGER_MAX:
                return value
            raise WireError(f"integer out of {minimum} .. 2**64 - 1")
        raise WireError(f"{kind.__name__} is a pair of integers")

    def write(value: Any) -> Any:
        if type(value) is not kind:
            raise WireError(f"expected {kind.__name__}, got {name_of(value)}")
        return check(value)

    def read(value: Any) -> Any:
        if type(value) is not tuple or len(value) != 2:
            raise WireError(f"{kind.__name__} is a pair of integers")
        return make(kind, check(value))

    return write, read


def _dataclass(kind: Any, minimum: int) -> Codec:
    """Writer to, and reader from, the tuple of a frozen dataclass's fields."""
    hints = get_type_hints(kind)
    codecs = [compile_type(hints[each.name], minimum) for each in fields(kind)]
    return _generate(kind, hints, minimum, codecs)


def _field_by_field(kind: Any, codecs: list[Codec]) -> Codec:
    """Writer and reader that name the field at fault."""
    names = [each.name for each in fields(kind)]

    def in_turn(converters: list[Convert], values: list[Any]) -> tuple[Any, ...]:
        done: list[Any] = []
        try:
            for convert, value in zip(converters, values, strict=True):
                done.append(convert(value))
        except WireError as error:
            raise WireError(f"{kind.__name__}.{names[len(done)]}: {error}") from None
        return tuple(done)

    def write(value: Any) -> tuple[Any, ...]:
        if type(value) is not kind:
            raise WireError(f"expected {kind.__name__}, got {name_of(value)}")
        return in_turn([pair[0] for pair in codecs], [getattr(value, name) for name in names])

    def read(value: Any) -> Any:
        if type(value) is not tuple:
            raise WireError(f"{kind.__name__} is an array, got {name_of(value)}")
        if len(value) != len(names):
            raise WireError(f"{kind.__name__} has {len(names)} fields, got {len(value)}")
        return kind(*in_turn([pair[1] for pair in codecs], list(value)))

    return write, read


def _union(kinds: list[Any], minimum: int) -> Codec:
    """One of several dataclasses, distinguished by its place in the annotation."""
    assert all(is_dataclass(kind) for kind in kinds), kinds
    codecs = [_dataclass(kind, minimum) for kind in kinds]
    tags = {kind: tag for tag, kind in enumerate(kinds)}

    def write(value: Any) -> tuple[Any, ...]:
        tag = tags.get(type(value))
        if tag is None:
            raise WireError(f"{name_of(value)} is not in the union")
        return (tag, *codecs[tag][0](value))

    def read(value: Any) -> Any:
        if type(value) is not tuple or not value:
            raise WireError("expected an array with an inner tag")
        tag = value[0]
        if type(tag) is not int or not 0 <= tag < len(codecs):
            raise WireError("no such inner tag")
        return codecs[tag][1](value[1:])

    return write, read


# --- the straight lines of code ------------------------------------------------------------------


def _inline(hint: Any, variable: str, minimum: int) -> str:
    """Condition under which a field may pass as it is; empty if a function must see it."""
    if hint is int:
        return f"type({variable}) is int and {minimum} <= {variable} <= {INTEGER_MAX}"
    if hint in (float, bool):
        return f"type({variable}) is {hint.__name__}"
    return ""


def _generate(kind: Any, hints: dict[str, Any], minimum: int, codecs: list[Codec]) -> Codec:
    """The two functions that pass a right value in a straight line, and hand any other on.

    The reader fills the slots of a new object itself: ``__init__`` of a frozen dataclass goes
    through ``object.__setattr__`` and takes twice as long.
    """
    assert hasattr(kind, "__slots__"), kind
    assert not hasattr(kind, "__post_init__"), kind
    slow_writer, slow_reader = _field_by_field(kind, codecs)
    names = [each.name for each in fields(kind)]
    variables = [f"v{index}" for index in range(len(names))]
    conditions = [
        _inline(hints[name], v, minimum) for name, v in zip(names, variables, strict=True)
    ]
    accept = " and ".join(filter(None, conditions)) or "True"

    scope: dict[str, Any] = {"kind": kind, "new": object.__new__, "WireError": WireError}
    unpack, build, written = [], [], []
    for v, name, condition, codec in zip(variables, names, conditions, codecs, strict=True):
        scope[f"write_{v}"], scope[f"read_{v}"] = codec
        scope[f"set_{v}"] = getattr(kind, name).__set__
        unpack.append(f"{v} = value.{name}")
        written.append(f"{v}," if condition else f"write_{v}({v}),")
        build.append(f"set_{v}(self, {v if condition else f'read_{v}({v})'})")

    writer = _define(
        "type(value) is kind", unpack, accept, [f"return ({' '.join(written)})"], slow_writer, scope
    )
    reader = _define(
        f"type(value) is tuple and len(value) == {len(names)}",
        [f"{', '.join(variables)}, = value"] if names else [],
        accept,
        ["self = new(kind)", *build, "return self"],
        slow_reader,
        scope,
    )
    return writer, reader


def _define(
    shape: str,
    before: list[str],
    accept: str,
    then: list[str],
    slow: Convert,
    scope: dict[str, Any],
) -> Convert:
    source = [
        "def convert(value):",
        f"    if {shape}:",
        *(f"        {line}" for line in before),
        f"        if {accept}:",
        "            try:",
        *(f"                {line}" for line in then),
        "            except WireError:",
        "                pass  # the slow way says in which field",
        "    return slow(value)",
    ]
    own = {**scope, "slow": slow}
    exec("\n".join(source), own)
    convert: Convert = own["convert"]
    return convert
