"""Messages and frames as bytes: encoded and decoded, and whatever a stranger may send."""

import dataclasses
import math
import struct
import tracemalloc
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import msgpack
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from pelago.core.errors import OtherProtocol, OtherRun, WireError
from pelago.core.names import Address, Lease, PushId, Spans, Version
from pelago.wire import structure
from pelago.wire.codec import (
    FRAME_TAG_MIN,
    TAGS,
    decode_frame,
    decode_message,
    encode,
    encode_refusal,
    peek_hello,
)
from pelago.wire.messages import (
    HEADER_BYTES_MAX,
    ITEMS_MAX,
    PROTOCOL_VERSION,
    TEXT_BYTES_MAX,
    Abort,
    Begin,
    Chunk,
    Evaluated,
    Frame,
    Goodbye,
    Have,
    Heartbeat,
    Hello,
    LeaseGrant,
    Message,
    Model,
    Pull,
    Push,
    Refuse,
    RegionReport,
    Stop,
    TensorSpec,
    Welcome,
    WorkerReport,
)

RUN = "demo-0123456789ab"
HELLO = Hello(PROTOCOL_VERSION, "worker", Address("eu", 1), 7, "", "corpus")
REPORT = WorkerReport(-1, 1, 2, 3, 4, 5, 2.5)
PUSH = Push(PushId(9, 1), Version(1, 4), 8, 1, 512, 2.5, ((0, 64), (128, 192)), (), 64)


# --- values of every type, from the annotations but not by the codec's reading of them -----------


@st.composite
def spans(draw: st.DrawFn) -> Spans:
    edges = sorted(draw(st.sets(st.integers(0, 2**64 - 1), max_size=12)))
    return tuple(zip(edges[0::2], edges[1::2], strict=False))


def values(annotation: Any, minimum: int) -> st.SearchStrategy[Any]:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if annotation == Spans:
        return spans()
    if annotation is int:
        return st.integers(minimum, 2**64 - 1) | st.integers(minimum, 300)
    if annotation is str:
        return st.text(max_size=30)
    if annotation in (float, bool, bytes):
        return st.from_type(annotation)
    if annotation is NoneType:
        return st.none()
    if origin is Literal:
        return st.sampled_from(arguments)
    if origin in (Union, UnionType):
        return st.one_of([values(each, minimum) for each in arguments])
    if origin is tuple:
        return st.lists(values(arguments[0], minimum), max_size=4).map(tuple)
    hints = get_type_hints(annotation)
    return st.builds(annotation, *[values(hint, minimum) for hint in hints.values()])


messages = st.one_of([values(kind, -1) for kind in get_args(Message)])
frames = st.one_of([values(kind, 0) for kind in get_args(Frame)])


def plain(value: Any) -> Any:
    """A value with its types, comparable also where a float is not a number."""
    if isinstance(value, float):
        return struct.pack("d", value)
    if dataclasses.is_dataclass(value):
        return type(value), [plain(getattr(value, f.name)) for f in dataclasses.fields(value)]
    if isinstance(value, tuple):
        return type(value), [plain(each) for each in value]
    return type(value), value


@given(messages)
def test_every_message_comes_back_equal_and_of_the_same_types(message: Message) -> None:
    assert plain(decode_message(RUN, encode(RUN, message))) == plain(message)


@given(frames)
def test_every_frame_comes_back_equal_and_of_the_same_types(frame: Frame) -> None:
    assert plain(decode_frame(RUN, memoryview(encode(RUN, frame)))) == plain(frame)


def test_decoded_objects_are_frozen() -> None:
    decoded = decode_message(RUN, encode(RUN, PUSH))
    with pytest.raises(dataclasses.FrozenInstanceError):
        decoded.steps = 3  # type: ignore[union-attr, misc]


