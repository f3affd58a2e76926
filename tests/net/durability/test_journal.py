"""The journal's thread: in order, whole batches, nothing reported durable before the disk has it."""

import asyncio
import errno
import os
import resource
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from pelago.config.fields import Durability
from pelago.core.machine import Received, Tick
from pelago.durable import record
from pelago.durable.record import Begun, Kind
from pelago.net.durability import journal, snapshot_writer
from pelago.net.durability.journal import Journal, JournalListener, JournalPosition
from pelago.net.durability.state_folder import StateFolder
from pelago.tensor.payload import ChunkBuffer
from pelago.wire.messages import Heartbeat
from tests.net.durability.state_files import (
    RUN,
    a_header,
    a_store,
    an_event,
    assert_reads,
    names,
    numbers,
    recovered_state,
)
from tests.small_disk import fill, small_disk

DEADLINE_S = 20.0


class Desk:
    """A journal, and what it reported."""

    def __init__(self, store: StateFolder, durability: Durability = "process") -> None:
        recovered = store.recovered()
        if recovered is not None:
            store.cut(recovered)
        self.store = store
        self.written: list[int] = []
        self.troubles: list[str] = []
        self.faults: list[BaseException] = []
        self.snapshots: list[tuple[int, str]] = []
        """Bytes, or why there is none."""
        self._told = asyncio.Event()
        self.journal = Journal(
            store,
            durability,
            a_header(),
            JournalPosition.after(recovered),
            JournalListener(
                self._note(self.written), self._note(self.troubles), self._note(self.faults)
            ),
        )

    def _note(self, said: list[Any]) -> Callable[[Any], None]:
        def note(what: Any) -> None:
            said.append(what)
            self._told.set()

        return note

    async def until(self, holds: Callable[[], bool]) -> None:
        """Wait until something holds, looking again whenever the journal reports something."""
        async with asyncio.timeout(DEADLINE_S):
            while not holds():
                self._told.clear()
                await self._told.wait()

    async def durable(self, number: int) -> None:
        await self.until(lambda: bool(self.written) and self.written[-1] >= number)

    def events(self, first: int, last: int) -> None:
        for number in range(first, last + 1):
            assert self.journal.event(RUN, an_event(number), 1000 + number) == number

    def snapshot(
        self, chunks: int = 2, rewritten: Callable[[], None] = lambda: None
    ) -> tuple[int, int]:
        """Rotate, and write a snapshot of chunks of 8 bytes."""
        index, number = self.journal.rotate()
        rewritten()
        image = record.pack(["image", number])
        layout = record.pack({"payloads": []})
        chunks = [ChunkBuffer(torch.full((2,), float(place))) for place in range(chunks)]
        note = self._note(self.snapshots)
        self.journal.snapshot(
            index,
            number,
            1000 + number,
            image,
            layout,
            lambda: iter(chunks),
            lambda size, trouble: note((size, trouble)),
        )
        return index, number


@asynccontextmanager
async def a_desk(folder: Path, durability: Durability = "process") -> AsyncIterator[Desk]:
    store = a_store(folder)
    desk = Desk(store, durability)
    try:
        yield desk
    finally:
        desk.journal.close()
        store.close()
    assert not [each for each in threading.enumerate() if each.name in ("journal", "snapshot")]


