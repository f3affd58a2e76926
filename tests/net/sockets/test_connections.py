"""Connections that break silently, names whose addresses change, ports that are blocked."""

import io
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, closing
from typing import Any

import pytest
import torch

from pelago.core.errors import ConfigError
from pelago.core.machine import Delivered, PeerLost, Received, Send, SetTick, Started, Tick
from pelago.core.tensor_effects import Pin, Release
from pelago.emulate.link import Link
from pelago.emulate.wan import WanProxy
from pelago.net import limits
from pelago.net.limits import Patience
from pelago.net.node import Node
from pelago.net.sockets import blocked, dialler, listener
from pelago.net.sockets.pair import Bind, Connect
from pelago.net.sockets.tcp_ports import require_free
from pelago.tensor.manifest import Manifest
from pelago.tensor.plane import Plane
from pelago.wire.messages import Event, Model, Pull, Push, TensorSpec, Wait
from tests.net.nodes import Nodes, Script, a_model, a_push, eventually

MS_PS = 10**9
GBPS = 1e9 / 8
OURS = -900_000
PATIENCE = Patience(lost_after_ms=400)


def asking() -> Script:
    """A client that asks something on every tick, as all ours do."""

    def answer(event: Event) -> list[object]:
        match event:
            case Started():
                return [SetTick(20 * MS_PS)]
            case Tick():
                return [Send("gps", Pull(1, 0))]
        return []

    return Script(answer)


def answering(word: str = "workers", then: Any = None) -> Script:
    def answer(event: Event) -> list[object]:
        match event:
            case Received(peer, Pull()):
                return [Send(peer, Wait(word))]
        return [] if then is None else then(event)

    return Script(answer)


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """The addresses of hosts, as this machine's resolver knows them from now on."""
    known: dict[str, list[str]] = {"gps.test": []}
    real = socket.getaddrinfo

    def getaddrinfo(host: Any, port: Any, *rest: Any, **more: Any) -> Any:
        if host not in known:
            return real(host, port, *rest, **more)
        if not known[host]:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [each for one in known[host] for each in real(one, port, *rest, **more)]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    monkeypatch.setattr(dialler, "LOOKUP_MS", 100)
    return known


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """A blocked port is reported after half a second instead of five."""
    monkeypatch.setattr(blocked, "BLOCKED_MS", 500)
    monkeypatch.setattr(listener, "LOOK_MS", 100)


@pytest.fixture
def ipv6() -> None:
    try:
        with closing(socket.socket(socket.AF_INET6)) as probe:
            probe.bind(("::1", 0))
    except OSError:
        pytest.skip("this machine has no IPv6")


def listening(node: Node) -> io.StringIO:
    """What a node says to people from now on."""
    node.telemetry._console = io.StringIO()
    return node.telemetry._console


# --- names and addresses -------------------------------------------------------------------------


async def test_a_name_that_is_not_known_yet_is_awaited_and_reported(
    nodes: Nodes, names: dict[str, list[str]]
) -> None:
    client = asking()
    node = nodes.start(client, "lps-1", upstreams=(Connect("gps.test", nodes.ports[0], "gps"),))
    said = listening(node)
    await eventually(lambda: "the name 'gps.test' is not known" in said.getvalue())
    assert "Name or service not known" in said.getvalue()
    nodes.server(answering())
    names["gps.test"] = ["127.0.0.1"]
    await client.hears(Wait)


async def test_a_server_that_is_found_at_another_address_is_followed(
    nodes: Nodes, names: dict[str, list[str]]
) -> None:
    client, port = asking(), nodes.ports[0]
    names["gps.test"] = ["127.0.0.1"]
    nodes.start(client, "lps-1", upstreams=(Connect("gps.test", port, "gps"),))
    nodes.start(answering("first"), "gps", server=Bind("127.0.0.1", port))
    await client.hears(Wait)
    await nodes.stop("gps")
    names["gps.test"] = ["127.0.0.2"]
    nodes.start(answering("second"), "gps", server=Bind("127.0.0.2", port))
    await client.until(lambda: Wait("second") in [each.message for each in client.messages(Wait)])


@pytest.mark.parametrize("bind", ["::1", "*", "::", "ip6.test"])
async def test_a_server_listens_and_is_found_by_ipv6(
    nodes: Nodes, ipv6: None, names: dict[str, list[str]], bind: str
) -> None:
    names |= {"gps.test": ["::1"], "ip6.test": ["::1"]}
    port = nodes.ports[0]
    require_free(bind, port, "gps.bind")
    nodes.start(answering(), "gps", server=Bind(bind, port))
    hosts = ["::1", "gps.test"] + ["127.0.0.1"] * (bind in ("*", "::"))
    for number, host in enumerate(hosts):
        client = asking()
        nodes.start(client, f"lps-{number}", upstreams=(Connect(host, port, "gps"),))
        await client.hears(Wait)
    with pytest.raises(ConfigError, match=rf"gps\.bind = .*port {port} is taken"):
        require_free(bind, port, "gps.bind")


