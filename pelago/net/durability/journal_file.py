"""A file that grows by whole batches, and waits while the disk is full."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pelago.core.errors import CheckpointError
from pelago.net import disk
from pelago.net.durability.state_folder import StateFolder
from pelago.net.files import sync_folder


class JournalFile:
    """The file of a journal, or of a history. Errors of the disk are waited for; see ``wait``."""

    def __init__(
        self, sync: bool, wait: Callable[[str], bool], make_room: Callable[[], bool]
    ) -> None:
        self._sync, self._wait, self._make_room = sync, wait, make_room
        self._descriptor = -1
        self._path = Path()

    def __enter__(self) -> "JournalFile":
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
        """Append all parts. What a full disk accepted already is not written again, unless the disk says only at
        the sync that it is full."""
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
