"""When a connection has been silent for too long, and when a blocked port is reported."""

from pelago.core.machine import PS_PER_MS
from pelago.net.sockets.blocked import BLOCKED_MS, Blocked
from pelago.net.sockets.silence import SilenceTimer

STEP_MS = 250


def given_up(
    silence: SilenceTimer, start_ms: int, stop_ms: int, *, owed: bool = True, signs: int = 0
) -> list[int]:
    """The numbers of the looks, four a second, at which the silence has lasted too long."""
    looks = range(start_ms, stop_ms, STEP_MS)
    return [at for at in looks if silence.look(at * PS_PER_MS, owed=owed, signs=signs)]


def test_a_silence_is_too_long_after_its_patience_and_then_after_twice_of_it() -> None:
    assert given_up(SilenceTimer(1_000), 0, 8_000) == [1_000, 3_000, 7_000]


def test_an_answer_ends_a_silence() -> None:
    silence = SilenceTimer(1_000)
    for count in range(20):
        assert given_up(silence, count * 750, (count + 1) * 750, signs=count) == []


def test_where_nothing_is_owed_there_is_no_silence() -> None:
    silence = SilenceTimer(1_000)
    assert given_up(silence, 0, 60_000, owed=False) == []
    assert given_up(silence, 60_000, 60_750) == []


def test_time_without_a_look_is_no_silence() -> None:
    silence = SilenceTimer(1_000)
    assert not silence.look(0, owed=True, signs=0)
    assert not silence.look(65_000 * PS_PER_MS, owed=True, signs=0)
    assert given_up(silence, 65_250, 66_500) == [65_750]


def test_patience_that_was_too_short_for_a_slow_line_is_longer_while_the_line_is_slow() -> None:
    silence = SilenceTimer(1_000)
    assert given_up(silence, 0, 3_000) == [1_000]
    # The second answer needs what the first had: it is waited for.
    assert given_up(silence, 3_000, 4_750, signs=1) == []
    assert given_up(silence, 4_750, 6_500, signs=2) == []
    # One that comes at once ends that.
    assert not silence.look(6_500 * PS_PER_MS, owed=True, signs=3)
    assert not silence.look(6_750 * PS_PER_MS, owed=True, signs=4)
    assert given_up(silence, 7_000, 8_000, signs=4) == [7_750]


def test_a_blocked_port_is_reported_once_and_so_is_its_end() -> None:
    blocked, after = Blocked(), BLOCKED_MS * PS_PER_MS
    assert not blocked.begins("bulk", 0, blocked=True)
    assert not blocked.begins("bulk", after - 1, blocked=False)
    assert not blocked.begins("bulk", after, blocked=True)
    assert not blocked.ends("bulk")
    assert blocked.begins("bulk", 2 * after, blocked=True)
    assert not blocked.begins("bulk", 3 * after, blocked=True)
    assert blocked.ends("bulk")
    assert not blocked.ends("bulk")
