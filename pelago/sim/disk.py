"""The disk of a durable server: what its journal holds, what is still being written, and what a crash
leaves of it.

Records are those of `pelago.wire.record`, bit for bit, in files as `pelago.net.store` lays them out;
only payloads are kept by reference, their chunks being a stub.
"""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from random import Random
from typing import Final

from pelago.core.errors import CheckpointError
from pelago.core.machine import Received
from pelago.core.names import BlobId
from pelago.sim.ports import Payload
from pelago.wire import record
from pelago.wire.messages import Event
from pelago.wire.record import Head, Header, Kind
from pelago.wire.recovery import find_later, scan

STUB: Final = b"the payload"
"""In the place of a payload's bytes."""


@dataclass(frozen=True, slots=True)
class Record:
    """A sound record."""

    head: Head
    body: bytes
    payload: Payload
    """Of a chunk."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A server's whole state after some event."""

    index: int
    """Of the journal that follows it."""
    number: int
    state: bytes
    """A STATE record: the machine's image."""
    plane: object
    """An image of the plane."""
    blobs: tuple[BlobId, ...]
    """Payloads in it."""


@dataclass(frozen=True, slots=True)
class Past:
    """What a disk holds, verified."""

    snapshot: Snapshot | None
    records: list[Record]
    """Since the snapshot, without the headers."""
    number: int
    """Of the last record."""


@dataclass(slots=True)
class _Write:
    """What is queued for a journal: a record, or the header with which it begins."""

    index: int
    number: int
    data: bytes


