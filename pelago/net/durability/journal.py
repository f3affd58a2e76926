"""A node's journal: everything its machine is told is on disk before anybody hears what came of it.

A machine is a function of what it was told, so the events, with the payloads that came with some of
them, are all there is to keep: told again to a new machine, they give the same state, bit for bit. The
rule that makes it exact is the one of output commit (Strom and Yemini, Optimistic Recovery in
Distributed Systems, 1985): events are handled at once, but a message leaves only when the journal
holds every event up to the one that caused it.

`event` and `chunk` queue records, from the event loop and from the staging thread; one thread writes
them in that order. A disk that is full or slow holds back messages, never the event loop or the tensor
lane, and loses nothing: the writer waits for room and goes on.
"""

import asyncio
import os
import queue
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from pelago.config.fields import Durability
from pelago.core.errors import CheckpointError
from pelago.core.machine import Received, Tick
from pelago.core.names import BlobId
from pelago.durable import record
from pelago.durable.record import Begun, Header, Kind
from pelago.net import disk
from pelago.net.durability.history import HistoryLine, history_line
from pelago.net.durability.state_folder import PART, StateFolder, boot_id
from pelago.net.files import open_over, sync_file, sync_folder
from pelago.tensor.payload import ChunkBuffer
from pelago.wire.messages import Event, Heartbeat

BATCH_BYTES: Final = 8 << 20
"""So much is written with one call."""
RETRY_S: Final = 0.5
"""How often a disk that took nothing is tried again."""
CLOSE_S: Final = 10.0
SNAPSHOT_BYTES: Final = 64 << 20
SNAPSHOT_EVENTS: Final = 200_000
SNAPSHOT_QUIET_EVENTS: Final = 2_000_000
SNAPSHOT_MODELS: Final = 2
"""A snapshot is due when the journal has grown by this many models, and by `SNAPSHOT_BYTES`, or by this
many events: what a restart reads and does again is bounded by it. Quiet events are heartbeats and ticks, of
which a server with many workers hears thousands a second, whether anything happens or not."""


@dataclass(frozen=True, slots=True)
class _Rotate:
    """From here on records go into the next journal. ``for_snapshot``: a snapshot will stand for what is
    before it."""

    index: int
    header: bytes
    for_snapshot: bool


@dataclass(frozen=True, slots=True)
class _Mark:
    """What was queued before it is written."""

    reached: threading.Event = field(default_factory=threading.Event)


@dataclass(frozen=True, slots=True)
class _History:
    """A record for the history."""

    record: bytes


_Item = tuple[bytes, Any] | _Rotate | _Mark | _History
"""Head and body of a record of the journal, or something else to do in between."""


