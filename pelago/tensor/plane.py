"""The tensor plane of one node, in its process: parameters, optimiser state and named payloads.

A plane carries out a machine's effects on tensors (`pelago.core.tensor_effects`) and holds the payloads that travel.
It takes no decisions and does no I/O.

An operation on the parameters is planned first, and then performed chunk by chunk (`PlannedWork`), by as many threads
as there are. What does not depend on numbers happens when it is planned: a pin or a difference names its payload at
once, and its chunks become ready one by one, so a reply can leave behind the step that makes it. `apply`, `pin` and
`difference` do both in the calling thread.

Threads. One thread plans, in order, and calls the methods that look at the parameters as a whole (`model`, `digest`,
`memory_bytes`, `snapshot`, `restore`), which wait for all planned work. Work is performed in any threads, in the order
of planning for each chunk. Methods on payloads (`adopt`, `open`, `stage`, `complete`, `measure`, `read`, `lend`,
`release`) run in any threads and never wait.
"""

import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, assert_never

import numpy as np
import torch
import xxhash

from pelago.core.errors import CheckpointError
from pelago.core.names import BlobId
from pelago.core.tensor_effects import Apply, Difference, Operation, Pin
from pelago.tensor import chunk_state
from pelago.tensor.checksum import Bytes, checksum
from pelago.tensor.chunk_state import ARENAS, ChunkState, StepSettings
from pelago.tensor.encodings.encoding import Encoding
from pelago.tensor.manifest import Manifest
from pelago.tensor.optim import DelayedNesterov
from pelago.tensor.payload import ChunkBuffer, Payload
from pelago.tensor.planned_work import PlannedWork
from pelago.tensor.slab import Slab
from pelago.tensor.snapshot import PlaneSnapshot


