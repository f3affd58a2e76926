"""Reads a durable node's folder: the newest sound snapshot, and the journals after it."""

import mmap
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Final

from pelago.core.errors import CheckpointError, ForeignState
from pelago.durable import record
from pelago.durable.record import HEAD_BYTES, Header, Kind
from pelago.durable.replay import Record, at, find_later, scan
from pelago.mapped_files import map_file
from pelago.net.durability.state_files import StateFiles
from pelago.net.files import lock_to_read
from pelago.runlog.history import certain_bytes

LOOKS_MAX: Final = 10
"""How often a folder is looked through whose snapshots are removed while they are read."""


@dataclass(slots=True)
class StoredSnapshot:
    """A whole snapshot, as it lies in its file."""

    header: Header
    index: int
    """Index of the snapshot's file."""
    number: int
    """Number of the last record whose event is in the snapshot."""
    now: int
    image: Any
    layout: Any
    """None: the node has no tensors yet."""
    chunks: list[memoryview]
    bytes: int

    @property
    def name(self) -> str:
        """Name of the snapshot's file."""
        return f"snapshot-{self.index:08d}"


@dataclass(slots=True)
class RecoveredState:
    """The verified contents of a node's folder: a snapshot, and the records since."""

    header: Header
    """Header of the newest file that could be read."""
    snapshot: StoredSnapshot | None
    records: list[Record]
    """Records of the journals after the snapshot, in order, without the journals' headers."""
    next_index: int
    next_number: int
    bytes: int
    """Size of the journals."""
    torn_bytes: int
    """Bytes of an incomplete record at the end of the last journal. If that record is the header, the journal has not
    begun, and its index is the next one."""
    passed_over: tuple[str, ...] = ()
    """Faults of newer snapshots, in place of which an older one is used."""
    maps: list[mmap.mmap] = field(default_factory=list)