@contextmanager
def files_end_at(size: int) -> Iterator[Callable[[], None]]:
    """The disk is full: no file of this process grows beyond a size. Call it: there is space again."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)

    def space_returns() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)

    resource.setrlimit(resource.RLIMIT_FSIZE, (size, old[1]))
    try:
        yield space_returns
    finally:
        space_returns()


@pytest.fixture(params=["process", "host"])
def durability(request: pytest.FixtureRequest) -> Durability:
    found: Durability = request.param
    return found


async def test_events_are_read_back_in_order(tmp_path: Path, durability: Durability) -> None:
    async with a_desk(tmp_path, durability) as desk:
        desk.events(1, 50)
        await desk.durable(50)
        assert desk.written == sorted(set(desk.written))
        assert_reads(recovered_state(desk.store), 50)
        assert (desk.journal.last, desk.troubles, desk.faults) == (50, [], [])


async def test_incarnations_follow_one_another(tmp_path: Path) -> None:
    """1. Each incarnation writes a journal, and the last write is torn. 2. The next one reads all before it."""
    for incarnation in range(4):
        first = 1 + 3 * incarnation
        async with a_desk(tmp_path) as desk:
            desk.events(first, first + 2)
            await desk.durable(first + 2)
        with desk.store.journal(incarnation).open("ab") as file:
            file.write(record.head(Kind.EVENT, first + 3, b"never written whole"))
    store = a_store(tmp_path)
    assert_reads(recovered_state(store), 12)
    store.close()


async def test_chunks_and_events_of_two_threads_have_one_order(tmp_path: Path) -> None:
    """Numbers grow by one whichever thread queues; a chunk's bytes are its own."""
    bodies = [os.urandom(5000) for _ in range(40)]

    async with a_desk(tmp_path) as desk:

        def stage() -> None:
            for place, body in enumerate(bodies):
                desk.journal.chunk(-1, place, memoryview(body), record.checksum(body))

        thread = threading.Thread(target=stage)
        thread.start()
        for number in range(40):
            desk.journal.event(RUN, an_event(number), number)
        thread.join()
        await desk.durable(80)
        recovered = recovered_state(desk.store)
    assert numbers(recovered) == list(range(1, 81))
    chunks = [each for each in recovered.records if each.head.kind is Kind.CHUNK]
    assert [(each.head.first, each.head.second) for each in chunks] == [(-1, i) for i in range(40)]
    assert [bytes(each.body) for each in chunks] == bodies


async def test_a_batch_of_many_parts_is_written_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More parts than one call takes, more bytes than one batch, and a kernel that writes only part of them."""
    monkeypatch.setattr(journal, "BATCH_BYTES", 20_000)
    writev = os.writev
    monkeypatch.setattr(os, "writev", lambda fd, parts: writev(fd, [parts[0][:1000]]))
    async with a_desk(tmp_path) as desk:
        desk.events(1, 600)
        await desk.durable(600)
        assert_reads(recovered_state(desk.store), 600)


async def test_nothing_is_durable_before_the_disk_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1. While a sync lasts, its records do not count as durable. 2. When it is over, they do."""
    syncs, goes_on = threading.Event(), threading.Event()
    fdatasync = os.fdatasync

    def slow(descriptor: int) -> None:
        syncs.set()
        assert goes_on.wait(DEADLINE_S)
        fdatasync(descriptor)

    async with a_desk(tmp_path, "host") as desk:
        desk.events(1, 1)
        await desk.durable(1)
        monkeypatch.setattr(os, "fdatasync", slow)
        desk.events(2, 2)
        assert await asyncio.to_thread(syncs.wait, DEADLINE_S)
        assert (desk.journal.durable, desk.written) == (1, [1])
        goes_on.set()
        await desk.durable(2)


async def test_a_sync_that_fails_is_a_fault_and_counts_for_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: int) -> None:
        raise OSError(errno.EIO, "a dying disk")

    async with a_desk(tmp_path, "host") as desk:
        desk.events(1, 3)
        await desk.durable(3)
        monkeypatch.setattr(os, "fdatasync", fail)
        desk.events(4, 5)
        await desk.until(lambda: bool(desk.faults))
        assert "a dying disk" in str(desk.faults[0])
        assert desk.journal.durable == 3
        assert desk.written[-1] == 3


# --- snapshots -----------------------------------------------------------------------------------


