"""Where a round's start and its pseudo-gradient are: in the host's memory, or on the device.

A payload arrives in chunks on the host and leaves in chunks on the host. In between, on a CUDA device, nothing waits
for the host: the start is copied there from page-locked chunks, each as soon as it is here, the difference
start - end is made there in its place, and its pieces go back to page-locked chunks while the update is already
being offered. No memory of the model's size is allocated in a round.
"""

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final, Protocol

import torch

from pelago.tensor.payload import ChunkBuffer, Payload
from pelago.tensor.slab import Slab
from worker.models.language import LanguageModel

RUN_BYTES: Final = 32 << 20
"""What is copied from the device at once, at most, if chunks are not larger: a millisecond at the speed of its link."""


@dataclass(frozen=True, slots=True)
class _Run:
    """Neighbouring chunks that are copied to the host at once. ``copied``: when they are there."""

    chunks: range
    memory: torch.Tensor
    copied: torch.cuda.Event


class RoundBuffers(Protocol):
    """Memory of one trainer's rounds, one at a time."""

    def expect(self, coming: Payload) -> None:
        """A payload has begun to arrive, with which a round may begin. Any thread may call this."""
        ...

    def load(self, start: Payload) -> None:
        """Begin a round: the model's parameters become ``start``, which is unchanged and may not be released
        before `delta` has returned."""
        ...

    def stay(self) -> None:
        """Begin a round from the model's parameters as they are."""
        ...

    def rebase(self, model: Payload) -> None:
        """Move the parameters onto ``model``: their movement since the round began is added to it, and it becomes
        the start of the round. After the end of a round its movement is added."""
        ...

    def delta(self) -> Payload:
        """End the round: the pseudo-gradient, start minus the model's parameters. Its chunks may still be missing
        until `hand_over` has returned."""
        ...

    def hand_over(self) -> None:
        """Wait until all chunks of the last pseudo-gradient are here."""
        ...


class HostBuffers:
    """For a model in the host's memory. ``pieces``: start and stop of each chunk. ``overlap``: a model may come after
    the end of a round, so that its pseudo-gradient is kept."""

    def __init__(
        self,
        model: LanguageModel,
        pieces: Sequence[tuple[int, int]],
        slab: Slab,
        overlap: bool = False,
    ) -> None:
        self._overlap = overlap
        self._model = model
        self._pieces = pieces
        self._slab = slab
        self._start: Payload | None = None
        """The start of the round; None: it is over."""
        self._delta: Payload | None = None
        """The pseudo-gradient of the last round."""

    def expect(self, coming: Payload) -> None:
        """Nothing is done before all of it is here: the round that goes on needs the model."""

    def load(self, start: Payload) -> None:
        """Copy it into the model."""
        self._start = start
        for (first, stop), chunk in zip(self._pieces, start.complete_chunks(), strict=True):
            self._model.flat[first:stop].copy_(chunk.tensor)

    def stay(self) -> None:
        """Copy the parameters."""
        copies = [self._slab.take(stop - first) for first, stop in self._pieces]
        for (first, stop), copy in zip(self._pieces, copies, strict=True):
            copy.copy_(self._model.flat[first:stop])
        self._start = Payload([ChunkBuffer(copy) for copy in copies])

    def rebase(self, model: Payload) -> None:
        """Chunk by chunk."""
        base = self._delta if self._start is None else self._start
        assert base is not None, "no round has begun"
        for (first, stop), old, new in zip(
            self._pieces, base.complete_chunks(), model.complete_chunks(), strict=True
        ):
            flat = self._model.flat[first:stop]
            if self._start is None:
                torch.sub(new.tensor, old.tensor, out=flat)
            else:
                flat.sub_(old.tensor).add_(new.tensor)
        if self._start is not None:
            self._start = model

    def delta(self) -> Payload:
        """All of it, at once."""
        assert self._start is not None, "no round has begun"
        chunks = []
        for (first, stop), chunk in zip(self._pieces, self._start.complete_chunks(), strict=True):
            out = self._slab.take(stop - first)
            chunks.append(
                ChunkBuffer(torch.sub(chunk.tensor, self._model.flat[first:stop], out=out))
            )
        delta = Payload(chunks)
        self._start, self._delta = None, delta if self._overlap else None
        return delta

    def hand_over(self) -> None:
        """Nothing is missing."""


