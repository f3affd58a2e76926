"""Makes the C library's allocator keep what is freed.

ZeroMQ receives each chunk into memory of its own from ``malloc``. By default glibc gives a megabyte that
is freed back to the kernel, which clears every page of it again before the next chunk may use it: more
work than checksum, measurement and step together. A node receives models of one size as long as it
runs, so it keeps the memory that it once needed.
"""

import ctypes
import sys
from typing import Final

# From glibc's malloc.h.
_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3
_M_ARENA_MAX: Final = -8
_MMAP_BYTES: Final = 32 << 20
"""The most that glibc takes; far more than a chunk."""
_TRIM_BYTES: Final = (1 << 31) - 1
_ARENAS: Final = 1
"""Other arenas than the first give memory back in 64 MiB steps, whatever the threshold says."""


def keep_what_is_freed() -> bool:
    """Let freed memory wait in this process for its next use. False if the C library has no such option.

    To be called before threads are started: a thread that has an arena keeps it.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:
        return False  # musl: it has one arena, and no such settings.
    settings = {
        _M_ARENA_MAX: _ARENAS,
        _M_MMAP_THRESHOLD: _MMAP_BYTES,
        _M_TRIM_THRESHOLD: _TRIM_BYTES,
    }
    return all([mallopt(name, value) == 1 for name, value in settings.items()])
