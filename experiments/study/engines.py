"""Where the runs of a study run: processes of this machine.

A `Task` is text and a `Finished` is text, so that an engine moves nothing but bytes and every engine
gives the same files: `execute` makes them in every engine. ray_engine.py is the other engine.
"""

import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from typing import Final

from convergence.batch_trainer import BatchTrainer
from pelago.children import end_with
from pelago.config import run_toml
from pelago.core.errors import PelagoError

END_S: Final = 5.0
"""How long a process may take to end when it is asked to, before it is killed."""


@dataclass(frozen=True, slots=True)
class Task:
    """A run to do."""

    name: str
    text: str
    """The run file."""
    check: bool = False
    """Assert every invariant after every event."""


@dataclass(frozen=True, slots=True)
class Finished:
    """A run that was done, or failed."""

    name: str
    files: Mapping[str, str] = field(default_factory=dict)
    """Name -> text; empty if it failed."""
    error: str = ""
    """In one line; empty if all went well."""
    story: str = ""
    """The traceback of an error that is not the user's."""


Engine = Callable[[Sequence[Task]], Generator[Finished, None, None]]
"""Yields each run as it finishes, in any order; closing the iterator stops what still runs."""


def execute(task: Task, batch_trainer: BatchTrainer | None = None) -> Finished:
    """Do one run in this process, with one thread of torch; ``batch_trainer``: train together with others."""
    # Here, since this module is imported to start processes, which is no reason to wait for torch.
    import torch

    from experiments import replay

    # A sum has one order on one thread, so the results do not depend on how many cores there are.
    torch.set_num_threads(1)
    try:
        run = run_toml.parse(task.text, task.name)
        files = replay.files(run, replay.replay(run, check=task.check, batch_trainer=batch_trainer))
    except PelagoError as error:
        return Finished(task.name, error=_one_line(str(error)))
    except Exception as error:  # a study goes on without the run that broke
        said = _one_line(f"{type(error).__name__}: {error}")
        return Finished(task.name, error=said, story=traceback.format_exc())
    return Finished(task.name, files)


def processors() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def local(jobs: int, together: int = 1) -> Engine:
    """An engine of ``jobs`` processes at once, each used for many runs.

    ``together``: how many runs share a process and train in one batch (`convergence.batch_trainer`), which suits a
    GPU. The results are those of the runs alone except for the rounding of sums.
    """

    def run(tasks: Sequence[Task]) -> Generator[Finished, None, None]:
        waiting = deque(_packs(tasks, jobs, together))
        hands: list[_Hand] = []
        try:
            while waiting or hands:
                while waiting and len(hands) < jobs:
                    hands.append(_Hand())
                    hands[-1].give(waiting.popleft())
                ready = multiprocessing.connection.wait([hand.connection for hand in hands])
                for hand in [each for each in hands if each.connection in ready]:
                    yield from hand.take()
                    if not hand.alive or (hand.idle and not waiting):
                        hands.remove(hand)
                        hand.dismiss()
                    elif hand.idle:
                        hand.give(waiting.popleft())
        finally:
            for hand in hands:
                hand.end()

    return run


def _packs(tasks: Sequence[Task], jobs: int, together: int) -> Iterator[Sequence[Task]]:
    """Evenly filled packs of at most ``together``, one for each process if there are enough tasks."""
    size = max(1, min(together, -(-len(tasks) // jobs)))
    for first in range(0, len(tasks), size):
        yield tasks[first : first + size]


class _Hand:
    """A process that does one pack of tasks after another."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process: SpawnProcess = context.Process(
            target=_serve, args=(theirs, os.getpid()), daemon=True
        )
        self.alive = True
        self._names: list[str] = []
        """Names of the tasks that it has not answered."""
        # The first start of a process starts multiprocessing's tracker too, which would unblock the signal.
        resource_tracker.ensure_running()
        # Ctrl-C reaches every process of a terminal. Blocked here while the process starts, it stays
        # blocked there, so that only this process decides and no child prints a traceback.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            self.process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        # With the child's end closed on this side, its death reads as the end of the file.
        theirs.close()

    @property
    def idle(self) -> bool:
        """Whether it has answered everything."""
        return not self._names

    def give(self, pack: Sequence[Task]) -> None:
        self._names = [task.name for task in pack]
        try:
            self.connection.send(list(pack))
        except OSError:
            # It died between two packs; taking will find that out.
            self.alive = False

    def take(self) -> list[Finished]:
        """The next answer; if the process died, one for every unfinished task."""
        try:
            finished: Finished = self.connection.recv()
        except (EOFError, OSError):
            self.alive = False
            self.process.join(END_S)
            error = _how_it_ended(self.process.exitcode)
            left, self._names = self._names, []
            return [Finished(name, error=error) for name in left]
        self._names.remove(finished.name)
        return [finished]

    def dismiss(self) -> None:
        """Let it end by itself."""
        self.connection.close()
        self.process.join(END_S)
        self.end()

    def end(self) -> None:
        """Terminate it at once."""
        if self.process.is_alive():
            self.process.terminate()
            self.process.join(END_S)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        self.connection.close()
        self.process.close()


def _serve(connection: Connection, parent: int) -> None:
    end_with(parent)
    while True:
        try:
            pack: list[Task] = connection.recv()
        except EOFError:
            return
        _execute_pack(pack, connection)


def _execute_pack(pack: Sequence[Task], connection: Connection) -> None:
    """Do the runs of a pack, all at once if there are several, and send each as it finishes."""
    if len(pack) == 1:
        connection.send(execute(pack[0]))
        return
    batch_trainer, sending = BatchTrainer(len(pack)), threading.Lock()

    def work(task: Task) -> None:
        try:
            finished = execute(task, batch_trainer)
        finally:
            batch_trainer.leave()
        with sending:
            connection.send(finished)

    threads = [threading.Thread(target=work, args=(task,)) for task in pack]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _how_it_ended(exit_code: int | None) -> str:
    if exit_code is not None and exit_code < 0:
        return f"its process was ended by {signal.Signals(-exit_code).name}; out of memory?"
    return f"its process ended with exit code {exit_code}"


def _one_line(text: str) -> str:
    return " ".join(text.split())
