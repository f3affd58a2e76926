"""Runs of a study that share a device: several simulations in each process, training in one batch.

Small models leave a GPU idle: most of a step is the start of its kernels. `packed` gives every process
a pack of runs at once, in a thread each (`convergence.gang`), so that one step of the device trains the
workers of all of them. The results are those of the runs alone, up to the rounding of sums.
"""

import threading
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context

from experiments.engines import Engine, Finished, Task, execute


def packed(jobs: int, together: int) -> Engine:
    """An engine of ``jobs`` processes, each with ``together`` runs at once."""

    def run(tasks: Sequence[Task]) -> Generator[Finished, None, None]:
        with ProcessPoolExecutor(jobs, get_context("spawn")) as pool:
            futures = [pool.submit(execute_pack, pack) for pack in _packs(tasks, jobs, together)]
            try:
                for future in as_completed(futures):
                    yield from future.result()
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

    return run


def _packs(tasks: Sequence[Task], jobs: int, together: int) -> Iterator[Sequence[Task]]:
    """Evenly filled packs of at most ``together``, at least one for each process if there are enough."""
    size = max(1, min(together, -(-len(tasks) // jobs)))
    for first in range(0, len(tasks), size):
        yield tasks[first : first + size]


def execute_pack(tasks: Sequence[Task]) -> list[Finished]:
    """Do runs in this process, all at once."""
    # Here, since this module is imported to start processes, which is no reason to wait for torch.
    from convergence.gang import Gang

    gang = Gang(len(tasks))
    found: list[Finished | None] = [None] * len(tasks)

    def work(index: int) -> None:
        try:
            found[index] = execute(tasks[index], gang)
        finally:
            gang.leave()

    threads = [threading.Thread(target=work, args=(index,)) for index in range(len(tasks))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [each for each in found if each is not None]
