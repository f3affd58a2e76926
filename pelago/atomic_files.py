"""Files and folders for others to read: each is there whole, or is as it was before.

What is written lies in a folder beside its place, ``.NAME.part``, until all of it is on the disk. Then it
takes that place, at once. It has the mode that the umask gives, whatever the library that wrote it thinks.
"""

import ctypes
import fcntl
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

_AT_FDCWD: Final = -100
_RENAME_EXCHANGE: Final = 2


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A place to write a file or a folder to, which takes the place of ``path`` when the block ends.

    If the block raises, or there is no room, ``path`` stays as it was and nothing is left beside it. Another
    process that replaces the same waits meanwhile. Raises `OSError`.
    """
    if path.is_symlink() and path.is_dir():
        path = path.resolve()  # The folder that is meant, wherever it is; the link stays.
    path.parent.mkdir(parents=True, exist_ok=True)
    with _alone(path.with_name(f".{path.name}.part")) as part:
        mode = _mode(part / "mode")
        new = part / path.name
        yield new
        _settle(new, mode)
        if new.is_dir():
            _exchange(new, path)
        else:
            os.replace(new, path)
        with suppress(OSError):
            _sync(path.parent)


def write_text(path: Path, text: str) -> None:
    """Write a file, UTF-8. Raises `OSError`."""
    with replacing(path) as new:
        new.write_text(text, encoding="utf-8")


@contextmanager
def _alone(part: Path) -> Iterator[Path]:
    """Have a folder to oneself, empty, and remove it; what a process left there that was killed goes first."""
    descriptor = _locked(part)
    try:
        for left in part.iterdir():
            _remove(left)
        yield part
    finally:
        shutil.rmtree(part, ignore_errors=True)
        os.close(descriptor)


def _locked(part: Path) -> int:
    while True:
        if part.is_symlink() or part.is_file():
            part.unlink()
        part.mkdir(exist_ok=True)
        try:
            descriptor = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            continue  # The process that had it is done.
        with suppress(OSError):  # Not every file system has locks.
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        with suppress(FileNotFoundError):
            if part.stat().st_ino == os.fstat(descriptor).st_ino:
                return descriptor
        os.close(descriptor)


def _mode(trial: Path) -> int:
    """The mode that the umask gives a file; to ask for the umask itself is to change it."""
    descriptor = os.open(trial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        return stat.S_IMODE(os.fstat(descriptor).st_mode)
    finally:
        os.close(descriptor)
        trial.unlink()


def _settle(new: Path, mode: int) -> None:
    """Have all files on the disk, with the right mode."""
    for each in [new, *new.rglob("*")] if new.is_dir() else [new]:
        if each.is_file() and not each.is_symlink():
            each.chmod(mode)
            _sync(each)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _exchange(new: Path, path: Path) -> None:
    """Put a folder in the place of whatever is there, which comes into the place of the new one."""
    if os.path.lexists(path) and not _swap(new, path):
        os.rename(path, new.with_name("old"))
    if new.exists() and not os.path.lexists(path):
        os.rename(new, path)


def _swap(one: Path, other: Path) -> bool:
    """Exchange two names at once: no reader finds neither. False where that is not to be had."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except AttributeError:
        return False
    names = (os.fsencode(one), os.fsencode(other))
    return bool(renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE) == 0)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink()
