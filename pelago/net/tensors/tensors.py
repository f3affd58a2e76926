"""The tensor side of a node: threads beside the event loop, and the lifetime of payloads.

*Chunk lanes* perform what the machine does with parameters, in the order of its effects for each chunk; *measuring*
puts norms together; *staging* verifies and stores what arrives; *reading* copies and checksums what leaves. None of
these threads touches a socket, and none waits for a peer or a disk; results come back to the event loop as calls.

Everything here but the jobs themselves runs on the event loop's thread.
"""

import asyncio
import os
from collections.abc import Callable, Collection
from typing import Final

from pelago.core.names import BlobId
from pelago.core.tensor_effects import Apply, Difference, Measure, Measured, Pin, Release
from pelago.net.context import NodeEffectMethods
from pelago.net.tensors.chunk_lanes import ChunkLanes
from pelago.net.tensors.lane import Lane
from pelago.tensor.plane import Plane
from pelago.tensor.snapshot import PlaneSnapshot

CHUNK_THREADS_MAX: Final = 4
"""A step runs at the speed of the memory, which a few cores can fill."""
CORES_OF_POOLS: Final = 4
"""With so many cores, staging and reading have two threads each."""


class Tensors:
    """The tensor plane of a node, its threads, and how many holders still need each payload.

    ``plane`` may come later, with the manifest from the server. ``on_measured`` takes the result of
    `Measure`; ``on_fault`` a failure in any thread.
    """

    def __init__(
        self,
        plane: Plane | None,
        on_measured: Callable[[Measured], None],
        on_fault: Callable[[BaseException], None],
    ) -> None:
        self._plane = plane
        self._on_measured = on_measured
        self.held: set[BlobId] = set()
        """Payloads that the machine needs."""
        self.last_blob: BlobId = 0
        """The lowest name that was given to a payload from outside."""
        self.keep: Callable[[BlobId, int], None] | None = None
        """Called for every chunk that is staged, with (payload, index), in the staging thread."""
        self._uses: dict[BlobId, int] = {}
        cores = len(os.sched_getaffinity(0))
        beside = 2 if cores >= CORES_OF_POOLS else 1
        self._chunks = ChunkLanes(on_fault, max(1, min(CHUNK_THREADS_MAX, cores - 1)))
        self._measuring = Lane("measuring", on_fault)
        self.staging = Lane("staging", on_fault, beside)
        self.reading = Lane("reading", on_fault, beside)

    @property
    def ready(self) -> bool:
        """Whether the model's shape is known."""
        return self._plane is not None

    @property
    def plane(self) -> Plane:
        """The tensor plane; a machine may have no effect on tensors before it exists."""
        assert self._plane is not None, "a tensor effect before the model's shape is known"
        return self._plane

    def begin(self, plane: Plane) -> None:
        """The shape of the model is known now."""
        assert self._plane is None
        self._plane = plane

    def methods(self) -> NodeEffectMethods:
        """Methods that plan each effect on tensors; they are performed in the order of emission."""
        return {
            Pin: self._create,
            Difference: self._create,
            Apply: self._plan,
            Measure: self._measure,
            Release: self._release,
        }

    def _create(self, effect: Pin | Difference) -> None:
        self.created(effect.blob)
        self.held.add(effect.blob)
        self._plan(effect)

    def _plan(self, effect: Pin | Difference | Apply) -> None:
        self._chunks.submit(self.plane.plan(effect))

    def _measure(self, effect: Measure) -> None:
        blob, payload = effect.blob, self.plane.payload(effect.blob)

        def job() -> Measured:
            if payload.is_promised:
                payload.wait()
            return Measured(blob, *payload.measure())

        self._measuring.submit(job, self._on_measured)

    def _release(self, effect: Release) -> None:
        self.held.discard(effect.blob)
        self.drop(effect.blob)

    def snapshot(self, payloads: Collection[BlobId], then: Callable[[PlaneSnapshot], None]) -> None:
        """Call ``then`` with a snapshot of the plane after every effect so far, with these complete payloads."""
        work, made = self.plane.plan_snapshot(payloads)
        self._chunks.submit(work, lambda: then(made()))

    def new_blob(self) -> BlobId:
        """A name for a payload that arrives from the network or the trainer: -1, -2, ..."""
        self.last_blob -= 1
        return self.last_blob

    def restored(self, held: Collection[BlobId], last_blob: BlobId) -> None:
        """The plane has these payloads from before, and the machine needs them."""
        for blob in held:
            self.created(blob)
        self.held = set(held)
        self.last_blob = last_blob

    def created(self, blob: BlobId) -> None:
        """A payload exists, and one holder needs it: the machine, or a transfer receiving it."""
        assert blob not in self._uses, f"payload {blob} exists already"
        self._uses[blob] = 1

    def use(self, blob: BlobId) -> None:
        """One more holder needs the payload: a transfer that sends it, or the trainer."""
        assert blob in self._uses, f"payload {blob} does not exist"
        self._uses[blob] += 1

    def drop(self, blob: BlobId) -> None:
        """One holder needs it no more. The last one frees it; what was planned with it keeps its chunks."""
        assert blob in self._uses, f"payload {blob} does not exist"
        self._uses[blob] -= 1
        if self._uses[blob] == 0:
            del self._uses[blob]
            self.plane.release(blob)

    async def idle(self) -> None:
        """Wait until every effect on tensors so far is carried out."""
        measured: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._measuring.submit(lambda: None, measured.set_result)
        await measured
        if self._plane is not None:
            performed: asyncio.Future[PlaneSnapshot] = asyncio.get_running_loop().create_future()
            self.snapshot((), performed.set_result)
            await performed

    @property
    def payloads(self) -> int:
        """How many payloads exist."""
        return len(self._uses)

    def close(self) -> None:
        """Stop the threads."""
        for threads in (self._chunks, self._measuring, self.staging, self.reading):
            threads.close()