async def test_a_snapshot_replaces_the_files_before_it(
    tmp_path: Path, durability: Durability
) -> None:
    """1. Three times: some events, a snapshot. 2. Only the newest and its journal are left, and those
    before it. 3. They hold the whole state."""
    async with a_desk(tmp_path, durability) as desk:
        for turn in range(3):
            desk.events(5 * turn + 1, 5 * turn + 5)
            assert desk.snapshot(chunks=3) == (turn + 1, 5 * turn + 5)
            await desk.until(lambda turn=turn: len(desk.snapshots) == turn + 1)  # type: ignore[misc]
        desk.events(16, 17)
        await desk.durable(17)
        left = list(filter(counts, names(tmp_path)))
        assert left == [
            f"{kind}-0000000{each}" for kind in ("journal", "snapshot") for each in (2, 3)
        ]
        recovered = recovered_state(desk.store)
        assert_reads(recovered, 17, first=16)
        assert recovered.snapshot is not None
        assert (recovered.snapshot.number, recovered.snapshot.now, recovered.snapshot.image) == (
            15,
            1015,
            ["image", 15],
        )
        wanted = [torch.full((2,), float(i)).numpy().tobytes() for i in range(3)]
        assert [bytes(chunk) for chunk in recovered.snapshot.chunks] == wanted
        assert desk.snapshots[-1] == (recovered.snapshot.bytes, "")
        assert (desk.troubles, desk.faults) == ([], [])