def test_the_envelope_is_protocol_run_tag_fields() -> None:
    assert msgpack.unpackb(encode(RUN, Pull(64, -1))) == [PROTOCOL_VERSION, RUN, TAGS[Pull], 64, -1]
    assert msgpack.unpackb(encode(RUN, Heartbeat(REPORT)))[3] == [0, -1, 1, 2, 3, 4, 5, 2.5, 0, 0]
    assert msgpack.unpackb(encode(RUN, Goodbye())) == [PROTOCOL_VERSION, RUN, TAGS[Goodbye]]


def test_a_float_field_may_be_no_number_and_an_int_is_written_as_a_float() -> None:
    nan = decode_message(RUN, encode(RUN, Evaluated(Version(1, 1), 1, math.nan, 1)))
    assert isinstance(nan, Evaluated)
    assert math.isnan(nan.loss)
    whole = decode_message(RUN, encode(RUN, Evaluated(Version(1, 1), 1, 3, 1)))
    assert isinstance(whole, Evaluated)
    assert type(whole.loss) is float


# --- what a stranger may send --------------------------------------------------------------------


def must_refuse(data: bytes) -> str:
    """All decoders refuse; the reason is one line of bounded length."""
    for decode in (decode_message, decode_frame):
        with pytest.raises(WireError) as caught:
            decode(RUN, data)
    reason = str(caught.value)
    assert reason
    assert reason.isprintable()
    assert len(reason) < 400
    return reason


def accepts_or_refuses(data: bytes) -> None:
    """Only `WireError` is raised, and whatever is accepted can be encoded again."""
    for decode in (decode_message, decode_frame):
        try:
            value = decode(RUN, data)
        except WireError as error:
            assert str(error).isprintable(), error
        else:
            assert plain(decode(RUN, encode(RUN, value))) == plain(value)
    peek_hello(data)


@given(st.binary(max_size=200))
def test_random_bytes_are_refused(data: bytes) -> None:
    must_refuse(data)


@given(messages | frames, st.data())
def test_a_truncated_envelope_is_refused(value: Message | Frame, data: st.DataObject) -> None:
    whole = encode(RUN, value)
    must_refuse(whole[: data.draw(st.integers(0, len(whole) - 1))])
    must_refuse(whole + data.draw(st.binary(min_size=1, max_size=3)))


@given(messages | frames, st.lists(st.tuples(st.integers(0), st.integers(0, 255)), max_size=4))
def test_a_mutated_envelope_is_accepted_whole_or_refused(
    value: Message | Frame, mutations: list[tuple[int, int]]
) -> None:
    data = bytearray(encode(RUN, value))
    for position, byte in mutations:
        data[position % len(data)] = byte
    accepts_or_refuses(bytes(data))


anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=5)
    | st.binary(max_size=5),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=2), inner),
    max_leaves=12,
)


@given(st.integers(-2, 80), st.lists(anything, max_size=10))
def test_fields_of_any_shape_are_accepted_whole_or_refused(tag: int, fields: list[Any]) -> None:
    accepts_or_refuses(msgpack.packb([PROTOCOL_VERSION, RUN, tag, *fields]))


@given(messages | frames, st.data())
def test_one_field_of_a_wrong_type_is_refused(value: Message | Frame, data: st.DataObject) -> None:
    """The new value has a type that no field of any message has."""
    raw = msgpack.unpackb(encode(RUN, value))
    assume(len(raw) > 3)
    raw[data.draw(st.integers(3, len(raw) - 1))] = data.draw(
        st.sampled_from([{}, {"a": 1}, [[]], -2, [None], ["x", 1]])
    )
    reason = must_refuse(msgpack.packb(raw))
    assert reason


