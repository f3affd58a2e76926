"""The disk of a durable server: what its journal holds, what is still being written, and what a crash
leaves of it.

Records are those of `pelago.durable.record`, bit for bit, in files as `pelago.net.durability.state_folder`
lays them out: a journal is written over an old one, and the snapshot before the newest stays until the next
one is begun. Only payloads are kept by reference, their chunks being a stub.
"""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from random import Random
from typing import Final

from pelago.core.errors import CheckpointError
from pelago.core.machine import Received
from pelago.core.names import BlobId
from pelago.core.ports import Payload
from pelago.durable import record
from pelago.durable.record import HEAD_BYTES, Head, Header, Kind
from pelago.durable.replay import at, find_later, scan
from pelago.wire.messages import Event

STUB: Final = record.head(Kind.EVENT, record.NUMBER_MAX, b"?") + b"?"
"""A stub for a payload's bytes. It looks like a record, because a peer could choose such bytes."""
PAGE_BYTES: Final = 512


@dataclass(frozen=True, slots=True)
class DiskRecord:
    """A record whose checksum is right."""

    head: Head
    body: bytes
    payload: Payload
    """The payload, for the record of a chunk."""


@dataclass(frozen=True, slots=True)
class DiskSnapshot:
    """A server's whole state after some event."""

    index: int
    """Index of the journal that follows it."""
    number: int
    state: bytes
    """A STATE record: the machine's image."""
    plane: object
    """An image of the plane."""
    blobs: tuple[BlobId, ...]
    """Payloads in it."""


@dataclass(frozen=True, slots=True)
class DiskContents:
    """The verified contents of a disk."""

    snapshot: DiskSnapshot | None
    records: list[DiskRecord]
    """The records since the snapshot, without the headers."""
    number: int
    """Number of the last record."""


@dataclass(slots=True)
class _Write:
    """A write that is queued for a journal: a record, or the header with which the journal begins."""

    index: int
    number: int
    data: bytes


