"""The slab: memory for chunks, in slots that are used again.

Nobody writes to a slot that anything refers to: an operation reads old slots and writes new ones. So references decide
alone when a slot is free.
"""

import mmap
import threading
import weakref
from typing import Final

import torch

EXTENT_BYTES: Final = 64 << 20
"""Memory is taken from the system in extents of at most this size, or of one slot that is larger."""
SLOTS_OF_EXTENT: Final = 64
"""An extent has room for at most so many slots: a small model takes little."""
ALIGNED_ELEMENTS: Final = 64


class Slab:
    """Memory for chunks that is used again, because fresh pages cost several times what a step costs.

    A slot returns by itself when its last view is gone, also a view that a socket sends from. The slab
    never shrinks: it holds the most that was in use at once, which the limits on staged and pinned
    payloads bound.

    ``page_locked``: in memory that a CUDA device reads and writes by itself, at the full speed of its link and while
    other work goes on.
    """

    def __init__(self, dtype: torch.dtype, *, page_locked: bool = False) -> None:
        self.page_locked = page_locked
        self.dtype = dtype
        self._free: dict[int, list[torch.Tensor]] = {}
        self._lock = threading.Lock()
        self._rest = torch.empty(0, dtype=dtype)
        """What is left of the newest extent."""

    def take(self, elements: int) -> torch.Tensor:
        """An uninitialised flat tensor for the caller alone. Any thread may call this."""
        # Last in, first out: what was freed last is still in the cache.
        free = self._free.setdefault(elements, [])
        try:
            memory = free.pop()
        except IndexError:
            memory = self._allocate(elements)
        # Every tensor, array and memoryview made from `lent` keeps it alive.
        lent = memory.numpy()
        weakref.finalize(lent, free.append, memory).atexit = False
        return torch.from_numpy(lent)

    def free_bytes(self) -> int:
        """Bytes of the slots that are not in use."""
        size = self.dtype.itemsize
        return sum(elements * size * len(free) for elements, free in self._free.copy().items())

    def _allocate(self, elements: int) -> torch.Tensor:
        # In extents: to lock pages takes long, and for many at once not much longer; and slots that stay, between
        # received frames that do not, would leave the heap of the process full of holes.
        with self._lock:
            if self._rest.numel() < elements:
                self._rest = self._extent(elements)
            room = -(-elements // ALIGNED_ELEMENTS) * ALIGNED_ELEMENTS
            taken, self._rest = self._rest[:elements], self._rest[room:]
            return taken

    def _extent(self, elements: int) -> torch.Tensor:
        """Fresh memory for some slots of this size. What is left of the last extent is given up."""
        size = min(EXTENT_BYTES // self.dtype.itemsize, SLOTS_OF_EXTENT * elements)
        size = max(elements, size)
        if self.page_locked:
            return torch.empty(size, dtype=self.dtype, pin_memory=True)
        return torch.frombuffer(mmap.mmap(-1, size * self.dtype.itemsize), dtype=self.dtype)
