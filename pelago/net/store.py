"""The files of a durable node: journals, snapshots, and what is left of them after a crash.

A node's folder holds::

    lock                 held by the process whose state this is
    snapshot-00000003    the whole state after some event
    journal-00000003     what the machine was told since, with the payloads that it was sent
    history              what became of updates, for ever: a note for each, with its samples
    spare-...            an old file, to be written over

Snapshot and journal of one number belong together. Journal 0 begins at the machine's first event, so
it has no snapshot, unless the node goes on from another life's state. A snapshot is written beside its
place and renamed, so one that exists is whole; until it exists the journal before it stays, and recovery
reads on from one journal into the next.
"""

import errno
import fcntl
import mmap
import os
import re
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, BinaryIO, Final

from pelago.core.errors import CheckpointError, ConfigError, ForeignState
from pelago.net import disk
from pelago.wire import record
from pelago.wire.record import Header, Kind
from pelago.wire.recovery import Record, find_later, scan

PART: Final = ".part"
HISTORY: Final = "history"
CLEARING: Final = "clearing"
"""A file that is there while the past is being forgotten: a process that finds it goes on with that."""
BEGUN: Final = "begun"
"""Kind of the line with which a life begins in a history."""
SPARES_MAX: Final = 1
"""Files of each kind that are kept to be written over: to write over pages that the kernel has costs a
fraction of what new ones cost. They are given up when the disk is short."""
_NAME: Final = re.compile(r"(journal|snapshot)-(\d{8})")
_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")


def boot_id() -> str:
    """A name for the time since this machine was started; empty where the system has none."""
    try:
        return _BOOT_ID.read_text(encoding="ascii").strip()
    except OSError:
        return ""


@dataclass(slots=True)
class Snapshot:
    """A whole snapshot, as it lies in its file."""

    header: Header
    number: int
    """Of the last record whose event is inside."""
    now: int
    image: Any
    layout: Any
    """None: the node had no tensors yet."""
    chunks: list[memoryview]
    bytes: int


@dataclass(slots=True)
class Past:
    """What a node's folder says about its past."""

    header: Header
    """Of the newest file that could be read."""
    snapshot: Snapshot | None
    records: list[Record]
    """Of the journals after the snapshot, in order, without their headers."""
    next_index: int
    next_number: int
    bytes: int
    """Of the journals."""
    torn_bytes: int
    """At the end of the last journal: a record that was being written. If that is the header, the
    journal has not begun, and its index is the next one."""
    maps: list[mmap.mmap] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Told:
    """A line of a node's history."""

    number: int
    """Of the event from which it follows."""
    kind: str
    fields: dict[str, Any]


