"""The files of a durable node: journals, snapshots, and what is left of them after a crash.

A node's folder holds::

    lock                 held by the process whose state this is
    snapshot-00000003    the whole state after some event
    journal-00000003     what the machine was told since, with the payloads that it was sent
    history              what became of updates, for ever: a note for each, with its samples
    history-damaged      one that was, with what is behind the damage; the last one only
    spare-...            an old file, to be written over

Snapshot and journal of one number belong together. Journal 0 begins at the machine's first event, so
it has no snapshot, unless the node goes on from another life's state. A snapshot is written beside its
place, to the disk, and renamed, so one that exists is whole. The one before it, and the journals between
them, stay until the next one is begun: should the newest be damaged all the same, recovery reads the one
before it, and from there on from one journal into the next.
"""

import errno
import mmap
import os
import re
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, BinaryIO, Final

from pelago.core.errors import CheckpointError, ConfigError, ForeignState
from pelago.durable import record
from pelago.durable.record import HEAD_BYTES, Header, Kind
from pelago.durable.replay import Record, at, find_later, scan
from pelago.mapped_files import map_file
from pelago.net import disk
from pelago.net.files import lock, lock_to_read
from pelago.runlog.history import HISTORY, certain_bytes, history_until

PART: Final = ".part"
CLEARING: Final = "clearing"
"""A file that is there while the past is being forgotten: a process that finds it goes on with that."""
DAMAGED_HISTORY: Final = "history-damaged"
SPARES_MAX: Final = 1
"""Files of each kind that are kept to be written over: to write over pages that the kernel has costs a
fraction of what new ones cost. They are given up when the disk is short."""
LOOKS_MAX: Final = 10
"""How often a folder is looked through whose snapshots go while they are read."""
_NAME: Final = re.compile(r"(journal|snapshot)-(\d{8})")


@dataclass(slots=True)
class StoredSnapshot:
    """A whole snapshot, as it lies in its file."""

    header: Header
    index: int
    """Of its file."""
    number: int
    """Of the last record whose event is inside."""
    now: int
    image: Any
    layout: Any
    """None: the node had no tensors yet."""
    chunks: list[memoryview]
    bytes: int

    @property
    def name(self) -> str:
        """Of its file."""
        return f"snapshot-{self.index:08d}"


@dataclass(slots=True)
class RecoveredState:
    """What a node's folder says about its past."""

    header: Header
    """Of the newest file that could be read."""
    snapshot: StoredSnapshot | None
    records: list[Record]
    """Of the journals after the snapshot, in order, without their headers."""
    next_index: int
    next_number: int
    bytes: int
    """Of the journals."""
    torn_bytes: int
    """At the end of the last journal: a record that was being written. If that is the header, the
    journal has not begun, and its index is the next one."""
    passed_over: tuple[str, ...] = ()
    """What is wrong with newer snapshots, in whose place an older one is taken."""
    maps: list[mmap.mmap] = field(default_factory=list)


