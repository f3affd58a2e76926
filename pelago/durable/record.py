"""What a durable node writes to disk: records of one form, in journals and in snapshots alike.

A record is a head of `HEAD_BYTES` and a body::

    magic 4 | kind 1 | zeros 3 | number 8 | length 8 | checksum of the body 8 | first 8 | second 8
    | checksum of all of that 8

little-endian; checksums are XXH3-64. ``number`` counts the records of a node upwards, over all of its
files, so that a record left over from another time is never taken for the next one; in a snapshot all have
the number of the last event inside.

The last checksum is seeded with the *salt* of the node's life, a random number that stands in every HEADER
(which itself has none, like the lines of a history). So no record that a peer made up, and sent as part of a
payload, is ever taken for one of ours.

==========  ========================================  ==================  =======
kind        body                                      first               second
==========  ========================================  ==================  =======
HEADER      msgpack: who wrote this file, `Header`
EVENT       msgpack: what a machine was told          its number          its now
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

FORMAT: Final = 5
"""Of records and everything in them; a file of another format is refused."""
MAGIC: Final = b"PLGO"
_HEAD: Final = struct.Struct("<4sB3xQQQqQ")
_SEAL: Final = struct.Struct("<Q")
HEAD_BYTES: Final = _HEAD.size + _SEAL.size
LENGTH_MAX: Final = 1 << 40
NUMBER_MAX: Final = 2**64 - 1


class Kind(IntEnum):
    """What a record holds."""

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
    """Of the body."""
    first: int
    second: int


@dataclass(frozen=True, slots=True)
class Header:
    """Who wrote a file, and when: its first record."""

    format: int
    run: str
    node: str
    """Which of the run's nodes: ``gps``, ``lps-eu``."""
    process: str
    """What its peers call it."""
    incarnation: int
    boot: str
    """Of the machine: what was written without a sync is certain only while the machine has not
    been started again."""
    wall_ms: int
    """Milliseconds since 1970 when the file was begun."""
    salt: int
    """Of this life: what no peer knows."""


@dataclass(frozen=True, slots=True)
class Begun:
    """A payload that arrives in chunks: its sender's number for it, and what its first `Begin` said."""

    peer: str
    transfer: int
    message: bytes
    encoding: str
    stripes: int


def checksum(body: bytes | memoryview) -> int:
    """XXH3-64, as `pelago.tensor.checksum` has it."""
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
    """The head that goes before ``body``; ``known``: its checksum, if that was computed already;
    ``salt``: of the life that writes it."""
    length = body.nbytes if isinstance(body, memoryview) else len(body)
    of_body = checksum(body) if known < 0 else known
    packed = _HEAD.pack(MAGIC, kind, number, length, of_body, first, second)
    return packed + _SEAL.pack(_sealed(packed, salt))


def parse_head(data: bytes | memoryview, salt: int | None = 0) -> Head | None:
    """A head; None if this is none, or a damaged one, or has another salt. ``salt`` None: whatever it has."""
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
"""Without `Received`, which is generic, and whose message has a codec of its own."""
_TAGS: Final = {kind: tag for tag, kind in enumerate(_EVENTS, 1)}
_CODECS: Final[dict[type, Codec]] = {kind: compile_type(kind, INTEGER_MIN) for kind in _EVENTS}
_RECEIVED: Final = 0


def pack_header(header: Header) -> bytes:
    """The body of HEADER."""
    packed: bytes = msgpack.packb(_HEADER[0](header))
    return packed


def unpack_header(body: bytes | memoryview) -> Header:
    """What `pack_header` packed. Raises `CheckpointError`."""
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
    """What `pack_begun` packed. Raises `CheckpointError`."""
    try:
        begun: Begun = _BEGUN[1](_unpack(body))
    except WireError as error:
        raise CheckpointError(f"not the beginning of a payload: {error}") from None
    return begun


def pack_event(run: str, event: Event) -> bytes:
    """The body of EVENT. Raises `WireError` for an event that cannot be written."""
    if isinstance(event, Received):
        packed: bytes = msgpack.packb(
            (_RECEIVED, event.peer, encode(run, event.message), event.blob)
        )
        return packed
    packed = msgpack.packb((_TAGS[type(event)], *_CODECS[type(event)][0](event)))
    return packed


def unpack_event(run: str, body: bytes | memoryview) -> Event:
    """What `pack_event` packed. Raises `CheckpointError`."""
    try:
        tag, *rest = _unpack(body)
        if tag == _RECEIVED:
            peer, message, blob = rest
            return Received(peer, decode_message(run, message), blob)
        event: Event = _CODECS[_EVENTS[tag - 1]][1](tuple(rest))
    except (WireError, ValueError, TypeError, IndexError) as error:
        raise CheckpointError(f"not an event of this Pelago: {error}") from None
    return event


def pack(value: Any) -> bytes:
    """Plain data, as the body of STATE or LAYOUT."""
    packed: bytes = msgpack.packb(value)
    return packed


def unpack(body: bytes | memoryview) -> Any:
    """What `pack` packed, with lists as lists. Raises `CheckpointError`."""
    return _unpack(body, use_list=True)


def _unpack(body: bytes | memoryview, use_list: bool = False) -> Any:
    try:
        return msgpack.unpackb(bytes(body), use_list=use_list, raw=False, strict_map_key=False)
    except (ValueError, TypeError, OverflowError, msgpack.UnpackException) as error:
        raise CheckpointError(f"not msgpack: {error}") from None


assert next(each.name for each in fields(Header)) == "format"  # `unpack_header` looks there first.
