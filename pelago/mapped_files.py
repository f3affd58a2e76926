"""Files that are read through a memory map."""

import mmap
import os
from pathlib import Path

from pelago.core.errors import CheckpointError


def map_file(path: Path) -> tuple[memoryview, list[mmap.mmap]]:
    """A file's bytes, which stay readable when it is removed. Raises `CheckpointError`."""
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_size == 0:
                return memoryview(b""), []
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error}") from None
    return memoryview(mapped), [mapped]