class CudaBuffers:
    """For a model on a CUDA device. ``slab``: page-locked. Takes the memory of one more model on the device.

    Between rounds that memory is free, so a start that is still arriving is copied there chunk by chunk.
    """

    def __init__(self, model: LanguageModel, pieces: Sequence[tuple[int, int]], slab: Slab) -> None:
        assert slab.page_locked, "copies from other memory stop the device"
        self._model = model
        self._pieces = pieces
        self._runs = runs_of(pieces, RUN_BYTES // model.flat.itemsize)
        self._slab = slab
        self._start = torch.empty_like(model.flat)
        """The start of the round, and at its end the pseudo-gradient."""
        self._copies = torch.cuda.Stream(model.device)  # type: ignore[no-untyped-call]
        self._lock = threading.Lock()
        self._in_round = False
        self._is_delta = False
        """Whether `_start` is the pseudo-gradient of a round that is over."""
        self._coming: Payload | None = None
        """What arrives between two rounds."""
        self._copied: set[int] = set()
        """Its chunks that are being copied to the device."""
        self._arrived: Payload | None = None
        """What is being copied to the device: its chunks may not be used for anything else meanwhile."""
        self._leaving: tuple[Payload, list[_Run]] = Payload(()), []
        """The last pseudo-gradient, and its copies to the host."""

    def expect(self, coming: Payload) -> None:
        """Copy each chunk to the device as soon as it is here, unless a round goes on. One that is expected later
        takes its place."""
        with self._lock:
            if self._in_round:
                return
            self._coming, self._copied = coming, set()
            self._copies.wait_stream(torch.cuda.current_stream(self._model.device))
        for index in range(len(self._pieces)):
            coming.when_here(index, partial(self._copy, coming, index))

    def load(self, start: Payload) -> None:
        """Copy what is not there yet to the device, and all of it into the model. Does not wait for the copies."""
        compute = torch.cuda.current_stream(self._model.device)
        with self._lock:
            if self._coming is not start:
                self._copied = set()
                self._copies.wait_stream(compute)
            self._in_round, self._coming, self._arrived = True, None, start
            self._is_delta = False
            for index, chunk in enumerate(start.complete_chunks()):
                if index not in self._copied:
                    self._begin_copy(index, chunk)
        compute.wait_stream(self._copies)
        self._model.flat.copy_(self._start)

    def stay(self) -> None:
        """Copy the parameters on the device."""
        with self._lock:
            self._in_round, self._coming, self._is_delta = True, None, False
        self._start.copy_(self._model.flat)

    def rebase(self, model: Payload) -> None:
        """On the device, between two steps; it does not wait for the copies."""
        self._arrived = model
        for (first, stop), chunk in zip(self._pieces, model.complete_chunks(), strict=True):
            flat, start = self._model.flat[first:stop], self._start[first:stop]
            if self._is_delta:
                flat.copy_(chunk.tensor, non_blocking=True)
                flat.sub_(start)
            else:
                flat.sub_(start)
                start.copy_(chunk.tensor, non_blocking=True)
                flat.add_(start)

    def delta(self) -> Payload:
        """Make it on the device piece by piece, and begin to copy each piece to the host."""
        compute = torch.cuda.current_stream(self._model.device)
        runs = []
        for chunks in self._runs:
            first, stop = self._pieces[chunks.start][0], self._pieces[chunks.stop - 1][1]
            made, copied = (torch.cuda.Event(blocking=True) for _ in range(2))  # type: ignore[no-untyped-call]
            piece = self._start[first:stop]
            torch.sub(piece, self._model.flat[first:stop], out=piece)
            made.record(compute)
            memory = self._slab.take(stop - first)
            with torch.cuda.stream(self._copies):
                self._copies.wait_event(made)
                memory.copy_(piece, non_blocking=True)
                copied.record(self._copies)
            runs.append(_Run(chunks, memory, copied))
        payload = Payload([None] * len(self._pieces))
        self._leaving, self._is_delta = (payload, runs), True
        return payload

    def hand_over(self) -> None:
        """Fill the chunks, in order, as their copies are done."""
        payload, runs = self._leaving
        for run in runs:
            run.copied.synchronize()
            origin = self._pieces[run.chunks.start][0]
            for index in run.chunks:
                first, stop = self._pieces[index]
                payload.fill(index, ChunkBuffer(run.memory[first - origin : stop - origin]))
        self._leaving = Payload(()), []
        with self._lock:
            self._in_round, self._arrived = False, None

    def _copy(self, coming: Payload, index: int) -> None:
        """A chunk is here; called in the thread that received it."""
        with self._lock:
            chunk = coming.chunks[index]
            if self._coming is coming and chunk is not None:
                self._copied.add(index)
                self._begin_copy(index, chunk)

    def _begin_copy(self, index: int, chunk: ChunkBuffer) -> None:
        first, stop = self._pieces[index]
        with torch.cuda.stream(self._copies):
            self._start[first:stop].copy_(chunk.tensor, non_blocking=True)


def runs_of(pieces: Sequence[tuple[int, int]], elements: int) -> list[range]:
    """The indices of ``pieces``, which follow one another, in runs: of at most so many elements, or of one piece."""
    runs: list[range] = []
    begun = 0
    for index, (_, stop) in enumerate(pieces):
        if index > begun and stop - pieces[begun][0] > elements:
            runs.append(range(begun, index))
            begun = index
    return [*runs, range(begun, len(pieces))] if pieces else []


def round_buffers(
    model: LanguageModel, pieces: Sequence[tuple[int, int]], slab: Slab, overlap: bool = False
) -> RoundBuffers:
    """The buffers of a model, wherever it is. ``overlap``: rounds are rebased."""
    if model.device.type == "cuda":
        return CudaBuffers(model, pieces, slab)
    return HostBuffers(model, pieces, slab, overlap)