def raw(kind: type, *fields: Any) -> bytes:
    data: bytes = msgpack.packb([PROTOCOL_VERSION, RUN, TAGS[kind], *fields])
    return data


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (raw(Pull, True, 1), "Pull.samples: expected int, got bool"),
        (raw(Pull, 1.0, 1), "Pull.samples: expected int, got float"),
        (raw(Pull, 1, -2), "Pull.after_steps: integer out of -1 .. 2**64 - 1"),
        (raw(Pull, 1), "Pull has 2 fields, got 1"),
        (raw(Pull, 1, 2, 3), "Pull has 2 fields, got 3"),
        (raw(Evaluated, [1, 1], 1, 2, 1), "Evaluated.loss: expected float, got int"),
        (raw(Evaluated, [1, True], 1, 2.0, 1), "Evaluated.version: Version is a pair of integers"),
        (raw(Evaluated, [1, 1, 1], 1, 2.0, 1), "Evaluated.version: Version is a pair"),
        (raw(Evaluated, [1, -2], 1, 2.0, 1), "Evaluated.version: integer out of -1"),
        (raw(LeaseGrant, 1, 1, [[2, 2]], 1), "LeaseGrant.spans: spans must be start < stop"),
        (
            raw(LeaseGrant, 1, 1, [[3, 4], [1, 2]], 1),
            "LeaseGrant.spans: spans must be start < stop",
        ),
        (
            raw(LeaseGrant, 1, 1, [[1, 3], [2, 4]], 1),
            "LeaseGrant.spans: spans must be start < stop",
        ),
        (raw(LeaseGrant, 1, 1, [[-1, 3]], 1), "LeaseGrant.spans: spans must be start < stop"),
        (raw(LeaseGrant, 1, 1, [[1, 2, 3]], 1), "LeaseGrant.spans: a span is a pair of integers"),
        (raw(LeaseGrant, 1, 1, [[False, 3]], 1), "LeaseGrant.spans: a span is a pair of integers"),
        (
            raw(Model, [1, 1], 1, [[1, 1], [[5, 4]], 1], None, False),
            "Model.lease: Lease.spans: spans",
        ),
        (raw(Model, [1, 1], 1, None, None, 0), "Model.final: expected bool, got int"),
        (raw(Heartbeat, [2]), "Heartbeat.report: no such inner tag"),
        (raw(Heartbeat, [True]), "Heartbeat.report: no such inner tag"),
        (raw(Heartbeat, [0, 1]), "Heartbeat.report: WorkerReport has 9 fields, got 1"),
        (raw(Hello, 1, "boss", ["eu", 1, 0, 0], 1, "", ""), "Hello.role: expected one of lps"),
        (raw(Hello, 1, "lps", ["eu", 1, 0, 0], 1, b"", ""), "Hello.fingerprint: expected str"),
        (msgpack.packb([PROTOCOL_VERSION, RUN]), "not an array of protocol, run, tag and fields"),
        (msgpack.packb({1: 2}), "ValueError: "),
        (msgpack.packb("text"), "not an array of protocol"),
        (msgpack.packb([True, RUN, 2, 1, 1]), "protocol and tag must be integers"),
        (msgpack.packb([PROTOCOL_VERSION, RUN, 2.0, 1, 1]), "protocol and tag must be integers"),
        (msgpack.packb([PROTOCOL_VERSION, 5, 2, 1, 1]), "expected str, got int"),
        (msgpack.packb([PROTOCOL_VERSION, RUN, 63]), "tag 63 is no message"),
        (msgpack.packb([PROTOCOL_VERSION, RUN, 64 + 4]), "tag 68 is no message"),
        (encode(RUN, Abort(1, "")), "tag 67 is no message"),
        (b"", "ValueError: Unpack failed: incomplete input"),
        (b"\x93\x02\xa1\xff\x0a", "UnicodeDecodeError: "),
        (b"\xc1", "FormatError"),
        (b"\xdd\xff\xff\xff\xff", "exceeds max_array_len(65536)"),
        (msgpack.packb([PROTOCOL_VERSION, RUN, 2, msgpack.Timestamp(1), 2]), "exceeds max_ext_len"),
    ],
)
def test_the_reason_names_the_fault(data: bytes, reason: str) -> None:
    with pytest.raises(WireError) as caught:
        decode_message(RUN, data)
    assert reason in str(caught.value)


