"""Payloads between real nodes: intact, resumed, superseded, never in the way of control."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import torch

from pelago.core.machine import Delivered, PeerLost, Received, Send, SetTick, Started, Tick
from pelago.core.tensor_effects import Apply, Difference, Measure, Measured, Pin, Release
from pelago.emulate.link import Link
from pelago.emulate.wan import WanProxy
from pelago.net.limits import Limits
from pelago.net.node import Node
from pelago.tensor.manifest import Manifest
from pelago.tensor.payload import Payload
from pelago.tensor.plane import Plane
from pelago.wire.codec import encode
from pelago.wire.messages import (
    Begin,
    Event,
    Heartbeat,
    Model,
    Pull,
    Push,
    TensorSpec,
    Wait,
    Welcome,
)
from tests.net.nodes import RUN, Nodes, Script, a_model, a_push, eventually, raw_client, settled

MS_PS = 10**9
OURS = -900_000
"""A payload that the test put into a client's plane."""


def pulling(every_ms: int = 30) -> Script:
    """Asks for the model on every tick until it has one."""

    def answer(event: Event) -> list[object]:
        match event:
            case Started():
                return [SetTick(every_ms * MS_PS)]
            case Tick() if not machine.messages(Model):
                return [Send("gps", Pull(1, 0))]
        return []

    machine = Script(answer)
    return machine


def modelling() -> Script:
    """Answers each Pull of a peer that it does not serve already with the model as it is then."""
    serving: dict[str, int] = {}

    def answer(event: Event) -> list[object]:
        match event:
            case Received(peer, Pull()) if peer not in serving:
                blob = serving[peer] = len(serving) + 1
                return [Pin(blob), Send(peer, a_model(blob), blob), Release(blob)]
        return []

    return Script(answer)


def pushing(count: int = 1) -> Script:
    """Sends its payload when the server has answered a Pull, and again after each Wait."""

    def answer(event: Event) -> list[object]:
        match event:
            case Started():
                return [SetTick(30 * MS_PS)]
            case Tick() if not machine.messages(Wait):
                return [Send("gps", Pull(1, 0))]
            case Received(_, Wait()) if len(machine.messages(Wait)) <= count:
                return [Send("gps", a_push(len(machine.messages(Wait))), OURS)]
        return []

    machine = Script(answer)
    return machine


def give(node: Node, flat: torch.Tensor) -> None:
    """Put a payload into a running node, held by its machine."""
    node.tensors.created(OURS)
    node.tensors.plane.adopt(OURS, flat.clone())


def welcoming(then: Any = None) -> Script:
    """Answers Pull with Wait, and otherwise as ``then`` says."""

    def answer(event: Event) -> list[object]:
        match event:
            case Received(peer, Pull()):
                return [Send(peer, Wait("go on"))]
        return [] if then is None else then(event)

    return Script(answer)


@asynccontextmanager
async def relayed(nodes: Nodes, rate: float = 1e9) -> AsyncIterator[tuple[WanProxy, WanProxy]]:
    """Control and bulk through proxies at the second pair of ports, the bulk one at a rate."""
    fast, slow = Link(1e9, 0.0), Link(rate, 0.0)
    below, above = nodes.ports[0], nodes.ports[1]
    async with (
        WanProxy("127.0.0.1", above, "127.0.0.1", below, fast, fast) as control,
        WanProxy("127.0.0.1", above + 1, "127.0.0.1", below + 1, slow, slow) as bulk,
    ):
        yield control, bulk


async def test_a_model_arrives_bit_equal_and_both_sides_hear_of_it(nodes: Nodes) -> None:
    server, client = modelling(), pulling()
    plane = nodes.plane(seed=3)
    above = nodes.server(server, plane=plane)
    below = nodes.client(client, plane=Plane(nodes.manifest, None))
    received = await client.hears(Model)
    assert received.message == a_model(1)
    assert torch.equal(below.tensors.plane.lend(received.blob), plane.model())
    assert await server.hears(Delivered) == Delivered("lps-1", 1, nodes.manifest.bytes)
    # The machine released the pin before it had left; now that it is delivered it is gone.
    await eventually(lambda: above.tensors.payloads == 0)
    assert below.tensors.payloads == 1


