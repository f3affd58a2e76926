"""Threads beside the event loop, which run jobs and give their results back to it."""

import asyncio
import queue
import threading
from collections.abc import Callable
from typing import Any, Final, TypeVar

JOIN_S: Final = 5.0
"""How long closing waits for the jobs that are running."""

T = TypeVar("T")


class Lane:
    """Threads that begin jobs in the order given; ``then(result)`` follows on the event loop.

    With one thread, the default, jobs also end in that order. A job that raises ends the node: ``on_fault(error)`` is
    called on the event loop.
    """

    def __init__(
        self, name: str, on_fault: Callable[[BaseException], None], threads: int = 1
    ) -> None:
        self.threads = threads
        self._loop = asyncio.get_running_loop()
        self._on_fault = on_fault
        self._jobs: queue.SimpleQueue[
            tuple[Callable[[], Any], Callable[[Any], None] | None] | None
        ] = queue.SimpleQueue()
        self._closing = False
        self._threads = [
            threading.Thread(target=self._run, name=f"{name}-{number}", daemon=True)
            for number in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, job: Callable[[], T], then: Callable[[T], None] | None = None) -> None:
        """Begin ``job`` after all jobs submitted before it."""
        self._jobs.put((job, then))

    def close(self) -> None:
        """Skip the queued jobs and stop after the running ones; waits for them, at most for a time limit."""
        self._closing = True
        for _ in self._threads:
            self._jobs.put(None)
        for thread in self._threads:
            thread.join(JOIN_S)

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
