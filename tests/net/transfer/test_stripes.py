"""A payload on several bulk connections between two real nodes."""

from collections.abc import Callable

import pytest
import torch

from pelago.core.machine import Delivered, PeerLost, Started
from pelago.net.limits import Limits
from pelago.net.node import Node
from pelago.net.sockets.pair import ClientSide
from pelago.tensor.manifest import Manifest
from pelago.tensor.plane import Plane
from pelago.wire.codec import decode_frame, encode
from pelago.wire.messages import Abort, Begin, Model, Push, TensorSpec
from tests.net.nodes import RUN, Nodes, a_model, a_push, eventually, raw_client
from tests.net.transfer.test_transfers import (
    give,
    modelling,
    pulling,
    pushing,
    relayed,
    welcoming,
)

LARGE = Manifest((TensorSpec("w", (1 << 18,)),), chunk_bytes=1 << 14)
"""1 MiB in 64 chunks, 32 on each of two stripes."""
WINDOW = 4
"""Chunks of one stripe that may be on their way."""
LIMITS = Limits(retry_ms=100, stripes=2, window_bytes=2 * WINDOW * LARGE.chunk_bytes)


def side_of(node: Node) -> ClientSide:
    """The sockets of a client."""
    return node._connections._clients["gps"]


async def connected(above: Node, below: Node, stripes: int) -> None:
    """Wait until both ends know of so many bulk connections of the client lps-1."""
    await eventually(lambda: below._connections.stripes("gps") == stripes)
    await eventually(lambda: above._connections.stripes("lps-1") == stripes)


def sent_by(side: ClientSide) -> Callable[[], list[int]]:
    """Counts from now on the chunks that leave on each bulk connection of a client."""
    counts = [0] * len(side.bulk)

    def watch(place: int) -> None:
        send = side.bulk[place].send

        def counted(peer: str, parts: list[object], stripe: int = 0) -> bool:
            left = send(peer, parts, stripe)  # type: ignore[arg-type]
            counts[place] += left and len(parts) == 2
            return left

        side.bulk[place].send = counted  # type: ignore[method-assign, assignment]

    for place in range(len(side.bulk)):
        watch(place)
    return lambda: counts


@pytest.mark.parametrize("stripes", [2, 3])
async def test_a_push_is_spread_over_the_connections_of_the_client(
    nodes: Nodes, stripes: int
) -> None:
    big = Nodes(nodes.folder, nodes.nodes, nodes.ports, LARGE)
    server, client = welcoming(), pushing()
    above = big.server(server, plane=Plane(LARGE, None))
    limits = Limits(retry_ms=100, stripes=stripes)
    below = big.client(client, plane=Plane(LARGE, None), limits=limits)
    await client.hears(Started)
    await connected(above, below, stripes)
    sent, flat = sent_by(side_of(below)), big.flat(2)
    give(below, flat)
    received = await server.hears(Push)
    await client.hears(Delivered)
    assert torch.equal(above.tensors.plane.lend(received.blob), flat)
    share = 64 // stripes
    assert sum(sent()) == 64
    assert all(each in (share, share + 1) for each in sent())


async def test_a_server_replies_on_as_many_connections_as_its_client_has(nodes: Nodes) -> None:
    """A client with three connections and one with one, from a server whose own setting is one."""
    big = Nodes(nodes.folder, nodes.nodes, nodes.ports, LARGE)
    server, wide, plain = modelling(), pulling(), pulling()
    above = big.server(server, plane=big.plane(seed=3))
    limits = Limits(retry_ms=100, stripes=3)
    below = big.client(wide, plane=Plane(LARGE, None), limits=limits)
    received = await wide.hears(Model)
    await connected(above, below, 3)
    assert torch.equal(below.tensors.plane.lend(received.blob), above.tensors.plane.model())
    before = [each.received for each in side_of(below).bulk]
    above.tensors.plane.pin(77)
    above.tensors.created(77)
    above.transfers.send("lps-1", encode(RUN, a_model(2)), 77)
    await eventually(lambda: len(wide.messages(Model)) == 2)
    grown = [now.received - old for now, old in zip(side_of(below).bulk, before, strict=True)]
    assert all(each > 20 for each in grown), grown
    other = big.client(plain, "lps-2", plane=Plane(LARGE, None))
    received = await plain.hears(Model)
    assert torch.equal(other.tensors.plane.lend(received.blob), above.tensors.plane.model())
    assert above._connections.stripes("lps-2") == 1


