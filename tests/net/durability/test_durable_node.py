"""Durable nodes: killed and started again they continue, and send nothing that a crash could undo."""

import errno
import os
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import zmq

from gps.state import Gps
from pelago.config.fields import Durability
from pelago.core.machine import PS_PER_S, Send, Started
from pelago.core.names import PushId
from pelago.net.durability import journal, manager
from pelago.net.node import Node
from pelago.tensor.checksum import checksum
from pelago.wire.codec import decode_message, encode
from pelago.wire.messages import (
    Ack,
    Begin,
    Chunk,
    Grant,
    Heartbeat,
    LeaseGrant,
    LeaseRequest,
    Message,
    Offer,
    Welcome,
)
from tests.net.durability.test_journal import files_end_at
from tests.net.golden_updates import (
    HELLO,
    LEASED,
    MANIFEST,
    START,
    GoldenRegion,
    a_push,
    empty_plane,
    global_digest,
    global_plane,
    gps_settings,
    sender_plane,
    updates,
)
from tests.net.nodes import RUN, Nodes, Script, a_model, eventually, raw_client, settled


@pytest.fixture(autouse=True)
async def all_is_killed_at_the_end(nodes: Nodes) -> AsyncIterator[None]:
    """A GPS would wait for its region to leave."""
    torch.set_num_threads(1)
    yield
    for name in list(nodes.nodes):
        await nodes.kill(name)


async def a_gps(nodes: Nodes, durability: Durability = "process", **more: Any) -> Node:
    """The golden GPS, at its first start or a later one; its machine has handled the first event."""
    node = nodes.start(
        Gps(gps_settings()),
        "gps",
        server=nodes.bind(),
        plane=global_plane(),
        plane_factory=empty_plane,
        loaded=START,
        state_store=nodes.state_store("gps", durability),
        **more,
    )
    _, task = nodes.nodes["gps"]
    await eventually(
        lambda: (node.durability is not None and node.durability._number > 0) or task.done()
    )
    return node


async def test_a_second_incarnation_needs_no_model_to_begin_with(nodes: Nodes) -> None:
    """The first snapshot is made before anything arrived."""
    await a_gps(nodes)
    await eventually(lambda: newest(nodes.folder, "snapshot") == 1)
    await nodes.kill("gps")
    server = nodes.start(
        Gps(gps_settings()),
        "gps",
        plane_factory=empty_plane,
        state_store=nodes.state_store("gps", "process"),
    )
    await eventually(lambda: server.durability is not None)
    await settled(server)
    assert server.tensors.plane.digest() == global_digest(0)


async def test_the_clock_stands_still_while_there_is_no_server(nodes: Nodes) -> None:
    """1. A server is killed. Its files say that it was an hour ago, or the wall's clock was set meanwhile.
    2. The next one goes on from the time of the last event: a budget of minutes loses nothing by it."""
    server = await a_gps(nodes)
    await nodes.kill("gps")
    killed_at = server.clock.read()
    for path in (nodes.folder / "gps" / "state").iterdir():
        os.utime(path, (path.stat().st_mtime - 3600,) * 2)
    started_at = time.monotonic_ns()
    server = await a_gps(nodes)
    lived_ps = (time.monotonic_ns() - started_at) * 1000
    assert server.clock.read() <= killed_at + lived_ps + PS_PER_S


