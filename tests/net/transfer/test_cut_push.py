"""A payload that was arriving when a durable server was killed is resumed.

Run as a program it is a server: ``python -m tests.net.transfer.test_cut_push FOLDER PORT``.
"""

import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import pytest
import torch
import uvloop
import zmq

from gps.state import Gps
from pelago.config.fields import Durability
from pelago.core.names import PushId
from pelago.emulate.link import Link
from pelago.emulate.wan import WanProxy
from pelago.net.durability import journal
from pelago.net.limits import Limits
from pelago.net.node import Node
from pelago.net.transfer.outgoing import UNKNOWN
from pelago.tensor.encodings.plain import BF16
from pelago.tensor.manifest import Manifest
from pelago.tensor.plane import Plane
from pelago.wire.codec import decode_frame, encode
from pelago.wire.messages import Abort, Ack, Begin, Frame, Have, Heartbeat, Offer, TensorSpec
from tests.net.durability.crash_points import serve
from tests.net.durability.test_durable_node import (
    RawRegion,
    a_gps,
    assert_the_first_update_survives,
    newest,
)
from tests.net.durability.test_journal import files_end_at
from tests.net.golden_updates import HELLO, MANIFEST, GoldenRegion, a_push, empty_plane
from tests.net.nodes import RUN, Nodes, Script, eventually, raw_client

ROOT: Final = Path(__file__).parents[3]
CHUNKS: Final = len(MANIFEST.chunks)
BIG: Final = Manifest((TensorSpec("w", (1 << 18,)),), chunk_bytes=1 << 14)
"""1 MiB in 64 chunks."""
WINDOW: Final = 8
"""Chunks that may be in flight."""
SENT_AT_THE_KILL: Final = len(BIG.chunks) // 2 + WINDOW
PROCESS_S: Final = 50.0
"""A process may take long to start where many run."""


@pytest.fixture(autouse=True)
async def all_is_killed_at_the_end(nodes: Nodes) -> AsyncIterator[None]:
    """A GPS would wait for its region to leave."""
    torch.set_num_threads(1)
    yield
    for name in list(nodes.nodes):
        await nodes.kill(name)


# --- processes -----------------------------------------------------------------------------------


def big_plane() -> Plane:
    plane = empty_plane(BIG)
    plane.adopt(1, torch.randn(BIG.numel, generator=torch.Generator().manual_seed(1)))
    plane.apply("load", 1)
    plane.release(1)
    return plane


class ServerProcess:
    """A process that serves until it is killed or asked to end."""

    def __init__(self, folder: Path, port: int) -> None:
        self._folder = folder
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.net.transfer.test_cut_push", str(folder), str(port)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
        )
        assert self._process.stdin is not None
        self._input = self._process.stdin

    def kill(self) -> None:
        """As ``kill -9`` does it."""
        self._process.kill()
        self._process.wait()
        self._input.close()

    async def end(self) -> dict[str, Any]:
        """What it says of its model at the end."""
        self._input.close()
        await eventually(lambda: self._process.poll() is not None, PROCESS_S)
        found: dict[str, Any] = json.loads((self._folder / "server.json").read_text("utf-8"))
        return found