async def test_a_stripe_that_is_cut_goes_on_over_another_connection(nodes: Nodes) -> None:
    """1. A push is under way on two connections. 2. The second one is cut, and stays away. 3. All arrives over the
    first one, once; no more than a window goes again. 4. The line heals, and the connection is back."""
    big = Nodes(nodes.folder, nodes.nodes, nodes.ports, LARGE)
    server, client = welcoming(), pushing()
    above = big.server(server, plane=Plane(LARGE, None))
    async with relayed(big, rate=2e6) as (_, bulk):
        below = big.client(client, port=big.ports[1], plane=Plane(LARGE, None), limits=LIMITS)
        await client.hears(Started)
        await connected(above, below, 2)
        sent, flat = sent_by(side_of(below)), big.flat(2)
        give(below, flat)
        await eventually(lambda: sent()[1] > 2 * WINDOW)
        bulk.cut(newest=1)
        await eventually(lambda: not side_of(below).bulk[1].up)
        received = await server.hears(Push)
        await client.hears(Delivered)
        assert below._connections.stripes("gps") == 1
        bulk.heal()
        await connected(above, below, 2)
        await big.stop("lps-1")
    assert torch.equal(above.tensors.plane.lend(received.blob), flat)
    assert (len(server.messages(Push)), len(client.of(Delivered))) == (1, 1)
    assert not client.of(PeerLost)
    assert below.telemetry.counters["transfers_begun_anew"] == 0
    assert sent()[1] < 32
    assert 64 < sum(sent()) <= 64 + 2 * WINDOW


async def test_connections_are_opened_and_closed_under_a_payload(nodes: Nodes) -> None:
    big = Nodes(nodes.folder, nodes.nodes, nodes.ports, LARGE)
    server, client = welcoming(), pushing()
    above = big.server(server, plane=Plane(LARGE, None))
    async with relayed(big, rate=2e6):
        below = big.client(client, port=big.ports[1], plane=Plane(LARGE, None), limits=LIMITS)
        await client.hears(Started)
        await connected(above, below, 2)
        dialler, flat = below._connections._diallers["gps"], big.flat(2)
        give(below, flat)
        await eventually(lambda: above.telemetry.counters["chunks_received"] > 4)
        dialler.widen(1)
        await eventually(lambda: above.telemetry.counters["chunks_received"] > 16)
        dialler.widen(4)
        received = await server.hears(Push)
        await client.hears(Delivered)
        await connected(above, below, 4)
        await big.stop("lps-1")
    assert torch.equal(above.tensors.plane.lend(received.blob), flat)
    assert len(server.messages(Push)) == 1


async def test_a_receiver_that_has_less_of_a_stripe_than_was_acknowledged_begins_anew(
    nodes: Nodes,
) -> None:
    """1. A stripe announces a payload to a process that was started again. 2. Another stripe asks, of which the
    process before had acknowledged chunks, and learns that they are lost. 3. No place is kept."""
    server = welcoming()
    above = nodes.server(server, plane=nodes.plane())
    await server.hears(Started)
    port, pieces, size = nodes.ports[0], len(nodes.manifest.chunks), nodes.manifest.bytes
    with raw_client(port, b"lps-9") as control, raw_client(port + 1, b"lps-9") as bulk:
        control.send(encode(RUN, a_push()))
        await eventually(lambda: bool(server.messages(Push)))
        announced = encode(RUN, a_push())
        for stripe, query, acknowledged in ((1, 1, 0), (0, 5, 2)):
            begin = Begin(9, query, announced, pieces, size, "fp32", stripe, 2, acknowledged)
            bulk.send(encode(RUN, begin))
        answers = []

        def aborts() -> list[Abort]:
            while control.poll(0):
                answers.append(decode_frame(RUN, control.recv_multipart()[0]))
            return [each for each in answers if isinstance(each, Abort)]

        await eventually(lambda: bool(aborts()))
        assert aborts() == [Abort(9, "unknown here")]
    assert above.transfers.incoming.active == 0
    await eventually(lambda: above.tensors.payloads == 0)
