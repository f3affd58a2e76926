"""Messages without payloads, names, strangers, ports."""

import socket
from contextlib import closing

import pytest

from pelago.core.errors import ConfigError
from pelago.core.machine import Received, Send, SetTick, Started, Tick
from pelago.core.names import Address
from pelago.net.sockets.pair import Bind
from pelago.wire.codec import decode_message, encode
from pelago.wire.messages import (
    PROTOCOL_VERSION,
    Begin,
    Event,
    Goodbye,
    Hello,
    Model,
    Pull,
    Refuse,
    Wait,
)
from tests.net.nodes import RUN, Nodes, Script, a_model, eventually, raw_client

HELLO = Hello(PROTOCOL_VERSION, "lps", Address("eu"), 1, "", "")
MS_PS = 10**9


def on_tick(*messages: object) -> Script:
    """A client that says something on every tick, as all ours do until they are answered."""

    def answer(event: Event) -> list[object]:
        if isinstance(event, Started):
            return [SetTick(20 * MS_PS)]
        return [Send("gps", each) for each in messages] if isinstance(event, Tick) else []

    return Script(answer)


def answering(kind: type, reply: object) -> Script:
    def answer(event: Event) -> list[object]:
        match event:
            case Received(peer, message) if isinstance(message, kind):
                return [Send(peer, reply)]
        return []

    return Script(answer)


async def test_a_message_reaches_the_server_under_the_clients_name_and_is_answered(
    nodes: Nodes,
) -> None:
    server, client = answering(Pull, Wait("workers")), on_tick(Pull(64, 0))
    nodes.server(server)
    nodes.client(client, "worker-7")
    received = await client.hears(Wait)
    assert received == Received("gps", Wait("workers"))
    assert server.messages(Pull)[0] == Received("worker-7", Pull(64, 0))


async def test_a_client_that_starts_first_is_heard_once_the_server_is_there(nodes: Nodes) -> None:
    client = on_tick(HELLO)
    nodes.client(client)
    await client.hears(Tick, 3)
    server = answering(Hello, Goodbye())
    nodes.server(server)
    await client.hears(Goodbye)
    # What the absent server missed was not kept for it.
    assert len(server.messages(Hello)) < len(client.of(Tick))


async def test_a_server_that_restarts_is_found_again_by_its_clients(nodes: Nodes) -> None:
    client = on_tick(HELLO)
    nodes.client(client)
    nodes.server(answering(Hello, Wait("first")))
    await client.hears(Wait)
    await nodes.stop("gps")
    nodes.server(answering(Hello, Goodbye()))
    await client.hears(Goodbye)


async def test_two_clients_are_distinguished(nodes: Nodes) -> None:
    server = answering(Pull, Goodbye())
    nodes.server(server)
    clients = [on_tick(Pull(index, 0)) for index in range(2)]
    for index, client in enumerate(clients):
        nodes.client(client, f"worker-{index}")
        await client.hears(Goodbye)
    named = {(event.peer, event.message.samples) for event in server.messages(Pull)}
    assert named == {("worker-0", 0), ("worker-1", 1)}


async def test_a_message_to_a_peer_that_is_gone_is_counted_and_does_no_harm(nodes: Nodes) -> None:
    server = Script(lambda event: [Send("absent", Goodbye())] if isinstance(event, Started) else [])
    node = nodes.server(server)
    await server.hears(Started)
    assert node.telemetry.counters["unsent_control"] == 1


@pytest.mark.parametrize(
    ("run", "protocol"), [("another-run", PROTOCOL_VERSION), (RUN, PROTOCOL_VERSION + 1)]
)
async def test_a_client_of_another_run_or_protocol_is_refused_in_its_own_terms(
    nodes: Nodes, run: str, protocol: int
) -> None:
    server = Script()
    node = nodes.server(server)
    hello = bytearray(encode(run, HELLO))
    hello[1] = protocol  # The envelope is an array, and this its first item.
    with raw_client(nodes.ports[0], b"lost-lps") as dealer:
        dealer.send(bytes(hello))
        await eventually(lambda: bool(dealer.poll(0)))
        answer = bytearray(dealer.recv())
    assert answer[1] == protocol
    answer[1] = PROTOCOL_VERSION
    refusal = decode_message(run, bytes(answer))
    assert isinstance(refusal, Refuse)
    assert RUN in refusal.detail
    assert node.telemetry.counters["dropped_stranger"] == 1
    assert not server.messages(Hello)


async def test_a_node_of_another_run_hears_the_refusal(nodes: Nodes) -> None:
    nodes.server(Script())
    client = on_tick(HELLO)
    nodes.client(client, run_id="another-run")
    refusal = await client.hears(Refuse)
    assert "another-run" in refusal.message.detail


async def test_a_client_cannot_take_the_name_of_its_servers_own_server(nodes: Nodes) -> None:
    machine = Script()
    own, upstream = nodes.ports[1], nodes.ports[2]
    node = nodes.start(
        machine, "lps-1", server=nodes.bind(own), upstreams=(nodes.connect(upstream),)
    )
    await machine.hears(Started)
    with raw_client(own, b"gps") as dealer:
        dealer.send(encode(RUN, Goodbye()))
        await eventually(lambda: node.telemetry.counters["dropped_identity"] == 1)
    assert not machine.messages(Goodbye)


async def test_a_client_that_names_itself_as_its_servers_own_server_sends_it_no_model(
    nodes: Nodes,
) -> None:
    """On the bulk port, where models come from there."""
    machine = Script()
    own, upstream = nodes.ports[1], nodes.ports[2]
    node = nodes.start(
        machine,
        "lps-1",
        server=nodes.bind(own),
        upstreams=(nodes.connect(upstream),),
        plane=nodes.plane(),
    )
    await machine.hears(Started)
    manifest = nodes.manifest
    begin = Begin(1, 1, encode(RUN, a_model()), len(manifest.chunks), manifest.bytes, "fp32")
    with raw_client(own + 1, b"gps") as dealer:
        dealer.send(encode(RUN, begin))
        await eventually(lambda: node.telemetry.counters["dropped_identity"] == 1)
    assert node.transfers.incoming.active == 0
    assert not machine.messages(Model)


@pytest.mark.parametrize("offset", [0, 1])
async def test_a_port_that_is_taken_is_an_error_that_names_the_key(
    nodes: Nodes, offset: int
) -> None:
    port = nodes.ports[0]
    with closing(socket.socket()) as squatter:
        squatter.bind(("127.0.0.1", port + offset))
        squatter.listen()
        nodes.server(Script())
        with pytest.raises(ConfigError, match=f"gps.bind = 127.0.0.1:{port}.*already in use"):
            await nodes.finish("gps")


async def test_a_host_to_listen_on_that_cannot_be_resolved_is_an_error_that_names_the_key(
    nodes: Nodes,
) -> None:
    nodes.start(Script(), "gps", server=Bind("no-such-host.invalid", nodes.ports[0], "gps.bind"))
    with pytest.raises(ConfigError, match=r"gps\.bind = no-such-host.*: cannot resolve"):
        await nodes.finish("gps")
