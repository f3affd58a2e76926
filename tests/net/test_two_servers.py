"""A rank that belongs to two servers: its LPS, and the coordinator of its group.

No file outside this one was changed for it: a rank's machine, its settings and its servers are all here.
"""

import pytest
import torch

from pelago.core.machine import Delivered, Finish, Received, Send, SetTick, Started, Tick
from pelago.core.names import Peer
from pelago.core.tensor_effects import Pin
from pelago.net.limits import Limits
from pelago.net.node import Node
from pelago.net.sockets.pair import Connect
from pelago.protocol.client_session import UNANSWERED
from pelago.tensor.manifest import Manifest
from pelago.tensor.plane import Plane
from pelago.wire.codec import encode
from pelago.wire.messages import Event, Goodbye, Model, Pull, Push, TensorSpec, Welcome
from tests.net.nodes import RUN, Nodes, Script, a_model, a_push, eventually, raw_client
from tests.net.transfer.test_transfers import OURS, give

LPS, COORDINATOR = "lps", "coordinator"
TICK_PS = 30 * 10**9


def rank() -> Script:
    """Asks each of its two servers for a model until it has one of it, and sends each server its update."""

    def models() -> set[Peer]:
        return {event.peer for event in machine.messages(Model)}

    def answer(event: Event) -> list[object]:
        match event:
            case Started():
                return [SetTick(TICK_PS)]
            case Tick():
                return [
                    Send(each, Pull(1, 0)) for each in (LPS, COORDINATOR) if each not in models()
                ]
            case Received(peer, Model()):
                return [Send(peer, a_push(1 if peer == LPS else 2), OURS)]
        return []

    machine = Script(answer)
    return machine


def server(version: int) -> Script:
    """Answers the first Pull of a peer with its model, of this version."""
    served: set[Peer] = set()

    def answer(event: Event) -> list[object]:
        match event:
            case Received(peer, Pull()) if peer not in served:
                served.add(peer)
                return [Pin(1), Send(peer, a_model(version), 1)]
        return []

    return Script(answer)


def upstreams(nodes: Nodes) -> tuple[Connect, ...]:
    """The rank's two servers, at the first two pairs of ports."""
    here = zip((LPS, COORDINATOR), nodes.ports, strict=False)
    return tuple(Connect("127.0.0.1", port, peer) for peer, port in here)


def start_rank(nodes: Nodes, machine: Script, **more: object) -> Node:
    return nodes.start(machine, "rank-0", upstreams=upstreams(nodes), **more)


async def test_payloads_go_to_and_come_from_both_servers_at_the_same_time(nodes: Nodes) -> None:
    """1. Both servers are asked, and each sends its model. 2. The rank sends each an update. 3. Every node has what
    was meant for it, bit for bit."""
    lps, coordinator, machine = server(1), server(2), rank()
    planes = [nodes.plane(seed=1), nodes.plane(seed=2)]
    at_lps = nodes.server(lps, LPS, plane=planes[0])
    at_coordinator = nodes.start(
        coordinator, COORDINATOR, server=nodes.bind(nodes.ports[1]), plane=planes[1]
    )
    node = start_rank(nodes, machine, plane=Plane(nodes.manifest, None))
    update = nodes.flat(seed=3)
    await machine.hears(Started)
    give(node, update)
    for stub, at, lease in ((lps, at_lps, 1), (coordinator, at_coordinator, 2)):
        pushed = await stub.hears(Push)
        assert (pushed.peer, pushed.message) == ("rank-0", a_push(lease))
        assert torch.equal(at.tensors.plane.lend(pushed.blob), update)
    await machine.hears(Delivered, 2)
    assert {event.peer for event in machine.of(Delivered)} == {LPS, COORDINATOR}
    models = {event.peer: event for event in machine.messages(Model)}
    for peer, version, plane in ((LPS, 1, planes[0]), (COORDINATOR, 2, planes[1])):
        assert models[peer].message == a_model(version)
        assert torch.equal(node.tensors.plane.lend(models[peer].blob), plane.model())


async def test_one_server_is_of_use_while_the_other_is_not_up(nodes: Nodes) -> None:
    """1. Only the coordinator is up, and serves the rank. 2. The LPS comes, and serves it too."""
    machine = rank()
    node = start_rank(nodes, machine, plane=Plane(nodes.manifest, None))
    await machine.hears(Started)
    give(node, nodes.flat(seed=3))
    nodes.start(
        server(2), COORDINATOR, server=nodes.bind(nodes.ports[1]), plane=nodes.plane(seed=2)
    )
    await machine.hears(Model)
    assert [event.peer for event in machine.messages(Model)] == [COORDINATOR]
    nodes.server(server(1), LPS, plane=nodes.plane(seed=1))
    await machine.hears(Model, 2)
    assert [event.peer for event in machine.messages(Model)] == [COORDINATOR, LPS]


async def test_progress_is_counted_for_each_server(nodes: Nodes) -> None:
    """An answer of one server does not count for the other, and none for a stripe that there is not."""
    machine = rank()
    node = start_rank(
        nodes, machine, plane=Plane(nodes.manifest, None), limits=Limits(retry_ms=100)
    )
    await machine.hears(Started)
    give(node, nodes.flat(seed=3))
    nodes.server(server(1), LPS, plane=nodes.plane(seed=1))
    await machine.hears(Delivered)
    assert node.transfers.progress(LPS, 0)[1] > 0
    assert node.transfers.progress(LPS, 1) == (False, 0)
    assert node.transfers.progress(COORDINATOR, 0) == (False, 0)


def welcoming(manifest: Manifest) -> Script:
    """Answers each Pull with a Welcome that has a manifest."""
    welcome = Welcome(1, 1, 0, manifest.specs, manifest.fingerprint, "")

    def answer(event: Event) -> list[object]:
        match event:
            case Received(peer, Pull()):
                return [Send(peer, welcome)]
        return []

    return Script(answer)


async def test_both_servers_must_have_the_same_model(nodes: Nodes) -> None:
    """The first Welcome tells the rank the model; the other server's, with another model, is dropped."""
    other = Manifest((TensorSpec("x", (7,)),))
    nodes.server(welcoming(nodes.manifest), LPS)
    machine = rank()
    node = start_rank(nodes, machine, plane_factory=lambda found: Plane(found, None))
    await machine.hears(Welcome)
    assert node.tensors.plane.manifest.fingerprint == nodes.manifest.fingerprint
    nodes.start(welcoming(other), COORDINATOR, server=nodes.bind(nodes.ports[1]))
    await eventually(lambda: node.telemetry.counters["dropped_manifest"] > 0)
    assert {event.peer for event in machine.messages(Welcome)} == {LPS}


@pytest.mark.parametrize("name", [LPS, COORDINATOR])
async def test_no_client_can_take_the_name_of_either_server(nodes: Nodes, name: Peer) -> None:
    machine = rank()
    own = nodes.ports[2]
    node = start_rank(nodes, machine, server=nodes.bind(own))
    await machine.hears(Started)
    with raw_client(own, name.encode()) as dealer:
        dealer.send(encode(RUN, Goodbye()))
        await eventually(lambda: node.telemetry.counters["dropped_identity"] == 1)
    assert not machine.messages(Goodbye)


async def test_a_rank_without_an_answer_names_both_servers(nodes: Nodes) -> None:
    machine = Script(lambda event: [Finish(UNANSWERED, "no answer")])
    start_rank(nodes, machine)
    finish = await nodes.finish("rank-0")
    for connect in upstreams(nodes):
        assert str(connect) in finish.error
