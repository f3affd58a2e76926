"""The records that a durable node writes to disk: one form for journals, snapshots and histories.

A record is a head of `HEAD_BYTES` and a body::

    magic 4 | kind 1 | zeros 3 | number 8 | length 8 | checksum of the body 8 | first 8 | second 8
    | checksum of all of that 8

little-endian; checksums are XXH3-64. ``number`` counts the records of a node upwards over all of its files, so
that a record left over in a reused file is never taken for the next one. In a snapshot all records have the
number of the last event inside.

The last checksum is seeded with the node's *salt*, a random number that stands in every HEADER (which itself
has none, as the lines of a history have none). So a record that a peer forged and sent as part of a payload is
never taken for a real one.

==========  ========================================  ==================  =======
kind        body                                      first               second
==========  ========================================  ==================  =======
HEADER      msgpack: who wrote this file, `Header`
EVENT       msgpack: an event of the machine          0                   its time, ps
BEGIN       msgpack: whose payload begins, `Begun`    the payload
CHUNK       raw bytes of a payload's chunk            the payload         its place
ABORT       empty: no more of it will arrive          the payload
STATE       msgpack: the image of a machine           number of the last  its now
                                                      event inside
LAYOUT      msgpack: which chunks make which arenas
HISTORY     msgpack: kind and fields of a note        number of its event
END         empty: what ends a snapshot
==========  ========================================  ==================  =======
"""

import struct
from dataclasses import dataclass, fields
from enum import IntEnum
from typing import Any, Final, NamedTuple, get_args

import msgpack
import xxhash

from pelago.core import machine
from pelago.core.errors import CheckpointError, WireError
from pelago.core.machine import Received
from pelago.wire.codec import decode_message, encode
from pelago.wire.fields import Codec, compile_type
from pelago.wire.messages import Event

FORMAT: Final = 6
"""The format of records and of everything in them. A file of another format is refused."""
MAGIC: Final = b"PLGO"
_HEAD: Final = struct.Struct("<4sB3xQQQqQ")
_SEAL: Final = struct.Struct("<Q")
HEAD_BYTES: Final = _HEAD.size + _SEAL.size
LENGTH_MAX: Final = 1 << 40
NUMBER_MAX: Final = 2**64 - 1


class Kind(IntEnum):
    """The kind of a record."""

    HEADER = 1
    EVENT = 2
    CHUNK = 3
    STATE = 4
    LAYOUT = 5
    END = 6
    HISTORY = 7
    BEGIN = 8
    ABORT = 9


class Head(NamedTuple):
    """The head of a record."""

    kind: Kind
    number: int
    length: int
    checksum: int
    """XXH3-64 of the body."""
    first: int
    second: int


@dataclass(frozen=True, slots=True)
class Header:
    """The first record of a file: who wrote it, and when."""

    format: int
    run: str
    node: str
    """The node: ``gps``, ``lps-eu``."""
    process: str
    """The process's name on the sockets."""
    incarnation: int
    boot: str
    """The host's boot id. Without a sync, writes are certain to be there only until the host is booted again."""
    wall_ms: int
    """Milliseconds since 1970 when the file was begun."""
    salt: int
    """A random number that no peer knows."""


@dataclass(frozen=True, slots=True)
class Begun:
    """A payload that arrives in chunks: its sender's number for it, and what its first `Begin` said."""

    peer: str
    transfer: int
    message: bytes
    encoding: str
    stripes: int


def checksum(body: bytes | memoryview) -> int:
    """XXH3-64 of some bytes, as in `pelago.tensor.checksum`."""
    return xxhash.xxh3_64_intdigest(body)


def _sealed(packed: bytes, salt: int) -> int:
    return xxhash.xxh3_64_intdigest(packed, salt)


def head(
    kind: Kind,
    number: int,
    body: bytes | memoryview,
    first: int = 0,
    second: int = 0,
    known: int = -1,
    salt: int = 0,
) -> bytes:
    """The head of a record with this body. ``known``: the checksum of the body if it was computed already, else -1."""
    length = body.nbytes if isinstance(body, memoryview) else len(body)
    of_body = checksum(body) if known < 0 else known
    packed = _HEAD.pack(MAGIC, kind, number, length, of_body, first, second)
    return packed + _SEAL.pack(_sealed(packed, salt))


