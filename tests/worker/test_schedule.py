"""Local steps, learning rate and pace have the values of the paper."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pelago.config.run_toml import parse
from pelago.config.training import WorkerSection
from worker.schedule import Pace, learning_rate, local_steps


@pytest.mark.parametrize(
    ("iteration", "expected"),
    [(0, 0.0), (1, 1e-3 / 300), (300, 1e-3), (3222, 5.5e-4), (6144, 1e-4), (10**9, 1e-4)],
)
def test_the_learning_rate_has_the_published_unit_values(iteration: int, expected: float) -> None:
    assert learning_rate(WorkerSection(), iteration) == pytest.approx(expected, rel=1e-12, abs=0)


def test_the_learning_rate_rises_to_its_peak_and_then_falls() -> None:
    rates = [learning_rate(WorkerSection(), iteration) for iteration in range(0, 7000, 50)]
    peak = rates.index(max(rates))
    assert rates[: peak + 1] == sorted(rates[: peak + 1])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)


def test_a_run_without_warm_up_starts_at_the_peak() -> None:
    assert learning_rate(WorkerSection(warmup_iterations=0), 0) == 1e-3


def test_a_warm_up_longer_than_the_run_ends_on_the_lowest_rate() -> None:
    settings = WorkerSection(warmup_iterations=100, total_iterations=50)
    assert learning_rate(settings, 99) == pytest.approx(9.9e-4)
    assert learning_rate(settings, 100) == 1e-4


@pytest.mark.parametrize(
    ("steps", "speed", "expected"),
    [(8, 1.0, 8), (8, 0.5, 4), (8, 0.51, 5), (8, 0.01, 1), (1, 0.3, 1), (32, 0.107 / 0.907, 4)],
)
def test_slow_workers_take_fewer_steps_rounded_up(steps: int, speed: float, expected: int) -> None:
    assert local_steps(steps, speed, rescale=True) == expected
    assert local_steps(steps, speed, rescale=False) == steps


def test_a_rounding_error_of_the_division_does_not_cost_a_step() -> None:
    """8 * 1.0000000001 is 8 steps, and one part in 10**8 more is a real difference."""
    assert local_steps(8, 1.0000000001, rescale=True) == 8
    assert local_steps(8, 1.00000001, rescale=True) == 9
    speeds = [(part / 10) / (whole / 10) for whole in range(1, 30) for part in range(1, whole + 1)]
    exact = [-(-whole * part // whole) for whole in range(1, 30) for part in range(1, whole + 1)]
    wholes = [whole for whole in range(1, 30) for _ in range(whole)]
    assert [
        local_steps(whole, speed, rescale=True) for whole, speed in zip(wholes, speeds, strict=True)
    ] == exact


@given(st.integers(1, 10_000), st.floats(1e-6, 1.0))
def test_every_worker_takes_between_one_and_all_steps(steps: int, speed: float) -> None:
    assert 1 <= local_steps(steps, speed, rescale=True) <= steps


def test_a_fixed_pace_counts_from_when_the_last_step_was_due() -> None:
    """A step that ended late is made up for: the next is due two steps after the first's start."""
    pace = Pace(step_ms=100.0, speed=0.5)
    first = pace.due_s(10.0, 10.0, 10.05)
    assert first == pytest.approx(10.2)
    assert pace.due_s(first, 10.35, 10.39) == pytest.approx(10.4)


def test_a_proportional_pace_stretches_the_compute_time() -> None:
    assert Pace(step_ms=0.0, speed=0.25).due_s(0.0, 20.0, 20.1) == pytest.approx(20.4)


def test_the_pace_of_a_worker_comes_from_the_run_file() -> None:
    run = parse('[local]\nstep_ms = 50\n[[region]]\nname = "a"\nworker_speeds = [2.0, 0.5]')
    assert Pace.of(run, 0, 1) == Pace(step_ms=50.0, speed=0.25)