async def test_of_several_addresses_the_one_that_answers_is_found(
    nodes: Nodes, ipv6: None, names: dict[str, list[str]]
) -> None:
    names["gps.test"] = ["::1", "127.0.0.3", "127.0.0.1"]
    client = asking()
    nodes.start(client, "lps-1", upstreams=(Connect("gps.test", nodes.ports[0], "gps"),))
    nodes.server(answering())
    await client.hears(Wait)


async def test_a_server_listens_on_those_of_its_addresses_that_the_machine_has(
    nodes: Nodes, names: dict[str, list[str]]
) -> None:
    # As in containers whose table of hosts has an IPv6 address for localhost, and which have no IPv6.
    names["gps.test"] = ["192.0.2.7", "127.0.0.1"]
    client = asking()
    nodes.start(answering(), "gps", server=Bind("gps.test", nodes.ports[0]))
    nodes.client(client)
    await client.hears(Wait)


def test_an_address_of_another_machine_is_no_port_that_is_taken() -> None:
    with pytest.raises(
        ConfigError, match=r"gps\.bind = .*192\.0\.2\.7 is no address of this machine"
    ):
        require_free("192.0.2.7", 7700, "gps.bind")


async def test_a_server_named_by_several_addresses_listens_on_all(
    nodes: Nodes, ipv6: None, names: dict[str, list[str]]
) -> None:
    names["gps.test"] = ["::1", "127.0.0.1"]
    nodes.start(answering(), "gps", server=Bind("gps.test", nodes.ports[0]))
    for number, host in enumerate(("::1", "127.0.0.1")):
        client = asking()
        nodes.start(client, f"lps-{number}", upstreams=(Connect(host, nodes.ports[0], "gps"),))
        await client.hears(Wait)


# --- one port of two -----------------------------------------------------------------------------


@pytest.mark.parametrize("open_place", [0, 1])
async def test_both_sides_name_the_port_that_is_blocked_and_go_on_trying(
    nodes: Nodes, hasty: None, open_place: int
) -> None:
    server_port, front = nodes.ports[:2]
    server = nodes.start(answering(), "gps", server=Bind("127.0.0.1", server_port))
    client = asking()
    node = nodes.start(client, "lps-1", upstreams=(Connect("127.0.0.1", front, "gps"),))
    server_said, said = listening(server), listening(node)
    labels = ("control", "bulk")
    shut, shut_port = labels[1 - open_place], front + 1 - open_place

    def proxy(place: int) -> WanProxy:
        link = Link(GBPS, 0)
        return WanProxy("127.0.0.1", front + place, "127.0.0.1", server_port + place, link, link)

    async with proxy(open_place):
        await eventually(
            lambda: f"cannot reach 127.0.0.1:{shut_port}, the {shut} port of gps" in said.getvalue()
        )
        assert f"let TCP port {shut_port} through the firewalls" in said.getvalue()
        # A client that was given the bulk port as the one to connect to sees the same.
        assert (f"or is {front} the bulk port?" in said.getvalue()) == (shut == "bulk")
        shut_here = server_port + 1 - open_place
        await eventually(lambda: f"but not the {shut} port {shut_here}" in server_said.getvalue())
        async with proxy(1 - open_place):
            await eventually(lambda: f"reached 127.0.0.1:{shut_port}" in said.getvalue())
            await eventually(
                lambda: f"127.0.0.1 reaches the {shut} port {shut_here}" in server_said.getvalue()
            )
            await client.hears(Wait)
    assert said.getvalue().count("cannot reach") == 1


# --- silence -------------------------------------------------------------------------------------


class Lines:
    """What stands between a client and its server: a proxy for each port, over one link a direction."""

    def __init__(self, nodes: Nodes, mbps: float = 1000.0) -> None:
        up, down = Link(mbps * 1e6 / 8, 1), Link(mbps * 1e6 / 8, 1)
        target, self.port = nodes.ports[:2]
        self.proxies = [
            WanProxy("127.0.0.1", self.port + place, "127.0.0.1", target + place, up, down)
            for place in (0, 1)
        ]

    def swallow(self, *places: int) -> None:
        for place in places:
            self.proxies[place].swallow()

    def heal(self) -> None:
        for proxy in self.proxies:
            proxy.heal()


@asynccontextmanager
async def between(nodes: Nodes, mbps: float = 1000.0) -> AsyncIterator[Lines]:
    lines = Lines(nodes, mbps)
    async with AsyncExitStack() as stack:
        for proxy in lines.proxies:
            await stack.enter_async_context(proxy)
        yield lines