class Journal:
    """Writes what a node is told. Call from the event loop's thread, but `chunk` from any.

    ``on_written`` hears, on the loop, that all records up to a number are as durable as they get;
    ``on_trouble(text)`` that the disk takes nothing (empty: it does again); ``on_fault`` of what cannot be
    waited for.
    """

    def __init__(
        self,
        store: StateFolder,
        durability: Durability,
        header: Header,
        *,
        index: int,
        number: int,
        grown_bytes: int,
        on_written: Callable[[int], None],
        on_trouble: Callable[[str], None],
        on_fault: Callable[[BaseException], None],
    ) -> None:
        self.durable = number - 1
        """Number of the last record that is on disk."""
        self.bytes = grown_bytes
        """Written or queued since the last snapshot."""
        self.events = 0
        """Queued since then, without the quiet ones."""
        self.quiet_events = 0
        """Heartbeats and ticks."""
        self._store = store
        self._sync = durability == "host"
        self._header = header
        self._index = index
        self._number = number
        self._loop = asyncio.get_running_loop()
        self._on_written, self._on_trouble, self._on_fault = on_written, on_trouble, on_fault
        self._lock = threading.Lock()
        self._items: queue.SimpleQueue[_Item | None] = queue.SimpleQueue()
        self._closing = threading.Event()
        self._items.put(_Rotate(index, _packed_header(self._header, number), for_snapshot=False))
        self._writer = threading.Thread(target=self._run, name="journal", daemon=True)
        self._writer.start()
        self._snapshotting = False
        self._snapshot_writer: threading.Thread | None = None

    @property
    def last(self) -> int:
        """Number of the last record that was queued."""
        return self._number - 1

    def event(self, run: str, event: Event, now: int) -> int:
        """Queue an event. Returns the number of its record. Raises `WireError`."""
        body = record.pack_event(run, event)
        if isinstance(event, Tick) or (
            isinstance(event, Received) and isinstance(event.message, Heartbeat)
        ):
            self.quiet_events += 1
        else:
            self.events += 1
        return self._put(Kind.EVENT, body, 0, now, -1)

    def begin(self, blob: BlobId, begun: Begun) -> None:
        """Queue that a payload begins to arrive."""
        self._put(Kind.BEGIN, record.pack_begun(begun), blob, 0, -1)

    def abort(self, blob: BlobId) -> None:
        """Queue that no more of a payload will arrive."""
        self._put(Kind.ABORT, b"", blob, 0, -1)

    def chunk(self, blob: BlobId, place: int, body: memoryview, checksum: int) -> None:
        """Queue a chunk of a payload; its bytes may not change any more. From any thread."""
        self._put(Kind.CHUNK, body, blob, place, checksum)

    def history(self, line: HistoryLine) -> None:
        """Queue a line of the history."""
        self._items.put(_History(history_line(line)))

    def due(self, model_bytes: int, wanted: bool = False) -> bool:
        """Whether it is time for a snapshot, or somebody wants one, and none is being written."""
        if self._snapshotting:
            return False
        grown = self.bytes >= max(SNAPSHOT_BYTES, SNAPSHOT_MODELS * model_bytes)
        many = self.events >= SNAPSHOT_EVENTS or self.quiet_events >= SNAPSHOT_QUIET_EVENTS
        return wanted or grown or many

    def rotate(self) -> tuple[int, int]:
        """Begin the next journal, for which `snapshot` is called then.

        Returns its index, and the number of the last record before it. What of earlier journals is to
        outlive them is queued in between.
        """
        self._snapshotting = True
        with self._lock:
            self._index += 1
            self.bytes = self.events = self.quiet_events = 0
            header = _packed_header(self._header, self._number)
            self._items.put(_Rotate(self._index, header, for_snapshot=True))
            return self._index, self._number - 1

    def snapshot(
        self,
        index: int,
        number: int,
        now: int,
        image: bytes,
        layout: bytes | None,
        chunks: Callable[[], Iterator[ChunkBuffer]],
        then: Callable[[int, str], None],
    ) -> None:
        """Write the snapshot that belongs to a journal. What is before it goes when the next one is begun.

        In a thread of its own; ``then`` hears, on the loop, how many bytes were written, and why none if
        that failed.
        """

        if self._closing.is_set():
            return
        mark = _Mark()
        self._items.put(mark)

        def job() -> None:
            # The writer may have much to write before it: no snapshot is without its journal, and the
            # history has its lines up to here.
            while not mark.reached.wait(RETRY_S):
                if self._closing.is_set():
                    return
            size, trouble = 0, ""
            try:
                # Lines up to the snapshot's event do not follow from a journal again.
                sync_file(self._store.history)
                records = _snapshot_records(self._header, number, now, image, layout, chunks())
                size = _write_snapshot(self._store, index, records, _bytes(chunks()))
            except OSError as error:
                trouble = "" if size else f"cannot write a snapshot: {error}"
            except BaseException as error:
                self._post(self._on_fault, error)
                return
            self._post(finished, (size, trouble))

        def finished(found: tuple[int, str]) -> None:
            self._snapshotting = False
            then(*found)

        self._snapshot_writer = threading.Thread(target=job, name="snapshot", daemon=True)
        self._snapshot_writer.start()

    def close(self) -> None:
        """Write what is queued, if the disk takes it."""
        self._closing.set()
        self._items.put(None)
        self._writer.join(CLOSE_S)
        if self._snapshot_writer is not None:
            self._snapshot_writer.join(CLOSE_S)

    # --- queueing --------------------------------------------------------------------------------

    def _put(
        self, kind: Kind, body: bytes | memoryview, first: int, second: int, known: int
    ) -> int:
        of_body = record.checksum(body) if known < 0 else known
        with self._lock:
            number = self._number
            self._number += 1
            head = record.head(kind, number, body, first, second, of_body, self._header.salt)
            self.bytes += len(head) + len(body)
            self._items.put((head, body))
        return number

    def _post(self, call: Callable[[Any], None], argument: Any) -> None:
        if not self._closing.is_set():
            self._loop.call_soon_threadsafe(self._tell, call, argument)

    def _tell(self, call: Callable[[Any], None], argument: Any) -> None:
        # Since it was posted the node may have closed, and its sockets with it.
        if not self._closing.is_set():
            call(argument)

    # --- the writer's thread ---------------------------------------------------------------------

    def _run(self) -> None:
        try:
            # The history's lines follow from the journal again until a snapshot stands in for it.
            make_room = self._store.give_up_spares
            with (
                _File(self._sync, self._wait, make_room) as file,
                _File(False, self._wait, make_room) as history,
            ):
                history.append_to(self._store.history)
                while (item := self._items.get()) is not None:
                    self._write(file, history, item)
                    # A chunk may be megabytes; do not hold it while waiting for the next.
                    item = None
        except BaseException as error:
            self._post(self._on_fault, error)

    def _write(self, file: "_File", history: "_File", item: _Item | None) -> None:
        """Write an item, and with it whatever else is queued by then."""
        while item is not None:
            if isinstance(item, _Rotate):
                if item.for_snapshot:
                    self._store.drop_old()
                file.begin(self._store, item.index, item.header)
                return
            if isinstance(item, _Mark):
                item.reached.set()
                return
            if isinstance(item, _History):
                history.write([item.record])
                return
            batch: list[Any] = []
            size = written = 0
            while isinstance(item, tuple):
                head, body = item
                batch += [head, body] if len(body) else [head]
                size += len(head) + len(body)
                written += 1
                item = None
                if size >= BATCH_BYTES:
                    break
                try:
                    item = self._items.get_nowait()
                except queue.Empty:
                    break
                if item is None:
                    self._items.put(None)
            file.write(batch)
            self.durable += written
            self._post(self._on_written, self.durable)

    def _wait(self, trouble: str) -> bool:
        """Tell of trouble with the disk, or that it is over; whether to try again."""
        self._post(self._on_trouble, trouble)
        if not trouble:
            return True
        return not self._closing.wait(RETRY_S)


