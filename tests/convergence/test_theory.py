"""The convergence bound: its coefficients are those of real runs, it holds, and it is not loose."""

from functools import cache
from typing import Any

import numpy as np
import pytest

from convergence.cluster import GPS, Cluster
from convergence.problems.nonconvex import START, Nonconvex
from convergence.problems.sgd import Noise
from convergence.theory import coefficients
from convergence.theory.bound import (
    Statistics,
    bound,
    conditions,
    lag_estimate,
    scaled,
    spread,
    statistics,
)
from convergence.theory.coefficients import Course, course
from convergence.theory.tightness import compare, estimated_lag, example, with_rate

GROUPS: dict[str, Any] = {"run.budget_local_steps": 480, "worker.local_steps": 2}
HALOS: dict[str, Any] = GROUPS | {
    "run.budget_local_steps": 200,
    "simulation.method": "halos",
    "lps.updates_per_exchange": 2,
    "lps.lr": 0.5,
    "lps.momentum": 0.5,
    "lps.momentum_delay": 2,
    "gps.lr": 0.125,
    "gps.momentum": 0.5,
    "gps.momentum_delay": 2,
}
METHODS: dict[str, dict[str, Any]] = {
    "groups, noisy, replay": GROUPS | {"simulation.noise": 100.0},
    "groups, slow WAN, carry": GROUPS
    | {"simulation.model_bytes": 35_000_000, "lps.in_flight": "carry"},
    "halos, both momenta, carry": HALOS | {"lps.in_flight": "carry"},
    "halos, both momenta, replay": HALOS,
    "async-local-sgd": HALOS | {"simulation.method": "async-local-sgd"},
    "diloco": HALOS | {"simulation.method": "diloco", "gps.momentum_delay": 1},
    "synchronous": GROUPS | {"simulation.method": "synchronous"},
}


@cache
def found_course(method: str) -> Course:
    """A course is costly, so tests share it; noise does not change it."""
    return course(with_rate(example(METHODS[method]), 0.05))


GOOD = Statistics(100, 1.0, 0.01, 0.1, 0.2, 0.1, 0.1, 0.1)


@pytest.mark.parametrize("method", METHODS)
def test_the_coefficients_reproduce_a_real_run(method: str) -> None:
    """1. Measure the coefficients. 2. With them alone, compute every gradient of a noisy run.

    3. The simulator's own run had the same gradients, and its global model ends at the same place.
    """
    run = with_rate(example(METHODS[method] | {"simulation.noise": 5.0}), 0.05)
    assert run.simulation is not None
    found = found_course(method)
    cluster = Cluster(run)
    problem = cluster.problem
    assert isinstance(problem, Nonconvex)
    heard: dict[int, float] = {}
    problem.on_gradient = heard.__setitem__
    cluster.replay()
    dimension = run.simulation.dimension
    noise = Noise(run.run.seed, dimension, run.simulation.noise)
    gradients = np.zeros((len(found.gradients), dimension))
    for number, each in enumerate(found.gradients):
        point = START - found.points[number] @ gradients
        gradients[number] = problem.gradient(point) + noise.mean(each.first_sample, each.batch)
        square = problem.squared_gradient_norm(point)
        assert heard[each.first_sample] == pytest.approx(square, rel=1e-9)
    plane: Any = cluster.plane(GPS)
    end = START - found.final @ gradients
    np.testing.assert_allclose(plane.plane.model().numpy(), end, rtol=1e-9)
    assert len(heard) == len(found.gradients)


@pytest.mark.parametrize("method", METHODS)
def test_in_the_end_every_gradient_has_its_gain(method: str) -> None:
    """In the last point the first gradients have their gain, except for a tenth that is still on its way."""
    found = found_course(method)
    np.testing.assert_allclose(found.points[-1, :4], found.gains[:4], rtol=0.1)


@pytest.mark.parametrize("method", METHODS)
def test_the_bound_holds_and_is_less_than_a_hundred_times_too_large(method: str) -> None:
    row = compare(method, example(METHODS[method]), seeds=(0,))
    for ratio in row.ratios:
        assert 1 <= ratio < 100