async def test_a_payload_leaves_while_it_is_still_filled(nodes: Nodes) -> None:
    """1. A client sends an update of which one chunk is here, as from a device. 2. That chunk arrives. 3. The others
    come, the last one first."""
    server, client = welcoming(), pushing()
    above = nodes.server(server, plane=nodes.plane())
    below = nodes.client(client, plane=Plane(nodes.manifest, None))
    await client.hears(Started)
    flat = nodes.flat(2)
    whole = Payload.of(flat, nodes.manifest.chunks)
    filling = Payload([whole.chunks[0], *[None] * (len(whole.chunks) - 1)])
    below.tensors.created(OURS)
    below.tensors.plane.adopt(OURS, filling)
    await eventually(lambda: above.telemetry.counters["chunks_received"] == 1)
    for index in reversed(range(1, len(whole.chunks))):
        filling.fill(index, whole.complete_chunks()[index])
    received = await server.hears(Push)
    assert torch.equal(above.tensors.plane.lend(received.blob), flat)
    assert await client.hears(Delivered)


async def test_a_pin_of_the_mean_is_the_mean(nodes: Nodes) -> None:
    """After a step the two differ, and a peer gets the one that the machine named."""

    def answer(event: Event) -> list[object]:
        match event:
            case Started():
                return [Pin(1), Apply("step", 1), Release(1)]
            case Received(peer, Pull()) if len(server.messages(Pull)) == 1:
                return [Pin(2, average=True), Send(peer, a_model(), 2), Release(2)]
        return []

    server, client = Script(answer), pulling()
    plane = nodes.plane(seed=3, average=0.9)
    nodes.server(server, plane=plane)
    below = nodes.client(client, plane=Plane(nodes.manifest, None))
    received = await client.hears(Model)
    found = below.tensors.plane.lend(received.blob)
    assert torch.equal(found, plane.average())
    assert not torch.equal(found, plane.model())


async def test_an_update_is_measured_and_applied_and_the_next_model_contains_it(
    nodes: Nodes,
) -> None:
    def then(event: Event) -> list[object]:
        match event:
            case Received(_, Push(), blob):
                return [Measure(blob)]
            case Measured(blob):
                peer = server.messages(Push)[0].peer
                return [
                    Apply("step", blob),
                    Release(blob),
                    Pin(7),
                    Send(peer, a_model(2), 7),
                    Release(7),
                ]
        return []

    server, client = welcoming(then), pushing()
    above = nodes.server(server, plane=nodes.plane(seed=1))
    below = nodes.client(client, plane=Plane(nodes.manifest, None))
    await client.hears(Started)
    update = nodes.flat(2) * 0.01
    give(below, update)
    expected = nodes.plane(seed=1)
    expected.adopt(5, update.clone())
    expected.apply("step", 5)
    model = await client.hears(Model)
    assert torch.equal(below.tensors.plane.lend(model.blob), expected.model())
    measured = server.of(Measured)[0]
    assert measured.finite
    assert measured.norm == pytest.approx(float(update.norm()), rel=1e-5)
    assert client.of(Delivered) == [Delivered("gps", OURS, nodes.manifest.bytes)]
    await eventually(lambda: above.tensors.payloads == 0)


async def test_a_difference_is_taken_before_it_is_sent_however_busy_the_lane_is(
    nodes: Nodes,
) -> None:
    def then(event: Event) -> list[object]:
        match event:
            case Received(peer, Push(), blob):
                steps = [Apply("step", blob) for _ in range(50)]
                return [*steps, Difference(1), Send(peer, a_model(), 1), Apply("step", blob)]
        return []

    server, client = welcoming(then), pushing()
    nodes.server(server, plane=nodes.plane(seed=1))
    below = nodes.client(client, plane=Plane(nodes.manifest, None))
    await client.hears(Started)
    update = nodes.flat(2) * 0.01
    give(below, update)
    expected = nodes.plane(seed=1)
    expected.adopt(5, update.clone())
    for _ in range(50):
        expected.apply("step", 5)
    expected.difference(6)
    model = await client.hears(Model)
    assert torch.equal(below.tensors.plane.lend(model.blob), expected.lend(6))