@pytest.mark.timeout(180)
async def test_a_push_that_is_cut_by_kill_9_is_not_begun_anew(nodes: Nodes) -> None:
    """1. A server is killed when more than half of a push has arrived over a slow link, and started again.
    2. The push completes and is applied once. 3. No more went over the link again than was in flight."""
    folder = nodes.folder / "gps"
    folder.mkdir()
    lower, upper = nodes.ports[:2]
    server = ServerProcess(folder, lower)
    fast, slow = Link(1e9, 0.0), Link(4e5, 0.0)
    region = GoldenRegion(1, leaves=True)
    machine = Script(region)
    plane = Plane(BIG, None, exchanges=False)
    update = torch.randn(BIG.numel, generator=torch.Generator().manual_seed(2))
    plane.adopt(1, update.clone())
    try:
        async with (
            WanProxy("127.0.0.1", upper, "127.0.0.1", lower, fast, fast),
            WanProxy("127.0.0.1", upper + 1, "127.0.0.1", lower + 1, slow, Link(1e9, 0.0)),
        ):
            limits = Limits(retry_ms=500, window_bytes=WINDOW * BIG.chunk_bytes)
            client = nodes.client(machine, "lps-eu", port=upper, plane=plane, limits=limits)
            await eventually(lambda: hasattr(client, "tensors"))
            client.tensors.created(1)
            sent = client.telemetry.counters
            await eventually(lambda: sent["chunks_sent"] >= SENT_AT_THE_KILL, PROCESS_S)
            server.kill()
            assert not region.outcomes
            server = ServerProcess(folder, lower)
            _, task = nodes.nodes["lps-eu"]
            await eventually(task.done, PROCESS_S)
            assert (await nodes.finish("lps-eu")).reason == "all is acknowledged"
            found = await server.end()
            total = slow.bytes_carried
    finally:
        server.kill()
    assert region.outcomes == {1: {"applied"}}
    assert region.rejoins == 0
    assert len(BIG.chunks) <= sent["chunks_sent"] <= len(BIG.chunks) + WINDOW
    assert sent["transfers_begun_anew"] == 0
    assert total <= 1.15 * BIG.bytes
    expected = big_plane()
    expected.adopt(2, update)
    expected.apply("step", 2)
    assert (found["digest"], found["updates"]) == (expected.digest(), [1])


# --- conversations -------------------------------------------------------------------------------


class SenderProcess(RawRegion):
    """A region that pushes the first golden update by hand, and hears what the server has of it."""

    def __init__(self, control: "zmq.Socket[bytes]", bulk: "zmq.Socket[bytes]") -> None:
        super().__init__(control, bulk)
        self.frames: list[Frame] = []

    def listens(self) -> None:
        """Take what has come on control."""
        while self._control.poll(0):
            parts = self._control.recv_multipart()
            if len(parts) == 2:
                self.frames.append(decode_frame(RUN, parts[0]))

    def asks(self, query: int, stripe: int = 0, stripes: int = 1) -> None:
        announced = encode(RUN, a_push(1, 1))
        begin = Begin(1, query, announced, CHUNKS, MANIFEST.bytes, "fp32", stripe, stripes)
        self._bulk.send(encode(RUN, begin))

    async def answer_to(self, query: int, stripe: int = 0, stripes: int = 1) -> Frame:
        """What the server answers to a query."""
        self.asks(query, stripe, stripes)

        def answers() -> list[Frame]:
            self.listens()
            wanted = (query, stripe)
            return [
                each
                for each in self.frames
                if isinstance(each, Abort)
                or (isinstance(each, Have) and (each.query, each.stripe) == wanted)
            ]

        await eventually(lambda: bool(answers()))
        return answers()[-1]

    async def joins_again(self) -> None:
        """Control is connected: the server knows where to answer."""
        self.says(HELLO)
        await eventually(lambda: bool(self._control.poll(0)))


@contextmanager
def a_sender(nodes: Nodes, name: bytes = b"lps-eu") -> Iterator[SenderProcess]:
    port = nodes.ports[0]
    with raw_client(port, name) as control, raw_client(port + 1, name) as bulk:
        yield SenderProcess(control, bulk)


async def half_arrives(server: Node, region: SenderProcess) -> None:
    """Five chunks, with a hole among them, and the server says so."""
    await region.joins_and_is_granted()
    region.begins()
    for index in (0, 1, 2, 4, 5):
        region.sends(index)
    await eventually(lambda: server.telemetry.counters["chunks_received"] == 5)
    assert await region.answer_to(2) == Have(1, 2, 3, ((4, 6),))