@dataclass(slots=True)
class Disk:
    """Of one server's life. ``process`` and ``incarnation`` are those of its header."""

    run: str
    node: str
    process: str
    incarnation: int
    durable: int = 0
    """Number of the last record that is on disk."""
    last: int = 0
    """Number of the last record that was queued."""
    snapshots: int = 0
    _index: int = 0
    _files: dict[int, bytearray] = field(default_factory=dict)
    _queue: deque[_Write] = field(default_factory=deque)
    _payloads: dict[int, Payload] = field(default_factory=dict)
    """By the number of their chunk."""
    _snapshot: Snapshot | None = None
    _unfinished: Snapshot | None = None
    _written: bool = False
    """Whether all of the unfinished snapshot is there; it is none before its journal has begun."""

    def begin(self) -> None:
        """Begin a journal: at the start, after every restart, and with every snapshot."""
        body = record.pack_header(
            Header(
                record.FORMAT, self.run, self.node, self.process, self.incarnation, "", 0, salt=0
            )
        )
        self._put(Kind.HEADER, self.last, body, 0, 0)

    def event(self, event: Event, now: int, payload: Payload) -> int:
        """Queue an event, and the payload that came with it. Returns its number."""
        if isinstance(event, Received) and event.blob is not None:
            self.last += 1
            self._payloads[self.last] = payload
            self._put(Kind.CHUNK, self.last, STUB, event.blob, 0)
        self.last += 1
        self._put(Kind.EVENT, self.last, record.pack_event(self.run, event), 0, now)
        return self.last

    def written(self, through: int) -> None:
        """The disk took all records up to a number."""
        while self._queue and self._queue[0].number <= through:
            self._append(self._queue.popleft())
        self.durable = max(self.durable, through)
        self._finish()

    def snapshot(self, image: object, plane: object, blobs: tuple[BlobId, ...], now: int) -> None:
        """Begin a snapshot of this moment, and the journal that follows it."""
        body = record.pack(image)
        state = record.head(Kind.STATE, 0, body, self.last, now) + body
        self._index += 1
        self._unfinished = Snapshot(self._index, self.last, state, plane, blobs)
        self.begin()

    @property
    def snapshotting(self) -> bool:
        """Whether a snapshot is being written."""
        return self._unfinished is not None

    def finish_snapshot(self) -> None:
        """The disk took all of the snapshot."""
        self._written = self._unfinished is not None
        self._finish()

    def _finish(self) -> None:
        """What is before a snapshot goes."""
        if self._unfinished is None or not self._written:
            return
        if self._unfinished.index not in self._files:
            return
        self._snapshot, self._unfinished, self._written = self._unfinished, None, False
        self.snapshots += 1
        for index in [each for each in self._files if each < self._snapshot.index]:
            del self._files[index]
        for number in [each for each in self._payloads if each <= self._snapshot.number]:
            del self._payloads[number]

    def crash(self, random: Random) -> None:
        """The process is gone: of what it was writing a part is there, perhaps torn."""
        self._unfinished, self._written = None, False
        for _ in range(random.randrange(len(self._queue) + 1)):
            self._append(self._queue.popleft())
        if self._queue and random.random() < 0.5:
            torn = self._queue[0]
            torn.data = torn.data[: random.randrange(len(torn.data))]
            self._append(torn)
        self._queue.clear()

    def read(self) -> Past:
        """What is there, and cut off the torn end. Raises `CheckpointError` if a record is damaged."""
        first = self._snapshot.index if self._snapshot is not None else 0
        number = self._snapshot.number if self._snapshot is not None else 0
        if self._snapshot is not None:
            _verify(self._snapshot.state)
        records: list[Record] = []
        files = sorted(self._files)
        if files != list(range(first, first + len(files))) or (first and not files):
            raise CheckpointError(f"journal {first} or one after it is missing")
        for index in files:
            found, end = self._read_journal(index, number, last=index == files[-1])
            records += found
            number += len(found)
            del self._files[index][end:]
        self.last = self.durable = number
        # One that has not even a header was not begun.
        self._index = files[-1] + bool(self._files[files[-1]]) if files else first
        self.begin()
        return Past(self._snapshot, records, number)

    def damage(self, random: Random) -> Callable[[], None] | None:
        """Turn a bit over, anywhere before the last record, where it cannot be taken for a torn end.
        Returns how to turn it back; None: too little is there."""
        places = [(index, start, stop) for index in sorted(self._files) for start, stop in
                  _places(self._files[index])]  # fmt: skip
        if len(places) < 2:
            return None
        index, start, stop = random.choice(places[:-1])
        place, bit = random.randrange(start, stop), 1 << random.randrange(8)
        self._files[index][place] ^= bit

        def mend() -> None:
            self._files[index][place] ^= bit

        return mend

    def _put(self, kind: Kind, number: int, body: bytes, first: int, second: int) -> None:
        data = record.head(kind, number, body, first, second) + body
        self._queue.append(_Write(self._index, number, data))

    def _append(self, write: _Write) -> None:
        if self._snapshot is None or write.index >= self._snapshot.index:
            self._files.setdefault(write.index, bytearray()).extend(write.data)

    def _read_journal(self, index: int, number: int, last: bool) -> tuple[list[Record], int]:
        # A copy, because nobody may look at a file that is cut.
        data, end = memoryview(bytes(self._files[index])), 0
        records: list[Record] = []
        begun = False
        for found, stop in scan(data):
            head, body = found.head, found.body
            if not begun:
                if head.kind is not Kind.HEADER or record.unpack_header(body).node != self.node:
                    raise CheckpointError(f"journal {index} has no header of {self.node}")
                begun = True
            elif head.number != number + len(records) + 1:
                break
            else:
                records.append(Record(head, bytes(body), self._payloads.get(head.number)))
            end = stop
        following = number + len(records) + 1
        if end < len(data) and (not last or find_later(data, end, following) is not None):
            raise CheckpointError(f"journal {index} is damaged at byte {end}")
        return records, end


def _verify(data: bytes) -> None:
    if next(scan(memoryview(data)), None) is None:
        raise CheckpointError("a snapshot is damaged")


def _places(data: bytearray) -> Iterator[tuple[int, int]]:
    start = 0
    for _, stop in scan(memoryview(bytes(data))):
        yield start, stop
        start = stop