async def test_a_server_serves_on_a_host_that_has_been_up_for_years(
    nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A journal has room for 213 days of its server's clock."""
    up_ns, read = 1000 * 24 * 3600 * 10**9, time.monotonic_ns
    monkeypatch.setattr(time, "monotonic_ns", lambda: up_ns + read())
    server = await a_gps(nodes)
    await settled(server)
    assert server.clock.read() < 24 * 3600 * PS_PER_S
    assert not nodes.nodes["gps"][1].done()


async def a_region(nodes: Nodes, region: GoldenRegion) -> Script:
    """A region that sends the golden updates."""
    machine = Script(region)
    client = nodes.client(machine, plane=sender_plane())
    await machine.hears(Started)
    for number in range(1, 8):
        client.tensors.created(number)
    return machine


def newest(folder: Path, kind: str) -> int:
    """The index of the newest file of a kind in the GPS's folder; -1: there is none."""
    found = (folder / "gps" / "state").glob(f"{kind}-????????")
    return max((int(path.name.removeprefix(f"{kind}-")) for path in found), default=-1)


@pytest.mark.parametrize("durability", ["process", "host"])
async def test_arrivals_at_a_server_that_is_killed_again_and_again_give_the_golden_bits(
    nodes: Nodes, durability: Durability, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1. The server is killed after each arrival and started again; snapshots happen all the time.
    2. Its client never notices: one fence, nothing lost, nothing applied twice.
    3. Parameters and momenta are those of an uninterrupted run, to the bit."""
    monkeypatch.setattr(journal, "SNAPSHOT_EVENTS", 4)
    server = await a_gps(nodes, durability)
    region = GoldenRegion()
    machine = await a_region(nodes, region)
    for number in range(1, 8):
        await machine.until(lambda number=number: number in region.outcomes)  # type: ignore[misc]
        await nodes.kill("gps")
        server = await a_gps(nodes, durability)
    await machine.hears(Heartbeat, len(machine.messages(Heartbeat)) + 2)
    await settled(server)
    assert server.tensors.plane.digest() == global_digest()
    assert server.machine.model.version.counter == 7  # type: ignore[attr-defined]
    assert region.outcomes == {number: {"applied"} for number in range(1, 8)}
    assert (region.fences, region.rejoins) == ({1}, 0)
    assert newest(nodes.folder, "snapshot") >= 3
    assert newest(nodes.folder, "journal") >= 8


async def test_a_disk_that_takes_nothing_holds_back_what_promises_something(
    nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1. The disk is full during the third update. The server still sends heartbeats, but no message that depends on
    an event that is not written. 2. There is space: all messages are sent."""
    monkeypatch.setattr(journal, "RETRY_S", 0.02)

    def promises(machine: Script) -> int:
        return len(machine.messages(object)) - len(machine.messages(Heartbeat))

    full = int(2.5 * MANIFEST.bytes)
    with files_end_at(full) as space_returns:
        server = await a_gps(nodes)
        region = GoldenRegion()
        machine = await a_region(nodes, region)
        # The first journal ended with the snapshot that is made at once.
        path = nodes.folder / "gps" / "state" / "journal-00000001"
        await eventually(lambda: bool(server.durability.held) and path.stat().st_size == full)
        # What rests on what is written may still be on its way.
        await eventually(lambda: server.transfers.outgoing.active == 0)
        await machine.hears(Heartbeat, len(machine.messages(Heartbeat)) + 3)
        promised = promises(machine)
        assert len(region.outcomes) == 2
        durable = server.durability.journal.durable  # type: ignore[union-attr]
        await machine.hears(Heartbeat, len(machine.messages(Heartbeat)) + 10)
        assert promises(machine) == promised
        assert server.durability.held
        assert server.durability.journal.durable == durable  # type: ignore[union-attr]
        space_returns()
        await machine.until(lambda: len(region.outcomes) == 7)
    await eventually(lambda: not server.durability.held)  # type: ignore[union-attr]
    await nodes.kill("gps")
    server = await a_gps(nodes)
    await machine.hears(Heartbeat, len(machine.messages(Heartbeat)) + 2)
    await settled(server)
    assert server.tensors.plane.digest() == global_digest()


async def test_a_snapshot_that_failed_is_tried_again_in_time(
    nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1. There is no room for the snapshot with which a GPS begins: it serves all the same, and says so once,
    however often it tries. 2. There is room, and nothing happens in the run but heartbeats: it is written."""
    monkeypatch.setattr(manager, "RETRY_MS_MIN", 20)
    monkeypatch.setattr(manager, "RETRY_MS_MAX", 40)
    with files_end_at(MANIFEST.bytes // 2) as space_returns:
        server = await a_gps(nodes)
        await eventually(lambda: server.durability._failures >= 3)  # type: ignore[union-attr]
        assert newest(nodes.folder, "snapshot") == -1
        space_returns()
    await eventually(lambda: newest(nodes.folder, "snapshot") >= 1)
    await eventually(lambda: server.durability._failures == 0)  # type: ignore[union-attr]
    server.telemetry.close()
    log = (nodes.folder / "gps.jsonl").read_text(encoding="utf-8")
    assert log.count('"snapshot_failed"') == 1


async def test_a_snapshot_that_others_read_is_never_old(
    nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The journal is too small for one to be due; but two models have come, and time has passed."""
    monkeypatch.setattr(manager, "FRESH_MS", 0)
    await a_gps(nodes)
    region = GoldenRegion()
    machine = await a_region(nodes, region)
    await machine.until(lambda: len(region.outcomes) == 7)
    await eventually(lambda: newest(nodes.folder, "snapshot") >= 3)


async def test_what_waits_for_the_disk_is_not_overtaken(
    nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk has a record before the event loop hears of it: messages still leave in their order."""
    machine = Script()
    server = nodes.server(machine, state_store=nodes.state_store())
    await machine.hears(Started)
    written = server.durability.journal
    assert written is not None
    await eventually(lambda: written.durable == written.last)
    sent: list[str] = []
    server.durability.held.append((written.last, lambda: sent.append("first")))
    monkeypatch.setattr(server, "_send_now", lambda *_: sent.append("second"))
    server._send(Send("lps-1", a_model()))
    assert sent == []
    server.durability._on_written(written.last)
    assert sent == ["first", "second"]


# --- payloads ------------------------------------------------------------------------------------


class RawRegion:
    """A region's sockets, on which a test sends what it likes; it pushes the first golden update."""

    def __init__(self, control: "zmq.Socket[bytes]", bulk: "zmq.Socket[bytes]") -> None:
        self._control, self._bulk = control, bulk
        self._flat = memoryview(updates()[0].numpy()).cast("B")
        self._heard: list[Message] = []

    async def hears(self, kind: type) -> Any:
        def heard() -> bool:
            while self._control.poll(0):
                parts = self._control.recv_multipart()
                if len(parts) == 1:
                    self._heard.append(decode_message(RUN, parts[0]))
            return any(isinstance(each, kind) for each in self._heard)

        await eventually(heard)
        return next(each for each in self._heard if isinstance(each, kind))

    def says(self, message: Message) -> None:
        self._control.send(encode(RUN, message))

    async def joins_and_is_granted(self) -> None:
        self.says(HELLO)
        await self.hears(Welcome)
        self.says(LeaseRequest(1, LEASED, 0))
        await self.hears(LeaseGrant)
        self.says(Offer(PushId(1, 1)))
        await self.hears(Grant)

    def begins(self) -> None:
        announced = encode(RUN, a_push(1, 1))
        begin = Begin(1, 1, announced, len(MANIFEST.chunks), MANIFEST.bytes, "fp32")
        self._bulk.send(encode(RUN, begin))

    def sends(self, index: int, body: bytes | None = None, claimed: int | None = None) -> None:
        """A chunk: the right one, or what is given."""
        piece = MANIFEST.chunks[index]
        right = bytes(self._flat[4 * piece.start : 4 * piece.stop])
        body = right if body is None else body
        claimed = checksum(body) if claimed is None else claimed
        self._bulk.send_multipart([encode(RUN, Chunk(1, index, claimed)), body])


@contextmanager
def raw_region(nodes: Nodes) -> Iterator[RawRegion]:
    port = nodes.ports[0]
    with raw_client(port, b"lps-eu") as control, raw_client(port + 1, b"lps-eu") as bulk:
        yield RawRegion(control, bulk)


async def assert_the_first_update_survives(nodes: Nodes, *, measured: bool = True) -> None:
    """Kill the server, start it again: it has the model after one update, at once or, if it was not
    ``measured`` yet, after that."""
    await nodes.kill("gps")
    server = await a_gps(nodes)
    if not measured:
        await eventually(lambda: server.machine.model.version.counter == 1)  # type: ignore[attr-defined]
    assert server.machine.model.version.counter == 1  # type: ignore[attr-defined]
    await settled(server)
    assert server.tensors.plane.digest() == global_digest(1)


async def test_a_payload_that_arrives_while_the_journal_rotates_survives(
    nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1. Five of its chunks arrive; a snapshot is made, and the journal with these chunks goes.
    2. The others arrive, and the update is acknowledged. 3. The server is killed."""
    server = await a_gps(nodes)
    with raw_region(nodes) as region:
        await region.joins_and_is_granted()
        region.begins()
        for index in range(5):
            region.sends(index)
        await eventually(lambda: server.telemetry.counters["chunks_received"] == 5)
        monkeypatch.setattr(journal, "SNAPSHOT_QUIET_EVENTS", 1)
        region.says(Heartbeat(None))
        await eventually(lambda: newest(nodes.folder, "snapshot") == 1)
        monkeypatch.undo()
        for index in range(5, len(MANIFEST.chunks)):
            region.sends(index)
        assert (await region.hears(Ack)).outcome == "applied"
        (nodes.folder / "gps" / "state" / "journal-00000000").unlink()
        await assert_the_first_update_survives(nodes)


async def test_half_a_payload_at_the_kill_is_sent_again(nodes: Nodes) -> None:
    """1. Some chunks arrive, the server is killed. 2. All of them come to the next incarnation."""
    server = await a_gps(nodes)
    with raw_region(nodes) as region:
        await region.joins_and_is_granted()
        region.begins()
        for index in range(5):
            region.sends(index)
        await eventually(lambda: server.telemetry.counters["chunks_received"] == 5)
        await nodes.kill("gps")
        await a_gps(nodes)
    with raw_region(nodes) as region:
        region.says(HELLO)
        assert (await region.hears(Welcome)).fence == 1
        region.begins()
        for index in range(len(MANIFEST.chunks)):
            region.sends(index)
        assert (await region.hears(Ack)).outcome == "applied"
        await assert_the_first_update_survives(nodes)


@pytest.mark.parametrize("claims", ["the right checksum", "a wrong checksum"])
async def test_a_chunk_that_comes_again_with_other_bytes_does_no_harm(
    nodes: Nodes, claims: str
) -> None:
    """1. A peer repeats a chunk, with other bytes than before. The server goes on with the first.
    2. So does the next incarnation: the journal has what the plane had, and is sound."""
    server = await a_gps(nodes)
    with raw_region(nodes) as region:
        await region.joins_and_is_granted()
        region.begins()
        region.sends(0)
        piece = MANIFEST.chunks[0]
        other = os.urandom(4 * (piece.stop - piece.start))
        region.sends(0, other, checksum(other) if claims == "the right checksum" else 12345)
        await eventually(lambda: server.telemetry.counters["chunks_received"] == 2)
        for index in range(1, len(MANIFEST.chunks)):
            region.sends(index)
        assert (await region.hears(Ack)).outcome == "applied"
        await assert_the_first_update_survives(nodes)


async def test_a_payload_that_was_not_granted_is_refused_and_not_journalled(
    nodes: Nodes,
) -> None:
    """1. A region that was granted one update begins another; so does a stranger: nothing of it is kept.
    2. What was granted arrives all the same."""
    server = await a_gps(nodes)
    with raw_region(nodes) as region, raw_client(nodes.ports[0] + 1, b"stranger") as stranger:
        await region.joins_and_is_granted()
        written = server.durability.journal.last  # type: ignore[union-attr]
        other = encode(RUN, a_push(2, 1))
        begin = encode(RUN, Begin(1, 1, other, len(MANIFEST.chunks), MANIFEST.bytes, "fp32"))
        region._bulk.send(begin)
        stranger.send(
            encode(
                RUN,
                Begin(
                    1, 1, encode(RUN, a_push(1, 1)), len(MANIFEST.chunks), MANIFEST.bytes, "fp32"
                ),
            )
        )
        await eventually(lambda: server.telemetry.counters["dropped_transfer"] == 2)
        region.sends(0)
        await eventually(lambda: server.telemetry.counters["late_chunks"] == 1)
        assert server.transfers.incoming.active == 0
        assert server.durability.journal.last == written  # type: ignore[union-attr]
        region.begins()
        for index in range(len(MANIFEST.chunks)):
            region.sends(index)
        assert (await region.hears(Ack)).outcome == "applied"


async def test_a_server_without_a_snapshot_replays_its_whole_journal(
    nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is no room for a snapshot: the third incarnation begins with the model of the first start."""

    def full(*_: object, **__: object) -> int:
        raise OSError(errno.ENOSPC, "no room")

    monkeypatch.setattr(journal, "write_snapshot", full)
    region = GoldenRegion(3)
    await a_gps(nodes)
    machine = await a_region(nodes, region)
    for number in (1, 2):
        await machine.until(lambda number=number: number in region.outcomes)  # type: ignore[misc]
        await nodes.kill("gps")
        server = await a_gps(nodes)
    await machine.until(lambda: len(region.outcomes) == 3)
    await settled(server)
    assert server.tensors.plane.digest() == global_digest(3)
    assert newest(nodes.folder, "snapshot") == -1