async def test_the_plane_is_made_from_the_manifest_in_the_welcome(nodes: Nodes) -> None:
    welcome = Welcome(
        incarnation=1,
        fence=0,
        group=-1,
        manifest=nodes.manifest.specs,
        fingerprint=nodes.manifest.fingerprint,
        corpus="c",
    )

    def server_answer(event: Event) -> list[object]:
        match event:
            case Received(peer, Pull()):
                return [Send(peer, welcome)]
            case Received(peer, Heartbeat()):
                return [Pin(1), Send(peer, a_model(), 1)]
        return []

    def client_answer(event: Event) -> list[object]:
        match event:
            case Started():
                return [SetTick(30 * MS_PS)]
            case Tick() if not client.messages(Welcome):
                return [Send("gps", Pull(1, 0))]
            case Received(_, Welcome()) if len(client.messages(Welcome)) == 1:
                return [Send("gps", Heartbeat(None))]
            case Received(_, Model(), blob):
                return [Apply("load", blob), Release(blob)]
        return []

    server, client = Script(server_answer), Script(client_answer)
    plane = nodes.plane(seed=4)
    nodes.server(server, plane=plane)
    made: list[Manifest] = []

    def factory(manifest: Manifest) -> Plane:
        made.append(manifest)
        return Plane(Manifest(manifest.specs, nodes.manifest.chunk_bytes), None)

    node = nodes.client(client, plane_factory=factory)
    await client.hears(Model)
    await settled(node)
    assert node.tensors.payloads == 0
    assert [manifest.fingerprint for manifest in made] == [nodes.manifest.fingerprint]
    assert torch.equal(node.tensors.plane.model(), plane.model())


