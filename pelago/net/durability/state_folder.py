"""The files of a durable node: journals, snapshots, and what is left of them after a crash.

A node's folder holds::

    lock                 held by the process whose state this is
    snapshot-00000003    the whole state after some event
    journal-00000003     the events since then, with the payloads of those that have one
    history              the outcome of every update, never removed: a note for each, with its samples
    history-damaged      a damaged history, whole; only the last one
    spare-...            an old file, to be written over

Snapshot and journal of one number belong together. Journal 0 begins at the machine's first event, so
it has no snapshot, unless the node goes on from the state of another incarnation. A snapshot is written beside
its place, synced and renamed, so one that exists is whole. The snapshot before it, and the journals between
them, stay until the next one is begun: if the newest is damaged all the same, recovery reads the one before it,
and then all journals since.
"""

import errno
import os
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, Final

from pelago.core.errors import CheckpointError, ConfigError
from pelago.durable import record
from pelago.net import disk
from pelago.net.durability.state_files import NAME, PART, StateFiles
from pelago.net.durability.state_reader import RecoveredState, StateReader
from pelago.net.files import lock, lock_to_read
from pelago.runlog.history import certain_bytes, history_until

DAMAGED_HISTORY: Final = "history-damaged"
SPARES_MAX: Final = 1
"""Files of each kind that are kept to be written over: writing over pages that the kernel has costs a fraction of
what new pages cost. They are given up when the disk is short."""


class StateFolder:
    """The folder of one node, locked; ``run`` None: of any run.

    ``read``: only to read what is there, also where writing is not allowed. ``beside``: only to read what does not
    change (`newest`), also while another process has the folder. Raises `ConfigError` if the folder cannot be used,
    or if another process has it and ``beside`` is not set.
    """

    def __init__(
        self, folder: Path, run: str | None, node: str, *, read: bool = False, beside: bool = False
    ) -> None:
        self.folder = folder
        self.is_running = False
        """Whether another process has it."""
        self._files = StateFiles(folder)
        self._reader = StateReader(self._files, run, node)
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
            self._lock.close()  # So that no process is kept from starting.
        if self._files.clearing.exists() and not read:
            self.clear()

    def close(self) -> None:
        """Let another process have the folder."""
        for file in (self._lock, *self._reader.held):
            if file is not None:
                file.close()

    def journal(self, index: int) -> Path:
        """Path of a journal."""
        return self._files.journal(index)

    def snapshot(self, index: int) -> Path:
        """Path of a snapshot."""
        return self._files.snapshot(index)

    @property
    def history(self) -> Path:
        """Path of the history."""
        return self._files.history

    def lend(self, path: Path) -> BinaryIO:
        """Open a file for a reader, which keeps its bytes even if it is removed. Raises `OSError`."""
        self._reader.mapped.add(path)
        return path.open("rb")

    def clear(self) -> None:
        """Remove journals and snapshots. The history stays; of a damaged one, what is before the damage, and all
        of it as `DAMAGED_HISTORY`. Raises `CheckpointError`."""
        mark = self._files.clearing
        try:
            self.give_up_spares()  # Which makes room for the mark on a full disk.
            mark.touch()
            for path in self._files.all():
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
        """Set the files before the newest snapshot aside, to be written over, or remove them. From any thread."""
        for path in self._old():
            kind = path.name.partition("-")[0]
            spares = len(list(self.folder.glob(f"spare-{kind}-*")))
            if spares < SPARES_MAX and path not in self._reader.mapped:
                with suppress(OSError):  # A folder that is full may have no room for a name.
                    path.rename(self.folder / f"spare-{path.name}")
            with suppress(OSError):  # The disk may have become read-only: then another time.
                path.unlink(missing_ok=True)
                self._reader.mapped.discard(path)

    def give_up_spares(self) -> bool:
        """Remove the files that are kept to be written over, and those before the newest snapshot, which are kept
        only in case that one is damaged. Returns whether there were any. From any thread."""
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
            newest = max(self._files.numbers("snapshot"), default=0)
            found = [(path, NAME.fullmatch(path.name)) for path in self._files.all()]
        except OSError:  # The folder is gone, or its disk fails: then nothing can be given up.
            return []
        return [path for path, name in found if name is not None and int(name[2]) < newest]

    def require_room(self, size: int, path: Path) -> None:
        """Raise `OSError` if the disk has no room for a file of ``size`` bytes at ``path``, in place of the one that
        is there, although all that can be given up was removed."""
        while disk.free_bytes(self.folder) + _size(path) < size:
            if not self.give_up_spares():
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def spare(self, path: Path) -> None:
        """Put an old file in the place of one that is to be written, if there is an old one and the place is free.
        Raises `OSError`."""
        kind = path.name.partition("-")[0]
        for old in sorted(self.folder.glob(f"spare-{kind}-*")):
            if not path.exists():
                old.rename(path)
            return

    def recovered(self, *, salvage: bool = False) -> RecoveredState | None:
        """The recovered state of the folder, verified; None if no process has begun here.

        If a snapshot is damaged, an older one is taken, with all journals since. ``salvage``: read up to the first
        damage, and lose what follows. Raises `CheckpointError`, naming file and place, for damage, and
        `ForeignState` for the state of another run.
        """
        return self._reader.recovered(salvage=salvage)

    def newest(self) -> RecoveredState | None:
        """The newest sound snapshot, without the events after it; None if there is none. Also while another process
        writes here. Raises `CheckpointError` if all snapshots are damaged."""
        return self._reader.newest()

    @property
    def has_snapshots(self) -> bool:
        """Whether a snapshot was written here, sound or not."""
        return bool(self._files.numbers("snapshot"))

    def boots(self) -> set[str]:
        """The boots of this machine (`file_header.boot_id`) during which the files here were written, as far as
        their headers can be read."""
        return {each.boot for each in self._files.headers()}

    def cut_history(self, number: int) -> None:
        """Leave of the history what is certain: this incarnation's lines up to the event of a snapshot, and those
        of earlier incarnations. The rest follows when the journal is replayed. Raises `CheckpointError`."""
        keep = certain_bytes(self.history, number)
        if self.history.exists():
            os.truncate(self.history, keep)

    def cut(self, recovered: RecoveredState) -> None:
        """Remove what was not written completely: the torn end of the last journal, so that the next one can
        follow, and snapshots that were not renamed yet; also damaged snapshots. Raises `OSError`."""
        good = -1 if recovered.snapshot is None else recovered.snapshot.index
        damaged = [self.snapshot(each) for each in self._files.numbers("snapshot") if each > good]
        parts = [path for path in self._files.all() if path.name.endswith(PART)]
        for path in (*damaged, *parts):
            path.unlink()
        if recovered.torn_bytes and not self.journal(recovered.next_index).exists():
            with self.journal(recovered.next_index - 1).open("r+b") as file:
                file.truncate(file.seek(0, os.SEEK_END) - recovered.torn_bytes)
                os.fsync(
                    file.fileno()
                )  # Now: once another journal follows, a torn end counts as damage.


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
