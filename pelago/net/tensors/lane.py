"""The tensor side of a node: threads beside the event loop, and the lifetime of payloads.

Three threads, each running its jobs in the order given: the *tensor lane* changes and names
parameters in the order of the machine's effects, *staging* verifies and stores what arrives,
*reading* copies and checksums what leaves. None of them touches a socket, and none waits for a peer
or a disk; results come back to the event loop as calls.

Everything here but the jobs themselves runs on the event loop's thread.
"""

import asyncio
import queue
import threading
from collections.abc import Callable, Collection
from typing import Any, Final, TypeVar

from pelago.core.names import BlobId
from pelago.core.tensor_effects import Apply, Difference, Measure, Measured, Pin, Release
from pelago.durable.replay import perform
from pelago.net.context import NodeEffectMethods
from pelago.tensor.plane import Plane

JOIN_S: Final = 5.0
"""How long closing waits for the job that is running."""

T = TypeVar("T")


class Lane:
    """One thread that runs jobs in the order given; ``then(result)`` follows on the event loop.

    A job that raises ends the node: ``on_fault(error)`` is called on the event loop.
    """

    def __init__(self, name: str, on_fault: Callable[[BaseException], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._on_fault = on_fault
        self._jobs: queue.SimpleQueue[
            tuple[Callable[[], Any], Callable[[Any], None] | None] | None
        ] = queue.SimpleQueue()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def submit(self, job: Callable[[], T], then: Callable[[T], None] | None = None) -> None:
        """Run ``job`` after all jobs submitted before it."""
        self._jobs.put((job, then))

    def close(self) -> None:
        """Skip the queued jobs and stop after the running one; waits for it, at most for a time limit."""
        self._closing = True
        self._jobs.put(None)
        self._thread.join(JOIN_S)

    def _run(self) -> None:
        while (entry := self._jobs.get()) is not None and not self._closing:
            job, then = entry
            try:
                result = job()
            except BaseException as error:
                self.post(self._on_fault, error)
            else:
                if then is not None:
                    self.post(then, result)
            # A result may be a chunk of megabytes; do not hold it while waiting for the next job.
            entry = job = then = result = None  # type: ignore[assignment]

    def post(self, call: Callable[[T], None], argument: T) -> None:
        """From the thread: call something on the event loop, in order with the results."""
        # Once the node closes, results are not used any more, and its loop may be gone.
        if not self._closing:
            self._loop.call_soon_threadsafe(self._deliver, call, argument)

    def _deliver(self, call: Callable[[T], None], argument: T) -> None:
        if not self._closing:
            call(argument)


class Tensors:
    """The tensor plane of a node, its three threads, and how many holders still need each payload.

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
        self._outstanding = 0
        self.lane = Lane("tensors", on_fault)
        self.staging = Lane("staging", on_fault)
        self.reading = Lane("reading", on_fault)

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
        """Methods that queue each effect on tensors; they are performed in the order of emission."""
        return {
            Pin: self._create,
            Difference: self._create,
            Apply: self._perform,
            Measure: self._measure,
            Release: self._release,
        }

    def _create(self, effect: Pin | Difference) -> None:
        self.created(effect.blob)
        self.held.add(effect.blob)
        self._perform(effect)

    def _perform(self, effect: Pin | Difference | Apply) -> None:
        plane = self.plane
        self._submit(lambda: perform(plane, effect))

    def _measure(self, effect: Measure) -> None:
        plane, blob = self.plane, effect.blob
        self._submit(lambda: Measured(blob, *plane.measure(blob)), self._on_measured)

    def _release(self, effect: Release) -> None:
        self.held.discard(effect.blob)
        self.drop(effect.blob)

    def after(self, then: Callable[[], None]) -> None:
        """Call ``then`` once everything executed before has run; at once if nothing is pending."""
        if self._outstanding == 0:
            then()
        else:
            self._submit(lambda: None, lambda _: then())

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
        """One holder needs it no more. The last one frees it, after all earlier effects."""
        assert blob in self._uses, f"payload {blob} does not exist"
        self._uses[blob] -= 1
        if self._uses[blob] == 0:
            del self._uses[blob]
            plane = self.plane
            self._submit(lambda: plane.release(blob))

    async def idle(self) -> None:
        """Wait until every effect on tensors so far is carried out."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.lane.submit(lambda: None, lambda _: None if done.done() else done.set_result(None))
        await done

    @property
    def payloads(self) -> int:
        """How many payloads exist."""
        return len(self._uses)

    def close(self) -> None:
        """Stop the threads."""
        for lane in (self.lane, self.staging, self.reading):
            lane.close()

    def _submit(self, job: Callable[[], T], then: Callable[[T], None] | None = None) -> None:
        self._outstanding += 1

        def finished(result: T) -> None:
            self._outstanding -= 1
            if then is not None:
                then(result)

        self.lane.submit(job, finished)
