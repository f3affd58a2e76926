"""A payload on two bulk connections between two real nodes; the second one is made here.

Outside this file nothing knows of it: `Limits.stripes` divides the payload, and `PeerSockets.send_bulk` gets the
stripe of what it sends.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import zmq

from pelago.core.machine import Delivered, PeerLost, Started
from pelago.core.names import Peer
from pelago.emulate.link import Link
from pelago.emulate.wan import WanProxy
from pelago.net.limits import Limits
from pelago.net.node import Node
from pelago.net.sockets.channel import Channel
from pelago.tensor.manifest import Manifest
from pelago.tensor.plane import Plane
from pelago.wire.codec import decode_frame, encode
from pelago.wire.messages import Abort, Begin, Push, TensorSpec
from tests.net.nodes import RUN, Nodes, a_push, eventually, raw_client
from tests.net.transfer.test_transfers import give, pushing, relayed, welcoming

LARGE = Manifest((TensorSpec("w", (1 << 18,)),), chunk_bytes=1 << 14)
"""1 MiB in 64 chunks, 32 on each of two stripes."""
WINDOW = 4
"""Chunks of one stripe that may be on their way."""
LIMITS = Limits(retry_ms=100, stripes=2, window_bytes=2 * WINDOW * LARGE.chunk_bytes)


class StripedSockets:
    """The sockets of a client, but for the second stripe, which leaves through a channel of its own."""

    def __init__(self, node: Node, second: Channel) -> None:
        self.chunks: Counter[int] = Counter()
        """Chunks that left, by stripe."""
        self._second = second
        self._first = node._connections.send_bulk
        node._connections.send_bulk = self.send_bulk  # type: ignore[method-assign]

    def send_bulk(self, peer: Peer, stripe: int, parts: list[Any]) -> bool:
        sent = self._second.send(peer, parts) if stripe else self._first(peer, stripe, parts)
        self.chunks[stripe] += sent and len(parts) == 2
        return sent


@contextmanager
def second_bulk(above: Node, below: Node, bind: int, connect: int) -> Iterator[StripedSockets]:
    """A second bulk connection from a running client to its running server."""
    with zmq.Context() as context:
        router, dealer = context.socket(zmq.ROUTER), context.socket(zmq.DEALER)
        router.bind(f"tcp://127.0.0.1:{bind}")
        dealer.setsockopt(zmq.ROUTING_ID, b"lps-1")
        dealer.setsockopt(zmq.IMMEDIATE, 1)

        def on_link(_label: str, up: bool) -> None:
            if up:
                below.transfers.outgoing.reconnected("gps")

        take, drop = above.transfers.on_bulk, below.transfers.on_bulk
        server = Channel(router, "bulk", None, take, above.telemetry, lambda *_: None)
        client = Channel(dealer, "bulk", "gps", drop, below.telemetry, on_link)
        try:
            client.connect("127.0.0.1", connect)
            yield StripedSockets(below, client)
        finally:
            client.close(0)
            server.close(0)


async def test_a_stripe_that_is_cut_recovers_alone_and_all_arrives_once(nodes: Nodes) -> None:
    """1. A push is under way on two connections. 2. The second one is cut; the first one's chunks all arrive.
    3. The second one heals, and only what it lost goes again. 4. The server gets the payload, once."""
    big = Nodes(nodes.folder, nodes.nodes, nodes.ports, LARGE)
    server, client = welcoming(), pushing()
    above = big.server(server, plane=Plane(LARGE, None))
    slow = Link(1e6, 0.0)
    through, beyond = big.ports[2], big.ports[2] + 1
    async with (
        relayed(big, rate=2e6),
        WanProxy("127.0.0.1", through, "127.0.0.1", beyond, slow, slow) as proxy,
    ):
        below = big.client(client, port=big.ports[1], plane=Plane(LARGE, None), limits=LIMITS)
        await client.hears(Started)
        with second_bulk(above, below, beyond, through) as sockets:
            flat = big.flat(2)
            give(below, flat)
            await eventually(lambda: sockets.chunks[1] > 2 * WINDOW)
            proxy.cut()
            first, second = above.transfers.incoming._transfers["lps-1"].receivers
            await eventually(lambda: first.completed)
            assert not second.completed
            assert not server.messages(Push)
            proxy.heal()
            received = await server.hears(Push)
            await client.hears(Delivered)
            await big.stop("lps-1")
    assert torch.equal(above.tensors.plane.lend(received.blob), flat)
    assert (len(server.messages(Push)), len(client.of(Delivered))) == (1, 1)
    assert not client.of(PeerLost)
    assert below.telemetry.counters["transfers_begun_anew"] == 0
    assert sockets.chunks[0] == 32
    assert 32 < sockets.chunks[1] <= 32 + WINDOW


async def test_two_stripes_may_share_the_one_connection_of_a_node(nodes: Nodes) -> None:
    server, client = welcoming(), pushing()
    above = nodes.server(server, plane=nodes.plane())
    below = nodes.client(client, plane=Plane(nodes.manifest, None), limits=LIMITS)
    await client.hears(Started)
    flat = nodes.flat(2)
    give(below, flat)
    received = await server.hears(Push)
    await client.hears(Delivered)
    assert torch.equal(above.tensors.plane.lend(received.blob), flat)
    assert below.telemetry.counters["chunks_sent"] == len(nodes.manifest.chunks)


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
