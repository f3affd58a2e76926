"""How many stripes a client finds to be worth it, from the rates of its payloads."""

import random
from collections.abc import Callable
from itertools import pairwise

import pytest

from pelago.protocol.climber import RESTING_MIN, STRIPES_CHOSEN_MAX, TRIES, StripeClimber

Rate = Callable[[int], float]


def climb(rate: Rate, payloads: int, climber: StripeClimber | None = None) -> list[int]:
    """On how many stripes each payload travelled."""
    climber, taken = climber or StripeClimber(), []
    for _ in range(payloads):
        taken.append(climber.stripes)
        before = climber.stripes
        why = climber.observe(before, rate(before))
        assert bool(why) == (climber.stripes != before)
    return taken


def test_stripes_are_added_while_they_add_throughput() -> None:
    """One carries 22 % of the line, so five fill it."""
    assert climb(lambda stripes: min(1.0, 0.224 * stripes), 30)[:6] == [1, 2, 4, 8, 8, 8]


def test_a_line_that_one_fills_gets_two_for_a_trial_only() -> None:
    taken = climb(lambda _: 1.0, 1000)
    assert taken[: 1 + TRIES + 1] == [1, *[2] * TRIES, 1]
    assert taken.count(2) < 20
    assert max(taken) == 2


def test_it_stops_where_more_add_nothing() -> None:
    taken = climb(lambda stripes: min(1.0, 0.3 * stripes), 12)
    assert taken == [1, 2, 4, 8, 8] + [4] * 7


def test_a_path_that_changes_is_found_out() -> None:
    climber = StripeClimber()
    climb(lambda _: 1.0, 10, climber)
    assert climber.stripes == 1
    taken = climb(lambda stripes: 0.2 * stripes, 4 * RESTING_MIN, climber)
    assert taken[-1] == STRIPES_CHOSEN_MAX


@pytest.mark.parametrize("seed", range(20))
def test_a_rate_that_wavers_opens_few_connections(seed: int) -> None:
    draw = random.Random(seed)
    taken = climb(lambda _: draw.uniform(0.97, 1.03), 500)
    assert max(taken) == 2
    assert sum(one != other for one, other in pairwise(taken)) < 20


def test_payloads_on_more_stripes_than_are_wanted_say_nothing() -> None:
    climber = StripeClimber()
    assert climber.observe(4, 1.0) == ""
    assert climber.stripes == 1


def test_a_trial_whose_connections_cannot_be_made_ends() -> None:
    climber = StripeClimber()
    assert climber.observe(1, 1.0)
    assert climber.observe(1, 1.0) == ""
    assert climber.observe(1, 1.0)
    assert climber.stripes == 1