@pytest.mark.parametrize("durability", ["process", "host"])
@pytest.mark.parametrize("rotates", [False, True])
@pytest.mark.parametrize("kills", [1, 2])
async def test_the_next_incarnation_has_the_chunks_that_the_one_before_acknowledged(
    nodes: Nodes,
    durability: Durability,
    rotates: bool,
    kills: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """1. Half of an update arrives; with ``rotates`` a snapshot takes the place of the journal that has it.
    2. The server is killed, more than once perhaps. 3. Asked, it says that it has that half, and with the
    other one the update is applied."""
    server = await a_gps(nodes, durability)
    with a_sender(nodes) as region:
        await half_arrives(server, region)
        if rotates:
            before = newest(nodes.folder, "snapshot")
            monkeypatch.setattr(journal, "SNAPSHOT_QUIET_EVENTS", 1)
            region.says(Heartbeat(None))
            await eventually(lambda: newest(nodes.folder, "snapshot") > before)
            monkeypatch.undo()
        for _ in range(kills):
            await nodes.kill("gps")
            server = await a_gps(nodes, durability)
        assert server.transfers.incoming.active == 1
    with a_sender(nodes) as region:
        await region.joins_again()
        assert await region.answer_to(3) == Have(1, 3, 3, ((4, 6),))
        for index in (3, *range(6, CHUNKS)):
            region.sends(index)
        assert (await region.hears(Ack)).outcome == "applied"
        assert server.telemetry.counters["chunks_received"] == CHUNKS - 5
        assert server.transfers.incoming.active == 0
        # What is left is the model that answers it, which is never fetched.
        await eventually(lambda: all(blob > 0 for blob in server.tensors._uses))
        await assert_the_first_update_survives(nodes)


async def test_a_chunk_that_a_full_disk_has_not_taken_is_not_acknowledged(nodes: Nodes) -> None:
    """1. The disk takes two and a half of five chunks: none of the five is acknowledged.
    2. The server is killed. The next incarnation says that it has two."""
    server = await a_gps(nodes)
    await eventually(lambda: newest(nodes.folder, "snapshot") == 1)
    with a_sender(nodes) as region:
        await region.joins_and_is_granted()
        region.begins()
        assert await region.answer_to(2) == Have(1, 2, 0, ())
        path = nodes.folder / "gps" / "state" / "journal-00000001"
        full = path.stat().st_size + int(2.5 * MANIFEST.chunk_bytes)
        with files_end_at(full):
            for index in range(5):
                region.sends(index)
            await eventually(lambda: server.telemetry.counters["chunks_received"] == 5)
            await eventually(lambda: path.stat().st_size == full)
            region.asks(3)
            region.says(Heartbeat(None))
            await region.hears(Heartbeat)
            await eventually(lambda: len(server.durability.held) > 0)  # type: ignore[union-attr]
            region.listens()
            assert all(each.through == 0 for each in region.frames if isinstance(each, Have))
            await nodes.kill("gps")
    server = await a_gps(nodes)
    with a_sender(nodes) as region:
        await region.joins_again()
        assert await region.answer_to(4) == Have(1, 4, 2, ())


async def test_a_complete_payload_that_was_not_handled_is_handled_by_the_next_incarnation(
    nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1. All chunks are in the journal, and the sender knows; the server is killed before its machine
    hears of them. 2. The next incarnation applies the update without a message from its sender."""
    server = await a_gps(nodes)
    with a_sender(nodes) as region:
        await region.joins_and_is_granted()
        monkeypatch.setattr(server.transfers.incoming, "_complete", lambda _: None)
        region.begins()
        for index in range(CHUNKS):
            region.sends(index)
        assert await region.answer_to(2) == Have(1, 2, CHUNKS, ())
        await assert_the_first_update_survives(nodes, measured=False)
    with a_sender(nodes) as region:
        region.says(Offer(PushId(1, 1)))
        assert (await region.hears(Ack)).outcome == "applied"


async def test_a_query_about_a_complete_payload_is_answered_by_the_next_incarnation(
    nodes: Nodes,
) -> None:
    """The last acknowledgement was lost with the server: nothing is sent again."""
    await a_gps(nodes)
    with a_sender(nodes) as region:
        await region.joins_and_is_granted()
        region.begins()
        for index in range(CHUNKS):
            region.sends(index)
        await region.hears(Ack)
        await assert_the_first_update_survives(nodes)
    with a_sender(nodes) as region:
        await region.joins_again()
        assert await region.answer_to(2) == Have(1, 2, CHUNKS, ())
    assert nodes.nodes["gps"][0].transfers.incoming.active == 0


async def test_each_stripe_goes_on_where_it_was_when_the_server_was_killed(nodes: Nodes) -> None:
    """1. A payload arrives on two stripes: chunks 0, 2 and 6 on the first, chunk 1 on the second. 2. The server is
    killed and started again. 3. Each stripe learns what it had, and with the rest the update is applied."""
    server = await a_gps(nodes)
    with a_sender(nodes) as region:
        await region.joins_and_is_granted()
        for stripe in (0, 1):
            region.asks(1, stripe, 2)
        for index in (0, 2, 6, 1):
            region.sends(index)
        await eventually(lambda: server.telemetry.counters["chunks_received"] == 4)
        assert await region.answer_to(2, 0, 2) == Have(1, 2, 2, ((3, 4),), 0)
        assert await region.answer_to(2, 1, 2) == Have(1, 2, 1, (), 1)
        await nodes.kill("gps")
        server = await a_gps(nodes)
    with a_sender(nodes) as region:
        await region.joins_again()
        assert await region.answer_to(3, 0, 2) == Have(1, 3, 2, ((3, 4),), 0)
        assert await region.answer_to(3, 1, 2) == Have(1, 3, 1, (), 1)
        for index in (3, 4, 5, *range(7, CHUNKS)):
            region.sends(index)
        assert (await region.hears(Ack)).outcome == "applied"
        assert server.telemetry.counters["chunks_received"] == CHUNKS - 4
        await eventually(lambda: all(blob > 0 for blob in server.tensors._uses))
        await assert_the_first_update_survives(nodes)


async def test_a_payload_in_an_encoding_that_is_expected_no_more_is_not_resumed(
    nodes: Nodes,
) -> None:
    """1. Half of an update arrives in fp32. 2. The next process expects another encoding: it keeps no place, and
    the sender learns that what it sent is lost."""
    server = await a_gps(nodes)
    with a_sender(nodes) as region:
        await half_arrives(server, region)
        await nodes.kill("gps")
        server = await a_gps(nodes, encoding=BF16)
    assert (server.transfers.incoming.active, server.tensors.payloads) == (0, 0)
    with a_sender(nodes) as region:
        await region.joins_again()
        assert await region.answer_to(3) == Abort(1, UNKNOWN)


async def test_a_payload_that_its_sender_gave_up_is_not_resumed(nodes: Nodes) -> None:
    """1. Half of an update arrives, and its sender wants no more of it. 2. The next incarnation keeps no place."""
    server = await a_gps(nodes)
    with a_sender(nodes) as region:
        await half_arrives(server, region)
        region._control.send_multipart([encode(RUN, Abort(1, "superseded")), b""])
        await eventually(lambda: server.transfers.incoming.active == 0)
        region.says(Heartbeat(None))
        await region.hears(Heartbeat)
        written = server.durability.journal  # type: ignore[union-attr]
        await eventually(lambda: written.durable == written.last)
        await nodes.kill("gps")
    server = await a_gps(nodes)
    assert (server.transfers.incoming.active, server.tensors.payloads) == (0, 0)
    with a_sender(nodes) as region:
        await region.joins_again()
        assert await region.answer_to(3) == Abort(1, UNKNOWN)


async def test_no_more_payloads_are_resumed_than_there_are_places(
    nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1. Three peers (more than are ever granted) are sending when the server is killed. 2. The next incarnation may
    have two at a time: it goes on with those that began last, and a later one goes on with the same."""
    monkeypatch.setattr(Gps, "expects", lambda *_: True)
    server = await a_gps(nodes)
    for number, name in enumerate((b"one", b"two", b"three"), start=1):
        with a_sender(nodes, name) as region:
            region.begins()
            region.sends(number)
            await eventually(
                lambda n=number: server.telemetry.counters["chunks_received"] == n  # type: ignore[misc]
            )
    written = server.durability.journal  # type: ignore[union-attr]
    await eventually(lambda: written.durable == written.last)
    await nodes.kill("gps")
    server = await a_gps(nodes, limits=Limits(incoming_max=2))
    assert sorted(server.transfers.incoming._transfers) == ["three", "two"]
    assert server.tensors.payloads == 2
    given_up = server.durability.journal  # type: ignore[union-attr]
    await eventually(lambda: given_up.durable == given_up.last)
    await nodes.kill("gps")
    server = await a_gps(nodes)
    assert sorted(server.transfers.incoming._transfers) == ["three", "two"]


if __name__ == "__main__":
    torch.set_num_threads(1)
    uvloop.run(serve(Path(sys.argv[1]), int(sys.argv[2]), "process", 0, big_plane()))
    os._exit(0)
