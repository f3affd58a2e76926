"""Payloads: named sequences of chunks whose bytes never change once they are shared.

A `ChunkBuffer` is one chunk in memory. Parameters, snapshots, pins and updates are lists of chunks and may
share them, so pinning the current parameters only copies a list of references. Memory for chunks comes from
a `pelago.tensor.slab.Slab` and returns to it when the last reader has released it.
"""

import math
import threading
from collections.abc import Callable, Sequence
from typing import Any, Final, Self

import numpy as np
import numpy.typing as npt
import torch

from pelago.tensor.checksum import Bytes, checksum

_NUMPY: Final[dict[torch.dtype, Any]] = {
    torch.float32: np.float32,
    torch.float64: np.float64,
    torch.int16: np.int16,
    torch.int8: np.int8,
}


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
    """A blob: a buffer for each chunk of the manifest, None where it is not here yet.

    Chunks come from the network, or from a device piece by piece. Any thread may fill one, and any other may have
    sent it on before the next one is here.
    """

    __slots__ = ("_complete", "_lock", "_waiting", "chunks", "is_promised", "missing", "whole")

    def __init__(
        self, chunks: Sequence[ChunkBuffer | None], whole: torch.Tensor | None = None
    ) -> None:
        self.chunks = list(chunks)
        self.missing = self.chunks.count(None)
        self.whole = whole
        """All chunks as one tensor, if they were made as one."""
        self.is_promised = False
        """Whether work that is planned fills it, before all work that is planned later."""
        self._lock = threading.Lock()
        self._complete = threading.Event()
        self._waiting: dict[int, list[Callable[[], None]]] = {}
        if not self.missing:
            self._complete.set()

    @classmethod
    def of(cls, flat: torch.Tensor, pieces: Sequence[tuple[int, int]]) -> Self:
        """A flat tensor, shape [numel], cut into the pieces of a manifest; nothing is copied."""
        return cls([ChunkBuffer(flat[start:stop]) for start, stop in pieces], flat)

    @classmethod
    def promised(cls, chunks: int) -> Self:
        """A payload that planned work fills."""
        made = cls([None] * chunks)
        made.is_promised = True
        return made

    def fill(self, index: int, chunk: ChunkBuffer) -> None:
        """A chunk is here. One that is here already stays."""
        with self._lock:
            if self.chunks[index] is not None:
                return
            self.chunks[index] = chunk
            self.missing -= 1
            waiting = self._waiting.pop(index, ())
        if not self.missing:
            self._complete.set()
        for call in waiting:
            call()

    def when_here(self, index: int, call: Callable[[], None]) -> None:
        """Call something as soon as a chunk is here: now, or in the thread that fills it."""
        with self._lock:
            if self.chunks[index] is None:
                self._waiting.setdefault(index, []).append(call)
                return
        call()

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait until all chunks are here; whether they are."""
        return self._complete.wait(timeout_s)

    def complete_chunks(self) -> list[ChunkBuffer]:
        """All chunks. To ask before `missing` is 0 is a fault of the caller."""
        assert not self.missing, f"{self.missing} of {len(self.chunks)} chunks are missing"
        return [chunk for chunk in self.chunks if chunk is not None]

    def measure(self) -> tuple[float, bool]:
        """Euclidean norm of a complete payload, and whether every element is finite.

        Norms of chunks are sums in float64 and combined in chunk order: the same on every call.
        """
        facts = [chunk.measure() for chunk in self.complete_chunks()]
        return math.hypot(*(norm for norm, _ in facts)), all(finite for _, finite in facts)

    def tensor(self) -> torch.Tensor:
        """A complete payload as one tensor, shape [numel]; a copy if it is in pieces. Not to be written to."""
        if self.whole is not None:
            return self.whole
        return torch.cat([chunk.tensor for chunk in self.complete_chunks()])


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