class _File:
    """The journal being written: whole batches, whatever the disk says in between."""

    def __init__(
        self, sync: bool, wait: Callable[[str], bool], make_room: Callable[[], bool]
    ) -> None:
        self._sync, self._wait, self._make_room = sync, wait, make_room
        self._descriptor = -1
        self._path = Path()

    def __enter__(self) -> "_File":
        return self

    def __exit__(self, *_: object) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)

    def begin(self, store: StateFolder, index: int, header: bytes) -> None:
        """Go on in another file: an old one that is written over, if there is one. What is left of it behind
        our end has lower numbers, and so is never taken for ours."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
        self._path = store.journal(index)

        def open_it() -> None:
            store.spare(self._path)
            self._descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o666)
            if self._sync:
                sync_folder(self._path.parent)

        self._patiently(open_it)
        self.write([header])

    def append_to(self, path: Path) -> None:
        """Go on at the end of a file."""
        self._path = path

        def open_it() -> None:
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
            self._descriptor = os.open(path, flags, 0o666)

        self._patiently(open_it)

    def write(self, parts: list[Any]) -> None:
        """Append all parts; what a full disk took already is not written again, unless it says only when
        asked for all of it that it is full."""
        views = [memoryview(part).cast("B") for part in parts]
        left = list(views)
        begin = os.lseek(self._descriptor, 0, os.SEEK_CUR)

        def some() -> None:
            while left:
                taken = os.writev(self._descriptor, left[:512])
                while left and taken >= left[0].nbytes:
                    taken -= left.pop(0).nbytes
                if taken:
                    left[0] = left[0][taken:]
            if self._sync:
                try:
                    os.fdatasync(self._descriptor)
                except OSError as error:
                    # The kernel may have dropped what it could not write, so all of it is written again.
                    os.lseek(self._descriptor, begin, os.SEEK_SET)
                    left[:] = views
                    if not disk.is_full(error):
                        raise self._lost(error) from None
                    raise

        self._patiently(some)

    def sync(self) -> None:
        """Have all of it on the disk. Raises `CheckpointError`."""
        try:
            os.fdatasync(self._descriptor)
        except OSError as error:
            raise self._lost(error) from None

    def _lost(self, error: OSError) -> CheckpointError:
        return CheckpointError(f"cannot write to {self._path}: {error}")

    def _patiently(self, action: Callable[[], None]) -> None:
        troubled = False
        while True:
            try:
                action()
            except OSError as error:
                if disk.is_full(error) and self._make_room():
                    continue
                troubled = True
                if not self._wait(f"cannot write to {self._path}: {error}"):
                    raise CheckpointError(f"cannot write to {self._path}: {error}") from None
                continue
            if troubled:
                self._wait("")
            return


def _packed_header(header: Header, number: int) -> bytes:
    """The record with which a journal begins whose next record has this number."""
    body = record.pack_header(header)
    return record.head(Kind.HEADER, number - 1, body) + body


def _snapshot_records(
    header: Header,
    number: int,
    now: int,
    image: bytes,
    layout: bytes | None,
    chunks: Iterable[ChunkBuffer],
) -> Iterator[tuple[bytes, Any]]:
    packed, salt = record.pack_header(header), header.salt
    yield record.head(Kind.HEADER, number, packed), packed
    yield record.head(Kind.STATE, number, image, number, now, salt=salt), image
    if layout is not None:
        yield record.head(Kind.LAYOUT, number, layout, salt=salt), layout
    for place, chunk in enumerate(chunks):
        body = chunk.buffer()
        yield record.head(Kind.CHUNK, number, body, 0, place, chunk.checksum(), salt), body
    yield record.head(Kind.END, number, b"", salt=salt), b""


def begin_with(
    store: StateFolder,
    header: Header,
    number: int,
    now: int,
    image: bytes,
    layout: bytes,
    chunks: Iterable[ChunkBuffer],
    history: bytes,
) -> None:
    """Begin an empty folder with a snapshot, of the record ``number``, instead of with a first event; all of
    it is on the disk then. Raises `OSError`."""
    for path, content in (
        (store.history, history),
        (store.journal(0), _packed_header(header, number + 1)),
    ):
        with path.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    records = _snapshot_records(header, number, now, image, layout, chunks)
    _write_snapshot(store, 0, records, needs=0)


def _bytes(chunks: Iterable[ChunkBuffer]) -> int:
    return sum(chunk.bytes for chunk in chunks)


def _write_snapshot(
    store: StateFolder, index: int, records: Iterator[tuple[bytes, Any]], needs: int
) -> int:
    """Write beside, then rename, both to the disk: a snapshot that exists is whole, also after a loss of
    power. Returns its bytes.

    ``needs``: so many bytes at least. Where there is no room for them none is written, which would take
    the journal's room for as long as it lasts.
    """
    path = store.snapshot(index)
    part = path.with_name(path.name + PART)
    size = 0
    try:
        store.spare(part)
        store.require_room(needs, part)
        descriptor = open_over(part)
        try:
            for head, body in records:
                for piece in (head, body):
                    view = memoryview(piece).cast("B")
                    while view.nbytes:
                        taken = os.write(descriptor, view)
                        size += taken
                        view = view[taken:]
            os.ftruncate(descriptor, size)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        part.rename(path)
        sync_folder(path.parent)
    except OSError as error:
        # One whose name may not be on the disk counts for nothing: what is before it goes for the newest.
        part.unlink(missing_ok=True)
        path.unlink(missing_ok=True)
        if disk.is_full(error):
            store.give_up_spares()  # For the next attempt, and for the journal.
        raise
    return size


def header(run: str, node: str, process: str, incarnation: int, salt: int | None = None) -> Header:
    """The header of the files that this process writes. ``salt``: of the life that goes on; None: a new one."""
    wall_ms = time.time_ns() // 10**6
    known = secrets.randbits(64) if salt is None else salt
    return Header(record.FORMAT, run, node, process, incarnation, boot_id(), wall_ms, known)
