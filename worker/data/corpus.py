"""A corpus: two token arrays, cut into windows, and the order in which a run reads them."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch

from pelago.core.errors import ConfigError
from pelago.core.prng import GlobalOrder
from worker.data.tokens import TokenFile, Tokens

EDGE_TOKENS: Final = 1 << 16
"""Tokens checked on each end of an array before training starts; others when they are read."""
SCAN_TOKENS: Final = 1 << 22
"""Tokens that a scan of the whole corpus checks at once; this limits its memory."""


@dataclass(frozen=True, slots=True)
class CorpusContent:
    """The content that a source of the run file gives."""

    name: str
    """The value of ``data.source``."""
    train: Tokens
    validation: Tokens
    """The held-out part."""
    vocabulary: int
    """Number of token ids; 0 if the source does not say."""
    digest: str
    file: TokenFile | None = None
    """The token file of which ``train`` is the first part and ``validation`` the rest."""
    report: tuple[str, ...] = ()
    """Lines for the user: what was read, left out and converted."""
    warnings: tuple[str, ...] = ()
    """Lines for the user: what may be wrong with the corpus."""


class Corpus:
    """Training and held-out tokens, read as windows of ``sequence_length`` + 1 tokens.

    Window w starts at token w * sequence_length: inputs never overlap, and the last target of a
    window is the first input of the next, so every token but the first is predicted once per
    epoch. A remainder shorter than a window is left out.
    """

    def __init__(self, content: CorpusContent, sequence_length: int, seed: int) -> None:
        """``seed`` fixes the global order of samples. Raises `ConfigError` if either part is too short for one
        window.
        """
        self.name = content.name
        self.train = content.train
        self.validation = content.validation
        self.vocabulary = content.vocabulary
        self.digest = content.digest
        self.report = content.report
        self.warnings = content.warnings
        self.sequence_length = sequence_length
        for part, tokens in (("training", self.train), ("held-out", self.validation)):
            if len(tokens) <= sequence_length:
                raise ConfigError(
                    f"data.source = {self.name!r}: the {part} part has {len(tokens)} tokens; "
                    f"data.sequence_length = {sequence_length} needs at least "
                    f"{sequence_length + 1}: use a larger corpus or shorter sequences"
                )
        self.windows = (len(self.train) - 1) // sequence_length
        """Windows of the training part: samples per epoch."""
        self._order = GlobalOrder(self.windows, seed)
        self._id_limit = 0
        self._file = content.file

    def limit_vocabulary(self, vocabulary: int) -> None:
        """Refuse, from now on, token ids that a model of ``vocabulary`` ids does not know.

        Raises `ConfigError` at once if the source uses ids above, if its type cannot hold all
        ids or is not that of the file, or for a bad id near either end of the arrays; a bad id
        elsewhere is refused when it is read, or by `scan`.
        """
        if self.vocabulary > vocabulary:
            self._require_spare(vocabulary)
        self._id_limit = vocabulary
        self._check_type()
        for tokens, start in self._parts():
            tail = max(0, len(tokens) - EDGE_TOKENS)
            self._check_ids(tokens[:EDGE_TOKENS], start)
            self._check_ids(tokens[tail:], start + tail)

    def _require_spare(self, vocabulary: int) -> None:
        """Raises `ConfigError` if ids that the model lacks occur: the corpus's vocabulary is larger."""
        highest = max(int(part.max()) for part, _ in self._parts())
        if highest >= vocabulary:
            raise ConfigError(
                f"data.source = {self.name!r} uses the token id {highest} of a vocabulary of"
                f" {self.vocabulary} ids, but the model's vocabulary is {vocabulary}: choose another model"
                f" or tokenizer, or set vocab_size = {self.vocabulary} in model.overrides, which adds rows"
                " to the embedding"
            )
        line = (
            f"vocabulary: {self.vocabulary:,} ids, of which the model knows {vocabulary:,}; the largest"
            f" that occurs is {highest:,}"
        )
        if line not in self.report:
            self.report += (line,)

    def scan(self, progress: Callable[[float], None]) -> int:
        """Check every id, and return the largest. Calls ``progress`` with the part that is checked, from 0 to 1.

        Raises `ConfigError` for an id that the model does not know.
        """
        total, highest = len(self.train) + len(self.validation), 0
        for tokens, start in self._parts():
            for first in range(0, len(tokens), SCAN_TOKENS):
                chunk = tokens[first : first + SCAN_TOKENS]
                self._check_ids(chunk, start + first)
                highest = max(highest, int(chunk.max()))
                progress((start + first + len(chunk)) / total)
        return highest

    def batch(self, samples: Sequence[int]) -> torch.Tensor:
        """The windows of some samples of the global order: int64, shape (len(samples),
        sequence_length + 1).

        Raises `ConfigError` for token ids beyond the limit.
        """
        return self._windows(self.train, [self._order(sample) for sample in samples])

    def validation_batches(self, samples: int, batch_size: int) -> Iterator[torch.Tensor]:
        """The first ``samples`` held-out windows, spread evenly, the same ones for every run and
        seed.

        There are fewer if the part has fewer. Each batch is int64, shape (<= batch_size, sequence_length +
        1).
        """
        windows = (len(self.validation) - 1) // self.sequence_length
        count = min(samples, windows)
        chosen = [i * windows // count for i in range(count)]
        for start in range(0, count, batch_size):
            yield self._windows(self.validation, chosen[start : start + batch_size])

    def _parts(self) -> tuple[tuple[Tokens, int], tuple[Tokens, int]]:
        """Both arrays, and the index of the first token of each in the whole corpus."""
        return (self.train, 0), (self.validation, len(self.train))

    def _windows(self, tokens: Tokens, windows: list[int]) -> torch.Tensor:
        length = self.sequence_length
        out = np.empty((len(windows), length + 1), dtype=np.int64)
        start = 0 if tokens is self.train else len(self.train)
        for row, window in enumerate(windows):
            out[row] = tokens[window * length : window * length + length + 1]
        if self._id_limit and (out.min() < 0 or out.max() >= self._id_limit):
            for row, window in enumerate(windows):
                self._check_ids(out[row], start + window * length)
        return torch.from_numpy(out)

    def _check_type(self) -> None:
        """Raises `ConfigError` if the type of the file's ids is wrong, or too narrow for the model."""
        if self._file is None:
            return
        layout, limit = self._file.layout, self._id_limit
        why = self._file.misreading(limit)
        if why:
            raise ConfigError(f"data.source = {self.name!r}, read by {layout.said_by}: {why}")
        most = int(np.iinfo(layout.dtype).max) + 1
        # One byte may be enough for a corpus; two bytes mean that its tokenizer has a large vocabulary.
        if layout.dtype.itemsize == 2 and most < limit:
            raise ConfigError(
                f"data.source = {self.name!r}, {layout.dtype.name} by {layout.said_by}, holds ids"
                f" below {most:,}, but the model's vocabulary is {limit:,}: larger ids were cut when"
                " it was written; write it as uint32, or set vocab_size in model.overrides if the"
                " tokenizer has no more"
            )

    def _check_ids(self, tokens: Tokens, start: int) -> None:
        """Check ids. ``start``: index of the first of these tokens in the whole corpus."""
        if not self._id_limit or not tokens.size:
            return
        low, high = int(tokens.min()), int(tokens.max())
        if low >= 0 and high < self._id_limit:
            return
        index = int(tokens.argmin() if low < 0 else tokens.argmax())
        place, hint = "", "a model of another tokenizer (vocab_size in model.overrides)"
        if self._file is not None:
            place = f" ({self._file.place(start + index)})"
            if self._file.layout.raw:
                hint = f"a damaged file, a wrong data.token_dtype, or {hint}"
            else:
                hint = f"a damaged file, or {hint}"
        raise ConfigError(
            f"data.source = {self.name!r} holds the token id {int(tokens[index])}, but "
            f"the model knows ids from 0 to {self._id_limit - 1}{place}: {hint}"
        )
