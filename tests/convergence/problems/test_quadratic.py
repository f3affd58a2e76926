"""The convex problem, and the SGD rounds that the formula problems share."""

from typing import Any

import numpy as np
import pytest
import torch

from convergence.cluster import Cluster
from convergence.problems.problem import Job, Part
from convergence.problems.quadratic import Quadratic
from convergence.problems.sgd import Noise, steps
from pelago.config.run_file import RunFile
from pelago.core.errors import ConfigError
from worker.schedule import learning_rate

ONE = (Part(0, 0, 4),)


def run_file(
    simulation: dict[str, Any], speeds: tuple[tuple[float, ...], ...] = ((1.0,),)
) -> RunFile:
    return RunFile.model_validate(
        {
            "run": {"budget_local_steps": 12, "seed": 3},
            "worker": {
                "local_steps": 2,
                "batch_size": 4,
                "global_batch_size": 8,
                "max_lr": 0.3,
                "min_lr": 0.1,
                "warmup_iterations": 4,
                "total_iterations": 12,
            },
            "region": [{"name": f"r{i}", "worker_speeds": each} for i, each in enumerate(speeds)],
            "simulation": {"problem": "quadratic", "dimension": 6, **simulation},
        }
    )


def job(
    start: torch.Tensor, count: int, *spans: tuple[int, int], parts: tuple[Part, ...] = ONE
) -> Job:
    return Job(0, count, parts, spans, spans[0][0], start)


def test_a_worker_without_noise_follows_the_closed_form() -> None:
    """x_i after the steps is the product of (1 - rate * eigenvalue_i), the rates on the LR clock."""
    run = run_file({"noise": 0.0})
    problem = Quadratic(run)
    start = torch.linspace(-1, 1, 6, dtype=torch.float64)
    found = problem.train([job(start, 5, (40, 60))])[0]
    factors = np.ones(6)
    for number in range(5):
        factors *= 1 - learning_rate(run.worker, 40 // 8 + number + 1) * problem.eigenvalues
    np.testing.assert_allclose(start - found.delta, factors * start.numpy(), rtol=1e-13)
    assert found.tokens == 20


def test_the_eigenvalues_are_evenly_spaced_in_their_logarithm_from_1_to_a_hundredth() -> None:
    eigenvalues = Quadratic(run_file({})).eigenvalues
    assert eigenvalues[0] == 1.0
    assert eigenvalues[-1] == pytest.approx(0.01)
    np.testing.assert_allclose(np.diff(np.log(eigenvalues)), np.log(0.01) / 5)


def test_the_gradient_is_that_of_what_validate_measures_when_regions_share_by_speed() -> None:
    problem = Quadratic(run_file({"noise": 0.0, "heterogeneity": 2.0}, ((1.0, 2.0), (1.0,))))
    point = torch.linspace(-1, 2, 6, dtype=torch.float64)
    whole = (Part(0, 0, 3), Part(2, 1, 1))  # Shares 3/4 and 1/4, as of speed.
    rate = learning_rate(run_file({}).worker, 1)
    gradient = problem.train([job(point, 1, (0, 4), parts=whole)])[0].delta / rate
    for index in range(6):
        step = torch.zeros(6, dtype=torch.float64)
        step[index] = 1e-5
        higher, lower = problem.validate(point + step)[0], problem.validate(point - step)[0]
        assert float(gradient[index]) == pytest.approx((higher - lower) / 2e-5, rel=1e-6)


def test_the_regions_optima_average_to_0_by_speed_at_the_stated_distance() -> None:
    problem = Quadratic(run_file({"heterogeneity": 2.0}, ((1.0, 2.0), (1.0,), (0.5,))))
    np.testing.assert_allclose(problem.shares, np.array([3.0, 1.0, 0.5]) / 4.5)
    np.testing.assert_allclose(problem.shares @ problem.targets, 0, atol=1e-12)
    distances = (problem.targets**2).sum(axis=1)
    assert float(problem.shares @ distances) == pytest.approx(4.0)


def test_one_region_cannot_differ_from_itself() -> None:
    with pytest.raises(ConfigError, match=r"simulation.heterogeneity = 1.0"):
        Quadratic(run_file({"heterogeneity": 1.0}))


def test_noise_depends_on_the_samples_and_not_on_how_jobs_are_batched() -> None:
    problem = Quadratic(run_file({"noise": 5.0}))
    start = torch.ones(6, dtype=torch.float64)
    jobs = [job(start, 2, (0, 8)), job(start, 3, (8, 12), (96, 104))]
    together = problem.train(jobs)
    apart = [problem.train([each])[0] for each in reversed(jobs)][::-1]
    for one, other in zip(together, apart, strict=True):
        assert torch.equal(one.delta, other.delta)
    first = problem.train([job(start, 1, (8, 12))])[0].delta
    rest = problem.train([job(start - first, 2, (96, 104))])[0]
    assert not torch.equal(together[0].delta, together[1].delta)
    assert rest.tokens == 8


def test_steps_are_named_by_their_first_sample_across_spans() -> None:
    names = [
        first for first, _ in steps(job(torch.ones(1), 4, (2, 7), (20, 31)), run_file({}).worker)
    ]
    assert names == [2, 6, 23, 27]


def test_the_noise_of_a_mean_has_the_stated_variance_and_no_mean() -> None:
    noise = Noise(1, 16, 2.0)
    draws = np.array([noise.mean(first, 8) for first in range(0, 16_000, 8)])
    assert (draws**2).sum(axis=1).mean() == pytest.approx(2.0**2 / 8, rel=0.03)
    assert np.abs(draws.mean(axis=0)).max() < 4 * 2.0 / np.sqrt(16 * 8 * len(draws))
    assert np.array_equal(noise.mean(8, 8), draws[1])
    assert not np.array_equal(Noise(2, 16, 2.0).mean(8, 8), draws[1])


def test_a_cluster_descends() -> None:
    run = run_file({"noise": 0.1, "heterogeneity": 0.5}, ((1.0, 0.5), (1.0,)))
    cluster = Cluster(run, check=True)
    problem = cluster.problem
    start, _ = problem.validate(torch.ones(6, dtype=torch.float64))
    cluster.replay()
    plane: Any = cluster.plane("gps")
    assert problem.value(plane) is None
    assert problem.validate(plane.plane.model())[0] < start