async def test_a_new_snapshot_is_on_the_disk_before_the_old_one_goes(
    tmp_path: Path, durability: Durability, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So are its name and the history: a loss of power finds one of the two, and all that belongs to it."""
    steps: list[str] = []
    fsync, rename, unlink = os.fsync, Path.rename, Path.unlink

    def synced(descriptor: int) -> None:
        fsync(descriptor)
        steps.append("sync " + Path(f"/proc/self/fd/{descriptor}").readlink().name)

    def renamed(path: Path, target: Path) -> Path:
        steps.append(f"{path.name} becomes {target.name}")
        return rename(path, target)

    def unlinked(path: Path, missing_ok: bool = False) -> None:
        steps.append(f"{path.name} goes")
        unlink(path, missing_ok)

    async with a_desk(tmp_path / "state", durability) as desk:
        desk.events(1, 3)
        desk.snapshot()
        await desk.until(lambda: len(desk.snapshots) == 1)
        desk.events(4, 6)
        monkeypatch.setattr(os, "fsync", synced)
        monkeypatch.setattr(Path, "rename", renamed)
        monkeypatch.setattr(Path, "unlink", unlinked)
        desk.snapshot()
        await desk.until(lambda: len(desk.snapshots) == 2)
        monkeypatch.undo()
    part, name = "snapshot-00000002.part", "snapshot-00000002"
    written = ["sync history", f"sync {part}", f"{part} becomes {name}", "sync state"]
    assert steps[-4:] == written
    assert "snapshot-00000001" not in " ".join(steps)


async def test_a_snapshot_whose_name_does_not_reach_the_disk_does_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(folder: Path) -> None:
        raise OSError(errno.EIO, "a dying disk")

    async with a_desk(tmp_path) as desk:
        desk.events(1, 3)
        monkeypatch.setattr(snapshot_writer, "sync_folder", fail)
        desk.snapshot()
        await desk.until(lambda: bool(desk.snapshots))
        assert list(filter(counts, names(tmp_path))) == ["journal-00000000", "journal-00000001"]
        assert_reads(recovered_state(desk.store), 3)


async def test_a_chunk_that_looks_like_records_does_no_harm_when_its_file_is_written_over(
    tmp_path: Path,
) -> None:
    """1. It comes, with records in it that no salt of ours seals. 2. Two snapshots later its file is that of
    a new journal, which ends before it."""
    forged = record.head(Kind.EVENT, record.NUMBER_MAX, b"?") + b"?"
    body = bytes(400) + forged * 20
    async with a_desk(tmp_path) as desk:
        desk.journal.chunk(-1, 0, memoryview(body), record.checksum(body))
        for turn in range(2):
            desk.snapshot()
            await desk.until(lambda turn=turn: len(desk.snapshots) == turn + 1)  # type: ignore[misc]
        assert forged in desk.store.journal(2).read_bytes()
        recovered = recovered_state(desk.store)
        assert (recovered.snapshot is not None, recovered.records) == (True, [])


def counts(name: str) -> bool:
    """Whether a file counts: it is no lock, and none that only waits to be written over."""
    return name.startswith(("journal-", "snapshot-"))


async def test_killed_between_rotation_and_snapshot_both_journals_are_read(tmp_path: Path) -> None:
    async with a_desk(tmp_path) as desk:
        desk.events(1, 4)
        desk.journal.rotate()
        desk.events(5, 7)
        desk.journal.rotate()
        await desk.durable(7)
        assert_reads(recovered_state(desk.store), 7)
        await desk.until(lambda: True)
    store = a_store(tmp_path)
    recovered = recovered_state(store)
    assert_reads(recovered, 7)
    assert recovered.next_index == 3
    store.close()


async def test_no_snapshot_is_without_its_journal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1. The disk is slow with the journal when a snapshot is due: the snapshot waits, the old files stay.
    2. The next journal is begun: now the snapshot gets its name."""
    writes, goes_on = threading.Event(), threading.Event()
    writev = os.writev

    def slow(descriptor: int, parts: list[Any]) -> int:
        writes.set()
        assert goes_on.wait(DEADLINE_S)
        return writev(descriptor, parts)

    async with a_desk(tmp_path) as desk:
        desk.events(1, 3)
        await desk.durable(3)
        monkeypatch.setattr(os, "writev", slow)
        desk.events(4, 6)
        assert await asyncio.to_thread(writes.wait, DEADLINE_S)
        desk.snapshot()
        writer = desk.journal._snapshot_writer
        assert writer is not None
        await asyncio.to_thread(writer.join, 0.1)
        assert writer.is_alive()
        assert_reads(recovered_state(desk.store), 3)
        assert not desk.store.snapshot(1).exists()
        goes_on.set()
        await desk.until(lambda: bool(desk.snapshots))
        recovered = recovered_state(desk.store)
        assert recovered.snapshot is not None
        assert (recovered.snapshot.number, recovered.next_number) == (6, 7)


async def test_no_journal_is_removed_before_its_unfinished_payloads_are_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1. Half a payload is in the journal when a snapshot is due; the disk takes the next journal's header
    and is slow. 2. It takes the half as well: now the snapshot gets its name, and the old journal counts no
    more. 3. It goes when the next snapshot is begun."""
    begun = Begun("lps-eu", 7, b"a message", "fp32", 1)
    body = b"8 bytes!"
    slow_now, goes_on = threading.Event(), threading.Event()
    writev = os.writev

    def slow(descriptor: int, parts: list[Any]) -> int:
        head = record.parse_head(bytes(parts[0]), None)
        if head is not None and head.kind is Kind.BEGIN:
            slow_now.set()
            assert goes_on.wait(DEADLINE_S)
        return writev(descriptor, parts)

    def half(desk: Desk) -> None:
        desk.journal.begin(-1, begun)
        desk.journal.chunk(-1, 0, memoryview(body), record.checksum(body))

    async with a_desk(tmp_path) as desk:
        half(desk)
        await desk.durable(2)
        monkeypatch.setattr(os, "writev", slow)
        desk.snapshot(rewritten=lambda: half(desk))
        assert await asyncio.to_thread(slow_now.wait, DEADLINE_S)
        writer = desk.journal._snapshot_writer
        assert writer is not None
        await asyncio.to_thread(writer.join, 0.1)
        assert not desk.store.snapshot(1).exists()
        assert len(recovered_state(desk.store).records) == 2
        goes_on.set()
        await desk.until(lambda: bool(desk.snapshots))
        first, second = recovered_state(desk.store).records
        assert (first.head.kind, first.head.first) == (Kind.BEGIN, -1)
        assert record.unpack_begun(first.body) == begun
        assert (second.head.kind, bytes(second.body)) == (Kind.CHUNK, body)
        desk.snapshot()
        await desk.until(lambda: len(desk.snapshots) == 2)
        assert not desk.store.journal(0).exists()


async def test_a_node_that_closes_before_its_next_journal_writes_no_snapshot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal, "RETRY_S", 0.01)
    async with a_desk(tmp_path) as desk:
        desk.events(1, 3)
        await desk.durable(3)
        with files_end_at(desk.store.journal(0).stat().st_size):
            desk.events(4, 4)
            await desk.until(lambda: bool(desk.troubles))
            desk.snapshot()
            desk.journal.close()
    store = a_store(tmp_path)
    assert_reads(recovered_state(store), 3)
    store.close()


async def test_a_snapshot_is_due_by_bytes_or_by_events_and_never_while_one_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal, "SNAPSHOT_BYTES", 1000)
    monkeypatch.setattr(journal, "SNAPSHOT_MODELS", 4)
    monkeypatch.setattr(journal, "SNAPSHOT_EVENTS", 5)
    async with a_desk(tmp_path) as desk:
        desk.events(1, 4)
        assert not desk.journal.due(0)
        desk.events(5, 5)
        assert desk.journal.due(0)
        desk.journal.rotate()
        desk.events(6, 12)
        assert not desk.journal.due(0), "the one that was rotated for is not written yet"
    async with a_desk(tmp_path / "other") as desk:
        desk.journal.chunk(-1, 0, memoryview(bytes(999)), record.checksum(bytes(999)))
        assert desk.journal.due(0)
        assert not desk.journal.due(300)
        assert desk.journal.due(200)


async def test_heartbeats_and_ticks_count_for_little_towards_a_snapshot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server with hundreds of workers hears a thousand a second, and a snapshot may be gigabytes."""
    monkeypatch.setattr(journal, "SNAPSHOT_EVENTS", 2)
    monkeypatch.setattr(journal, "SNAPSHOT_QUIET_EVENTS", 40)
    async with a_desk(tmp_path) as desk:
        for number in range(39):
            desk.journal.event(RUN, Tick() if number % 2 else Received("w", Heartbeat(None)), 1)
        desk.journal.event(RUN, an_event(40), 1)
        assert not desk.journal.due(0)
        desk.journal.event(RUN, Tick(), 1)
        assert desk.journal.due(0)
        desk.journal.rotate()
        assert (desk.journal.events, desk.journal.quiet_events) == (0, 0)


# --- a full disk ---------------------------------------------------------------------------------


async def test_a_full_disk_holds_everything_back_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, durability: Durability
) -> None:
    """1. The disk takes half a record and no more: this is reported, and nothing counts as durable.
    2. Events go on. 3. There is space again: this is reported, and all is there, whole and in order."""
    monkeypatch.setattr(journal, "RETRY_S", 0.01)
    async with a_desk(tmp_path, durability) as desk:
        desk.events(1, 10)
        await desk.durable(10)
        size = desk.store.journal(0).stat().st_size
        with files_end_at(size + 50) as space_returns:
            desk.events(11, 11)
            await desk.until(lambda: len(desk.troubles) >= 2)
            desk.events(12, 400)
            await desk.until(lambda: len(desk.troubles) >= 4)
            assert all(is_about(each, desk.store.journal(0)) for each in desk.troubles)
            assert (desk.journal.durable, desk.written[-1]) == (10, 10)
            assert desk.store.journal(0).stat().st_size == size + 50
            space_returns()
            await desk.durable(400)
        assert desk.troubles[-1] == ""
        assert desk.troubles.count("") == 1
        assert desk.faults == []
        assert_reads(recovered_state(desk.store), 400)


