"""Draws of initial parameters: the same whatever the number of threads, and those of PyTorch for small tensors."""

import pytest
import torch
from torch.nn import init

from worker.models import draws
from worker.models.draws import BlockDraws

SIZE = 1000


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(draws, "BLOCK", SIZE)


def drawn(shapes: list[tuple[int, ...]], threads: int, seed: int = 3) -> list[torch.Tensor]:
    """Normal numbers of each shape, drawn one after the other."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(11)
        with BlockDraws(seed, threads):
            return [init.normal_(torch.empty(shape), mean=2.0, std=0.5) for shape in shapes]


def test_small_tensors_have_the_numbers_that_pytorch_draws() -> None:
    shapes = [(SIZE,), (7, 9)]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(11)
        plain = [init.normal_(torch.empty(shape), mean=2.0, std=0.5) for shape in shapes]
    for ours, its in zip(drawn(shapes, 4), plain, strict=True):
        assert torch.equal(ours, its)


def test_large_tensors_depend_on_the_seed_and_not_on_the_threads() -> None:
    shapes = [(50, 101), (SIZE + 1,), (50, 101)]
    one, four = drawn(shapes, 1), drawn(shapes, 4)
    for ours, its in zip(one, four, strict=True):
        assert torch.equal(ours, its)
    assert not torch.equal(one[0], one[2])
    other = drawn(shapes, 4, seed=4)
    assert not torch.equal(one[0], other[0])
    # The first block is PyTorch's, whatever the seed.
    assert torch.equal(one[0].view(-1)[:SIZE], other[0].view(-1)[:SIZE])


def test_large_tensors_have_the_distribution_that_was_asked_for() -> None:
    [normal] = drawn([(300, 1000)], 4)
    assert normal.mean() == pytest.approx(2.0, abs=0.01)
    assert normal.std() == pytest.approx(0.5, abs=0.01)
    rows = normal.view(-1)[: 300 * SIZE].view(300, SIZE)
    assert len({tuple(row[:4].tolist()) for row in rows}) == 300  # No block occurs twice.
    with BlockDraws(3, 4):
        uniform = init.uniform_(torch.empty(300, 1000), -1.0, 3.0)
        truncated = init.trunc_normal_(torch.empty(300, 1000), std=1.0, a=-2.0, b=2.0)
    assert (uniform.min(), uniform.max()) == (
        pytest.approx(-1, abs=0.01),
        pytest.approx(3, abs=0.01),
    )
    assert truncated.std() == pytest.approx(0.88, abs=0.01)
    assert float(truncated.abs().max()) <= 2.0


def test_a_generator_of_the_caller_is_used_alone() -> None:
    plain = torch.empty(5 * SIZE).normal_(generator=torch.Generator().manual_seed(5))
    with BlockDraws(3, 4):
        ours = torch.empty(5 * SIZE).normal_(generator=torch.Generator().manual_seed(5))
    assert torch.equal(ours, plain)
