"""The non-convex problem: its stated constants hold."""

from typing import Any

import numpy as np
import pytest
import torch

from convergence.problems.nonconvex import START, Nonconvex
from convergence.problems.problem import Job, Part
from pelago.config.run_file import RunFile
from pelago.core.errors import ConfigError


def run_file(**simulation: Any) -> RunFile:
    return RunFile.model_validate(
        {
            "worker": {"batch_size": 4, "max_lr": 0.1, "min_lr": 0.1, "warmup_iterations": 0},
            "region": [{"name": "r0", "worker_speeds": [1.0]}],
            "simulation": {"problem": "nonconvex", "dimension": 8, **simulation},
        }
    )


def test_the_gradient_is_the_slope_of_the_loss() -> None:
    problem = Nonconvex(run_file())
    point = np.linspace(-2, 2.5, 8)
    gradient = problem.gradient(point)
    for index in range(8):
        step = np.zeros(8)
        step[index] = 1e-5
        slope = (problem.loss(point + step) - problem.loss(point - step)) / 2e-5
        assert gradient[index] == pytest.approx(slope, rel=1e-7)
    assert problem.squared_gradient_norm(point) == pytest.approx(float(gradient @ gradient))


def test_the_stated_smoothness_holds_is_reached_and_the_start_is_where_f_curves_down() -> None:
    problem = Nonconvex(run_file(dimension=1))
    grid = np.linspace(-6, 6, 24_001)
    slopes = np.array([float(problem.gradient(np.array([x]))[0]) for x in grid])
    curvature = np.diff(slopes) / np.diff(grid)
    assert np.abs(curvature).max() <= problem.smoothness
    assert np.abs(curvature).max() == pytest.approx(problem.smoothness, rel=1e-5)
    assert curvature[np.searchsorted(grid, START)] < 0


def test_the_stated_gap_is_that_of_the_start() -> None:
    problem = Nonconvex(run_file())
    plane: Any = problem.server_plane(run_file().gps, None)
    assert problem.validate(plane.plane.model())[0] == problem.gap
    assert problem.validate(torch.zeros(8, dtype=torch.float64))[0] == 0.0
    assert problem.value(plane) is None


def test_the_stated_variance_is_that_of_gradients_of_many_steps() -> None:
    problem = Nonconvex(run_file(noise=3.0))
    start = torch.full((8,), START, dtype=torch.float64)
    jobs = [Job(0, 1, (Part(0, 0, 4),), ((i, i + 4),), i, start) for i in range(0, 8_000, 4)]
    gradients = np.array([each.delta.numpy() / 0.1 for each in problem.train(jobs)])
    noise = gradients - problem.gradient(start.numpy())
    assert (noise**2).sum(axis=1).mean() == pytest.approx(problem.sample_variance / 4, rel=0.03)


def test_every_gradient_is_reported_with_its_first_sample() -> None:
    heard: list[tuple[int, float]] = []
    problem = Nonconvex(run_file(), lambda first, square: heard.append((first, square)))
    start = torch.full((8,), START, dtype=torch.float64)
    problem.train([Job(0, 2, (Part(0, 0, 4),), ((8, 16),), 8, start)])
    assert [first for first, _ in heard] == [8, 12]
    assert heard[0][1] == problem.squared_gradient_norm(start.numpy())


def test_regions_must_be_equal() -> None:
    with pytest.raises(ConfigError, match=r"simulation.heterogeneity = 0.5: must be 0"):
        Nonconvex(run_file(heterogeneity=0.5))
