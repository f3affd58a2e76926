"""From sample numbers to tokens, for many at once, and which part of the corpus a region reads."""

from typing import Any, Final, TypeAlias

import numpy as np

from pelago.core.errors import ConfigError
from pelago.core.prng import ROUNDS, derive
from worker.data.corpus import Corpus

Integers: TypeAlias = np.ndarray[Any, np.dtype[np.int64]]
Words: TypeAlias = np.ndarray[Any, np.dtype[np.uint64]]

_GAMMA: Final = np.uint64(0x9E3779B97F4A7C15)
_FIRST: Final = np.uint64(0xBF58476D1CE4E5B9)
_SECOND: Final = np.uint64(0x94D049BB133111EB)


class Samples:
    """The windows of a corpus in the run's global order, as `worker.data.Corpus.batch` has them.

    With a ``share`` above 0 a sample that region r of n trains comes, with that probability, from the
    r-th n-th of the training windows: its place in the global order, scaled down to that part. So an
    epoch of a region's samples still covers its part evenly, and what a sample is depends on
    nothing but its number, its region and the seed.
    """

    def __init__(self, corpus: Corpus, seed: int, share: float, regions: int) -> None:
        """``share``: 0 to 1. Raises `ConfigError` if a region's part would be empty."""
        if share > 0 and corpus.windows < regions:
            raise ConfigError(
                f"simulation.heterogeneity = {share}: the corpus has {corpus.windows} training"
                f" windows; {regions} regions need one each at least"
            )
        self._corpus, self._share, self._regions = corpus, share, regions
        self._order = derive("global order", seed)
        self._region_keys = [derive("regional data", seed, region) for region in range(regions)]

    def windows(self, samples: Integers, regions: Integers) -> Integers:
        """The training window of each sample; ``regions``, of the same shape: the regions that train them."""
        size = self._corpus.windows
        windows = np.empty_like(samples)
        epochs = samples // size
        for epoch in np.unique(epochs):
            there = epochs == epoch
            key = derive(self._order, int(epoch))
            windows[there] = permuted(samples[there] - epoch * size, size, key)
        if self._share > 0:
            for region in np.unique(regions):
                own = regions == region
                draws = mixed(np.uint64(self._region_keys[region]) ^ samples.astype(np.uint64))
                own &= (draws >> np.uint64(11)) * 2.0**-53 < self._share
                start, stop = self.part(int(region))
                windows[own] = start + windows[own] * (stop - start) // size
        return windows

    def part(self, region: int) -> tuple[int, int]:
        """First training window of a region's own part, and the window after its last."""
        size = self._corpus.windows
        return region * size // self._regions, (region + 1) * size // self._regions

    def tokens(self, windows: Integers, vocabulary: int) -> Integers:
        """The tokens of windows, [..., sequence_length + 1].

        Raises `ConfigError` for token ids that a model of ``vocabulary`` ids does not know.
        """
        length = self._corpus.sequence_length
        places = windows[..., None] * length + np.arange(length + 1)
        tokens: Integers = self._corpus.train[places].astype(np.int64)
        if not self._corpus.vocabulary and (tokens.min() < 0 or tokens.max() >= vocabulary):
            # Only raw token files do not say which ids they hold.
            worst = tokens.min() if tokens.min() < 0 else tokens.max()
            raise ConfigError(
                f"data.source = {self._corpus.name!r} holds the token id {worst}, but the model"
                f" knows ids from 0 to {vocabulary - 1}: a wrong data.token_dtype, or a model of"
                " another tokenizer (vocab_size in model.overrides)"
            )
        return tokens


def permuted(indices: Integers, size: int, key: int) -> Integers:
    """`pelago.core.prng.Permutation` (size, key) of many indices at once."""
    rows = int(np.ceil(np.sqrt(size)))
    while (rows - 1) ** 2 >= size:
        rows -= 1
    while rows**2 < size:
        rows += 1
    columns = -(-size // rows)
    keys = [np.uint64(derive(key, number)) for number in range(ROUNDS)]
    values = indices.astype(np.uint64)
    pending = np.ones(values.shape, dtype=bool)
    while pending.any():
        values[pending] = _enciphered(values[pending], np.uint64(rows), np.uint64(columns), keys)
        pending = values >= np.uint64(size)
    return values.astype(np.int64)


def _enciphered(values: Words, rows: np.uint64, columns: np.uint64, keys: list[np.uint64]) -> Words:
    left, right = np.divmod(values, columns)
    for number, key in enumerate(keys):
        modulus = columns if number & 1 else rows
        # Reduced before the sum, which may not wrap.
        left, right = right, (left + mixed(key ^ right) % modulus) % modulus
    found: Words = left * columns + right
    return found


def mixed(values: Words) -> Words:
    """`pelago.core.prng.mix` of many integers at once."""
    values = values + _GAMMA
    values = (values ^ (values >> np.uint64(30))) * _FIRST
    values = (values ^ (values >> np.uint64(27))) * _SECOND
    found: Words = values ^ (values >> np.uint64(31))
    return found
