"""The tensor plane of one node, in its process: parameters, optimiser state and named payloads.

A plane carries out a machine's effects on tensors (`pelago.core.tensor_effects`) and holds the payloads that travel.
It takes no decisions and does no I/O.

Threads. Methods on the parameters (`apply`, `pin`, `difference`, `model`, `digest`, `snapshot`, `restore`) take
turns, in one lane. Methods on payloads (`adopt`, `open`, `stage`, `complete`, `measure`, `read`, `lend`, `release`)
run beside it in any number of threads and never wait for it, because a shared chunk is never written again (copy on
write): `apply` writes in place only where the chunk has no other holder; otherwise it writes the new chunk elsewhere
and leaves the old one to its holders. So a pin copies nothing, and replies leave while the next update is applied.
Optimiser state and mean are chunks too, so a snapshot of everything copies nothing either, however slow the disk is.
"""

import math
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, assert_never

import torch
import xxhash

from pelago.core.errors import CheckpointError
from pelago.core.names import BlobId
from pelago.core.tensor_effects import Operation
from pelago.tensor.checksum import Bytes, checksum
from pelago.tensor.encodings.encoding import Encoding
from pelago.tensor.manifest import Manifest
from pelago.tensor.optim import DelayedNesterov, Slots, merge
from pelago.tensor.payload import BufferPool, ChunkBuffer, Payload, tensor_over
from pelago.tensor.snapshot import ARENAS, PlaneSnapshot


