"""Runs many seeds on all cores."""

import os
import time
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from itertools import islice
from multiprocessing import get_context

from convergence.fuzz.trial import TrialResult, trial
from pelago.children import end_with


def run_seeds(seeds: Iterator[int], jobs: int, deadline: float | None) -> Iterator[TrialResult]:
    """The results of seeds, as they end; in the order of the seeds only with one process.

    ``deadline``: of the monotonic clock, in seconds; no seed begins after it.
    """

    def over() -> bool:
        return deadline is not None and time.monotonic() >= deadline

    if jobs == 1:
        for seed in seeds:
            yield trial(seed)
            if over():
                return
        return
    spawn = get_context("spawn")
    with ProcessPoolExecutor(jobs, spawn, initializer=end_with, initargs=(os.getpid(),)) as pool:
        pending: set[Future[TrialResult]] = set()
        try:
            while True:
                if not over():
                    pending |= {
                        pool.submit(trial, each) for each in islice(seeds, 2 * jobs - len(pending))
                    }
                if not pending:
                    return
                done, pending = wait(pending, return_when=FIRST_COMPLETED)
                yield from (each.result() for each in done)
        finally:
            for each in pending:
                each.cancel()
