"""A corpus: two token arrays, cut into windows, and the order in which a run reads them."""

from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch

from pelago.core.errors import ConfigError
from pelago.core.prng import GlobalOrder

Tokens: TypeAlias = np.ndarray[Any, np.dtype[Any]]
"""One-dimensional, of an integer type; may be a memory map of a file larger than memory."""

EDGE_TOKENS: int = 1 << 16
"""Tokens checked on each end of an array before training starts; others when they are read."""


class Corpus:
    """Training and held-out tokens, read as windows of ``sequence_length`` + 1 tokens.

    Window w starts at token w * sequence_length: inputs never overlap, and the last target of a
    window is the first input of the next, so that every token but the first is predicted once per
    epoch. A rest shorter than a window is left out.
    """

    def __init__(
        self,
        *,
        name: str,
        train: Tokens,
        validation: Tokens,
        vocabulary: int,
        digest: str,
        sequence_length: int,
        seed: int,
    ) -> None:
        """``vocabulary``: number of token ids, 0 if the source does not tell.

        Raises `ConfigError` if either part is too short for one window.
        """
        for part, tokens in (("training", train), ("held-out", validation)):
            if len(tokens) <= sequence_length:
                raise ConfigError(
                    f"data.source = {name!r}: the {part} part has {len(tokens)} tokens; "
                    f"data.sequence_length = {sequence_length} needs at least "
                    f"{sequence_length + 1}: use a larger corpus or shorter sequences"
                )
        self.name = name
        self.train = train
        self.validation = validation
        self.vocabulary = vocabulary
        self.digest = digest
        self.sequence_length = sequence_length
        self.windows = (len(train) - 1) // sequence_length
        """Windows of the training part: samples per epoch."""
        self._order = GlobalOrder(self.windows, seed)
        self._id_limit = 0

    def limit_vocabulary(self, vocabulary: int) -> None:
        """From now on refuse token ids that a model of ``vocabulary`` ids does not know.

        Raises `ConfigError` at once if the source's vocabulary is larger, or for a bad id near
        either end of the arrays; a bad id elsewhere is refused when it is read.
        """
        if self.vocabulary > vocabulary:
            raise ConfigError(
                f"data.source = {self.name!r} has token ids up to {self.vocabulary - 1}, but the "
                f"model's vocabulary is {vocabulary}: choose another model, or set "
                f"vocab_size = {self.vocabulary} in model.overrides"
            )
        self._id_limit = vocabulary
        for tokens in (self.train, self.validation):
            self._check_ids(tokens[:EDGE_TOKENS])
            self._check_ids(tokens[-EDGE_TOKENS:])

    def batch(self, samples: Sequence[int]) -> torch.Tensor:
        """The windows of some samples of the global order: int64, shape (len(samples),
        sequence_length + 1).

        Raises `ConfigError` for token ids beyond the limit.
        """
        return self._windows(self.train, [self._order(sample) for sample in samples])

    def validation_batches(self, samples: int, batch_size: int) -> Iterator[torch.Tensor]:
        """The first ``samples`` held-out windows, spread evenly, the same ones for every run and
        seed.

        Fewer if there are not so many. Each batch is int64, shape (<= batch_size, sequence_length +
        1).
        """
        windows = (len(self.validation) - 1) // self.sequence_length
        count = min(samples, windows)
        chosen = [i * windows // count for i in range(count)]
        for start in range(0, count, batch_size):
            yield self._windows(self.validation, chosen[start : start + batch_size])

    def _windows(self, tokens: Tokens, windows: list[int]) -> torch.Tensor:
        length = self.sequence_length
        out = np.empty((len(windows), length + 1), dtype=np.int64)
        for row, window in enumerate(windows):
            out[row] = tokens[window * length : window * length + length + 1]
        self._check_ids(out)
        return torch.from_numpy(out)

    def _check_ids(self, tokens: Tokens) -> None:
        if not self._id_limit or not tokens.size:
            return
        low, high = int(tokens.min()), int(tokens.max())
        if low < 0 or high >= self._id_limit:
            raise ConfigError(
                f"data.source = {self.name!r} holds the token id {low if low < 0 else high}, but "
                f"the model knows ids from 0 to {self._id_limit - 1}: a wrong data.token_dtype, or "
                "a model of another tokenizer (vocab_size in model.overrides)"
            )