class Plane:
    """Tensors of a server, or of a worker (``outer`` None: it cannot step).

    ``remember``: remember the model of each `difference`, for ``merge_carry`` and ``merge_replay``.
    ``exchanges``: keep a snapshot, without which there is no `difference`; the GPS needs none.
    ``pool``: where its chunks are (None: a pool of its own), which decides their type: float32, or float64 for problems
    small enough to be compared with a formula.
    ``average``: d > 0 keeps a running mean of the model. A ``load`` sets it to the model. After every ``step``, with t
    the number of steps so far, e = min(d, (1 + t) / (10 + t)) and mean <- e * mean + (1 - e) * model, so that the
    initial model weighs little long before 1 / (1 - d) steps have passed (the rule of TensorFlow's
    ExponentialMovingAverage). Merges do not change the mean.

    Shared chunks take memory once, so the most is: model, snapshot, momentum, accumulator, difference, with
    ``remember`` the model as sent, with ``average`` the mean, and one model for each payload staged or pinned. A
    `PlaneSnapshot` keeps its chunks also when the plane has replaced them: model, momentum, accumulator and mean once
    more, however many steps run.
    """

    def __init__(
        self,
        manifest: Manifest,
        outer: DelayedNesterov | None,
        remember: bool = False,
        exchanges: bool = True,
        average: float = 0.0,
        pool: BufferPool | None = None,
    ) -> None:
        assert exchanges or not remember, "what is never sent cannot be remembered"
        assert 0.0 <= average < 1.0, average
        self.manifest = manifest
        self._outer = outer
        self._remember = remember
        self._exchanges = exchanges
        self._pool = BufferPool(torch.float32) if pool is None else pool
        self.dtype = self._pool.dtype
        self._lane = threading.RLock()
        self._registry = threading.Lock()
        self._payloads: dict[BlobId, Payload] = {}
        self.on_open: Callable[[Payload], None] | None = None
        """Called with each payload that a peer begins to send, while it is still empty."""
        self._model: list[ChunkBuffer] | None = None
        self._snapshot: list[ChunkBuffer] | None = None
        self._sent: list[ChunkBuffer] | None = None
        self._model_is_shared = True
        self._decay = average
        self._average: list[ChunkBuffer] | None = None
        self._average_is_shared = True
        self._counter = 0
        self._momentum: list[ChunkBuffer] | None = None
        self._momentum_is_shared = True
        self._accumulator: list[ChunkBuffer] | None = None
        self._accumulator_is_shared = True

    # --- payloads: any thread ---------------------------------------------------------------------

    def adopt(self, blob: BlobId, made: torch.Tensor | Payload) -> None:
        """Name a payload made on this node, which is the plane's from now on: a flat tensor, shape [numel], or its
        chunks, of which some may still be missing."""
        if isinstance(made, Payload):
            assert len(made.chunks) == len(self.manifest.chunks), len(made.chunks)
            self._name(blob, made)
            return
        assert made.shape == (self.manifest.numel,), f"{tuple(made.shape)}"
        assert made.dtype == self.dtype, f"{made.dtype}"
        assert made.device.type == "cpu"
        assert made.is_contiguous()
        self._name(blob, Payload.of(made.detach(), self.manifest.chunks))

    def open(self, blob: BlobId) -> None:
        """Make an empty payload for what a peer sends; `stage` fills it."""
        payload = Payload([None] * len(self.manifest.chunks))
        self._name(blob, payload)
        if self.on_open is not None:
            self.on_open(payload)

    def stage(
        self,
        blob: BlobId,
        chunk_index: int,
        buffer: Bytes,
        expected: int,
        encoding: Encoding | None = None,
    ) -> bool:
        """Keep a received chunk. ``expected``: XXH3-64 of ``buffer``, as its sender computed it.

        ``encoding``: what the bytes are; None: those of the plane's memory. Where they are that, the buffer
        itself becomes the staged memory and may not change any more. Returns False, and keeps nothing, if the index,
        length or checksum is wrong, or the blob is not open (any more). A chunk that is already here stays.
        """
        payload = self._payloads.get(blob)
        if payload is None or not 0 <= chunk_index < len(payload.chunks):
            return False
        if payload.chunks[chunk_index] is not None:
            return True
        start, stop = self.manifest.chunks[chunk_index]
        elements = stop - start
        in_memory = elements * self.dtype.itemsize
        size = in_memory if encoding is None else encoding.chunk_bytes(elements)
        if memoryview(buffer).nbytes != size or checksum(buffer) != expected:
            return False
        if encoding is None or encoding.is_memory:
            chunk = ChunkBuffer(self._keep(tensor_over(buffer, self.dtype)), expected)
        else:
            chunk = ChunkBuffer(encoding.decode(buffer, elements))
            assert (chunk.tensor.dtype, chunk.tensor.shape) == (self.dtype, (elements,))
        if self._outer is not None:
            # A server measures what it receives, and this thread has the bytes in its cache. A worker receives
            # the model, which is not measured.
            chunk.measure()
        payload.fill(chunk_index, chunk)
        return True

    def complete(self, blob: BlobId) -> bool:
        """Whether all chunks are here. Raises `KeyError` for an unknown blob."""
        return not self._payloads[blob].missing

    def arrived(self, blob: BlobId) -> list[tuple[int, ChunkBuffer]]:
        """The chunks of a payload that are here, each with its index. Raises `KeyError`."""
        chunks = self._payloads[blob].chunks
        return [(index, chunk) for index, chunk in enumerate(list(chunks)) if chunk is not None]

    def measure(self, blob: BlobId) -> tuple[float, bool]:
        """Euclidean norm of a complete payload, and whether every element is finite.

        Norms of chunks are sums in float64 and combined in chunk order: the same on every call. For
        what was staged they are known already. Raises `KeyError` for an unknown blob.
        """
        facts = [chunk.measure() for chunk in self._payloads[blob].complete_chunks()]
        return math.hypot(*(norm for norm, _ in facts)), all(finite for _, finite in facts)

    def read(
        self, blob: BlobId, chunk_index: int, encoding: Encoding | None = None
    ) -> tuple[memoryview, int]:
        """The bytes of a chunk in an encoding, and their XXH3-64. Raises `KeyError` for an unknown blob.

        ``encoding`` None: the bytes of the plane's memory. Those are not copied; the view is read-only and
        does not change for as long as it is held.
        """
        chunk = self._payloads[blob].chunks[chunk_index]
        assert chunk is not None, f"chunk {chunk_index} of blob {blob} has not arrived"
        if encoding is None or encoding.is_memory:
            return chunk.buffer(), chunk.checksum()
        encoded = memoryview(encoding.encode(chunk.tensor))
        return encoded, checksum(encoded)

    def lend(self, blob: BlobId) -> torch.Tensor:
        """A complete payload as one tensor, shape [numel]; a copy if it is in pieces.

        Not to be written to. Raises `KeyError` for an unknown blob.
        """
        return self._payloads[blob].tensor()

    def payload(self, blob: BlobId) -> Payload:
        """A payload by its chunks, not to be written to. Raises `KeyError` for an unknown blob."""
        return self._payloads[blob]

    def release(self, blob: BlobId) -> None:
        """Forget a payload, known or not. Views that `read` returned stay valid."""
        with self._registry:
            self._payloads.pop(blob, None)

    # --- parameters: the lane ---------------------------------------------------------------------

    def apply(
        self,
        operation: Operation,
        blob: BlobId,
        weight: float = 1.0,
    ) -> None:
        """Change the parameters with a complete payload, as `pelago.core.tensor_effects.Apply` says.

        ``load`` also drops the model that was remembered; ``merge_carry`` and ``merge_replay`` before a
        `difference` have nothing to keep. Raises `KeyError` for an unknown blob.
        """
        chunks = self._payloads[blob].complete_chunks()
        with self._lane:
            match operation:
                case "step":
                    self._step(chunks, weight)
                case "load":
                    self._model, self._sent = list(chunks), None
                    self._take_snapshot()
                    if self._decay:
                        self._average, self._average_is_shared = list(chunks), True
                case "merge":
                    self._merge(chunks, weight)
                    self._take_snapshot()
                case "merge_carry" | "merge_replay":
                    assert self._remember, "this plane was not made to remember what it sent"
                    self._merge_and_keep(chunks, weight, replay=operation == "merge_replay")
                case _:
                    assert_never(operation)

    def pin(self, blob: BlobId, average: bool = False) -> None:
        """Name the parameters as they are now, or their mean if one is kept; nothing is copied."""
        with self._lane:
            if average and self._average is not None:
                self._average_is_shared = True
                self._name(blob, Payload(self._average))
            else:
                self._name(blob, Payload(self._share_model()))

    def difference(self, blob: BlobId) -> None:
        """Name ``snapshot - model`` as it is now, and remember this model if the plane does so."""
        with self._lane:
            assert self._snapshot is not None, "this plane keeps no snapshot"
            model = self._share_model() if self._remember else self._parameters()
            chunks: list[ChunkBuffer | None] = []
            for start, ours in zip(self._snapshot, model, strict=True):
                change = self._pool.take(ours.tensor.numel())
                chunks.append(ChunkBuffer(torch.sub(start.tensor, ours.tensor, out=change)))
            if self._remember:
                self._sent = list(model)
            self._name(blob, Payload(chunks))

    def model(self) -> torch.Tensor:
        """A copy of the parameters, shape [numel]."""
        with self._lane:
            return torch.cat([chunk.tensor for chunk in self._parameters()])

    def average(self) -> torch.Tensor | None:
        """A copy of the parameters' running mean, shape [numel]; None if none is kept."""
        with self._lane:
            if self._average is None:
                return None
            return torch.cat([chunk.tensor for chunk in self._average])

    def digest(self) -> str:
        """Hash of parameters, optimiser state and mean: equal if and only if every bit of them is equal."""
        with self._lane:
            digest = xxhash.xxh3_128(f"{self.dtype} {self.manifest.fingerprint}".encode())
            for chunk in chain(self._parameters(), self._average or ()):
                digest.update(chunk.buffer())
            if self._counter:
                digest.update(str(self._counter).encode())
                for chunk in chain(self._momentum or (), self._accumulator or ()):
                    digest.update(chunk.buffer())
            return digest.hexdigest()

    def memory_bytes(self) -> int:
        """Bytes of all tensors held; chunks that several payloads share are counted once."""
        with self._lane, self._registry:
            named = (payload.chunks for payload in self._payloads.values())
            held = chain(*self._arenas().values(), *named)
            chunks = {id(chunk): chunk.bytes for chunk in held if chunk}
            return sum(chunks.values()) + self._pool.free_bytes()

    # --- all of it: the lane ----------------------------------------------------------------------

    def snapshot(self, payloads: Collection[BlobId] = ()) -> PlaneSnapshot:
        """A snapshot of everything as it is now, with these complete payloads; nothing is copied.

        The next operations write elsewhere, each chunk once, as after a `pin`. Raises
        `KeyError` for an unknown blob.
        """
        with self._lane:
            named = {blob: self._payloads[blob].complete_chunks() for blob in payloads}
            arenas = {name: list(chunks) for name, chunks in self._arenas().items()}
            self._share_everything()
            return PlaneSnapshot(self.manifest, self.dtype, self._counter, arenas, named)

    def restore(self, layout: Mapping[str, Any], chunks: Sequence[Bytes]) -> None:
        """Give this fresh plane the contents of a `snapshot` of this layout and these chunks.

        The buffers themselves become the plane's memory and may not change any more; nothing is
        copied, and no operation ever writes to them. With the same settings, all later results have the same
        bits as on the original plane. If the settings changed: a momentum or
        accumulator that is missing starts at zero, and the mean as the model; a momentum,
        accumulator or model as sent that is no longer needed is dropped.

        Raises `CheckpointError`, and changes nothing, if the snapshot is not of a plane of this manifest,
        dtype and use: it has a mean or a snapshot that this plane does not keep, lacks a snapshot that this
        one keeps, or has steps though this one has no optimiser.
        """
        found = PlaneSnapshot.of(layout, chunks, self.manifest, self.dtype)
        arenas = {name: list(chunks) for name, chunks in found.arenas.items()}
        if "model" not in arenas and (arenas or found.counter):
            raise CheckpointError("tensors of a plane that has everything but a model")
        if found.counter and self._outer is None:
            raise CheckpointError("tensors of a plane that takes steps; this one takes none")
        if "snapshot" in arenas and not self._exchanges:
            raise CheckpointError("tensors of a plane that exchanges; this one does not")
        if arenas and "snapshot" not in arenas and self._exchanges:
            raise CheckpointError("tensors of a plane that never exchanges; this one does")
        if "average" in arenas and not self._decay:
            raise CheckpointError("tensors of a plane that keeps a mean; this one keeps none")
        with self._lane:
            assert self._model is None, "only a fresh plane is restored"
            for blob, held in found.payloads.items():
                self._name(blob, Payload(list(held)))
            self._counter = found.counter
            self._model = arenas.get("model")
            self._snapshot = arenas.get("snapshot")
            if self._remember:
                self._sent = arenas.get("sent")
            if self._decay and self._model is not None:
                self._average = arenas.get("average") or list(self._model)
            if self._outer is not None and self._outer.keeps_momentum:
                self._momentum = arenas.get("momentum")
            if self._outer is not None and self._outer.keeps_accumulator:
                self._accumulator = arenas.get("accumulator")
            self._share_everything()

    # --- inside -----------------------------------------------------------------------------------

    def _keep(self, received: torch.Tensor) -> torch.Tensor:
        """A received chunk where a device can read it, if this plane's memory is page-locked."""
        return (
            self._pool.take(received.numel()).copy_(received)
            if self._pool.page_locked
            else received
        )

    def _name(self, blob: BlobId, payload: Payload) -> None:
        with self._registry:
            assert blob not in self._payloads, f"blob {blob} exists already"
            self._payloads[blob] = payload

    def _arenas(self) -> dict[str, list[ChunkBuffer]]:
        """The arenas that exist, in the order of `ARENAS`."""
        models = (self._model, self._snapshot, self._sent, self._average)
        every = zip(ARENAS, (*models, self._momentum, self._accumulator), strict=True)
        return {name: chunks for name, chunks in every if chunks is not None}

    def _share_everything(self) -> None:
        self._model_is_shared = self._average_is_shared = True
        self._momentum_is_shared = self._accumulator_is_shared = True

    def _parameters(self) -> list[ChunkBuffer]:
        assert self._model is not None, "no parameters yet: `load` some"
        return self._model

    def _share_model(self) -> list[ChunkBuffer]:
        """The parameters for another holder, so that `apply` must not write over them."""
        self._model_is_shared = True
        return self._parameters()

    def _take_snapshot(self) -> None:
        self._model_is_shared = True
        if self._exchanges:
            self._snapshot = list(self._parameters())

    def _rewrite(self) -> Iterator[tuple[int, torch.Tensor, torch.Tensor]]:
        """For each chunk: index, old parameters, and where to write the new ones.

        The two are one tensor if there is no other holder of the chunk. Afterwards the new ones are the
        model, and have no other holder.
        """
        model = self._parameters()
        for index, chunk in enumerate(model):
            new = self._beside(chunk, self._model_is_shared)
            yield index, chunk.tensor, new
            model[index] = ChunkBuffer(new)
        self._model_is_shared = False

    def _beside(self, chunk: ChunkBuffer, is_shared: bool) -> torch.Tensor:
        """Where to write the next contents of this chunk: over it, unless it is shared."""
        return self._pool.take(chunk.tensor.numel()) if is_shared else chunk.tensor

    def _step(self, chunks: list[ChunkBuffer], weight: float) -> None:
        assert self._outer is not None, "this plane has no optimiser"
        if self._momentum is None and self._outer.keeps_momentum:
            self._momentum, self._momentum_is_shared = self._zeros(), False
        if self._accumulator is None and self._outer.keeps_accumulator:
            self._accumulator, self._accumulator_is_shared = self._zeros(), False
        factors = self._outer.factors(self._counter)
        self._counter += 1
        decay = min(self._decay, (1 + self._counter) / (10 + self._counter))
        for index, old, new in self._rewrite():
            slots, new_slots = self._slots(index, factors.absorbs)
            gradient = chunks[index].tensor
            self._outer.step_piece(old, gradient, slots, factors, weight, new, new_slots)
            if self._average is not None:  # At once, while the chunk is in the cache.
                mean = self._average[index]
                new_mean = self._beside(mean, self._average_is_shared)
                merge(mean.tensor, new, 1 - decay, new_mean)
                self._average[index] = ChunkBuffer(new_mean)
        self._average_is_shared = self._accumulator_is_shared = False
        if factors.absorbs:
            self._momentum_is_shared = False

    def _zeros(self) -> list[ChunkBuffer]:
        return [
            ChunkBuffer(self._pool.take(stop - start).zero_())
            for start, stop in self.manifest.chunks
        ]

    def _slots(self, index: int, absorbs: bool) -> tuple[Slots, Slots]:
        """The state of a chunk, and where to write the new one, which already counts as the state.

        A step that does not absorb writes no momentum, so it leaves it shared.
        """
        old_m = new_m = old_accumulator = new_accumulator = None
        if self._momentum is not None:
            chunk = self._momentum[index]
            old_m = new_m = chunk.tensor
            if absorbs:
                new_m = self._beside(chunk, self._momentum_is_shared)
                self._momentum[index] = ChunkBuffer(new_m)
        if self._accumulator is not None:
            chunk = self._accumulator[index]
            old_accumulator = chunk.tensor
            new_accumulator = self._beside(chunk, self._accumulator_is_shared)
            self._accumulator[index] = ChunkBuffer(new_accumulator)
        return Slots(old_m, old_accumulator), Slots(new_m, new_accumulator)

    def _merge(self, chunks: list[ChunkBuffer], weight: float) -> None:
        for index, old, new in self._rewrite():
            merge(old, chunks[index].tensor, weight, new)

    def _merge_and_keep(self, chunks: list[ChunkBuffer], weight: float, replay: bool) -> None:
        """Merge, and keep the movement since the last `difference` for the next one.

        carry: the region's model is merged as it is now. replay: as it was when it was sent, and the
        movement since goes on top, undiminished.
        """
        sent = self._sent or list(self._share_model())
        snapshot = []
        for index, old, new in self._rewrite():
            moved = self._pool.take(old.numel())
            torch.sub(sent[index].tensor, old, out=moved)
            if replay:
                merged = self._pool.take(old.numel())
                merge(sent[index].tensor, chunks[index].tensor, weight, merged)
                torch.sub(merged, moved, out=new)
                snapshot.append(ChunkBuffer(merged))
            else:
                merge(old, chunks[index].tensor, weight, new)
                snapshot.append(ChunkBuffer(moved.add_(new)))
        self._snapshot = snapshot
