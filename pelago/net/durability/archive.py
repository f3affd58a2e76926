"""Copies of a node's snapshots away from its host: in an object store, or a folder on another machine.

::

    URL/INCARNATION-NUMBER/snapshot   the file that `pelago.net.durability.state_folder` describes
    URL/INCARNATION-NUMBER/history    the node's history up to the snapshot's event
    URL/INCARNATION-NUMBER/whole      written last: one without it is not there

Copies are made by a thread of their own. What cannot be written is logged, and tried again with the next
snapshot; no node waits for it.
"""

import asyncio
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, Final

import fsspec

from pelago import reading
from pelago.core.errors import CheckpointError, ConfigError
from pelago.net.durability.state_folder import StateFolder
from pelago.net.telemetry import Telemetry
from pelago.runlog.events import ArchiveFailed, SnapshotArchived
from pelago.runlog.history import HISTORY, history_until

SNAPSHOT: Final = "snapshot"
WHOLE: Final = "whole"
TRIAL: Final = "trial"
PIECE_BYTES: Final = 4 << 20
CLOSE_S: Final = 30.0
"""How long a node that ends waits for the copy that is being made."""
S_PER_MINUTE: Final = 60.0


class Archive:
    """The folder of one node's copies. Raises `ConfigError` for a URL that fsspec cannot serve."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        try:
            self._files, self._root = fsspec.core.url_to_fs(self.url)
        except Exception as error:  # Whatever the library behind the protocol raises.
            raise ConfigError(f"cannot use {url!r} for snapshots: {error}") from None

    def require_writable(self) -> None:
        """Write and remove a small file. Raises `ConfigError`."""
        reading.require_expanded(self.url, "gps.snapshots")
        trial = f"{self._root}/{TRIAL}"
        try:
            self._files.makedirs(self._root, exist_ok=True)
            self._files.pipe_file(trial, b"")
            self._files.rm_file(trial)
        except Exception as error:  # Whatever the library behind the protocol raises.
            raise ConfigError(
                f"gps.snapshots = {self.url!r}: cannot write there: {error}"
            ) from None

    def names(self) -> list[str]:
        """Names of all complete copies, oldest first. Raises `CheckpointError`."""
        try:
            self._files.invalidate_cache()
            if not self._files.exists(self._root):
                return []
            found = [each.rstrip("/") for each in self._files.ls(self._root, detail=False)]
            whole = [each for each in found if self._files.exists(f"{each}/{WHOLE}")]
        except Exception as error:
            raise CheckpointError(f"cannot read the snapshots at {self.url}: {error}") from None
        return sorted(each.rpartition("/")[2] for each in whole)

    def put(self, name: str, snapshot: BinaryIO, history: bytes) -> None:
        """Write a copy. Raises whatever the library behind the protocol does."""
        folder = f"{self._root}/{name}"
        self._files.makedirs(folder, exist_ok=True)
        with self._files.open(f"{folder}/{SNAPSHOT}", "wb") as file:
            while piece := snapshot.read(PIECE_BYTES):
                file.write(piece)
        self._files.pipe_file(f"{folder}/{HISTORY}", history)
        self._files.pipe_file(f"{folder}/{WHOLE}", b"")

    def remove_part(self, name: str) -> None:
        """Remove the files of an incomplete copy. Raises whatever the library does."""
        folder = f"{self._root}/{name}"
        if not self._files.exists(f"{folder}/{WHOLE}"):
            self._files.rm(folder, recursive=True)

    def keep(self, newest: int) -> None:
        """Remove all but so many complete copies, and all incomplete ones. Raises whatever the library does."""
        kept = self.names()[-newest:]
        for each in self._files.ls(self._root, detail=False):
            name = each.rstrip("/").rpartition("/")[2]
            if name not in kept and kept and name < kept[-1]:
                self._files.rm(each, recursive=True)

    def fetch(self, name: str, folder: Path) -> None:
        """Fetch a copy to this machine, as the state of a node without a journal. Raises `CheckpointError` for a copy
        that lacks a file, `ConfigError` if the archive cannot be read."""
        try:
            source = f"{self._root}/{name}"
            self._files.get_file(f"{source}/{SNAPSHOT}", str(folder / "snapshot-00000000"))
            self._files.get_file(f"{source}/{HISTORY}", str(folder / HISTORY))
        except FileNotFoundError as error:
            raise CheckpointError(f"the snapshot {name} at {self.url} lacks {error}") from None
        except Exception as error:
            raise ConfigError(f"cannot read the snapshot {name} at {self.url}: {error}") from None


class Copier:
    """Copies a node's snapshots into an archive, one at a time; on the event loop's thread.

    ``minutes``: between the beginnings of two; ``kept``: so many stay in the archive.
    """

    def __init__(self, archive: Archive, minutes: float, kept: int) -> None:
        self._archive, self._kept = archive, kept
        self._interval_s = minutes * S_PER_MINUTE
        self._begun_at = -float("inf")
        self._thread: threading.Thread | None = None

    @property
    def due(self) -> bool:
        """Whether it is time for a copy, and none is being made."""
        if self._thread is not None and self._thread.is_alive():
            return False
        return time.monotonic() - self._begun_at >= self._interval_s

    def copy(
        self, store: StateFolder, index: int, name: str, number: int, telemetry: Telemetry
    ) -> None:
        """Begin to copy a snapshot that was just written, with the history up to its event."""
        self._begun_at = time.monotonic()
        loop = asyncio.get_running_loop()
        try:
            # The next snapshot removes this one, but leaves its bytes to those that have it open.
            snapshot = store.lend(store.snapshot(index))
        except OSError as error:
            telemetry.event(ArchiveFailed(str(error)))
            return

        def log(event: SnapshotArchived | ArchiveFailed) -> None:
            with suppress(RuntimeError):  # The loop may be gone.
                loop.call_soon_threadsafe(telemetry.event, event)

        job = _job(self._archive, self._kept, store, name, number, snapshot, log)
        self._thread = threading.Thread(target=job, name="archive", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Wait for the copy that is being made, at most for a time limit."""
        if self._thread is not None:
            self._thread.join(CLOSE_S)


def _job(
    archive: Archive,
    kept: int,
    store: StateFolder,
    name: str,
    number: int,
    snapshot: BinaryIO,
    log: Callable[[SnapshotArchived | ArchiveFailed], None],
) -> Callable[[], None]:
    def job() -> None:
        begun = time.monotonic()
        try:
            with snapshot:
                archive.put(name, snapshot, history_until(store.history, number))
                size = snapshot.tell()
            archive.keep(kept)
        except Exception as error:  # Whatever the library behind the protocol raises.
            with suppress(Exception):
                archive.remove_part(name)  # Otherwise a full disk gets fuller with each attempt.
            log(ArchiveFailed(f"cannot write to {archive.url}: {error}"))
            return
        seconds = round(time.monotonic() - begun, 3)
        log(SnapshotArchived(f"{archive.url}/{name}", size, seconds))

    return job


def name_of(incarnation: int, number: int) -> str:
    """The name of a copy; names sort in the order in which the copies were made."""
    return f"{incarnation:010d}-{number:012d}"
