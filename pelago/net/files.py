"""Files as a durable node needs them: locked, and on the disk."""

import fcntl
import os
from pathlib import Path
from typing import IO, Any


def lock(path: Path) -> IO[Any]:
    """Have a file for oneself until it is closed. Raises `BlockingIOError` if another process has it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return _locked(path.open("a"), fcntl.LOCK_EX)


def lock_to_read(path: Path) -> IO[Any] | None:
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


def open_over(path: Path) -> int:
    """A descriptor to write over a file with, which no process may read (`lock_to_read`) until it is closed. If one
    reads it already, a new file takes its place. Raises `OSError`."""
    while True:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            path.unlink()
            continue
        except OSError:
            pass  # Not every file system has locks.
        return descriptor


def sync_file(path: Path) -> None:
    """Have the bytes of a file on the disk. Raises `OSError`."""
    _sync(path, os.O_RDONLY)


def sync_folder(folder: Path) -> None:
    """Have the names in a folder on the disk. Raises `OSError`."""
    _sync(folder, os.O_RDONLY | os.O_DIRECTORY)


def _sync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
