"""The batches of a round, read from the corpus one ahead where a device computes meanwhile."""

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import torch

from worker.data.corpus import Corpus


@dataclass(frozen=True, slots=True)
class Batch:
    """``samples``: of the run's global order; ``tokens``: int64, shape (len(samples), sequence_length + 1)."""

    samples: Sequence[int]
    tokens: torch.Tensor


class Batches:
    """The samples of a round in batches of ``size``; the last may be smaller.

    ``ahead``: read each one while the one before it is used, into page-locked memory, for a CUDA device. A context
    manager, which ends the thread that reads. Iterating raises `ConfigError` as `Corpus.batch` does.
    """

    def __init__(self, corpus: Corpus, samples: Sequence[int], size: int, *, ahead: bool) -> None:
        self._corpus = corpus
        self._parts = [samples[first : first + size] for first in range(0, len(samples), size)]
        self._ahead = ahead
        self._reader = ThreadPoolExecutor(1, "batches") if ahead else None

    def __enter__(self) -> "Batches":
        return self

    def __exit__(self, *_: object) -> None:
        if self._reader is not None:
            self._reader.shutdown(cancel_futures=True)

    def __iter__(self) -> Iterator[Batch]:
        if self._reader is None:
            yield from map(self._read, self._parts)
            return
        coming: Future[Batch] = self._reader.submit(self._read, self._parts[0])
        for part in [*self._parts[1:], None]:
            batch = coming.result()
            if part is not None:
                coming = self._reader.submit(self._read, part)
            yield batch

    def _read(self, samples: Sequence[int]) -> Batch:
        tokens = self._corpus.batch(samples)
        return Batch(samples, tokens.pin_memory() if self._ahead else tokens)