class Store:
    """The folder of one node, locked; ``run`` None: of any run.

    ``read``: to look into what is there, which may be where nobody may write. Raises `ConfigError` if
    another process has it.
    """

    def __init__(self, folder: Path, run: str | None, node: str, *, read: bool = False) -> None:
        self.folder = folder
        self._run, self._node = run, node
        self._mapped: set[Path] = set()
        """Files that were or are being read: their bytes may be a plane's memory, and may not change."""
        try:
            self._lock = _lock_to_read(folder / "lock") if read else lock(folder / "lock")
        except BlockingIOError:
            raise ConfigError(
                f"{folder}: another process of {node} is running with this state"
            ) from None
        except OSError as error:
            verb = "read" if read else "write to"
            raise ConfigError(f"cannot {verb} the folder of state {folder}: {error}") from None
        if (folder / CLEARING).exists() and not read:
            self.clear()

    def close(self) -> None:
        """Let another process have the folder."""
        if self._lock is not None:
            self._lock.close()

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
        """Forget the past, but for the history. Raises `CheckpointError`."""
        mark = self.folder / CLEARING
        try:
            self.give_up_spares()  # On a full disk they make room for the mark.
            mark.touch()
            for path in self._files():
                path.unlink()
            mark.unlink()
        except OSError as error:
            raise CheckpointError(f"cannot begin anew in {self.folder}: {error}") from None

    def drop_before(self, index: int) -> None:
        """Set aside what a snapshot has made needless. From any thread."""
        for path in self._files():
            found = _NAME.fullmatch(path.name)
            if found is not None and int(found[2]) < index:
                spares = len(list(self.folder.glob(f"spare-{found[1]}-*")))
                if spares < SPARES_MAX and path not in self._mapped:
                    with suppress(OSError):  # A folder that is full may have no room for a name.
                        path.rename(self.folder / f"spare-{path.name}")
                path.unlink(missing_ok=True)

    def give_up_spares(self) -> bool:
        """Remove the files that are kept to be written over; whether there were any. From any thread."""
        spares = list(self.folder.glob("spare-*"))
        for path in spares:
            path.unlink(missing_ok=True)
        return bool(spares)

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

    def past(self, *, salvage: bool = False) -> Past | None:
        """What the folder holds, verified; None if nothing began here.

        ``salvage``: up to the first damage, which loses what follows. Raises `CheckpointError`, naming file
        and place, for what is damaged, and `ForeignState` for what is another run's.
        """
        snapshots, journals = self._numbers("snapshot"), self._numbers("journal")
        if (not snapshots and not journals) or (self.folder / CLEARING).exists():
            return None
        first = max(snapshots, default=0)
        snapshot = self._read_snapshot(first) if snapshots else None
        past: Past | None = None
        number = snapshot.number if snapshot is not None else 0
        wanted = [each for each in journals if each >= first]
        if salvage:
            wanted = [each for place, each in enumerate(wanted, first) if each == place]
            if snapshot is not None:
                past = _past_of(snapshot, first)
        elif wanted != list(range(first, first + len(wanted))) or not wanted:
            raise CheckpointError(f"{self.folder}: journal {first} or one after it is missing")
        for index in wanted:
            path, last = self.journal(index), index == wanted[-1]
            view, mapped = _map(path)
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
                if past is None and snapshot is None:
                    return None
                header = past.header if past is not None else _header_of(snapshot)
            number += len(records)
            earlier = past.records if past is not None else []
            past = Past(
                header=header,
                snapshot=snapshot,
                records=[*earlier, *records],
                next_index=index + begun,
                next_number=number + 1,
                bytes=end + (past.bytes if past is not None else 0),
                torn_bytes=len(view) - end,
                maps=[*(past.maps if past is not None else []), *mapped],
            )
        return past

    def cut_history(self, number: int) -> None:
        """Leave of the history what is certain: this life's lines up to the event of a snapshot, and those
        of lives before. The rest follows from the journal once more. Raises `CheckpointError`."""
        view, _ = _map(self.history) if self.history.exists() else (memoryview(b""), [])
        keep, end = _certain(self.history, view, number)
        later = find_later(view, end, 0)
        if later is not None and _number_at(view, later) <= number:
            raise _damaged(self.history, end, later)
        if self.history.exists():
            os.truncate(self.history, keep)

    def cut(self, past: Past) -> None:
        """Remove what was being written: the torn end of the last journal, so that the next one can
        follow, and snapshots that never got their name."""
        for path in self._files():
            if path.name.endswith(PART):
                path.unlink()
        if past.torn_bytes and not self.journal(past.next_index).exists():
            with self.journal(past.next_index - 1).open("r+b") as file:
                file.truncate(file.seek(0, os.SEEK_END) - past.torn_bytes)
                os.fsync(file.fileno())  # Before a journal after it makes a torn end a damage.

    def _files(self) -> list[Path]:
        """Journals and snapshots, those too that are not whole."""
        return [path for path in sorted(self.folder.iterdir()) if _NAME.match(path.name)]

    def _numbers(self, kind: str) -> list[int]:
        found = (_NAME.fullmatch(path.name) for path in self._files())
        return sorted(int(each[2]) for each in found if each and each[1] == kind)

    def _read_journal(
        self, path: Path, view: memoryview, number: int, salvage: bool
    ) -> tuple[Header | None, int, list[Record], int]:
        """Header, the number of the record before the file, its records, and where they end."""
        records: list[Record] = []
        header: Header | None = None
        end = begins = 0
        for each, stop in scan(view):
            if header is None:
                header, begins = self._read_header(path, each), each.head.number
                if begins != number:
                    return header, begins, [], 0
            elif each.head.number != number + len(records) + 1:
                break  # Left over from another time.
            else:
                records.append(each)
            end = stop
        if end < len(view):
            # Behind the end lies what was being written, or what the file held at another time.
            following = number + len(records) + 1
            later = find_later(view, end, following)
            if later is not None and not salvage:
                raise CheckpointError(
                    f"{path}: damaged at byte {end}, where record {following} should begin, and sound again"
                    f" at byte {later}"
                )
        return header, begins, records, end

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

    def _read_snapshot(self, index: int) -> Snapshot:
        path = self.snapshot(index)
        view, _ = _map(path)
        self._mapped.add(path)
        found = list(scan(view))
        kinds = [each.head.kind for each, _ in found]
        if not found or kinds[-1] is not Kind.END or kinds[:2] != [Kind.HEADER, Kind.STATE]:
            end = found[-1][1] if found else 0
            raise CheckpointError(f"{path}: damaged at byte {end}")
        header = self._read_header(path, found[0][0])
        state = found[1][0]
        layout = [record.unpack(each.body) for each, _ in found if each.head.kind is Kind.LAYOUT]
        chunks = [each.body for each, _ in found if each.head.kind is Kind.CHUNK]
        return Snapshot(
            header=header,
            number=state.head.first,
            now=state.head.second,
            image=record.unpack(state.body),
            layout=layout[0] if layout else None,
            chunks=chunks,
            bytes=len(view),
        )


