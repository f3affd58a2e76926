"""What is freed is used again."""

import subprocess
import sys

# In a process of its own: the option cannot be undone, and page faults are counted by process.
PROGRAM = """
import ctypes, resource, sys
from pelago.net.tensors.malloc import keep_what_is_freed

libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]
CHUNK, CHUNKS = 1 << 20, 64

def fresh_pages():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    chunks = [libc.malloc(CHUNK) for _ in range(CHUNKS)]
    for chunk in chunks:
        ctypes.memset(chunk, 1, CHUNK)
    for chunk in chunks:
        libc.free(chunk)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

if not keep_what_is_freed():
    sys.exit("the C library has no such option")
print(fresh_pages(), fresh_pages())
"""


def test_memory_for_chunks_is_cleared_by_the_kernel_only_once() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True, timeout=30
    )
    first, second = map(int, done.stdout.split())
    pages = 64 << 20 >> 12
    assert first > pages // 2, "the first use must need fresh pages, or this test shows nothing"
    assert second < pages // 16
