"""The batches of a round, read in the calling thread or one ahead."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from pelago.core.errors import ConfigError
from tests.worker.corpora import run_file, write_texts, write_tokens
from worker.data.batches import Batch, Batches
from worker.data.corpus import Corpus
from worker.data.sources import open_corpus

AHEAD = [
    False,
    pytest.param(
        True,
        marks=pytest.mark.skipif(
            not torch.cuda.is_available(), reason="page-locked memory needs a CUDA device"
        ),
    ),
]


def corpus_of(source: str) -> Corpus:
    run = run_file(source)
    return open_corpus(run.data, run.run.seed)


@pytest.mark.parametrize("ahead", AHEAD)
@pytest.mark.parametrize("samples", [range(10), range(8), [3], [5, 6, 90, 91, 92]])
def test_batches_hold_all_samples_in_their_order_and_the_last_may_be_smaller(
    tmp_path: Path, ahead: bool, samples: Sequence[int]
) -> None:
    corpus = corpus_of(f"text:{write_texts(tmp_path / 'texts')}")
    with Batches(corpus, samples, 4, ahead=ahead) as batches:
        found = list(batches)
    assert [each for batch in found for each in batch.samples] == list(samples)
    assert [len(batch.samples) for batch in found[:-1]] == [4] * (len(found) - 1)
    for batch in found:
        assert torch.equal(batch.tokens, corpus.batch(batch.samples))
        assert batch.tokens.is_pinned() == ahead


@pytest.mark.parametrize("ahead", AHEAD)
def test_an_error_of_the_corpus_comes_with_its_batch(tmp_path: Path, ahead: bool) -> None:
    """One token in the middle of the file is too large; `limit_vocabulary` looks at the first and the last ones."""
    path = write_tokens(tmp_path / "a.bin", 400_000)
    tokens = np.fromfile(path, dtype=np.uint16)
    tokens[200_000] = 300
    tokens.tofile(path)
    corpus = corpus_of(f"tokens:{path}")
    corpus.limit_vocabulary(256)
    per_epoch = (len(corpus.train) - 1) // corpus.sequence_length
    found: list[Batch] = []
    with (
        pytest.raises(ConfigError, match="holds the token id 300"),
        Batches(corpus, range(per_epoch), 64, ahead=ahead) as batches,
    ):
        found.extend(batches)
    assert len(found) < per_epoch // 64
    assert all(int(batch.tokens.max()) < 256 for batch in found)