def lock(path: Path) -> IO[Any]:
    """Have a file for oneself until it is closed. Raises `BlockingIOError` if another process has it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return _locked(path.open("a"), fcntl.LOCK_EX)


def sync_folder(folder: Path) -> None:
    """Have the names in a folder on the disk. Raises `OSError`."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _lock_to_read(path: Path) -> IO[Any] | None:
    """As `lock`, but with others that read, and nothing is written; None: there is none, as in a copy of a
    folder."""
    try:
        return _locked(path.open("rb"), fcntl.LOCK_SH)
    except FileNotFoundError:
        return None


def _locked(file: IO[Any], kind: int) -> IO[Any]:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except OSError:
        file.close()
        raise
    return file


def history_line(told: Told) -> bytes:
    """A line as it lies in the file."""
    body = record.pack([told.kind, told.fields])
    return record.head(Kind.HISTORY, told.number, body) + body


def read_history(path: Path) -> list[Told]:
    """A node's history, without a line that was being written. Raises `CheckpointError` for damage."""
    view, _ = _map(path)
    told: list[Told] = []
    end = 0
    for each, stop in scan(view):
        told.append(_told(path, each, end))
        end = stop
    later = find_later(view, end, 0)
    if later is not None:
        raise _damaged(path, end, later)
    return told


def history_until(path: Path, number: int) -> bytes:
    """A history's lines up to those of an event, as they lie in the file: of this life, and all of lives
    before. Raises `CheckpointError`."""
    if not path.exists():
        return b""
    view, _ = _map(path)
    return bytes(view[: _certain(path, view, number)[0]])


def _certain(path: Path, view: memoryview, number: int) -> tuple[int, int]:
    """Where the lines end that `history_until` wants, and where all that are sound end."""
    keep = end = 0
    for each, stop in scan(view):
        end = stop
        if each.head.number <= number or _told(path, each, keep).kind == BEGUN:
            keep = stop
    return keep, end


def _told(path: Path, found: Record, place: int) -> Told:
    try:
        kind, fields = record.unpack(found.body)
    except (CheckpointError, ValueError, TypeError) as error:
        raise CheckpointError(f"{path}: damaged at byte {place}: {error}") from None
    return Told(found.head.number, kind, fields)


def _number_at(view: memoryview, place: int) -> int:
    head = record.parse_head(view[place : place + record.HEAD_BYTES])
    assert head is not None
    return head.number


def _damaged(path: Path, place: int, later: int) -> CheckpointError:
    return CheckpointError(f"{path}: damaged at byte {place}, and sound again at byte {later}")


def _header_of(snapshot: Snapshot | None) -> Header:
    assert snapshot is not None
    return snapshot.header


def _past_of(snapshot: Snapshot, index: int) -> Past:
    """A past that ends with its snapshot."""
    return Past(snapshot.header, snapshot, [], index + 1, snapshot.number + 1, 0, 0)


def _map(path: Path) -> tuple[memoryview, list[mmap.mmap]]:
    """A file's bytes, which stay readable when it is removed."""
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_size == 0:
                return memoryview(b""), []
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error}") from None
    return memoryview(mapped), [mapped]
