"""Bad input of peers: each one is counted, none does harm."""

import asyncio
import socket
import struct
from dataclasses import replace

import msgpack
import pytest

from pelago.core.machine import Received, Send, Started
from pelago.net.node import Node
from pelago.net.sockets.identity import IDENTITY_BYTES_MAX
from pelago.wire.codec import decode_frame, encode
from pelago.wire.messages import (
    CHUNK_BYTES_MAX,
    HEADER_BYTES_MAX,
    PROTOCOL_VERSION,
    TEXT_BYTES_MAX,
    Abort,
    Begin,
    Chunk,
    Event,
    Goodbye,
    Have,
    Pull,
)
from tests.net.nodes import DEADLINE_S, RUN, Nodes, Script, a_push, eventually, raw_client

GREETING = b"\xff" + bytes(8) + b"\x7f" + b"\x03\x01" + b"NULL".ljust(20, b"\0") + b"\0" + bytes(31)
"""The first 64 bytes of a ZMTP 3.1 peer without security."""
READY = b"\x04\x19\x05READY\x0bSocket-Type\x00\x00\x00\x06DEALER"


def serving(nodes: Nodes) -> tuple[Script, Node]:
    def answer(event: Event) -> list[object]:
        match event:
            case Received(peer, Pull()):
                return [Send(peer, Goodbye())]
        return []

    machine = Script(answer)
    return machine, nodes.server(machine, plane=nodes.plane())


async def assert_alive(nodes: Nodes) -> None:
    """An honest client is still answered."""
    with raw_client(nodes.ports[0], b"honest") as dealer:
        dealer.send(encode(RUN, Pull(1, 0)))
        await eventually(lambda: bool(dealer.poll(0)))
        assert dealer.recv() == encode(RUN, Goodbye())


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize(
    "garbage",
    [b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 20, bytes(range(256)) * 16, b"\xff" * 5000],
    ids=["http", "count", "ones"],
)
async def test_garbage_bytes_on_a_port_are_counted_and_the_node_lives(
    nodes: Nodes, offset: int, garbage: bytes
) -> None:
    machine, node = serving(nodes)
    await machine.hears(Started)
    reader, writer = await asyncio.open_connection("127.0.0.1", nodes.ports[0] + offset)
    writer.write(garbage)
    async with asyncio.timeout(DEADLINE_S):
        # The node ends the connection; what it says before that is its own greeting.
        assert len(await _rest(reader)) <= 64
    writer.close()
    label = ("control", "bulk")[offset]
    counters = node.telemetry.counters
    await eventually(lambda: counters[f"disconnected_{label}"] + counters["dropped_handshake"] > 0)
    assert machine.events == [Started()]
    await assert_alive(nodes)


@pytest.mark.parametrize("offset", [0, 1])
async def test_a_claim_of_10_gb_ends_the_connection_before_anything_is_allocated(
    nodes: Nodes, offset: int
) -> None:
    machine, node = serving(nodes)
    await machine.hears(Started)
    reader, writer = await asyncio.open_connection("127.0.0.1", nodes.ports[0] + offset)
    writer.write(GREETING + READY + b"\x02" + struct.pack(">Q", 10 << 30) + b"x" * 100)
    async with asyncio.timeout(DEADLINE_S):
        await _rest(reader)
    writer.close()
    label = ("control", "bulk")[offset]
    await eventually(lambda: node.telemetry.counters[f"disconnected_{label}"] == 1)
    await assert_alive(nodes)


async def _rest(reader: asyncio.StreamReader) -> bytes:
    try:
        return await reader.read()
    except ConnectionResetError:
        return b""


CONTROL = {
    "empty": ([b""], "malformed"),
    "no msgpack": ([b"\xc1"], "malformed"),
    "truncated": ([encode(RUN, a_push())[:-3]], "malformed"),
    "trailing bytes": ([encode(RUN, Goodbye()) + b"x"], "malformed"),
    "unknown tag": ([msgpack.packb((PROTOCOL_VERSION, RUN, 63))], "malformed"),
    "no such frame": ([msgpack.packb((PROTOCOL_VERSION, RUN, 99)), b""], "malformed"),
    "a message as a frame": ([encode(RUN, Goodbye()), b""], "malformed"),
    "a frame as a message": ([encode(RUN, Have(1, 1, 0, ()))], "malformed"),
    "ten thousand levels": ([b"\x91" * 10_000], "malformed"),
    "a claimed array of 2**32": ([b"\xdd\xff\xff\xff\xff"], "malformed"),
    "a chunk on control": ([encode(RUN, Chunk(1, 0, 0)), b""], "misplaced"),
    "too many parts": ([encode(RUN, Goodbye())] * 5, "parts"),
    "another run": ([encode("other", Goodbye())], "stranger"),
}


@pytest.mark.parametrize("name", CONTROL)
async def test_a_bad_control_message_is_counted_by_its_fault(nodes: Nodes, name: str) -> None:
    parts, reason = CONTROL[name]
    machine, node = serving(nodes)
    with raw_client(nodes.ports[0], b"rogue") as dealer:
        dealer.send_multipart(parts)
        await eventually(lambda: node.telemetry.counters[f"dropped_{reason}"] == 1)
    assert not machine.of(Received)
    await assert_alive(nodes)


