"""How much room a disk has."""

import errno
import os
from pathlib import Path
from typing import Final

_FULL: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_UNKNOWN_BYTES: Final = 1 << 62


def is_full(error: OSError) -> bool:
    """Whether a write failed for want of room: on the disk, of a quota, or below a limit of file sizes."""
    return error.errno in _FULL


def free_bytes(folder: Path) -> int:
    """Bytes that a user may still write on the file system of a folder, or of the nearest existing folder above it;
    a very large number where the file system does not say. Raises `OSError`."""
    found = os.statvfs(nearest(folder))
    return found.f_bavail * found.f_frsize if found.f_blocks else _UNKNOWN_BYTES


def nearest(folder: Path) -> Path:
    """A folder, or the nearest one above it that is there."""
    return next(each for each in (folder, *folder.absolute().parents) if each.exists())
