"""A node's journal: every event of its machine is on disk before a message that follows from it leaves.

A machine is a function of its events. So it is enough to keep the events, with the payloads that came with some of
them: replayed to a new machine, they give the same state, bit for bit. Output commit (Strom and Yemini, Optimistic
Recovery in Distributed Systems, 1985) makes this exact: events are handled at once, but a message leaves only when
the journal holds every event up to the one that caused it.

`event` and `chunk` queue records, from the event loop and from the staging thread; one thread writes
them in that order. A disk that is full or slow holds back messages, never the event loop or the tensor
lane, and loses nothing: the writer waits for room and goes on.
"""

import asyncio
import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final, Self

from pelago.config.fields import Durability
from pelago.core.machine import Received, Tick
from pelago.core.names import BlobId
from pelago.durable import record
from pelago.durable.record import Begun, Header, Kind
from pelago.net.durability.file_header import packed_header
from pelago.net.durability.journal_file import JournalFile
from pelago.net.durability.snapshot_writer import snapshot_records, write_snapshot
from pelago.net.durability.state_folder import StateFolder
from pelago.net.durability.state_reader import RecoveredState
from pelago.net.files import sync_file
from pelago.runlog.history import HistoryLine, history_line
from pelago.tensor.payload import ChunkBuffer
from pelago.wire.messages import Event, Heartbeat

BATCH_BYTES: Final = 8 << 20
"""At most so many bytes are written with one call."""
RETRY_S: Final = 0.5
"""How often a disk that took nothing is tried again."""
CLOSE_S: Final = 10.0
SNAPSHOT_BYTES: Final = 64 << 20
SNAPSHOT_EVENTS: Final = 200_000
SNAPSHOT_QUIET_EVENTS: Final = 2_000_000
SNAPSHOT_MODELS: Final = 2
"""A snapshot is due when the journal has grown by this many models, and by `SNAPSHOT_BYTES`, or by this
many events: what a restart reads and does again is bounded by it. Quiet events are heartbeats and ticks, of
which a server with many workers has thousands a second, whether anything happens or not."""


@dataclass(frozen=True, slots=True)
class _Rotate:
    """The records after this go into the next journal. ``for_snapshot``: a snapshot will replace the records before
    it."""

    index: int
    header: bytes
    for_snapshot: bool


@dataclass(frozen=True, slots=True)
class _Mark:
    """Reached when all records queued before it are written."""

    reached: threading.Event = field(default_factory=threading.Event)


@dataclass(frozen=True, slots=True)
class _History:
    """A record for the history."""

    record: bytes


_Item = tuple[bytes, Any] | _Rotate | _Mark | _History
"""Head and body of a record of the journal, or something else to do in between."""


@dataclass(frozen=True, slots=True)
class JournalPosition:
    """Where a journal begins or goes on.

    ``index``: of its next file; ``number``: of its next record; ``grown_bytes``: of the records since the last
    snapshot.
    """

    index: int = 0
    number: int = 1
    grown_bytes: int = 0

    @classmethod
    def after(cls, recovered: RecoveredState | None) -> Self:
        """The position after the recovered state; the beginning if there is none."""
        if recovered is None:
            return cls()
        return cls(recovered.next_index, recovered.next_number, recovered.bytes)


@dataclass(frozen=True, slots=True)
class JournalListener:
    """Callbacks of a journal, on the event loop's thread.

    ``on_written(number)``: all records up to this one are as durable as they get. ``on_trouble(text)``: the disk
    accepts nothing; with an empty text, it does again. ``on_fault(error)``: an error that cannot be waited for.
    """

    on_written: Callable[[int], None]
    on_trouble: Callable[[str], None]
    on_fault: Callable[[BaseException], None]


class Journal:
    """Writes the events of a node to its disk. Call it from the event loop's thread, but `chunk` from any."""

    def __init__(
        self,
        store: StateFolder,
        durability: Durability,
        header: Header,
        start: JournalPosition,
        listener: JournalListener,
    ) -> None:
        self.durable = start.number - 1
        """Number of the last record that is on disk."""
        self.bytes = start.grown_bytes
        """Bytes written or queued since the last snapshot."""
        self.events = 0
        """Events queued since the last snapshot, without the quiet ones."""
        self.quiet_events = 0
        """Heartbeats and ticks queued since the last snapshot."""
        self._store = store
        self._sync = durability == "host"
        self._header = header
        self._index = start.index
        self._number = start.number
        self._loop = asyncio.get_running_loop()
        self._listener = listener
        self._lock = threading.Lock()
        self._items: queue.SimpleQueue[_Item | None] = queue.SimpleQueue()
        self._closing = threading.Event()
        begun = packed_header(self._header, start.number)
        self._items.put(_Rotate(start.index, begun, for_snapshot=False))
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
        """Whether it is time for a snapshot, or one is wanted, and none is being written."""
        if self._snapshotting:
            return False
        grown = self.bytes >= max(SNAPSHOT_BYTES, SNAPSHOT_MODELS * model_bytes)
        many = self.events >= SNAPSHOT_EVENTS or self.quiet_events >= SNAPSHOT_QUIET_EVENTS
        return wanted or grown or many

    def rotate(self) -> tuple[int, int]:
        """Begin the next journal, for which `snapshot` is called then.

        Returns its index, and the number of the last record before it. Records of earlier journals that are still
        needed are queued again in between.
        """
        self._snapshotting = True
        with self._lock:
            self._index += 1
            self.bytes = self.events = self.quiet_events = 0
            header = packed_header(self._header, self._number)
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

        In a thread of its own; ``then`` is called, on the loop, with the number of bytes that were written, and
        with the reason if that failed.
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
                records = snapshot_records(self._header, number, now, image, layout, chunks())
                size = write_snapshot(self._store, index, records, _bytes(chunks()))
            except OSError as error:
                trouble = "" if size else f"cannot write a snapshot: {error}"
            except BaseException as error:
                self._post(self._listener.on_fault, error)
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
                JournalFile(self._sync, self._wait, make_room) as file,
                JournalFile(False, self._wait, make_room) as history,
            ):
                history.append_to(self._store.history)
                while (item := self._items.get()) is not None:
                    self._write(file, history, item)
                    # A chunk may be megabytes; do not hold it while waiting for the next.
                    item = None
        except BaseException as error:
            self._post(self._listener.on_fault, error)

    def _write(self, file: JournalFile, history: JournalFile, item: _Item | None) -> None:
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
            self._post(self._listener.on_written, self.durable)

    def _wait(self, trouble: str) -> bool:
        """Report trouble with the disk, or that it is over. Returns whether to try again."""
        self._post(self._listener.on_trouble, trouble)
        if not trouble:
            return True
        return not self._closing.wait(RETRY_S)


def _bytes(chunks: Iterable[ChunkBuffer]) -> int:
    return sum(chunk.bytes for chunk in chunks)
