"""A clock that stands still while its process does not listen."""

from hypothesis import given
from hypothesis import strategies as st

from pelago.core.listening import Listening

GAPS = st.lists(st.integers(0, 100), max_size=30)


def test_only_a_part_of_a_long_gap_counts() -> None:
    listening = Listening(10, 3)
    assert listening.read(1000) == 1000
    assert listening.read(1010) == 1010
    assert listening.read(8010) == 1020
    assert listening.read(8015) == 1025
    assert listening.missed_ps == 6990


def test_after_a_gap_it_listens_for_a_moment() -> None:
    listening = Listening(10, 3)
    assert listening.has_listened(1000)
    assert listening.has_listened(1010)
    assert not listening.has_listened(2000)
    assert not listening.has_listened(2002)
    assert listening.has_listened(2003)


@given(GAPS)
def test_it_never_goes_back_never_leaps_and_loses_only_what_it_says(gaps: list[int]) -> None:
    listening, time, shown = Listening(10, 3), 0, 0
    listening.read(0)
    for gap in gaps:
        time += gap
        now = listening.read(time)
        assert shown <= now <= shown + 10
        assert now + listening.missed_ps == time
        shown = now
