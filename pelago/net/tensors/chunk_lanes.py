"""The threads that perform planned work on a plane, each on its own chunks."""

import asyncio
import queue
import threading
from collections.abc import Callable
from typing import TypeAlias

from pelago.net.tensors.lane import JOIN_S
from pelago.tensor.planned_work import PlannedWork

_Entry: TypeAlias = tuple[PlannedWork, Callable[[], None] | None]


class ChunkLanes:
    """Thread i of n performs work on the chunks i, i + n, ..., so each chunk sees all work in its order.

    A thread takes all work that is queued, and performs all of it on a chunk before it goes on to the next one. So the
    chunk is still in the cache, and a reply that was pinned behind a step has its first chunk after one chunk of the
    step. Work that fails ends the node: ``on_fault(error)`` is called on the event loop.
    """

    def __init__(self, on_fault: Callable[[BaseException], None], threads: int) -> None:
        self._loop = asyncio.get_running_loop()
        self._on_fault = on_fault
        self._closing = False
        self._queues: list[queue.SimpleQueue[_Entry | None]] = [
            queue.SimpleQueue() for _ in range(threads)
        ]
        self._threads = [
            threading.Thread(target=self._run, args=(number,), name=f"chunks-{number}", daemon=True)
            for number in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, work: PlannedWork, then: Callable[[], None] | None = None) -> None:
        """Perform work after all work submitted before it; ``then()`` follows on the event loop."""
        for entries in self._queues:
            entries.put((work, then))

    def close(self) -> None:
        """Stop after all work that is queued, so that the plane is whole; waits for it, at most for a time limit."""
        self._closing = True
        for entries in self._queues:
            entries.put(None)
        for thread in self._threads:
            thread.join(JOIN_S)

    def _run(self, number: int) -> None:
        try:
            while self._perform(self._batch(number), number):
                pass
        except BaseException as error:
            self._post(lambda error=error: self._on_fault(error))  # type: ignore[misc]

    def _batch(self, number: int) -> list[_Entry | None]:
        """All work that is queued, when there is some."""
        entries = self._queues[number]
        batch = [entries.get()]
        while not entries.empty():
            batch.append(entries.get())
        return batch

    def _perform(self, batch: list[_Entry | None], number: int) -> bool:
        """Returns whether more may come."""
        found = [entry for entry in batch if entry is not None]
        chunks = max((work.chunks for work, _ in found), default=0)
        for index in range(number, chunks, len(self._threads)):
            for work, then in found:
                if work.perform(index) and then is not None:
                    self._post(then)
        return len(found) == len(batch)

    def _post(self, call: Callable[[], None]) -> None:
        # Once the node closes, results are not used any more, and its loop may be gone.
        if not self._closing:
            self._loop.call_soon_threadsafe(self._deliver, call)

    def _deliver(self, call: Callable[[], None]) -> None:
        if not self._closing:
            call()