BEGIN = Begin(1, 1, encode(RUN, a_push()), 7, 4 * (5000 + 16_384 + 3), "fp32")
BULK = {
    "empty": ([b""], "malformed"),
    "truncated": ([encode(RUN, BEGIN)[:-3]], "malformed"),
    "a message on bulk": ([encode(RUN, Goodbye())], "malformed"),
    "another run": ([encode("other", BEGIN)], "malformed"),
    "an answer on bulk": ([encode(RUN, Have(1, 1, 0, ()))], "misplaced"),
    "a chunk without payload": ([encode(RUN, Chunk(1, 0, 0))], "misplaced"),
    "an announcement with payload": ([encode(RUN, BEGIN), b"x"], "misplaced"),
    "too many parts": ([encode(RUN, BEGIN), b"x", b"x"], "parts"),
}


@pytest.mark.parametrize("name", BULK)
async def test_a_bad_bulk_message_is_counted_by_its_fault(nodes: Nodes, name: str) -> None:
    parts, reason = BULK[name]
    machine, node = serving(nodes)
    with raw_client(nodes.ports[0] + 1, b"rogue") as dealer:
        dealer.send_multipart(parts)
        await eventually(lambda: node.telemetry.counters[f"dropped_{reason}"] == 1)
    assert not machine.of(Received)
    assert node.tensors.payloads == 0
    await assert_alive(nodes)


REFUSED = {
    "too few bytes": replace(BEGIN, payload_bytes=1000),
    "10 GB": replace(BEGIN, chunks=10_000, payload_bytes=10 << 30),
    "too many chunks": replace(BEGIN, chunks=8),
    "an unknown encoding": replace(BEGIN, encoding="bf16"),
    "an endless name of an encoding": replace(BEGIN, encoding="\x00" * TEXT_BYTES_MAX),
    "more stripes than chunks": replace(BEGIN, stripes=8),
    "no stripe": replace(BEGIN, stripes=0),
    "a stripe that does not exist": replace(BEGIN, stripe=2, stripes=2),
    "a message without payload": replace(BEGIN, message=encode(RUN, Goodbye())),
    "no message": replace(BEGIN, message=b"\xc1"),
    "another run's message": replace(BEGIN, message=encode("o", a_push())),
}


@pytest.mark.parametrize("name", REFUSED)
async def test_a_payload_that_is_no_model_is_aborted_before_anything_is_allocated(
    nodes: Nodes, name: str
) -> None:
    _, node = serving(nodes)
    port = nodes.ports[0]
    with raw_client(port, b"rogue") as control, raw_client(port + 1, b"rogue") as bulk:
        control.send(encode(RUN, Pull(1, 0)))
        await eventually(lambda: bool(control.poll(0)))
        control.recv()
        bulk.send(encode(RUN, REFUSED[name]))
        await eventually(lambda: bool(control.poll(0)))
        abort = decode_frame(RUN, control.recv_multipart()[0])
        assert isinstance(abort, Abort)
        assert abort.transfer == 1
        bulk.send_multipart([encode(RUN, Chunk(1, 0, 0)), bytes(16_384)])
        await eventually(lambda: node.telemetry.counters["late_chunks"] == 1)
    assert node.telemetry.counters["dropped_transfer"] == 1
    assert node.tensors.payloads == 0


async def test_damaged_misnumbered_and_missized_chunks_are_counted_and_not_kept(
    nodes: Nodes,
) -> None:
    machine, node = serving(nodes)
    counters = node.telemetry.counters
    with raw_client(nodes.ports[0] + 1, b"rogue") as bulk:
        bulk.send(encode(RUN, BEGIN))
        bulk.send_multipart([encode(RUN, Chunk(1, 7, 0)), bytes(16_384)])
        bulk.send_multipart([encode(RUN, Chunk(1, 0, 0)), bytes(16_383)])
        bulk.send_multipart([encode(RUN, Chunk(1, 0, 0)), bytes(16_384)])
        await eventually(lambda: counters["dropped_chunk"] == 2)
        await eventually(lambda: counters["dropped_checksum"] == 1)
    assert node.transfers.incoming.active == 1
    assert not machine.of(Received)


@pytest.mark.parametrize("size", [HEADER_BYTES_MAX + (1 << 20), CHUNK_BYTES_MAX + (1 << 20)])
async def test_a_message_larger_than_any_of_ours_ends_the_connection(
    nodes: Nodes, size: int
) -> None:
    _, node = serving(nodes)
    for offset, label in enumerate(("control", "bulk")):
        with raw_client(nodes.ports[0] + offset, b"rogue") as dealer:
            dealer.send(bytes(size))
            counters = node.telemetry.counters
            await eventually(lambda: counters[f"disconnected_{label}"] >= 1)  # noqa: B023
    await assert_alive(nodes)


@pytest.mark.parametrize(
    "identity", [b"", b"n\xc3\xa4me", b"tab\there", b"x" * (IDENTITY_BYTES_MAX + 1)]
)
async def test_a_client_without_a_decent_name_is_dropped(nodes: Nodes, identity: bytes) -> None:
    machine, node = serving(nodes)
    with raw_client(nodes.ports[0], identity) as dealer:
        dealer.send(encode(RUN, Goodbye()))
        await eventually(lambda: node.telemetry.counters["dropped_identity"] == 1)
    assert not machine.of(Received)


async def test_a_peer_that_connects_and_says_nothing_is_harmless(nodes: Nodes) -> None:
    serving(nodes)
    await eventually(lambda: _can_connect(nodes.ports[0]))
    silent = socket.create_connection(("127.0.0.1", nodes.ports[0]))
    try:
        await assert_alive(nodes)
    finally:
        silent.close()


def _can_connect(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