@dataclass(slots=True)
class Disk:
    """The disk of one server. ``process`` and ``incarnation`` are those of the journals' headers."""

    run: str
    node: str
    process: str
    incarnation: int
    durable: int = 0
    """Number of the last record that is on disk."""
    last: int = 0
    """Number of the last record that was queued."""
    snapshots: int = 0
    promised: int = 0
    """Number of the last event that survives a loss of power."""
    _index: int = 0
    _files: dict[int, bytearray] = field(default_factory=dict)
    _below: dict[int, bytes] = field(default_factory=dict)
    """The earlier contents of a journal's file, which remain where they are not yet written over."""
    _queue: deque[_Write] = field(default_factory=deque)
    _payloads: dict[int, Payload] = field(default_factory=dict)
    """Payloads, by the number of their chunk."""
    _snapshots: list[DiskSnapshot] = field(default_factory=list)
    """The newest snapshot, and the one before it as long as no other is begun."""
    _synced: int = 0
    """Index of the newest snapshot that is synced."""
    _unfinished: DiskSnapshot | None = None
    _written: bool = False
    """Whether all of the unfinished snapshot is written; it counts only when its journal has begun."""

    def begin(self) -> None:
        """Begin a journal: at the start, after every restart, and with every snapshot."""
        body = record.pack_header(
            Header(
                record.FORMAT,
                self.run,
                self.node,
                self.process,
                self.incarnation,
                "",
                0,
                self._salt,
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
        """The disk has written all records up to a number."""
        while self._queue and self._queue[0].number <= through:
            self._append(self._queue.popleft())
        self.durable = max(self.durable, through)
        self._finish()

    def snapshot(self, image: object, plane: object, blobs: tuple[BlobId, ...], now: int) -> None:
        """Begin a snapshot of this moment and the journal after it. Files before the newest snapshot are removed."""
        body = record.pack(image)
        state = record.head(Kind.STATE, self.last, body, self.last, now, salt=self._salt) + body
        spare = self._drop_old()
        self._index += 1
        self._below[self._index] = spare
        self._unfinished = DiskSnapshot(self._index, self.last, state, plane, blobs)
        self.begin()

    @property
    def snapshotting(self) -> bool:
        """Whether a snapshot is being written."""
        return self._unfinished is not None

    def finish_snapshot(self) -> None:
        """The disk has written all of the snapshot."""
        self._written = self._unfinished is not None
        self._finish()

    def _finish(self) -> None:
        """Let a written snapshot count once its journal has begun; it is synced before it counts."""
        snapshot = self._unfinished
        if snapshot is None or not self._written or snapshot.index not in self._files:
            return
        self._snapshots.append(snapshot)
        self._sync(snapshot)
        self._unfinished, self._written = None, False
        self.snapshots += 1
        self.promised = snapshot.number

    def _sync(self, snapshot: DiskSnapshot) -> None:
        self._synced = snapshot.index

    def _drop_old(self) -> bytes:
        """Remove files before the newest snapshot. Returns the bytes of a journal, to be written over."""
        if not self._snapshots:
            return b""
        newest = self._snapshots[-1]
        spare = b""
        for index in sorted(each for each in self._files if each < newest.index):
            spare = self._bytes(index)
            del self._files[index]
            self._below.pop(index, None)
        for number in [each for each in self._payloads if each <= newest.number]:
            del self._payloads[number]
        self._snapshots = [newest]
        return spare

    def crash(self, random: Random) -> None:
        """The process was killed: a part of what it was writing is on the disk, perhaps torn."""
        self._unfinished, self._written = None, False
        for _ in range(random.randrange(len(self._queue) + 1)):
            self._append(self._queue.popleft())
        if self._queue and random.random() < 0.5:
            torn = self._queue[0]
            torn.data = torn.data[: random.randrange(len(torn.data))]
            self._append(torn)
        self._queue.clear()

    def lose_power(self, random: Random) -> None:
        """The machine lost its power: files that were not synced are whole, cut, without a page, or empty. Sometimes
        the newest snapshot is damaged too, although the disk had confirmed it."""
        self.crash(random)
        for index in sorted(self._files):
            self._files[index] = bytearray(_after_loss(self._bytes(index), random))
        self._below.clear()
        for place, each in enumerate(self._snapshots):
            if each.index > self._synced:
                self._snapshots[place] = replace(each, state=_after_loss(each.state, random))
        if len(self._snapshots) > 1 and random.random() < 0.5:
            self.damage_newest(random)

    def damage_newest(self, random: Random) -> bool:
        """Damage the newest snapshot, if there is another one. Returns whether it did. `promised` is then
        that of the other."""
        if len(self._snapshots) < 2:
            return False
        before, newest = self._snapshots[-2:]
        state = newest.state
        while state == newest.state:
            state = _after_loss(newest.state, random)
        self._snapshots[-1] = replace(newest, state=state)
        self.promised = before.number
        return True

    def salvage(self) -> DiskContents | None:
        """The contents up to the first damage, from the newest sound snapshot on; None: no snapshot is sound."""
        for snapshot in reversed(self._snapshots):
            if not self._is_sound(snapshot):
                continue
            records: list[DiskRecord] = []
            number, index = snapshot.number, snapshot.index
            while index in self._files:
                begins, found, _ = self._scan(index, number)
                if begins != number:
                    break
                records += found
                number += len(found)
                index += 1
            return DiskContents(snapshot, records, number)
        return None

    def read(self) -> DiskContents:
        """The contents; a torn end is cut off, and instead of a damaged snapshot the one before it is used. Raises
        `CheckpointError` if a record is damaged."""
        while self._snapshots and not self._is_sound(self._snapshots[-1]):
            self._snapshots.pop()
        snapshot = self._snapshots[-1] if self._snapshots else None
        first = snapshot.index if snapshot is not None else 0
        number = snapshot.number if snapshot is not None else 0
        records: list[DiskRecord] = []
        files = sorted(each for each in self._files if each >= first)
        if files != list(range(first, first + len(files))) or (first and not files):
            raise CheckpointError(f"journal {first} or one after it is missing")
        for index in files:
            found, end = self._read_journal(index, number, last=index == files[-1])
            records += found
            number += len(found)
            # A header that was cut may be whole all the same, completed by the bytes of an old file behind it.
            self._files[index] = bytearray(self._bytes(index)[:end])
            self._below.pop(index, None)
        self.last = self.durable = number
        # A journal without a header was not begun.
        self._index = files[-1] + bool(self._files[files[-1]]) if files else first
        self.begin()
        return DiskContents(snapshot, records, number)

    def damage(self, random: Random) -> Callable[[], None] | None:
        """Flip a bit anywhere before the last record, where it cannot be taken for a torn end. Returns a function that
        flips it back; None: there are too few records."""
        first = self._snapshots[-1].index if self._snapshots else 0
        files = sorted(index for index in self._files if index >= first)
        places = [(index, *place) for index in files for place in self._places(index)]
        if len(places) < 2:
            return None
        index, start, stop = random.choice(places[:-1])
        place, bit = random.randrange(start, stop), 1 << random.randrange(8)
        self._files[index][place] ^= bit

        def mend() -> None:
            self._files[index][place] ^= bit

        return mend

    @property
    def _salt(self) -> int:
        return self.incarnation + 1

    def _put(self, kind: Kind, number: int, body: bytes, first: int, second: int) -> None:
        salt = 0 if kind is Kind.HEADER else self._salt
        data = record.head(kind, number, body, first, second, salt=salt) + body
        self._queue.append(_Write(self._index, number, data))

    def _append(self, write: _Write) -> None:
        self._files.setdefault(write.index, bytearray()).extend(write.data)

    def _bytes(self, index: int) -> bytes:
        """The bytes of a journal's file, with what is left of an old file behind its end."""
        data = bytes(self._files[index])
        return data + self._below.get(index, b"")[len(data) :]

    def _is_sound(self, snapshot: DiskSnapshot) -> bool:
        found = at(memoryview(snapshot.state), 0, self._salt)
        return found is not None and found.head.number == snapshot.number

    def _scan(self, index: int, number: int) -> tuple[int, list[DiskRecord], int]:
        """Number of the record before a journal (-1: it has no header), its records since ``number``, and
        where they end."""
        data = memoryview(self._bytes(index))
        header = at(data, 0)
        if header is None or header.head.kind is not Kind.HEADER:
            return -1, [], 0
        if record.unpack_header(header.body).node != self.node:
            raise CheckpointError(f"journal {index} has no header of {self.node}")
        begins, end = header.head.number, HEAD_BYTES + header.head.length
        records: list[DiskRecord] = []
        for found, stop in scan(data, end, self._salt):
            if begins != number or found.head.number != number + len(records) + 1:
                break
            payload = self._payloads.get(found.head.number)
            records.append(DiskRecord(found.head, bytes(found.body), payload))
            end = stop
        return begins, records, end

    def _read_journal(self, index: int, number: int, last: bool) -> tuple[list[DiskRecord], int]:
        begins, records, end = self._scan(index, number)
        if begins < number and last:
            records, end = [], 0  # An old file, or none that was begun.
        elif begins != number:
            raise CheckpointError(f"journal {index} begins after {begins}, before it is {number}")
        following = number + len(records) + 1
        torn = not last and end < len(self._files[index])
        data = memoryview(self._bytes(index))
        if torn or find_later(data, end, following, self._salt) is not None:
            raise CheckpointError(f"journal {index} is damaged at byte {end}")
        return records, end

    def _places(self, index: int) -> Iterator[tuple[int, int]]:
        """Where each sound record of a journal begins and ends, in bytes."""
        data = memoryview(bytes(self._files[index]))
        header = at(data, 0)
        if header is None:
            return
        start = HEAD_BYTES + header.head.length
        yield 0, start
        for _, stop in scan(data, start, self._salt):
            yield start, stop
            start = stop


def _after_loss(data: bytes, random: Random) -> bytes:
    """The bytes that a loss of power leaves of a file that was not synced."""
    match random.choice(("whole", "cut", "page", "empty")):
        case "whole":
            return data
        case "cut":
            return data[: random.randrange(len(data) + 1)]
        case "page":
            start = random.randrange(len(data) + 1) // PAGE_BYTES * PAGE_BYTES
            page = bytes(len(data[start : start + PAGE_BYTES]))
            return data[:start] + page + data[start + PAGE_BYTES :]
        case _:
            return b""