async def test_a_transfer_through_a_cut_connection_resumes_with_the_missing_chunks_only(
    nodes: Nodes,
) -> None:
    big = Nodes(nodes.folder, nodes.nodes, nodes.ports, _large())
    server, client = welcoming(), pushing()
    above = big.server(server, plane=Plane(big.manifest, None))
    # A window of 8 chunks, 1 MB/s: a cut loses what is in flight, and no more.
    limits = Limits(retry_ms=100, window_bytes=8 << 14)
    async with relayed(big, rate=2e6) as (control, bulk):
        below = big.client(
            client, port=big.ports[1], plane=Plane(big.manifest, None), limits=limits
        )
        await client.hears(Started)
        flat = big.flat(2)
        give(below, flat)
        chunks = len(big.manifest.chunks)
        counters = above.telemetry.counters
        await eventually(lambda: counters["chunks_received"] >= chunks // 4)
        bulk.cut()
        control.cut()
        await eventually(lambda: bulk.connections == 0)
        assert not server.messages(Push)
        bulk.heal()
        control.heal()
        received = await server.hears(Push)
        await client.hears(Delivered)
        assert torch.equal(above.tensors.plane.lend(received.blob), flat)
        sent = below.telemetry.counters["chunks_sent"]
        assert chunks <= sent <= chunks + 2 * 8 + 4, (chunks, sent)
        assert len(server.messages(Push)) == 1
        await big.stop("lps-1")


async def test_heartbeats_pass_while_bulk_is_saturated_through_a_slow_relay(nodes: Nodes) -> None:
    big = Nodes(nodes.folder, nodes.nodes, nodes.ports, _large())

    def then(event: Event) -> list[object]:
        match event:
            case Received(peer, Heartbeat()):
                return [Send(peer, Heartbeat(None))]
        return []

    inner = pushing()

    def answer(event: Event) -> list[object]:
        inner.events.append(event)
        effects = inner._answer(event)
        beat = [Send("gps", Heartbeat(None))] if isinstance(event, Tick) else []
        return [*beat, *effects]

    server, client = welcoming(then), Script(answer)
    nodes.nodes = big.nodes
    above = big.server(server, plane=Plane(big.manifest, None))
    async with relayed(big, rate=1e5) as (_, bulk):
        below = big.client(client, port=big.ports[1], plane=Plane(big.manifest, None))
        await client.hears(Started)
        give(below, big.flat(2))
        counters = above.telemetry.counters
        await eventually(lambda: counters["chunks_received"] >= 1)
        before = len(client.messages(Heartbeat))
        await client.until(lambda: len(client.messages(Heartbeat)) >= before + 10)
        # All the while the payload was under way, and none of the heartbeats waited for it.
        assert not server.messages(Push)
        assert below.transfers.outgoing.active == 1
        bulk.cut()
        await big.stop("lps-1")


async def test_a_newer_payload_takes_the_place_of_an_older_one(nodes: Nodes) -> None:
    big = Nodes(nodes.folder, nodes.nodes, nodes.ports, _large())

    def answer(event: Event) -> list[object]:
        match event:
            case Received(peer, Pull(samples=1)) if not server.of(Tick):
                server.events.append(Tick())
                return [Pin(1), Send(peer, a_model(1), 1), Release(1)]
            case Received(peer, Pull(samples=2)):
                return [Pin(2), Send(peer, a_model(2), 2), Release(2)]
        return []

    server = Script(answer)
    above = big.server(server, plane=big.plane(seed=1))
    client = pulling()
    async with relayed(big, rate=5e5) as (_, bulk):
        below = big.client(client, port=big.ports[1], plane=Plane(big.manifest, None))
        counters = below.telemetry.counters
        await eventually(lambda: counters["chunks_received"] >= 1)
        below._execute(Send("gps", Pull(2, 0)))
        await eventually(lambda: above.telemetry.counters["superseded"] == 1)
        bulk.cut()
        bulk.heal()
        await client.hears(Model)
        assert [event.message for event in client.messages(Model)] == [a_model(2)]
        assert server.of(Delivered) in ([], [Delivered("lps-1", 2, big.manifest.bytes)])
        await eventually(lambda: above.tensors.payloads == 0)
        await eventually(lambda: below.tensors.payloads == 1)
        await big.stop("lps-1")


async def test_a_payload_of_another_model_is_refused_and_the_sender_hears_it(nodes: Nodes) -> None:
    server, client = welcoming(), pushing()
    above = nodes.server(server, plane=nodes.plane())
    other = Manifest((TensorSpec("a", (77,)),))
    below = nodes.client(client, plane=Plane(other, None))
    await client.hears(Started)
    give(below, torch.ones(77))
    lost = await client.hears(PeerLost)
    assert lost.peer == "gps"
    assert "308 bytes in 1 chunks" in lost.reason
    assert above.telemetry.counters["dropped_transfer"] == 1
    assert above.tensors.payloads == 0
    assert not server.messages(Push)


async def test_one_payload_too_many_is_refused(nodes: Nodes) -> None:
    server, client = welcoming(), pushing()
    above = nodes.server(server, plane=nodes.plane(), limits=Limits(incoming_max=1))
    await server.hears(Started)
    pieces = len(nodes.manifest.chunks)
    with raw_client(nodes.ports[0] + 1, b"slow-worker") as bulk:
        bulk.send(
            encode(RUN, Begin(9, 1, encode(RUN, a_push()), pieces, nodes.manifest.bytes, "fp32"))
        )
        await eventually(lambda: above.transfers.incoming.active == 1)
        below = nodes.client(client, plane=Plane(nodes.manifest, None))
        await client.hears(Started)
        give(below, nodes.flat(1))
        lost = await client.hears(PeerLost)
        assert lost.reason == "too many payloads under way"
    assert above.tensors.payloads == 1


async def test_a_payload_that_stopped_arriving_makes_room_for_another(nodes: Nodes) -> None:
    server, client = welcoming(), pushing()
    above = nodes.server(server, plane=nodes.plane(), limits=Limits(incoming_max=1, idle_ms=0))
    await server.hears(Started)
    pieces = len(nodes.manifest.chunks)
    with raw_client(nodes.ports[0] + 1, b"dead-worker") as bulk:
        bulk.send(
            encode(RUN, Begin(9, 1, encode(RUN, a_push()), pieces, nodes.manifest.bytes, "fp32"))
        )
        await eventually(lambda: above.transfers.incoming.active == 1)
    below = nodes.client(client, plane=Plane(nodes.manifest, None))
    await client.hears(Started)
    flat = nodes.flat(1)
    give(below, flat)
    received = await server.hears(Push)
    assert received.peer == "lps-1"
    assert torch.equal(above.tensors.plane.lend(received.blob), flat)
    assert above.tensors.payloads == 1


async def test_a_sender_without_an_answer_gives_up_and_says_so(nodes: Nodes) -> None:
    client = Script()
    limits = Limits(retry_ms=50, give_up_ms=300)
    below = nodes.client(client, plane=Plane(nodes.manifest, None), limits=limits)
    await client.hears(Started)
    give(below, nodes.flat(1))
    below._execute(Send("gps", a_push(), OURS))
    lost = await client.hears(PeerLost)
    assert "no answer" in lost.reason
    assert below.transfers.outgoing.active == 0


async def test_a_server_that_restarts_during_a_transfer_gets_all_of_it(nodes: Nodes) -> None:
    big = Nodes(nodes.folder, nodes.nodes, nodes.ports, _large())
    first, second, client = welcoming(), welcoming(), pushing()
    above = big.server(first, plane=Plane(big.manifest, None))
    limits = Limits(retry_ms=100, window_bytes=8 << 14)
    async with relayed(big, rate=2e6):
        below = big.client(
            client, port=big.ports[1], plane=Plane(big.manifest, None), limits=limits
        )
        await client.hears(Started)
        flat = big.flat(2)
        give(below, flat)
        await eventually(lambda: above.telemetry.counters["chunks_received"] >= 20)
        await big.stop("gps")
        above = big.server(second, plane=Plane(big.manifest, None))
        received = await second.hears(Push)
        assert torch.equal(above.tensors.plane.lend(received.blob), flat)
        await client.hears(Delivered)
        await big.stop("lps-1")


async def test_bulk_is_left_to_tcp_while_staging_is_behind(nodes: Nodes) -> None:
    big = Nodes(nodes.folder, nodes.nodes, nodes.ports, _large())
    server, client = welcoming(), pushing()
    above = big.server(server, plane=Plane(big.manifest, None), limits=Limits(staging_bytes_max=1))
    below = big.client(client, plane=Plane(big.manifest, None))
    await client.hears(Started)
    flat = big.flat(2)
    give(below, flat)
    received = await server.hears(Push)
    assert torch.equal(above.tensors.plane.lend(received.blob), flat)


async def test_both_directions_at_once_between_three_nodes(nodes: Nodes) -> None:
    """A node with a server side and a client side serves below while it is served from above."""

    def middle_answer(event: Event) -> list[object]:
        match event:
            case Started():
                return [SetTick(30 * MS_PS)]
            case Tick() if not middle.messages(Model):
                return [Send("gps", Pull(1, 0))]
            case Received(peer, Pull()) if middle.messages(Model):
                return [Pin(99), Send(peer, a_model(2), 99), Release(99)]
            case Received("gps", Model(), blob) if len(middle.messages(Model)) == 1:
                return [Apply("load", blob), Release(blob)]
            case Received(_, Push(), blob):
                return [Release(blob)]
        return []

    top, middle, bottom = modelling(), Script(middle_answer), pulling()
    plane = nodes.plane(seed=5)
    nodes.server(top, plane=plane)
    nodes.start(
        middle,
        "lps-1",
        server=nodes.bind(nodes.ports[1]),
        upstreams=(nodes.connect(nodes.ports[0]),),
        plane=Plane(nodes.manifest, None),
    )
    node = nodes.client(bottom, "worker-1", port=nodes.ports[1], plane=Plane(nodes.manifest, None))
    received = await bottom.hears(Model)
    assert torch.equal(node.tensors.plane.lend(received.blob), plane.model())


def _large() -> Manifest:
    """1 MiB in 64 chunks."""
    return Manifest((TensorSpec("w", (1 << 18,)),), chunk_bytes=1 << 14)


async def test_nothing_is_sent_twice_when_bulk_connects_later_than_control(nodes: Nodes) -> None:
    server, client = modelling(), pulling()
    above = nodes.server(server, plane=nodes.plane(seed=3))
    async with relayed(nodes) as (_, bulk):
        bulk.cut()
        nodes.client(client, port=nodes.ports[1], plane=Plane(nodes.manifest, None))
        await server.hears(Pull)
        await eventually(lambda: above.telemetry.counters["unsent_bulk"] >= 1)
        assert above.telemetry.counters["chunks_sent"] == 0
        bulk.heal()
        await client.hears(Model)
        await server.hears(Delivered)
        assert above.telemetry.counters["chunks_sent"] == len(nodes.manifest.chunks)
        await nodes.stop("lps-1")


@pytest.mark.parametrize(
    "specs",
    [(TensorSpec("a", (0,)),), (TensorSpec("a", (1,)),) * 2, (TensorSpec("a", (1 << 40,)),)],
    ids=["empty tensor", "a name twice", "larger than the limit"],
)
async def test_a_welcome_with_an_impossible_model_is_dropped_and_counted(
    nodes: Nodes, specs: tuple[TensorSpec, ...]
) -> None:
    welcome = Welcome(1, 0, -1, specs, "f", "c")
    client = pulling()

    def answer(event: Event) -> list[object]:
        match event:
            case Received(peer, Pull()):
                return [Send(peer, welcome)]
        return []

    nodes.server(Script(answer))
    limits = Limits(model_bytes_max=1 << 40)
    node = nodes.client(client, plane_factory=lambda each: Plane(each, None), limits=limits)
    await eventually(lambda: node.telemetry.counters["dropped_manifest"] >= 1)
    assert not node.tensors.ready
    assert not client.messages(Welcome)