class StateFolder:
    """The folder of one node, locked; ``run`` None: of any run.

    ``read``: to look into what is there, which may be where nobody may write. Raises `ConfigError` if
    another process has it, but ``beside`` it if one wants to read only what stays as it is: `newest`.
    """

    def __init__(
        self, folder: Path, run: str | None, node: str, *, read: bool = False, beside: bool = False
    ) -> None:
        self.folder = folder
        self.is_running = False
        """Whether another process has it."""
        self._held: list[IO[Any]] = []
        """Snapshots that nobody may write over while they are read beside another process."""
        self._run, self._node = run, node
        self._mapped: set[Path] = set()
        """Files that were or are being read: their bytes may be a plane's memory, and may not change."""
        try:
            self._lock = lock_to_read(folder / "lock") if read else lock(folder / "lock")
        except BlockingIOError:
            if not beside:
                raise ConfigError(
                    f"{folder}: another process of {node} is running with this state"
                ) from None
            self._lock, self.is_running = None, True
        except OSError as error:
            verb = "read" if read else "write to"
            raise ConfigError(f"cannot {verb} the folder of state {folder}: {error}") from None
        if beside and self._lock is not None:
            self._lock.close()  # Nobody is kept from starting.
        if (folder / CLEARING).exists() and not read:
            self.clear()

    def close(self) -> None:
        """Let another process have the folder."""
        for file in (self._lock, *self._held):
            if file is not None:
                file.close()

    def journal(self, index: int) -> Path:
        """Path of a journal."""
        return self.folder / f"journal-{index:08d}"

    def snapshot(self, index: int) -> Path:
        """Path of a snapshot."""
        return self.folder / f"snapshot-{index:08d}"

    @property
    def history(self) -> Path:
        """Path of the history."""
        return self.folder / HISTORY

    def lend(self, path: Path) -> BinaryIO:
        """A file for somebody to read, who keeps its bytes even if it is removed."""
        self._mapped.add(path)
        return path.open("rb")

    def clear(self) -> None:
        """Forget the past, but for the history: of one that is damaged, what is before that stays, and all
        of it is kept aside as `DAMAGED_HISTORY`. Raises `CheckpointError`."""
        mark = self.folder / CLEARING
        try:
            self.give_up_spares()  # On a full disk they make room for the mark.
            mark.touch()
            for path in self._files():
                path.unlink()
            self._set_damaged_history_aside()
            mark.unlink()
        except OSError as error:
            raise CheckpointError(f"cannot begin anew in {self.folder}: {error}") from None

    def _set_damaged_history_aside(self) -> None:
        try:
            certain_bytes(self.history, record.NUMBER_MAX)
        except CheckpointError:
            sound = history_until(self.history, record.NUMBER_MAX)
            self.history.rename(self.folder / DAMAGED_HISTORY)
            self.history.write_bytes(sound)

    def drop_old(self) -> None:
        """Set aside what is before the newest snapshot, to be written over. From any thread."""
        for path in self._old():
            kind = path.name.partition("-")[0]
            spares = len(list(self.folder.glob(f"spare-{kind}-*")))
            if spares < SPARES_MAX and path not in self._mapped:
                with suppress(OSError):  # A folder that is full may have no room for a name.
                    path.rename(self.folder / f"spare-{path.name}")
            with suppress(OSError):  # The disk may have become read-only: then another time.
                path.unlink(missing_ok=True)
                self._mapped.discard(path)

    def give_up_spares(self) -> bool:
        """Remove the files that are kept to be written over, and what is before the newest snapshot, which
        is kept only should that one be damaged; whether there were any. From any thread."""
        try:
            spares = [*self.folder.glob("spare-*"), *self._old()]
        except OSError:
            return False
        gone = 0
        for path in spares:
            with suppress(OSError):
                path.unlink()
                gone += 1
        return gone > 0

    def _old(self) -> list[Path]:
        try:
            newest = max(self._numbers("snapshot"), default=0)
            found = [(path, _NAME.fullmatch(path.name)) for path in self._files()]
        except OSError:  # The folder is gone, or its disk is ill: then nothing can be given up.
            return []
        return [path for path, name in found if name is not None and int(name[2]) < newest]

    def require_room(self, size: int, path: Path) -> None:
        """Raise `OSError` if the disk has no room for a file of so many bytes, or for one that takes the
        place of an old one, once it has been given all that can be given up."""
        while disk.free_bytes(self.folder) + _size(path) < size:
            if not self.give_up_spares():
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def spare(self, path: Path) -> None:
        """Put an old file in the place of one that is to be written, if there is one and none is there."""
        kind = path.name.partition("-")[0]
        for old in sorted(self.folder.glob(f"spare-{kind}-*")):
            if not path.exists():
                old.rename(path)
            return

    def recovered(self, *, salvage: bool = False) -> RecoveredState | None:
        """What the folder holds, verified; None if nothing began here.

        If a snapshot is damaged, an older one is taken with all journals since. ``salvage``: up to the first
        damage, which loses what follows. Raises `CheckpointError`, naming file and place, for what is
        damaged, and `ForeignState` for what is another run's.
        """
        snapshots, journals = self._numbers("snapshot"), self._numbers("journal")
        if (self.folder / CLEARING).exists():
            return None
        if not snapshots and not journals:
            if not salvage:
                certain_bytes(self.history, record.NUMBER_MAX)
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
                certain_bytes(self.history, 0 if snapshot is None else snapshot.number)
            return recovered
        raise faults[0]

    def newest(self) -> RecoveredState | None:
        """The newest sound snapshot, without what came after it, also while another process writes here;
        None if there is none. Raises `CheckpointError` if all are damaged."""
        for _ in range(LOOKS_MAX):
            faults: dict[int, CheckpointError] = {}
            for index in reversed(self._numbers("snapshot")):
                try:
                    held = lock_to_read(self.snapshot(index))
                    if held is None:
                        continue
                    self._held.append(held)
                    found = _recovered_from(self._read_snapshot(index), index)
                except BlockingIOError:
                    continue  # It is being written over, so there is a newer one by now.
                except CheckpointError as error:
                    faults[index] = error
                    continue
                found.passed_over = tuple(map(str, faults.values()))
                return found
            if faults and all(self.snapshot(each).exists() for each in faults):
                raise faults[max(faults)]
        return None

    @property
    def has_snapshots(self) -> bool:
        """Whether a snapshot was written here, sound or not."""
        return bool(self._numbers("snapshot"))

    def boots(self) -> set[str]:
        """The lives of the machine in which the files here were written, as far as they say."""
        return {each.boot for each in self._headers()}

    def cut_history(self, number: int) -> None:
        """Leave of the history what is certain: this life's lines up to the event of a snapshot, and those
        of lives before. The rest follows from the journal once more. Raises `CheckpointError`."""
        keep = certain_bytes(self.history, number)
        if self.history.exists():
            os.truncate(self.history, keep)

    def cut(self, recovered: RecoveredState) -> None:
        """Remove what was being written: the torn end of the last journal, so that the next one can
        follow, and snapshots that never got their name; and those that are damaged."""
        good = -1 if recovered.snapshot is None else recovered.snapshot.index
        damaged = [self.snapshot(each) for each in self._numbers("snapshot") if each > good]
        parts = [path for path in self._files() if path.name.endswith(PART)]
        for path in (*damaged, *parts):
            path.unlink()
        if recovered.torn_bytes and not self.journal(recovered.next_index).exists():
            with self.journal(recovered.next_index - 1).open("r+b") as file:
                file.truncate(file.seek(0, os.SEEK_END) - recovered.torn_bytes)
                os.fsync(file.fileno())  # Before a journal after it makes a torn end a damage.

    def _files(self) -> list[Path]:
        """Journals and snapshots, those too that are not whole."""
        return [path for path in sorted(self.folder.iterdir()) if _NAME.match(path.name)]

    def _numbers(self, kind: str) -> list[int]:
        found = (_NAME.fullmatch(path.name) for path in self._files())
        return sorted(int(each[2]) for each in found if each and each[1] == kind)

    def _headers(self) -> list[Header]:
        """Those that can be read."""
        found = []
        for path in self._files():
            with suppress(CheckpointError):
                first = at(map_file(path)[0], 0)
                if first is not None:
                    found.append(record.unpack_header(first.body))
        return found

    def _read_on(
        self, snapshot: StoredSnapshot | None, first: int, wanted: list[int], salvage: bool
    ) -> RecoveredState | None:
        """What follows a snapshot, or the beginning, in the journals from ``first`` on."""
        recovered: RecoveredState | None = None
        number = 0
        if snapshot is not None:
            number = snapshot.number
        if salvage:
            wanted = [each for place, each in enumerate(wanted, first) if each == place]
            if snapshot is not None:
                recovered = _recovered_from(snapshot, first)
        elif wanted != list(range(first, first + len(wanted))) or not wanted:
            raise CheckpointError(f"{self.folder}: journal {first} or one after it is missing")
        for index in wanted:
            path, last = self.journal(index), index == wanted[-1]
            view, mapped = map_file(path)
            self._mapped.add(path)
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
                # Killed while this journal was begun: nothing in it was acknowledged.
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
        """Behind the end lies what was being written, or what the file held at another time; but nothing
        that must have been written after it. Raises `CheckpointError`."""
        for salt in () if salvage or end == len(view) else salts:
            later = find_later(view, end, following, salt)
            if later is not None:
                raise CheckpointError(
                    f"{path}: damaged at byte {end}, where record {following} should begin, and sound again"
                    f" at byte {later}"
                )

    def _salts(self) -> list[int | None]:
        """That of a file whose header cannot be read is that of the others, unless it is the only one: then
        it was never another file, and whatever looks like a record in it is damage."""
        salts: list[int | None] = [each.salt for each in self._headers()]
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
                f" or removing {self.folder} begins anew"
            )
        return header

    def _read_snapshot(self, index: int) -> StoredSnapshot:
        path = self.snapshot(index)
        view, _ = map_file(path)
        self._mapped.add(path)
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


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _header_of(snapshot: StoredSnapshot | None) -> Header:
    assert snapshot is not None
    return snapshot.header


def _recovered_from(snapshot: StoredSnapshot, index: int) -> RecoveredState:
    """A past that ends with its snapshot."""
    return RecoveredState(snapshot.header, snapshot, [], index + 1, snapshot.number + 1, 0, 0)
