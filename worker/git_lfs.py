"""Recognises a git-lfs pointer: a small text file that stands for a file that was not downloaded."""

from pathlib import Path
from typing import Final

POINTER: Final = b"version https://git-lfs.github.com/"
"""First bytes of a pointer."""


def is_pointer(path: Path) -> bool:
    """Whether a regular file is a pointer. Raises `OSError`."""
    with path.open("rb") as stream:
        return stream.read(len(POINTER)) == POINTER
