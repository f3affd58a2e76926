"""Payloads: named sequences of chunks whose bytes never change once they are shared.

A `ChunkBuffer` is one chunk in memory. Parameters, snapshots, pins and updates are lists of chunks and may
share them, so pinning the current parameters only copies a list of references. Memory for chunks comes from
a `BufferPool` and returns to it when the last reader has released it.
"""

import math
import weakref
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch

from pelago.tensor.checksum import Bytes, checksum

_NUMPY: Final[dict[torch.dtype, Any]] = {torch.float32: np.float32, torch.float64: np.float64}


class ChunkBuffer:
    """One chunk: a flat tensor, shape [elements of the chunk], with its checksum and norm, computed on demand and kept.

    Every holder may read a chunk at any time; none writes to it. Two threads that ask for the same figure
    at the same time both compute it, with the same result.
    """

    __slots__ = ("_checksum", "_measured", "tensor")

    def __init__(self, tensor: torch.Tensor, known_checksum: int | None = None) -> None:
        self.tensor = tensor
        self._checksum = known_checksum
        self._measured: tuple[float, bool] | None = None

    @property
    def bytes(self) -> int:
        """Size in memory."""
        return self.tensor.numel() * self.tensor.element_size()

    def buffer(self) -> memoryview:
        """The bytes, read-only and not copied; the view keeps them alive."""
        return bytes_of(self.tensor).toreadonly()

    def checksum(self) -> int:
        """XXH3-64 of the bytes."""
        if self._checksum is None:
            self._checksum = checksum(self.buffer())
        return self._checksum

    def measure(self) -> tuple[float, bool]:
        """Euclidean norm, summed in float64, and whether every element is finite.

        Squares of fp32 cannot overflow in float64, so there the norm alone is enough. Squares of float64
        can: then the norm is inf, and the elements themselves are checked.
        """
        if self._measured is None:
            norm = float(torch.linalg.vector_norm(self.tensor, dtype=torch.float64))
            finite = math.isfinite(norm) or (
                self.tensor.dtype == torch.float64 and bool(torch.isfinite(self.tensor).all())
            )
            self._measured = norm, finite
        return self._measured


class Payload:
    """A blob: a buffer for each chunk of the manifest, None where it has not arrived."""

    __slots__ = ("chunks", "missing", "whole")

    def __init__(self, chunks: list[ChunkBuffer | None], whole: torch.Tensor | None = None) -> None:
        self.chunks = chunks
        self.missing = chunks.count(None)
        self.whole = whole
        """All chunks as one tensor, if they were made as one."""

    def complete_chunks(self) -> list[ChunkBuffer]:
        """All chunks. To ask before `missing` is 0 is a fault of the caller."""
        assert not self.missing, f"{self.missing} of {len(self.chunks)} chunks are missing"
        return [chunk for chunk in self.chunks if chunk is not None]


class BufferPool:
    """Memory for chunks that is used again, because fresh pages cost several times what a step costs.

    A buffer returns by itself when its last view is gone, also a view that a socket sends from. The pool
    never shrinks: it holds the most that was in use at once, which the limits on staged and pinned
    payloads bound.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        self._dtype = dtype
        self._free: dict[int, list[torch.Tensor]] = {}

    def take(self, elements: int) -> torch.Tensor:
        """An uninitialised flat tensor for the caller alone. Any thread may call this."""
        free = self._free.setdefault(elements, [])
        try:
            memory = free.pop()
        except IndexError:
            memory = torch.empty(elements, dtype=self._dtype)
        # Every tensor, array and memoryview made from `lent` keeps it alive.
        lent = memory.numpy()
        weakref.finalize(lent, free.append, memory).atexit = False
        return torch.from_numpy(lent)

    def free_bytes(self) -> int:
        """Bytes of the buffers that are not in use."""
        size = self._dtype.itemsize
        return sum(elements * size * len(free) for elements, free in self._free.copy().items())


def bytes_of(flat: torch.Tensor) -> memoryview:
    """The bytes of a flat tensor, not copied."""
    array: Any = flat.numpy()
    return memoryview(array).cast("B")


class _Exposed:
    """Offers a read-only array as a writable one, which is what torch takes without a warning.

    Nothing writes to it: it becomes the memory of a `ChunkBuffer`.
    """

    def __init__(self, array: npt.NDArray[Any]) -> None:
        self.array = array
        interface = dict(array.__array_interface__)
        interface["data"] = (interface["data"][0], False)
        self.__array_interface__ = interface


def tensor_over(buffer: Bytes, dtype: torch.dtype) -> torch.Tensor:
    """A flat tensor over received bytes, not copied unless they lie at an odd address.

    The tensor keeps the buffer alive, whose contents may not change from now on.
    """
    array: npt.NDArray[Any] = np.frombuffer(buffer, dtype=_NUMPY[dtype])
    if not array.flags.aligned:
        array = array.copy()
    elif not array.flags.writeable:
        array = np.asarray(_Exposed(array))
    return torch.from_numpy(array)