@pytest.mark.parametrize(
    "data", [raw(Chunk, 1, -1, 0), raw(Chunk, 1, 0, -1), raw(Have, 1, 1, -1, []), raw(Chunk, 1, 1)]
)
def test_numbers_of_a_transfer_are_never_negative(data: bytes) -> None:
    must_refuse(data)


def test_a_message_is_no_frame_and_a_frame_no_message() -> None:
    with pytest.raises(WireError, match="is no frame"):
        decode_frame(RUN, encode(RUN, PUSH))
    with pytest.raises(WireError, match="is no message"):
        decode_message(RUN, encode(RUN, Chunk(1, 2, 3)))


def test_deep_nesting_is_refused() -> None:
    for depth in (10, 500, 1023, 1024, 5000, 10**6):
        must_refuse(b"\x91" * depth)
        must_refuse(b"\x91" * depth + b"\xc0")


@pytest.mark.parametrize(
    "data",
    [
        b"\xdd\xff\xff\xff\xff",
        b"\xc6\xff\xff\xff\xff",
        b"\xdb\xff\xff\xff\xff",
        b"\xdf\xff\xff\xff\xff",
        b"\xc9\xff\xff\xff\xff\x01",
        b"\xdd\x00\x01\x00\x00" * 2000 + bytes(65536),
        b"\xdc\xff\xff" * 2000 + bytes(65536),
        (b"\xdc\xff\xff" * 1000 + b"\xc0" * 64000) * 2,
        b"\x9f" * 2000,
    ],
)
def test_a_claim_of_huge_arrays_is_refused_before_anything_is_allocated(data: bytes) -> None:
    tracemalloc.start()
    try:
        must_refuse(data)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 16 << 20, f"{peak} bytes for an input of {len(data)}"


def test_an_input_beyond_the_limit_is_refused_unread() -> None:
    assert "exceed the limit" in must_refuse(b"\xc0" * (HEADER_BYTES_MAX + 1))


@given(st.lists(anything, max_size=20), st.integers(0, 40))
def test_the_check_of_the_structure_refuses_no_valid_message(value: list[Any], arrays: int) -> None:
    """Many large arrays make it check every element; the contents are of every format but maps."""

    def without_maps(each: Any) -> Any:
        if isinstance(each, dict):
            return [without_maps(item) for item in each.values()]
        return [without_maps(item) for item in each] if isinstance(each, list) else each

    structure.check(
        msgpack.packb([without_maps(value), [[0] * 20] * arrays, "x" * 300, b"y" * 70000])
    )


def test_maps_are_refused_when_every_element_is_checked_too() -> None:
    with pytest.raises(WireError, match="maps"):
        structure.check(msgpack.packb([[[0] * 20] * 20, {}]))


