"""The division of a payload's chunks between stripes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pelago.protocol.stripes import Striping


@given(st.integers(1, 9), st.integers(0, 60))
def test_every_chunk_is_on_one_stripe_and_found_there(stripes: int, chunks: int) -> None:
    striping = Striping(stripes)
    shares = [striping.share(stripe, range(chunks)) for stripe in range(stripes)]
    assert sorted(index for share in shares for index in share) == list(range(chunks))
    for stripe, share in enumerate(shares):
        for place, index in enumerate(share):
            assert (striping.stripe_of(index), striping.place_of(index)) == (stripe, place)
            assert striping.index_of(stripe, place) == index


@given(st.integers(1, 9), st.sets(st.integers(0, 60)))
def test_places_are_those_of_the_chunks_on_the_stripe(stripes: int, indices: set[int]) -> None:
    striping = Striping(stripes)
    found = [
        striping.index_of(stripe, place)
        for stripe in range(stripes)
        for place in striping.places(stripe, sorted(indices))
    ]
    assert sorted(found) == sorted(indices)


@pytest.mark.parametrize("stripes", [2, 3])
def test_stripes_differ_by_one_chunk_at_most(stripes: int) -> None:
    sizes = {len(Striping(stripes).share(stripe, range(100))) for stripe in range(stripes)}
    assert max(sizes) - min(sizes) <= 1