def parse_head(data: bytes | memoryview, salt: int | None = 0) -> Head | None:
    """The head in some bytes; None if it is damaged or has another salt. ``salt`` None: any salt."""
    if len(data) < HEAD_BYTES:
        return None
    packed = bytes(data[: _HEAD.size])
    (seal,) = _SEAL.unpack_from(data, _HEAD.size)
    magic, kind, number, length, of_body, first, second = _HEAD.unpack(packed)
    if magic != MAGIC or length > LENGTH_MAX:
        return None
    if salt is not None and seal != _sealed(packed, salt):
        return None
    try:
        return Head(Kind(kind), number, length, of_body, first, second)
    except ValueError:
        return None


# --- bodies --------------------------------------------------------------------------------------

INTEGER_MIN: Final = -(2**63)

_HEADER: Final[Codec] = compile_type(Header, 0)
_BEGUN: Final[Codec] = compile_type(Begun, 0)
_EVENTS: Final = [each for each in get_args(machine.Event) if isinstance(each, type)]
"""All events but `Received`, which is generic, and whose message has a codec of its own."""
_TAGS: Final = {kind: tag for tag, kind in enumerate(_EVENTS, 1)}
_CODECS: Final[dict[type, Codec]] = {kind: compile_type(kind, INTEGER_MIN) for kind in _EVENTS}
_RECEIVED: Final = 0


def pack_header(header: Header) -> bytes:
    """The body of HEADER."""
    packed: bytes = msgpack.packb(_HEADER[0](header))
    return packed


def unpack_header(body: bytes | memoryview) -> Header:
    """The header in a body. Raises `CheckpointError`."""
    found = _unpack(body)
    if isinstance(found, tuple) and found and found[0] != FORMAT:
        raise CheckpointError(f"format {found[0]!r} is not {FORMAT}: written by another Pelago")
    try:
        header: Header = _HEADER[1](found)
    except WireError as error:
        raise CheckpointError(f"not a header: {error}") from None
    return header


def pack_begun(begun: Begun) -> bytes:
    """The body of BEGIN."""
    packed: bytes = msgpack.packb(_BEGUN[0](begun))
    return packed


def unpack_begun(body: bytes | memoryview) -> Begun:
    """The `Begun` in a body. Raises `CheckpointError`."""
    try:
        begun: Begun = _BEGUN[1](_unpack(body))
    except WireError as error:
        raise CheckpointError(f"not the beginning of a payload: {error}") from None
    return begun


def pack_event(run: str, event: Event) -> bytes:
    """The body of EVENT. Raises `WireError` for an event that cannot be written."""
    if isinstance(event, Received):
        packed: bytes = msgpack.packb(
            (_RECEIVED, event.peer, encode(run, event.message), event.blob, event.payload_bytes)
        )
        return packed
    packed = msgpack.packb((_TAGS[type(event)], *_CODECS[type(event)][0](event)))
    return packed


def unpack_event(run: str, body: bytes | memoryview) -> Event:
    """The event in a body. Raises `CheckpointError`."""
    try:
        tag, *rest = _unpack(body)
        if tag == _RECEIVED:
            peer, message, blob, payload_bytes = rest
            return Received(peer, decode_message(run, message), blob, payload_bytes)
        event: Event = _CODECS[_EVENTS[tag - 1]][1](tuple(rest))
    except (WireError, ValueError, TypeError, IndexError) as error:
        raise CheckpointError(f"not an event of this Pelago: {error}") from None
    return event


def pack(value: Any) -> bytes:
    """The body of STATE or LAYOUT, from plain data."""
    packed: bytes = msgpack.packb(value)
    return packed


def unpack(body: bytes | memoryview) -> Any:
    """The plain data in a body, lists as lists. Raises `CheckpointError`."""
    return _unpack(body, use_list=True)


def _unpack(body: bytes | memoryview, use_list: bool = False) -> Any:
    try:
        return msgpack.unpackb(bytes(body), use_list=use_list, raw=False, strict_map_key=False)
    except (ValueError, TypeError, OverflowError, msgpack.UnpackException) as error:
        raise CheckpointError(f"not msgpack: {error}") from None


assert next(each.name for each in fields(Header)) == "format"  # `unpack_header` reads it first.
