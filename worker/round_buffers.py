"""Where a round's start and its pseudo-gradient are: in the host's memory, or on the device.

A payload arrives in chunks on the host and leaves in chunks on the host. In between, on a CUDA device, nothing waits
for the host: the start is copied there from page-locked chunks, the difference start - end is made there in its
place, and its pieces go back to page-locked chunks while the update is already being offered. No memory of the
model's size is allocated in a round.
"""

from collections.abc import Sequence
from typing import Final, Protocol

import torch

from pelago.tensor.payload import BufferPool, ChunkBuffer, Payload
from worker.models.language import LanguageModel

COPIED_BYTES: Final = 32 << 20
"""What is copied from the device between two looks at how far it is: a millisecond at the speed of its link."""


class RoundBuffers(Protocol):
    """Memory of one trainer's rounds, one at a time."""

    def load(self, start: Payload) -> None:
        """Begin a round: the model's parameters become ``start``, which is unchanged and may not be released
        before `delta` has returned."""
        ...

    def delta(self) -> Payload:
        """End the round: the pseudo-gradient, start minus the model's parameters. Its chunks may still be missing
        until `hand_over` has returned."""
        ...

    def hand_over(self) -> None:
        """Wait until all chunks of the last pseudo-gradient are here."""
        ...


class HostBuffers:
    """For a model in the host's memory. ``pieces``: start and stop of each chunk."""

    def __init__(
        self, model: LanguageModel, pieces: Sequence[tuple[int, int]], pool: BufferPool
    ) -> None:
        self._model = model
        self._pieces = pieces
        self._pool = pool
        self._start: Payload | None = None

    def load(self, start: Payload) -> None:
        """Copy it into the model."""
        self._start = start
        for (first, stop), chunk in zip(self._pieces, start.complete_chunks(), strict=True):
            self._model.flat[first:stop].copy_(chunk.tensor)

    def delta(self) -> Payload:
        """All of it, at once."""
        assert self._start is not None, "no round has begun"
        chunks = []
        for (first, stop), chunk in zip(self._pieces, self._start.complete_chunks(), strict=True):
            out = self._pool.take(stop - first)
            chunks.append(
                ChunkBuffer(torch.sub(chunk.tensor, self._model.flat[first:stop], out=out))
            )
        self._start = None
        return Payload(chunks)

    def hand_over(self) -> None:
        """Nothing is missing."""


class CudaBuffers:
    """For a model on a CUDA device. ``pool``: page-locked. Takes the memory of one more model on the device."""

    def __init__(
        self, model: LanguageModel, pieces: Sequence[tuple[int, int]], pool: BufferPool
    ) -> None:
        assert pool.page_locked, "copies from other memory stop the device"
        self._model = model
        self._pieces = pieces
        self._pool = pool
        self._start = torch.empty_like(model.flat)
        """The start of the round, and at its end the pseudo-gradient."""
        self._copies = torch.cuda.Stream(model.device)  # type: ignore[no-untyped-call]
        self._arrived: Payload | None = None
        """What is being copied to the device: its chunks may not be used for anything else meanwhile."""
        self._leaving: tuple[Payload, list[tuple[torch.cuda.Event, int, list[torch.Tensor]]]] = (
            Payload(()),
            [],
        )
        """The last pseudo-gradient, and its copies: when each is done, its first chunk, and the chunks' memory."""

    def load(self, start: Payload) -> None:
        """Copy it to the device, and there into the model. Does not wait for the copies."""
        compute = torch.cuda.current_stream(self._model.device)
        self._copies.wait_stream(compute)
        self._arrived = start
        with torch.cuda.stream(self._copies):
            for (first, stop), chunk in zip(self._pieces, start.complete_chunks(), strict=True):
                self._start[first:stop].copy_(chunk.tensor, non_blocking=True)
        compute.wait_stream(self._copies)
        self._model.flat.copy_(self._start)

    def delta(self) -> Payload:
        """Make it on the device, and begin to copy it to the host."""
        compute = torch.cuda.current_stream(self._model.device)
        torch.sub(self._start, self._model.flat, out=self._start)
        self._copies.wait_stream(compute)
        copies: list[tuple[torch.cuda.Event, int, list[torch.Tensor]]] = []
        begun, size, memory = 0, 0, []
        with torch.cuda.stream(self._copies):
            for index, (first, stop) in enumerate(self._pieces):
                memory.append(self._pool.take(stop - first))
                memory[-1].copy_(self._start[first:stop], non_blocking=True)
                size += memory[-1].nbytes
                if size >= COPIED_BYTES or index == len(self._pieces) - 1:
                    copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
                    copied.record(self._copies)
                    copies.append((copied, begun, memory))
                    begun, size, memory = index + 1, 0, []
        payload = Payload([None] * len(self._pieces))
        self._leaving = payload, copies
        return payload

    def hand_over(self) -> None:
        """Fill the chunks, in order, as their copies are done."""
        payload, copies = self._leaving
        for copied, begun, memory in copies:
            copied.synchronize()
            for index, tensor in enumerate(memory, start=begun):
                payload.fill(index, ChunkBuffer(tensor))
        self._leaving = Payload(()), []
        self._arrived = None


def round_buffers(
    model: LanguageModel, pieces: Sequence[tuple[int, int]], pool: BufferPool
) -> RoundBuffers:
    """The buffers of a model, wherever it is."""
    kind = CudaBuffers if model.device.type == "cuda" else HostBuffers
    return kind(model, pieces, pool)
