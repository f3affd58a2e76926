"""Seeded randomness is the same everywhere, and permutations are permutations."""

import subprocess
import sys
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pelago.core.prng import GlobalOrder, Permutation, derive, mix, text_hash


def test_the_mixer_is_splitmix64() -> None:
    """The published generator started from 0 yields these numbers."""
    gamma = 0x9E3779B97F4A7C15
    states = [(gamma * i) % 2**64 for i in range(4)]
    assert [mix(state) for state in states] == [
        0xE220A8397B1DCDAF,
        0x6E789E6AA1B965F4,
        0x06C45D188009454F,
        0xF88BB8A8724C81EC,
    ]


@given(st.integers(1, 3000), st.integers(0, 2**64 - 1))
def test_every_element_comes_exactly_once(size: int, key: int) -> None:
    """Also for sizes that are no product, no square and no power of two."""
    permutation = Permutation(size, key)
    assert sorted(permutation(i) for i in range(size)) == list(range(size))


@given(st.integers(1, 2**62), st.integers(0, 2**64 - 1), st.data())
def test_a_huge_domain_needs_no_memory_and_stays_inside(
    size: int, key: int, data: st.DataObject
) -> None:
    """Two different elements never have one image, even in a domain too large to list."""
    permutation = Permutation(size, key)
    first = data.draw(st.integers(0, size - 1))
    second = data.draw(st.integers(0, size - 1))
    assert 0 <= permutation(first) < size
    assert (permutation(first) == permutation(second)) == (first == second)


@pytest.mark.parametrize(("size", "index"), [(5, 5), (5, -1)])
def test_an_element_outside_the_domain_is_refused(size: int, index: int) -> None:
    """Cycle walking would silently map it somewhere."""
    with pytest.raises(IndexError):
        Permutation(size, 0)(index)


def test_an_empty_domain_is_refused() -> None:
    """There is no permutation to evaluate."""
    with pytest.raises(ValueError, match="size 0"):
        Permutation(0, 1)


def test_golden_values_never_change() -> None:
    """A run that is resumed with a newer version must read the samples that are left, and no
    others.
    """
    assert derive("global order", 7) == 0xC83BB6460C0DD9A8
    assert [Permutation(10, 42)(i) for i in range(10)] == [5, 6, 3, 4, 2, 1, 0, 7, 9, 8]
    assert [GlobalOrder(1000, 7)(i) for i in (0, 1, 999, 1000, 1001, 123_456_789)] == [
        359,
        63,
        917,
        306,
        213,
        275,
    ]


def test_the_same_seed_gives_the_same_order_in_another_process() -> None:
    """Python salts its own hash of strings; the order must not depend on the salt."""
    program = (
        "from pelago.core.prng import GlobalOrder; "
        "print([GlobalOrder(77, 5)(i) for i in range(200)])"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={"PYTHONHASHSEED": salt, "PYTHONPATH": ":".join(sys.path)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for salt in ("1", "2")
    }
    assert outputs == {f"{[GlobalOrder(77, 5)(i) for i in range(200)]}\n"}


def test_each_epoch_is_another_permutation_of_everything() -> None:
    """Samples 0..n-1 and n..2n-1 hold the same elements in two orders."""
    order = GlobalOrder(50, 3)
    first = [order(i) for i in range(50)]
    second = [order(i) for i in range(50, 100)]
    assert sorted(first) == sorted(second) == list(range(50))
    assert first != second


@given(st.lists(st.integers(0, 1000), min_size=1, max_size=30))
def test_a_sample_does_not_depend_on_what_was_asked_before(samples: list[int]) -> None:
    """Any worker may start anywhere: the cache of epochs must have no effect."""
    order = GlobalOrder(13, 9)
    assert [order(sample) for sample in samples] == [
        GlobalOrder(13, 9)(sample) for sample in samples
    ]


def test_neighbours_do_not_stay_neighbours() -> None:
    """Fixed points and kept neighbours are about as rare as in a random permutation (one expected
    of each).
    """
    for key in range(20):
        permutation = Permutation(10_000, key)
        values = [permutation(i) for i in range(10_000)]
        assert sum(value == i for i, value in enumerate(values)) < 10
        assert sum(b - a == 1 for a, b in pairwise(values)) < 10


def test_other_seeds_give_other_orders() -> None:
    """The seed, not only the size, decides."""
    orders = {tuple(GlobalOrder(100, seed)(i) for i in range(100)) for seed in range(50)}
    assert len(orders) == 50


def test_names_and_numbers_make_different_streams() -> None:
    """Order of the parts counts."""
    keys = [derive(1, 2), derive(2, 1), derive("1", 2), derive(1), derive(1, 2, 0), text_hash("a")]
    assert len(set(keys)) == len(keys)
