"""Messages and frames as bytes: one msgpack array ``[protocol, run, tag, field, ...]`` for each.

``tag`` is the place of the type in its union, frames counting from `FRAME_TAG_MIN`; the fields are
those of the dataclass, in order, as `pelago.wire.fields` writes them. The annotations in
`pelago.wire.messages` are the only list of fields there is.

Both directions check everything. What `encode` accepts, a peer's `decode_message` or `decode_frame`
returns equal. What a peer sends becomes a frozen object with the right types and ranges, or a
`WireError` of one line. Input costs memory in proportion to its length, never to what it claims.

The first three places of the envelope, the tag of Hello and all of Refuse are the same in every version
of the protocol. So a server can say why it refuses a client of another version, and that client can read it.
"""

from typing import Any, Final, get_args

import msgpack

from pelago.core.errors import OtherProtocol, OtherRun, WireError
from pelago.wire import structure
from pelago.wire.fields import Codec, Convert, check_text, compile_type, name_of
from pelago.wire.messages import (
    HEADER_BYTES_MAX,
    ITEMS_MAX,
    PROTOCOL_VERSION,
    RUN_ID_BYTES_MAX,
    TEXT_BYTES_MAX,
    Frame,
    Hello,
    Message,
    Refuse,
)

FRAME_TAG_MIN: Final = 64
"""Tag of the first frame; messages have those below."""
ENVELOPE_FIELDS: Final = 3
"""Protocol, run and tag, before the fields of the type."""

TAGS: Final[dict[type, int]] = {
    **{kind: tag for tag, kind in enumerate(get_args(Message))},
    **{kind: tag for tag, kind in enumerate(get_args(Frame), FRAME_TAG_MIN)},
}
"""Tag of every message and frame type."""
assert len(get_args(Message)) <= FRAME_TAG_MIN

# Among a message's integers -1 stands for "none"; what the ends of a transfer count starts at 0.
_CODECS: Final[dict[type, Codec]] = {
    kind: compile_type(kind, -1 if tag < FRAME_TAG_MIN else 0) for kind, tag in TAGS.items()
}
_WRITERS: Final = {kind: (TAGS[kind], write) for kind, (write, _) in _CODECS.items()}
_MESSAGE_READERS: Final = {TAGS[kind]: _CODECS[kind][1] for kind in get_args(Message)}
_FRAME_READERS: Final = {TAGS[kind]: _CODECS[kind][1] for kind in get_args(Frame)}


def encode(run: str, message: Message | Frame) -> bytes:
    """One envelope. Raises `WireError` for a value that a peer would refuse."""
    return _encode(PROTOCOL_VERSION, run, message)


def encode_refusal(protocol: int, run: str, detail: str) -> bytes:
    """Refuse for a client of another protocol or run, so written that the client reads it.

    ``protocol`` and ``run`` are what `peek_hello` found. Raises `WireError`.
    """
    return _encode(protocol, run, Refuse(detail))


def decode_message(run: str, data: bytes | memoryview) -> Message:
    """The message in an envelope.

    Raises `OtherProtocol` or `OtherRun` (both are `WireError`) for an envelope that is sound but
    not ours, and `WireError` for anything else that is not a message.
    """
    message: Message = _decode(run, data, _MESSAGE_READERS, "message")
    return message


def decode_frame(run: str, data: bytes | memoryview) -> Frame:
    """The frame in an envelope. Raises as `decode_message` does."""
    frame: Frame = _decode(run, data, _FRAME_READERS, "frame")
    return frame


def peek_hello(data: bytes | memoryview) -> tuple[int, str] | None:
    """Protocol and run id of a Hello of whatever protocol and run; None for all other input.

    Reads nothing after the tag, because another protocol may have other fields there.
    """
    try:
        envelope = _unpack(data)
        _check_envelope(envelope)
    except WireError:
        return None
    protocol, run, tag = envelope[:ENVELOPE_FIELDS]
    return (protocol, run) if tag == TAGS[Hello] else None


def _encode(protocol: int, run: str, message: Message | Frame) -> bytes:
    entry = _WRITERS.get(type(message))
    if entry is None:
        raise WireError(f"{name_of(message)} is neither a message nor a frame")
    tag, write = entry
    check_text(run, RUN_ID_BYTES_MAX)
    try:
        data: bytes = msgpack.packb((protocol, run, tag, *write(message)))
    except (ValueError, OverflowError) as error:
        raise WireError(f"{name_of(message)}: {_reason(error)}") from None
    if len(data) > HEADER_BYTES_MAX:
        raise WireError(f"{len(data)} bytes exceed the limit of {HEADER_BYTES_MAX}")
    return data


def _decode(run: str, data: bytes | memoryview, readers: dict[int, Convert], wanted: str) -> Any:
    envelope = _unpack(data)
    _check_envelope(envelope)
    protocol, its_run, tag = envelope[:ENVELOPE_FIELDS]
    if protocol != PROTOCOL_VERSION:
        raise OtherProtocol(protocol)
    if its_run != run:
        raise OtherRun(its_run)
    read = readers.get(tag)
    if read is None:
        raise WireError(f"tag {tag} is no {wanted}")
    return read(envelope[ENVELOPE_FIELDS:])


def _unpack(data: bytes | memoryview) -> Any:
    size = data.nbytes if isinstance(data, memoryview) else len(data)
    if size > HEADER_BYTES_MAX:
        raise WireError(f"{size} bytes exceed the limit of {HEADER_BYTES_MAX}")
    packed = bytes(data)
    structure.check(packed)
    try:
        return msgpack.unpackb(
            packed,
            use_list=False,
            raw=False,
            max_str_len=TEXT_BYTES_MAX,
            max_bin_len=HEADER_BYTES_MAX,
            max_array_len=ITEMS_MAX,
            max_map_len=0,
            max_ext_len=0,
        )
    except (ValueError, TypeError, OverflowError, msgpack.UnpackException) as error:
        raise WireError(_reason(error)) from None


def _check_envelope(envelope: Any) -> None:
    """Check what is common to all versions: an array that begins with protocol, run and tag."""
    if type(envelope) is not tuple or len(envelope) < ENVELOPE_FIELDS:
        raise WireError("not an array of protocol, run, tag and fields")
    if type(envelope[0]) is not int or type(envelope[2]) is not int:
        raise WireError("protocol and tag must be integers")
    check_text(envelope[1], RUN_ID_BYTES_MAX)


def _reason(error: Exception) -> str:
    """One short line. The texts of others may quote a whole input; its beginning says enough."""
    return f"{name_of(error)}: {' '.join(str(error).split())[:120]}".removesuffix(": ")
