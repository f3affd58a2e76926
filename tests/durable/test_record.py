"""The records of a durable node: events are written and read again, and damage to a head is always found."""

from dataclasses import replace
from typing import get_args

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pelago.core import machine
from pelago.core.errors import CheckpointError, WireError
from pelago.core.machine import PeerLost, Received, Started
from pelago.core.tensor_effects import Measured
from pelago.durable import record
from pelago.durable.record import (
    FORMAT,
    HEAD_BYTES,
    INTEGER_MIN,
    LENGTH_MAX,
    Begun,
    Head,
    Header,
    Kind,
)
from pelago.wire.messages import Event, Heartbeat
from tests.wire.test_codec import messages, plain, values

RUN = "demo-0123456789ab"
HEADER = Header(FORMAT, RUN, "lps-eu", "lps-eu@host:12:abc", 7, "a-boot", 1_800_000_000_000, 17)

blobs = st.none() | st.integers(INTEGER_MIN, 2**63)
received = st.builds(Received, st.text(max_size=30), messages, blobs, st.integers(0, 2**60))
others = [values(kind, INTEGER_MIN) for kind in get_args(machine.Event) if isinstance(kind, type)]
events = st.one_of([received, *others])

words = st.integers(0, 2**64 - 1)
heads = st.builds(
    lambda kind, number, body, first, second: (kind, number, body, first, second),
    st.sampled_from(Kind),
    words,
    st.binary(max_size=100),
    st.integers(-(2**63), 2**63 - 1),
    words,
)


@given(events)
def test_every_event_comes_back_equal_and_of_the_same_types(event: Event) -> None:
    found = record.unpack_event(RUN, memoryview(record.pack_event(RUN, event)))
    assert plain(found) == plain(event)


def test_an_events_tag_never_changes() -> None:
    """Journals of older versions are read by it: a new event is added after these."""
    assert {kind.__name__: tag for kind, tag in record._TAGS.items()} == {
        "Started": 1,
        "Loaded": 2,
        "Delivered": 3,
        "PeerLost": 4,
        "Measured": 5,
        "Tick": 6,
        "Progress": 7,
        "Trained": 8,
        "Validated": 9,
        "StopRequested": 10,
        "Restarted": 11,
    }
    assert msgpack.unpackb(record.pack_event(RUN, Started())) == [1]
    assert msgpack.unpackb(record.pack_event(RUN, Measured(3, 0.5, True))) == [5, 3, 0.5, True]
    assert msgpack.unpackb(record.pack_event(RUN, Received("eu", Heartbeat(None))))[0] == 0


def test_an_event_that_cannot_be_read_back_is_not_written() -> None:
    with pytest.raises(WireError):
        record.pack_event(RUN, PeerLost("eu", 3))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xc1",
        msgpack.packb(3),
        msgpack.packb(()),
        msgpack.packb((1, "more")),
        msgpack.packb((5, 3, "0.5", True)),
        msgpack.packb((99,)),
        msgpack.packb(("Started",)),
        msgpack.packb((0, "eu", b"no message", None)),
        msgpack.packb((0, "eu")),
    ],
)
def test_what_is_no_event_is_refused(body: bytes) -> None:
    with pytest.raises(CheckpointError):
        record.unpack_event(RUN, body)


def test_an_event_of_another_run_is_refused() -> None:
    body = record.pack_event(RUN, Received("eu", Heartbeat(None)))
    with pytest.raises(CheckpointError):
        record.unpack_event("other-0123456789ab", body)


@given(heads)
def test_a_head_comes_back_equal(parts: tuple[Kind, int, bytes, int, int]) -> None:
    kind, number, body, first, second = parts
    packed = record.head(kind, number, memoryview(body), first, second)
    assert len(packed) == HEAD_BYTES
    found = record.parse_head(packed + b"what follows")
    assert found == Head(kind, number, len(body), record.checksum(body), first, second)
    assert packed == record.head(kind, number, body, first, second, record.checksum(body))


@given(heads)
def test_damage_to_any_byte_of_a_head_is_found(parts: tuple[Kind, int, bytes, int, int]) -> None:
    kind, number, body, first, second = parts
    packed = record.head(kind, number, body, first, second)
    for place in range(HEAD_BYTES):
        for change in (0x01, 0x80, 0xFF, packed[place]):
            if change:
                damaged = bytearray(packed)
                damaged[place] ^= change
                assert record.parse_head(damaged) is None, (place, change)
        assert record.parse_head(packed[:place]) is None


@pytest.mark.parametrize(("kind", "length"), [(99, 0), (1, LENGTH_MAX + 1)])
def test_a_sealed_head_that_makes_no_sense_is_none(kind: int, length: int) -> None:
    packed = record._HEAD.pack(record.MAGIC, kind, 1, length, 0, 0, 0)
    assert record.parse_head(packed + record._SEAL.pack(record.checksum(packed))) is None


def test_a_header_comes_back_equal() -> None:
    assert record.unpack_header(memoryview(record.pack_header(HEADER))) == HEADER


def test_a_header_of_another_format_is_refused_by_its_number() -> None:
    """Whatever else is in it: only the place of the format's number never changes."""
    for body in (
        record.pack_header(replace(HEADER, format=FORMAT + 1)),
        msgpack.packb((FORMAT + 1, "more", 3)),
    ):
        with pytest.raises(CheckpointError, match=rf"^format {FORMAT + 1} is not {FORMAT}"):
            record.unpack_header(body)


@pytest.mark.parametrize(
    "body", [b"", b"\xc1", msgpack.packb(()), msgpack.packb(3), msgpack.packb((FORMAT, "short"))]
)
def test_what_is_no_header_is_refused(body: bytes) -> None:
    with pytest.raises(CheckpointError):
        record.unpack_header(body)


def test_the_beginning_of_a_payload_comes_back_equal() -> None:
    begun = Begun("lps-eu@host:12:abc", 2**62 + 1, b"\x93 a message", "fp32", 2)
    assert record.unpack_begun(memoryview(record.pack_begun(begun))) == begun


@pytest.mark.parametrize(
    "body",
    [b"", b"\xc1", msgpack.packb(3), msgpack.packb(("eu", 1)), msgpack.packb(("eu", -1, b"m"))],
)
def test_what_is_no_beginning_of_a_payload_is_refused(body: bytes) -> None:
    with pytest.raises(CheckpointError):
        record.unpack_begun(body)


def test_plain_data_keeps_its_lists_and_integers() -> None:
    image = ["Gps", "version", ["Version", 1, 2**64 - 1], -(2**63), None, 0.5, b"\x00", {"a": [1]}]
    assert record.unpack(record.pack(image)) == image
    with pytest.raises(CheckpointError):
        record.unpack(record.pack(image)[:-1])