def is_about(trouble: str, path: Path) -> bool:
    return trouble.startswith(f"cannot write to {path}: ")


async def test_killed_while_the_disk_is_full_the_torn_record_is_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ends at once, too, though the disk never takes the rest."""
    monkeypatch.setattr(journal, "RETRY_S", 60.0)
    async with a_desk(tmp_path) as desk:
        desk.events(1, 10)
        await desk.durable(10)
        with files_end_at(desk.store.journal(0).stat().st_size + 70):
            desk.events(11, 20)
            await desk.until(lambda: bool(desk.troubles))
            desk.journal.close()
    async with a_desk(tmp_path) as desk:
        recovered = recovered_state(desk.store)
        assert recovered.next_number == 11
        desk.events(11, 12)
        await desk.durable(12)
        assert_reads(recovered_state(desk.store), 12)


async def test_a_disk_that_is_full_at_the_next_journal_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal, "RETRY_S", 0.01)
    async with a_desk(tmp_path) as desk:
        desk.events(1, 3)
        await desk.durable(3)
        with files_end_at(20) as space_returns:
            desk.journal.rotate()
            desk.events(4, 6)
            await desk.until(lambda: len(desk.troubles) >= 2)
            assert is_about(desk.troubles[0], desk.store.journal(1))
            recovered = recovered_state(desk.store)
            assert_reads(recovered, 3)
            assert recovered.next_index == 1
            space_returns()
            await desk.durable(6)
        assert_reads(recovered_state(desk.store), 6)


async def test_a_full_disk_is_given_the_spare_files_first(tmp_path: Path) -> None:
    """A real one. 1. A snapshot leaves the journal before it. 2. The disk is full but for a little, and more
    is written than that: no trouble is reported, and that journal is gone."""
    with small_disk(tmp_path / "disk", 4 << 20) as folder:
        async with a_desk(folder) as desk:
            desk.journal.chunk(-1, 0, memoryview(bytes(1 << 19)), -1)
            desk.snapshot()
            await desk.until(lambda: len(desk.snapshots) == 1)
            assert "journal-00000000" in names(folder)
            fill(folder, 1 << 16)
            desk.journal.chunk(-2, 0, memoryview(bytes(1 << 18)), -1)
            await desk.durable(2)
            assert desk.troubles == []
            assert "journal-00000000" not in names(folder)
            assert not list(folder.glob("spare-*"))
            assert numbers(recovered_state(desk.store)) == [2]


async def test_a_disk_that_says_only_when_asked_that_it_is_full_is_written_to_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one over a network may: what it had not taken is lost to the kernel, so all of it is written again."""
    monkeypatch.setattr(journal, "RETRY_S", 0.01)
    real, full = os.fdatasync, threading.Event()

    def sync(descriptor: int) -> None:
        if full.is_set():
            os.ftruncate(descriptor, size)  # Nothing of it has come to stay.
            raise OSError(errno.EDQUOT, "over quota")
        real(descriptor)

    async with a_desk(tmp_path, "host") as desk:
        desk.events(1, 1)
        await desk.durable(1)
        size = desk.store.journal(0).stat().st_size
        full.set()
        monkeypatch.setattr(os, "fdatasync", sync)
        desk.events(2, 5)
        await desk.until(lambda: len(desk.troubles) >= 2)
        assert desk.written == [1]
        full.clear()
        await desk.durable(5)
        assert desk.faults == []
        assert_reads(recovered_state(desk.store), 5)


async def test_a_snapshot_that_finds_no_space_is_given_up_and_the_journals_stay(
    tmp_path: Path,
) -> None:
    """1. The disk takes the journal, but not a snapshot: reported, nothing removed, no half of it left.
    2. The next one finds space."""
    async with a_desk(tmp_path) as desk:
        desk.events(1, 3)
        await desk.durable(3)
        with files_end_at(20_000) as space_returns:
            desk.snapshot(chunks=1000)
            await desk.until(lambda: bool(desk.snapshots))
            assert desk.snapshots == [(0, "cannot write a snapshot: [Errno 27] File too large")]
            assert list(filter(counts, names(tmp_path))) == ["journal-00000000", "journal-00000001"]
            space_returns()
        desk.events(4, 5)
        desk.snapshot(chunks=1000)
        await desk.until(lambda: len(desk.snapshots) == 2)
        recovered = recovered_state(desk.store)
        assert recovered.snapshot is not None
        assert recovered.snapshot.number == 5
        assert len(recovered.snapshot.chunks) == 1000