# --- what would be sent --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (Pull(-2, 0), "Pull.samples: integer out of"),
        (Pull(2**64, 0), "Pull.samples: integer out of"),
        (Pull(True, 0), "Pull.samples: expected int, got bool"),
        (Refuse("x" * (TEXT_BYTES_MAX + 1)), "Refuse.detail: text longer than"),
        (Refuse("\u00e9" * (TEXT_BYTES_MAX // 2 + 1)), "Refuse.detail: text longer than"),
        (Refuse("\ud800"), "UnicodeEncodeError"),
        (Refuse("\ud800" * 1000), "text is not UTF-8"),
        (LeaseGrant(1, 1, ((3, 4), (1, 2)), 1), "LeaseGrant.spans: spans must be"),
        (LeaseGrant(1, 1, ((3, 2**64),), 3), "span out of"),
        (LeaseGrant(1, 1, ((1, 2),) * (ITEMS_MAX + 1), 1), "at most 65536 spans"),
        (Evaluated(Version(1, 1), 1, 10**400, 1), "too large for a float"),
        (
            Welcome(1, 1, 1, (TensorSpec("w", (1,)),) * (ITEMS_MAX + 1), "", ""),
            "more than 65536 items",
        ),
        (Begin(1, 1, bytes(HEADER_BYTES_MAX), 1, 1, "fp32"), "exceed the limit"),
        (Chunk(1, -1, 0), "Chunk.index: integer out of 0"),
        (REPORT, "WorkerReport is neither a message nor a frame"),
        (Heartbeat(PUSH), "Heartbeat.report: Push is not in the union"),  # type: ignore[arg-type]
        (Model((1, 1), 1, None, None, True), "expected Version, got tuple"),  # type: ignore[arg-type]
    ],
)
def test_what_a_peer_would_refuse_is_not_sent(value: Any, reason: str) -> None:
    with pytest.raises(WireError) as caught:
        encode(RUN, value)
    assert reason in str(caught.value)


def test_the_largest_texts_and_arrays_that_are_allowed_pass() -> None:
    for value in (
        Refuse("x" * TEXT_BYTES_MAX),
        Stop("\u00e9" * (TEXT_BYTES_MAX // 2)),
        LeaseGrant(1, 1, tuple((2 * i, 2 * i + 1) for i in range(ITEMS_MAX)), 0),
        Welcome(1, 1, 1, tuple(TensorSpec(f"w{i}", (4096, 4096)) for i in range(20_000)), "", ""),
        Heartbeat(RegionReport(1, 2, 3, 4, 5, 6, True, (REPORT,) * 1000)),
        Model(Version(1, 1), 1, Lease(PushId(1, 1), ((0, 2**64 - 1),), 0), PushId(-1, 0), True),
    ):
        assert decode_message(RUN, encode(RUN, value)) == value


# --- strangers -----------------------------------------------------------------------------------


def test_a_message_of_another_run_says_whose_it_is() -> None:
    with pytest.raises(OtherRun) as caught:
        decode_message(RUN, encode("other", PUSH))
    assert caught.value.run == "other"


def test_a_message_of_another_protocol_says_which() -> None:
    with pytest.raises(OtherProtocol) as caught:
        decode_message(RUN, msgpack.packb([9, RUN, 0, "fields", "of", "tomorrow"]))
    assert caught.value.protocol == 9


def test_a_hello_of_another_run_is_answered_in_its_own_terms() -> None:
    """1. A client of run "theirs" says Hello. 2. The server peeks at it. 3. The client decodes the reason."""
    hello = encode("theirs", HELLO)
    with pytest.raises(OtherRun):
        decode_message(RUN, hello)
    found = peek_hello(hello)
    assert found == (PROTOCOL_VERSION, "theirs")
    assert decode_message("theirs", encode_refusal(*found, "run theirs, not ours")) == Refuse(
        "run theirs, not ours"
    )


def test_a_hello_of_another_protocol_is_answered_in_its_own_terms() -> None:
    found = peek_hello(msgpack.packb([9, "theirs", TAGS[Hello], {}, "fields of tomorrow"][:3]))
    assert found == (9, "theirs")
    assert msgpack.unpackb(encode_refusal(*found, "no")) == [9, "theirs", TAGS[Refuse], "no"]


@pytest.mark.parametrize(
    "data", [b"", b"\xff", encode(RUN, PUSH), encode(RUN, Chunk(1, 1, 1)), raw(Hello)[:-1]]
)
def test_nothing_but_a_hello_looks_like_one(data: bytes) -> None:
    assert peek_hello(data) is None


@given(st.text(min_size=65, max_size=70))
def test_a_run_id_that_is_too_long_is_refused_on_both_sides(run: str) -> None:
    with pytest.raises(WireError, match="longer"):
        encode(run, PUSH)
    must_refuse(msgpack.packb([PROTOCOL_VERSION, run, TAGS[Goodbye]]))


def test_frames_have_tags_of_their_own() -> None:
    assert {TAGS[kind] for kind in get_args(Frame)} == set(
        range(FRAME_TAG_MIN, FRAME_TAG_MIN + len(get_args(Frame)))
    )