async def test_a_line_that_swallows_everything_is_given_up_and_healed_is_used_again(
    nodes: Nodes,
) -> None:
    server, client = answering(), asking()
    nodes.server(server, patience=PATIENCE)
    async with between(nodes) as lines:
        node = nodes.client(client, port=lines.port, patience=PATIENCE)
        await client.hears(Wait)
        lines.swallow(0, 1)
        counters = node.telemetry.counters
        await eventually(lambda: counters["renewed_control"] == 1)
        # What is connected anew is swallowed too, and given up again.
        await eventually(lambda: counters["disconnected_control"] >= 1)
        heard = len(client.messages(Wait))
        lines.heal()
        await client.hears(Wait, heard + 3)
        await eventually(lambda: counters["connected_bulk"] == 2)
        # It was found dead once; the attempts after that never counted as a connection.
        assert counters["renewed_control"] == 1


def of_size(nodes: Nodes, numel: int, chunk_bytes: int) -> Manifest:
    """Another model for this test."""
    nodes.manifest = Manifest((TensorSpec("w", (numel,)),), chunk_bytes=chunk_bytes)
    return nodes.manifest


def uploading() -> Script:
    """A client that asks on every tick, and once sends a payload."""

    def answer(event: Event) -> list[object]:
        match event:
            case Started():
                return [SetTick(20 * MS_PS)]
            case Tick():
                return [Send("gps", Pull(1, 0))]
            case Received(_, Wait()) if len(machine.messages(Wait)) == 1:
                return [Send("gps", a_push(), OURS)]
        return []

    machine = Script(answer)
    return machine


async def giving(nodes: Nodes, client: Script, node: Node) -> torch.Tensor:
    """Put into a node that starts what it is to send; returns that."""
    await client.hears(Started)
    sent = nodes.flat(7)
    node.tensors.created(OURS)
    node.tensors.plane.adopt(OURS, sent.clone())
    return sent


@pytest.mark.parametrize("places", [(0, 1), (1,)])
async def test_a_payload_on_a_line_that_fell_silent_arrives_once_over_the_next_connection(
    nodes: Nodes, monkeypatch: pytest.MonkeyPatch, places: tuple[int, ...]
) -> None:
    monkeypatch.setattr(limits, "BULK_SILENT_MS_MIN", 400)
    manifest = of_size(nodes, 1 << 17, 1 << 14)
    server = answering()
    client = uploading()
    there = nodes.server(server, plane=nodes.plane(), patience=PATIENCE)
    # 512 KiB at 4 Mbps: some of it is there when the line falls silent.
    async with between(nodes, mbps=4) as lines:
        node = nodes.client(
            client, port=lines.port, plane=Plane(manifest, None, exchanges=False), patience=PATIENCE
        )
        sent = await giving(nodes, client, node)
        await eventually(lambda: there.telemetry.counters["chunks_received"] >= 8)
        lines.swallow(*places)
        counters = node.telemetry.counters
        await eventually(lambda: counters["renewed_control"] + counters["renewed_bulk"] >= 1)
        lines.heal()
        await client.hears(Delivered)
        (push,) = server.messages(Push)
        assert torch.equal(there.tensors.plane.lend(push.blob), sent)
    assert not client.of(PeerLost)


async def test_what_a_server_was_sending_goes_on_when_its_client_is_back(nodes: Nodes) -> None:
    of_size(nodes, 1 << 17, 1 << 14)

    def answer(event: Event) -> list[object]:
        match event:
            case Received(peer, Pull()) if len(server.messages(Pull)) == 1:
                return [Pin(1), Send(peer, a_model(), 1), Release(1)]
            case Received(peer, Pull()):
                return [Send(peer, Wait("busy"))]
        return []

    server, client = Script(answer), asking()
    there = nodes.server(server, plane=nodes.plane(), patience=PATIENCE)
    async with between(nodes, mbps=4) as lines:
        nodes.client(
            client,
            port=lines.port,
            plane=Plane(nodes.manifest, None, exchanges=False),
            patience=PATIENCE,
        )
        await eventually(lambda: there.telemetry.counters["chunks_sent"] >= 8)
        lines.swallow(0, 1)
        node, _ = nodes.nodes["lps-1"]
        await eventually(lambda: node.telemetry.counters["renewed_control"] == 1)
        lines.heal()
        await server.hears(Delivered)
        await client.hears(Model)
    assert not server.of(PeerLost)


async def test_a_slow_line_that_is_busy_for_long_is_cut_by_no_heartbeat(nodes: Nodes) -> None:
    # Chunks of 4 MiB take 3.4 s at 10 Mbps, eight times as long as a peer may be silent.
    manifest = of_size(nodes, 5 << 18, 4 << 20)
    server = answering()
    client = uploading()
    there = nodes.server(server, plane=nodes.plane(), patience=PATIENCE)
    async with between(nodes, mbps=10) as lines:
        node = nodes.client(
            client, port=lines.port, plane=Plane(manifest, None, exchanges=False), patience=PATIENCE
        )
        await giving(nodes, client, node)
        await client.hears(Delivered)
        for each in (node, there):
            counted = {key for key, count in each.telemetry.counters.items() if count}
            assert not {key for key in counted if key.startswith(("renewed", "disconnected"))}
        assert client.messages(Wait)