class StateReader:
    """Reads the files of one node; ``run`` None: of any run."""

    def __init__(self, files: StateFiles, run: str | None, node: str) -> None:
        self.mapped: set[Path] = set()
        """Files that were or are being read: their bytes may be a plane's memory, and may not change."""
        self.held: list[IO[Any]] = []
        """Snapshots that no process may write over while they are read beside another process."""
        self._files = files
        self._run, self._node = run, node

    def recovered(self, *, salvage: bool = False) -> RecoveredState | None:
        """See `StateFolder.recovered`."""
        snapshots, journals = self._files.numbers("snapshot"), self._files.numbers("journal")
        if self._files.clearing.exists():
            return None
        if not snapshots and not journals:
            if not salvage:
                certain_bytes(self._files.history, record.NUMBER_MAX)
            return None
        faults: list[CheckpointError] = []
        # Journal 0 begins at the first event, and needs none.
        beginnings = [*reversed(snapshots), *([None] if 0 in journals or not snapshots else [])]
        for first in beginnings:
            try:
                snapshot = None if first is None else self._read_snapshot(first)
            except ForeignState:
                raise
            except CheckpointError as error:
                faults.append(error)
                continue
            wanted = [each for each in journals if each >= (first or 0)]
            try:
                recovered = self._read_on(snapshot, first or 0, wanted, salvage)
            except CheckpointError as error:
                raise faults[0] if faults else error from None
            if recovered is None and faults:
                break
            if recovered is not None:
                recovered.passed_over = tuple(map(str, faults))
            if not salvage:
                certain_bytes(self._files.history, 0 if snapshot is None else snapshot.number)
            return recovered
        raise faults[0]

    def newest(self) -> RecoveredState | None:
        """See `StateFolder.newest`."""
        for _ in range(LOOKS_MAX):
            faults: dict[int, CheckpointError] = {}
            for index in reversed(self._files.numbers("snapshot")):
                try:
                    held = lock_to_read(self._files.snapshot(index))
                    if held is None:
                        continue
                    self.held.append(held)
                    found = _recovered_from(self._read_snapshot(index), index)
                except BlockingIOError:
                    continue  # It is being written over, so there is a newer one by now.
                except CheckpointError as error:
                    faults[index] = error
                    continue
                found.passed_over = tuple(map(str, faults.values()))
                return found
            if faults and all(self._files.snapshot(each).exists() for each in faults):
                raise faults[max(faults)]
        return None

    def _read_on(
        self, snapshot: StoredSnapshot | None, first: int, wanted: list[int], salvage: bool
    ) -> RecoveredState | None:
        """The records after a snapshot, or from the beginning, in the journals from ``first`` on."""
        recovered: RecoveredState | None = None
        number = 0
        if snapshot is not None:
            number = snapshot.number
        if salvage:
            wanted = [each for place, each in enumerate(wanted, first) if each == place]
            if snapshot is not None:
                recovered = _recovered_from(snapshot, first)
        elif wanted != list(range(first, first + len(wanted))) or not wanted:
            raise CheckpointError(
                f"{self._files.folder}: journal {first} or one after it is missing"
            )
        for index in wanted:
            path, last = self._files.journal(index), index == wanted[-1]
            view, mapped = map_file(path)
            self.mapped.add(path)
            header, begins, records, end = self._read_journal(path, view, number, salvage)
            if salvage and (header is None or begins != number):
                break
            if header is not None and begins < number and last:
                header = None  # An old file, to be written over, and not begun.
            if header is not None and begins != number:
                raise CheckpointError(
                    f"{path}: begins after record {begins}, and what is before it ends with {number}:"
                    " a part of it is damaged or missing"
                )
            begun = header is not None
            if not begun and not last:
                raise CheckpointError(f"{path}: has no header")
            if header is None:
                # The process was killed when it began this journal: nothing in it was acknowledged.
                if recovered is None and snapshot is None:
                    return None
                header = recovered.header if recovered is not None else _header_of(snapshot)
            number += len(records)
            earlier = recovered.records if recovered is not None else []
            recovered = RecoveredState(
                header=header,
                snapshot=snapshot,
                records=[*earlier, *records],
                next_index=index + begun,
                next_number=number + 1,
                bytes=end + (recovered.bytes if recovered is not None else 0),
                torn_bytes=len(view) - end,
                maps=[*(recovered.maps if recovered is not None else []), *mapped],
            )
        return recovered

    def _read_journal(
        self, path: Path, view: memoryview, number: int, salvage: bool
    ) -> tuple[Header | None, int, list[Record], int]:
        """Header, the number of the record before the file, its records, and where they end."""
        records: list[Record] = []
        first = at(view, 0)
        if first is None:
            self._check_end(path, view, 0, number + 1, salvage, self._salts())
            return None, 0, records, 0
        header, begins = self._read_header(path, first), first.head.number
        if begins != number:
            return header, begins, records, 0
        end = HEAD_BYTES + first.head.length
        for each, stop in scan(view, end, header.salt):
            if each.head.number != number + len(records) + 1:
                break  # Left over from another time.
            records.append(each)
            end = stop
        self._check_end(path, view, end, number + len(records) + 1, salvage, [header.salt])
        return header, begins, records, end

    @staticmethod
    def _check_end(
        path: Path,
        view: memoryview,
        end: int,
        following: int,
        salvage: bool,
        salts: list[int | None],
    ) -> None:
        """Behind the end there may be a torn record, or what the file held when it had another place; but nothing
        that must have been written after the end. Raises `CheckpointError`."""
        for salt in () if salvage or end == len(view) else salts:
            later = find_later(view, end, following, salt)
            if later is not None:
                raise CheckpointError(
                    f"{path}: damaged at byte {end}, where record {following} should begin, and sound again"
                    f" at byte {later}"
                )

    def _salts(self) -> list[int | None]:
        """The salts that the records of a file may have whose header cannot be read: those of the other files. If it
        is the only file, it was never written over, and whatever looks like a record in it is damage (None)."""
        salts: list[int | None] = [each.salt for each in self._files.headers()]
        return salts or [None]

    def _read_header(self, path: Path, found: Record) -> Header:
        if found.head.kind is not Kind.HEADER:
            raise CheckpointError(f"{path}: begins with {found.head.kind.name}, not with a header")
        try:
            header = record.unpack_header(found.body)
        except CheckpointError as error:
            raise CheckpointError(f"{path}: {error}") from None
        if header.node != self._node or self._run not in (None, header.run):
            raise ForeignState(
                f"{path}: is of {header.node} of run {header.run}, not of {self._node} of run"
                f" {self._run}: the run file was changed; --resume goes on with the changed one, another --out"
                f" or removing {self._files.folder} begins anew"
            )
        return header

    def _read_snapshot(self, index: int) -> StoredSnapshot:
        path = self._files.snapshot(index)
        view, _ = map_file(path)
        self.mapped.add(path)
        first = at(view, 0)
        if first is None:
            raise CheckpointError(f"{path}: damaged at byte 0")
        header = self._read_header(path, first)
        end = HEAD_BYTES + first.head.length
        found: list[Record] = []
        for each, stop in scan(view, end, header.salt):
            if each.head.number != first.head.number:
                break  # Of another snapshot, which this one was written over.
            found.append(each)
            end = stop
        kinds = [each.head.kind for each in found]
        if kinds[:1] != [Kind.STATE] or kinds[-1] is not Kind.END:
            raise CheckpointError(f"{path}: damaged at byte {end}")
        state = found[0]
        layout = [record.unpack(each.body) for each in found if each.head.kind is Kind.LAYOUT]
        chunks = [each.body for each in found if each.head.kind is Kind.CHUNK]
        return StoredSnapshot(
            header=header,
            index=index,
            number=state.head.first,
            now=state.head.second,
            image=record.unpack(state.body),
            layout=layout[0] if layout else None,
            chunks=chunks,
            bytes=len(view),
        )


def _header_of(snapshot: StoredSnapshot | None) -> Header:
    assert snapshot is not None
    return snapshot.header


def _recovered_from(snapshot: StoredSnapshot, index: int) -> RecoveredState:
    """A recovered state that ends with its snapshot."""
    return RecoveredState(snapshot.header, snapshot, [], index + 1, snapshot.number + 1, 0, 0)