class Plane:
    """Tensors of a server, or of a worker (``outer`` None: it cannot step).

    ``remember``: remember the model of each `difference`, for ``merge_carry`` and ``merge_replay``.
    ``exchanges``: keep a snapshot, without which there is no `difference`; the GPS needs none.
    ``slab``: where its chunks are (None: a slab of its own), which decides their type: float32, or float64 for problems
    small enough to be compared with a formula.
    ``average``: d > 0 keeps a running mean of the model. A ``load`` sets it to the model. After every ``step``, with t
    the number of steps so far, e = min(d, (1 + t) / (10 + t)) and mean <- e * mean + (1 - e) * model, so that the
    initial model weighs little long before 1 / (1 - d) steps have passed (the rule of TensorFlow's
    ExponentialMovingAverage). Merges do not change the mean.

    Shared chunks take memory once, so the most is: model, snapshot, momentum, accumulator, difference, with
    ``remember`` the model as sent, with ``average`` the mean, one model for each payload staged, and one for each
    version pinned. An operation needs a few chunks more. A `PlaneSnapshot` keeps its chunks also when the plane has
    replaced them: model, momentum, accumulator and mean once more, however many steps run.
    """

    def __init__(
        self,
        manifest: Manifest,
        outer: DelayedNesterov | None,
        remember: bool = False,
        exchanges: bool = True,
        average: float = 0.0,
        slab: Slab | None = None,
    ) -> None:
        assert exchanges or not remember, "what is never sent cannot be remembered"
        assert 0.0 <= average < 1.0, average
        self.manifest = manifest
        self._outer = outer
        self._remember = remember
        self._exchanges = exchanges
        self._decay = average
        self._slab = Slab(torch.float32) if slab is None else slab
        self.dtype = self._slab.dtype
        self._registry = threading.Lock()
        self._payloads: dict[BlobId, Payload] = {}
        self.on_open: Callable[[Payload], None] | None = None
        """Called with each payload that a peer begins to send, while it is still empty."""
        self._states = [ChunkState() for _ in manifest.chunks]
        self._is_loaded = False
        """As planned, like the counter."""
        self._counter = 0
        self._pending = 0
        self._fault: BaseException | None = None
        self._settled = threading.Condition()

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

        ``encoding``: what the bytes are; None: those of the plane's memory. They are copied into the slab. Returns
        False, and keeps nothing, if the index, length or checksum is wrong, or the blob is not open (any more). A
        chunk that is already here stays.
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
        slot = self._slab.take(elements)
        if encoding is None or encoding.is_memory:
            np.copyto(slot.numpy().view(np.uint8), np.frombuffer(buffer, np.uint8))
            chunk = ChunkBuffer(slot, expected)
        else:
            decoded = encoding.decode(buffer, elements)
            assert (decoded.dtype, decoded.shape) == (self.dtype, (elements,))
            chunk = ChunkBuffer(slot.copy_(decoded))
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
        """`Payload.measure`. For what was staged the norms are known already. Raises `KeyError` for an unknown blob."""
        return self._payloads[blob].measure()

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

    # --- parameters: planned work ------------------------------------------------------------------

    def plan(self, effect: Apply | Pin | Difference) -> PlannedWork:
        """Plan an operation, as `pelago.core.tensor_effects` says.

        Names the payload of a pin or a difference, whose chunks are missing until they are performed. ``load`` also
        drops the model that was remembered; ``merge_carry`` and ``merge_replay`` before a difference have nothing to
        keep. Raises `KeyError` for an unknown blob.
        """
        match effect:
            case Apply(operation, blob, weight):
                payload = self._payloads[blob]
                return self._planned(self._application(operation, _taker(payload), weight))
            case Pin(blob, average):
                return self._planned(self._pin(blob, average))
            case Difference(blob):
                return self._planned(self._difference(blob))
            case _:
                assert_never(effect)

    def plan_snapshot(
        self, payloads: Collection[BlobId] = ()
    ) -> tuple[PlannedWork, Callable[[], PlaneSnapshot]]:
        """Plan a snapshot of everything as it is now, with these complete payloads, and return what makes it when the
        work is done. Nothing is copied. Raises `KeyError` for an unknown blob."""
        named = {blob: self._payloads[blob] for blob in payloads}
        for payload in named.values():
            assert payload.is_promised or not payload.missing, (
                f"{payload.missing} chunks are missing"
            )
        counter, found = self._counter, list(self._states)

        def on_chunk(index: int) -> None:
            found[index] = self._states[index].copy()

        def made() -> PlaneSnapshot:
            held = {blob: payload.complete_chunks() for blob, payload in named.items()}
            return self._snapshot_of(counter, found, held)

        return self._planned(on_chunk), made

    def apply(self, operation: Operation, blob: BlobId, weight: float = 1.0) -> None:
        """Plan and perform `Apply`. Raises `KeyError` for an unknown blob."""
        self._perform(self.plan(Apply(operation, blob, weight)))

    def pin(self, blob: BlobId, average: bool = False) -> None:
        """Name the parameters as they are now, or their mean if one is kept; nothing is copied."""
        self._perform(self.plan(Pin(blob, average)))

    def difference(self, blob: BlobId) -> None:
        """Name ``snapshot - model`` as it is now, and remember this model if the plane does so."""
        self._perform(self.plan(Difference(blob)))

    # --- all of it, when all planned work is done ---------------------------------------------------

    def model(self) -> torch.Tensor:
        """A copy of the parameters, shape [numel]."""
        self._settle()
        return torch.cat([state.parameters.tensor for state in self._states])

    def average(self) -> torch.Tensor | None:
        """A copy of the parameters' running mean, shape [numel]; None if none is kept."""
        self._settle()
        found = self._arena("average")
        return None if found is None else torch.cat([chunk.tensor for chunk in found])

    def digest(self) -> str:
        """Hash of parameters, optimiser state and mean: equal if and only if every bit of them is equal."""
        self._settle()
        digest = xxhash.xxh3_128(f"{self.dtype} {self.manifest.fingerprint}".encode())
        for name in ("model", "average"):
            for chunk in self._arena(name) or ():
                digest.update(chunk.buffer())
        if self._counter:
            digest.update(str(self._counter).encode())
            for name in ("momentum", "accumulator"):
                for chunk in self._arena(name) or ():
                    digest.update(chunk.buffer())
        return digest.hexdigest()

    def memory_bytes(self) -> int:
        """Bytes of all tensors held; chunks that several payloads share are counted once."""
        self._settle()
        with self._registry:
            held = [chunk for payload in self._payloads.values() for chunk in payload.chunks]
        held += [getattr(state, name) for state in self._states for name in ARENAS]
        chunks = {id(chunk): chunk.bytes for chunk in held if chunk is not None}
        return sum(chunks.values()) + self._slab.free_bytes()

    def snapshot(self, payloads: Collection[BlobId] = ()) -> PlaneSnapshot:
        """A snapshot of everything as it is now, with these complete payloads; nothing is copied. Raises `KeyError`
        for an unknown blob."""
        work, made = self.plan_snapshot(payloads)
        self._perform(work)
        return made()

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
        self._require_fit(found)
        assert not self._is_loaded, "only a fresh plane is restored"
        for blob, held in found.payloads.items():
            self._name(blob, Payload(held))
        self._counter, self._is_loaded = found.counter, "model" in found.arenas
        for name, arena in found.arenas.items():
            if self._keeps(name):
                for state, chunk in zip(self._states, arena, strict=True):
                    setattr(state, name, chunk)
        if self._decay and "average" not in found.arenas:
            for state in self._states:
                state.average = state.model

    # --- inside -----------------------------------------------------------------------------------

    def _name(self, blob: BlobId, payload: Payload) -> None:
        with self._registry:
            assert blob not in self._payloads, f"blob {blob} exists already"
            self._payloads[blob] = payload

    def _application(
        self, operation: Operation, take: Callable[[int], ChunkBuffer], weight: float
    ) -> Callable[[int], None]:
        assert self._is_loaded or operation == "load", "no parameters yet: `load` some"
        states, slab, exchanges = self._states, self._slab, self._exchanges

        match operation:
            case "step":
                settings = self._next_step(weight)
                return lambda at: chunk_state.step(states[at], take(at), settings, slab)
            case "load":
                self._is_loaded, averages = True, bool(self._decay)
                return lambda at: chunk_state.load(
                    states[at], take(at), exchanges=exchanges, averages=averages
                )
            case "merge":
                return lambda at: chunk_state.merge_model(
                    states[at], take(at), weight, slab, exchanges=exchanges
                )
            case "merge_carry" | "merge_replay":
                assert self._remember, "this plane was not made to remember what it sent"
                replay = operation == "merge_replay"
                return lambda at: chunk_state.merge_and_keep(
                    states[at], take(at), weight, slab, replay=replay
                )
            case _:
                assert_never(operation)

    def _next_step(self, weight: float) -> StepSettings:
        assert self._outer is not None, "this plane has no optimiser"
        factors = self._outer.factors(self._counter)
        self._counter += 1
        decay = min(self._decay, (1 + self._counter) / (10 + self._counter))
        return StepSettings(self._outer, factors, weight, decay if self._decay else None)

    def _pin(self, blob: BlobId, average: bool) -> Callable[[int], None]:
        assert self._is_loaded, "no parameters yet: `load` some"
        payload = Payload.promised(len(self._states))
        self._name(blob, payload)

        def on_chunk(index: int) -> None:
            state = self._states[index]
            mean = state.average if average else None
            payload.fill(index, state.parameters if mean is None else mean)

        return on_chunk

    def _difference(self, blob: BlobId) -> Callable[[int], None]:
        assert self._exchanges, "this plane keeps no snapshot"
        assert self._is_loaded, "no parameters yet: `load` some"
        payload = Payload.promised(len(self._states))
        self._name(blob, payload)
        states, slab, remember = self._states, self._slab, self._remember
        return lambda at: payload.fill(
            at, chunk_state.difference(states[at], slab, remember=remember)
        )

    def _planned(self, on_chunk: Callable[[int], None]) -> PlannedWork:
        with self._settled:
            self._pending += 1
        return PlannedWork(len(self._states), on_chunk, self._on_end)

    def _on_end(self, error: BaseException | None) -> None:
        with self._settled:
            self._pending -= 1
            self._fault = self._fault or error
            self._settled.notify_all()

    @staticmethod
    def _perform(work: PlannedWork) -> None:
        for index in range(work.chunks):
            work.perform(index)

    def _settle(self) -> None:
        """Wait until all planned work is done."""
        with self._settled:
            self._settled.wait_for(lambda: not self._pending or self._fault is not None)
        assert self._fault is None, f"an operation failed: {self._fault!r}"

    def _arena(self, name: str) -> list[ChunkBuffer] | None:
        found = [getattr(state, name) for state in self._states]
        return None if None in found else found

    def _snapshot_of(
        self,
        counter: int,
        states: Sequence[ChunkState],
        payloads: Mapping[BlobId, Sequence[ChunkBuffer]],
    ) -> PlaneSnapshot:
        arenas = {name: [getattr(state, name) for state in states] for name in ARENAS}
        kept = {name: chunks for name, chunks in arenas.items() if None not in chunks}
        return PlaneSnapshot(self.manifest, self.dtype, counter, kept, payloads)

    def _keeps(self, name: str) -> bool:
        """Whether a plane of these settings keeps an arena, of those that `_require_fit` does not check."""
        match name:
            case "sent":
                return self._remember
            case "momentum":
                return self._outer is not None and self._outer.keeps_momentum
            case "accumulator":
                return self._outer is not None and self._outer.keeps_accumulator
            case _:
                return True

    def _require_fit(self, found: PlaneSnapshot) -> None:
        """Raise `CheckpointError` if a snapshot is not of a plane of this use."""
        arenas = found.arenas
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


def _taker(payload: Payload) -> Callable[[int], ChunkBuffer]:
    """Gives each chunk of a payload once, and lets it go."""
    if payload.is_promised:

        def take_promised(index: int) -> ChunkBuffer:
            chunk = payload.chunks[index]
            assert chunk is not None, f"chunk {index} was promised"
            return chunk

        return take_promised
    left: list[ChunkBuffer | None] = list(payload.complete_chunks())

    def take(index: int) -> ChunkBuffer:
        chunk, left[index] = left[index], None
        assert chunk is not None, f"chunk {index} was used before"
        return chunk

    return take
