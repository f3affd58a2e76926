"""Slow progress is not stuck; no progress is, after a time that depends on the pace so far."""

from pelago.core.watchdog import FIRST_FACTOR, SLOWEST_FACTOR, Watchdog, longest_ps

LIMIT = 100


def test_the_first_part_may_take_long() -> None:
    watchdog = Watchdog(LIMIT)
    assert not watchdog.is_over(10**9)
    watchdog.begin(7)
    assert not watchdog.is_over(7 + FIRST_FACTOR * LIMIT)
    assert watchdog.is_over(8 + FIRST_FACTOR * LIMIT)


def test_later_parts_may_take_as_long_as_is_said() -> None:
    """The time of the slow first part is not the limit for them, nor for the parts of the next round."""
    watchdog = Watchdog(LIMIT)
    watchdog.begin(0)
    watchdog.progress(500)
    assert watchdog.quiet_ps(600) == 100
    assert not watchdog.is_over(600)
    assert watchdog.is_over(601)
    watchdog.end()
    assert not watchdog.is_over(10**9)
    assert watchdog.quiet_ps(10**9) == 0
    watchdog.progress(10**9)
    watchdog.begin(2000)
    assert watchdog.is_over(2101)


def test_what_is_slow_is_given_time_in_proportion() -> None:
    watchdog = Watchdog(LIMIT)
    watchdog.begin(0)
    for at in (1, 91, 92):
        watchdog.progress(at)
    assert not watchdog.is_over(92 + SLOWEST_FACTOR * 90)
    assert watchdog.is_over(93 + SLOWEST_FACTOR * 90)


def test_a_long_part_may_take_as_long_as_a_first_one() -> None:
    watchdog = Watchdog(LIMIT)
    watchdog.begin(0)
    watchdog.progress(1)
    watchdog.begin(10, is_long=True)
    watchdog.progress(11)
    assert not watchdog.is_over(11 + FIRST_FACTOR * LIMIT)
    assert longest_ps(LIMIT) > FIRST_FACTOR * LIMIT


def test_without_a_limit_nothing_is_stuck() -> None:
    watchdog = Watchdog(0)
    watchdog.begin(0)
    assert not watchdog.is_over(10**18)