def test_synchronous_sgd_has_no_lag() -> None:
    found = found_course("synchronous")
    assert statistics(found, np.ones(len(found.gradients))).lag == pytest.approx(0, abs=1e-12)


def test_statistics_scale_with_the_learning_rate() -> None:
    one = found_course("halos, both momenta, replay")
    other = course(with_rate(example(HALOS), 0.15))
    noise = np.ones(len(one.gradients))
    expected = statistics(other, noise)
    found = scaled(statistics(one, noise), 3.0)
    for name in Statistics.__dataclass_fields__:
        assert getattr(found, name) == pytest.approx(getattr(expected, name), rel=1e-6)


def test_the_bound_solves_its_equation() -> None:
    found = bound(2.0, 3.0, GOOD)
    root = np.sqrt(found.points * GOOD.gain_total)
    margin = conditions(2.0, GOOD).margin
    assert margin == pytest.approx(1 - 2 * (0.005 + 0.2))
    assert margin * root**2 - 2 * GOOD.lag_noise * root == pytest.approx(3.0 + GOOD.noise)
    assert found.global_models == pytest.approx((1.2 * root + 0.2) ** 2)


def test_at_the_largest_rate_the_margin_is_zero() -> None:
    factor = conditions(1.0, GOOD).rate_factor_max
    assert conditions(1.0, scaled(GOOD, factor)).margin == pytest.approx(0, abs=1e-12)
    assert conditions(1.0, scaled(GOOD, 0.99 * factor)).hold
    with pytest.raises(ValueError, match="found: "):
        bound(1.0, 1.0, scaled(GOOD, 1.01 * factor))


@pytest.mark.parametrize("method", ["groups, slow WAN, carry", "halos, both momenta, carry"])
def test_the_estimated_lag_is_within_a_factor_of_2(method: str) -> None:
    found = found_course(method)
    estimate = estimated_lag(example(METHODS[method]))
    assert estimate is not None
    measured = statistics(found, np.zeros(len(found.gradients))).lag_gradients
    assert 1 / 2 < measured / estimate < 2


def test_arguments_are_checked() -> None:
    ones, matrix = np.ones(3), np.zeros((3, 3))
    for call, says in (
        (lambda: conditions(0.0, GOOD), "smoothness = 0.0"),
        (lambda: bound(float("nan"), 1.0, GOOD), "smoothness = nan"),
        (lambda: bound(1.0, -1.0, GOOD), "gap = -1.0"),
        (lambda: scaled(GOOD, 0.0), "factor = 0.0"),
        (lambda: spread(np.zeros(3), matrix, ones), "gains: "),
        (lambda: spread(ones, np.zeros((3, 2)), ones), "difference: "),
        (lambda: spread(ones, matrix, -ones), "variances: "),
        (lambda: Statistics(1, 0.0, 1.0, 0, 0, 0, 0, 0), "gain_total = 0.0"),
        (lambda: Statistics(1, 1.0, 1.0, 0, -1.0, 0, 0, 0), "lag = -1.0"),
        (lambda: lag_estimate(4, 4, 8, 8, 1, 0.0, (0.0, 1), (0.0, 1)), "merge_weight = 0.0"),
    ):
        with pytest.raises(ValueError, match=says):
            call()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"lps.in_flight": "drop"}, "lps.in_flight = 'drop'"),
        ({"gps.staleness_power": 0.5}, "gps.staleness_power = 0.5"),
        ({"simulation.step_jitter": 0.1}, "simulation.step_jitter = 0.1"),
        ({"simulation.problem": "timing"}, "simulation.problem"),
    ],
)
def test_what_the_theorem_does_not_cover_is_refused(changes: dict[str, Any], says: str) -> None:
    run = example(GROUPS | changes)
    with pytest.raises(ValueError, match=says):
        compare("", run, seeds=(0,))


def test_the_number_of_gradients_has_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coefficients, "GRADIENTS_MAX", 100)
    with pytest.raises(ValueError, match="gradients are more than 100"):
        course(example(GROUPS))
