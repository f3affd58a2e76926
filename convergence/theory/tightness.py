"""Compares the bound of `convergence.theory` with runs of the simulator: how loose is it?

Every setting runs on `Nonconvex`, whose constants are exact, at half of the largest learning rate that
the theorem admits, and its measured averages are those that the theorem bounds.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from convergence.cluster import GPS, Arrival, Cluster
from convergence.problems.nonconvex import START, Nonconvex
from convergence.problems.sgd import Vector
from convergence.problems.tensors import TensorPlane
from convergence.theory.bound import Bound, bound, conditions, lag_estimate, scaled, statistics
from convergence.theory.coefficients import Course, course
from pelago.config.run_file import RunFile


@dataclass(frozen=True, slots=True)
class MeasuredAverages:
    """The result of a run on `Nonconvex`: the averages that `Bound` bounds."""

    points: float
    global_models: float


@dataclass(frozen=True, slots=True)
class TightnessRow:
    """A setting of the comparison."""

    setting: str
    gradients: int
    lag: float
    """Effective delay in gradients, measured."""
    lag_estimated: float | None
    """Effective delay in gradients, by `lag_estimate`; None for methods of one level."""
    rate_max: float
    """The learning rate at which the theorem's margin is 0."""
    bound: Bound
    measured: MeasuredAverages

    @property
    def ratios(self) -> tuple[float, float]:
        """Bound over measured: of the points, of the GPS's models."""
        return (
            self.bound.points / self.measured.points,
            self.bound.global_models / self.measured.global_models,
        )


def variances(found: Course, run: RunFile) -> Vector:
    """s_j^2 of `Nonconvex`: that of one sample, divided by the samples of the step; shape [N]."""
    assert run.simulation is not None
    return run.simulation.noise**2 / np.array([float(each.batch) for each in found.gradients])


def measure(run: RunFile, found: Course, seeds: Sequence[int]) -> MeasuredAverages:
    """Replay a run file on `Nonconvex` for each seed, and average as the bound does."""
    averages = np.array([_averages(run, found, seed) for seed in seeds]).mean(axis=0)
    return MeasuredAverages(float(averages[0]), float(averages[1]))


def _averages(run: RunFile, found: Course, seed: int) -> tuple[float, float]:
    seeded = run.run.model_copy(update={"seed": seed})
    norms: dict[int, float] = {}
    times: list[int] = []
    models: list[float] = []

    def on_arrival(_: Arrival) -> None:
        plane = cluster.plane(GPS)
        assert isinstance(plane, TensorPlane)
        times.append(cluster.simulation.now)
        models.append(problem.squared_gradient_norm(plane.plane.model().numpy()))

    cluster = Cluster(run.model_copy(update={"run": seeded}), on_arrival=on_arrival)
    if not isinstance(cluster.problem, Nonconvex):
        raise ValueError("run: simulation.problem must be 'nonconvex'")
    problem = cluster.problem
    problem.on_gradient = norms.__setitem__
    start = problem.squared_gradient_norm(np.full(len(problem.curvatures), START))
    cluster.replay()
    points = np.array([norms[each.first_sample] for each in found.gradients])
    begun = [each.time_ps for each in found.gradients]
    current = np.array([start, *models])[np.searchsorted(times, begun, side="right")]
    weights = found.gains / found.gains.sum()
    return float(weights @ points), float(weights @ current)


def compare(setting: str, run: RunFile, seeds: Sequence[int], share: float = 0.5) -> TightnessRow:
    """Bound and measurement at ``share`` of the largest learning rate that the theorem admits.

    The run file's learning rate must be constant; it is replaced.
    """
    # One course gives the statistics at every rate.
    found = course(with_rate(run, 1.0))
    unit = statistics(found, variances(found, run))
    problem = Nonconvex(run)
    rate_max = conditions(problem.smoothness, unit).rate_factor_max
    facts = scaled(unit, share * rate_max)
    run = with_rate(run, share * rate_max)
    return TightnessRow(
        setting,
        facts.gradients,
        facts.lag_gradients,
        estimated_lag(run),
        rate_max,
        bound(problem.smoothness, problem.gap, facts),
        measure(run, found, seeds),
    )


def with_rate(run: RunFile, rate: float) -> RunFile:
    """The run file with a constant learning rate."""
    constant = {"max_lr": rate, "min_lr": rate, "warmup_iterations": 0}
    return run.model_copy(update={"worker": run.worker.model_copy(update=constant)})


def estimated_lag(run: RunFile) -> float | None:
    """`lag_estimate`, with the in-flight updates that the course had on average."""
    assert run.simulation is not None
    if run.simulation.method not in ("halos", "regional-groups"):
        return None
    timing = run.simulation.model_copy(update={"problem": "timing"})
    cluster = Cluster(run.model_copy(update={"simulation": timing}))
    cluster.replay()
    exchanges = [lps.exchanges for lps in cluster.lps.values()]
    units = cluster.layout.units
    return lag_estimate(
        regions=len(run.region),
        units=len(units) / len(run.region),
        steps=sum(unit.members[0].steps for unit in units) / len(units),
        updates=run.lps.updates_per_exchange,
        in_flight=sum(each.in_flight_updates for each in exchanges)
        / max(1, sum(each.count for each in exchanges)),
        merge_weight=run.lps.merge_weight,
        lps=(run.lps.momentum, run.lps.momentum_delay),
        gps=(run.gps.momentum, run.gps.momentum_delay),
    )


BASE: Final[dict[str, Any]] = {
    "run.budget_local_steps": 6000,
    "worker.local_steps": 8,
    "lps.lr": 1.0,
    "lps.momentum": 0.0,
    "lps.momentum_delay": 1,
    "lps.updates_per_exchange": 1,
    "lps.merge_weight": 0.5,
    "lps.in_flight": "replay",
    "gps.lr": 0.4,
    "gps.momentum": 0.0,
    "gps.momentum_delay": 1,
    "simulation.method": "regional-groups",
    "simulation.problem": "nonconvex",
    "simulation.model_bytes": 8_803_328,
    "network.bandwidth_gbps": (
        (100.0, 0.537, 0.935, 0.202),
        (0.537, 100.0, 0.386, 0.117),
        (0.935, 0.386, 100.0, 0.127),
        (0.202, 0.117, 0.127, 100.0),
    ),
}
"""Groups on the paper's four regions, with a model of 1/32 the size: the first row of the table."""

SPEEDS: Final = (
    (0.232, 0.907, 0.828, 0.347),
    (0.574, 0.531, 0.722, 0.194),
    (0.852, 0.132, 0.896, 0.107),
    (0.827, 0.515, 0.527, 0.788),
)

HALOS: Final[dict[str, Any]] = {
    "simulation.method": "halos",
    "run.budget_local_steps": 1500,
    "worker.local_steps": 2,
    "lps.updates_per_exchange": 4,
    "gps.lr": 0.25,
}
PUBLISHED: Final[dict[str, Any]] = HALOS | {
    "worker.local_steps": 8,
    "lps.lr": 0.2,
    "lps.momentum": 0.9,
    "lps.momentum_delay": 16,
    "lps.updates_per_exchange": 32,
    "lps.merge_weight": 0.25,
    "gps.lr": 0.15,
    "gps.momentum": 0.5,
    "gps.momentum_delay": 2,
}
ASYNC: Final[dict[str, Any]] = {
    "simulation.method": "async-local-sgd",
    "run.budget_local_steps": 1500,
    "gps.lr": 0.1,
}
SETTINGS: Final[dict[str, dict[str, Any]]] = {
    "groups: H 8, K 1, alpha .5, gain .4, replay": {},
    "groups: H 2": {"worker.local_steps": 2},
    "groups: H 2, longer": {"worker.local_steps": 2, "run.budget_local_steps": 16_000},
    "groups: H 32": {"worker.local_steps": 32},
    "groups: H 2, K 4": {"worker.local_steps": 2, "lps.updates_per_exchange": 4},
    "groups: alpha 1": {"lps.merge_weight": 1.0},
    "groups: alpha .25": {"lps.merge_weight": 0.25},
    "groups: GPS beta .5, d 2": {"gps.lr": 0.2, "gps.momentum": 0.5, "gps.momentum_delay": 2},
    "groups: GPS beta .9, d 1": {"gps.lr": 0.04, "gps.momentum": 0.9},
    "groups: WAN 32 times slower": {"simulation.model_bytes": 281_706_496},
    "groups: WAN 32 times slower, carry": {
        "simulation.model_bytes": 281_706_496,
        "lps.in_flight": "carry",
    },
    "groups: no noise": {"simulation.noise": 0.0},
    "groups: noise 30 times": {"simulation.noise": 30.0},
    "groups: noise 100 times": {"simulation.noise": 100.0},
    "groups: noise 300 times": {"simulation.noise": 300.0},
    "halos: H 2, K 4, alpha .5, no momentum, carry": HALOS | {"lps.in_flight": "carry"},
    "halos: replay": HALOS,
    "halos: K 16": HALOS | {"lps.updates_per_exchange": 16},
    "halos: LPS beta .5, d 2; GPS beta .5, d 2": HALOS
    | {
        "lps.lr": 0.5,
        "lps.momentum": 0.5,
        "lps.momentum_delay": 2,
        "gps.lr": 0.125,
        "gps.momentum": 0.5,
        "gps.momentum_delay": 2,
    },
    "halos: as published, but replay": PUBLISHED,
    "async-local-sgd: H 8, eta .1": ASYNC,
    "async-local-sgd: eta .05, beta .5, d 4": ASYNC
    | {"gps.lr": 0.05, "gps.momentum": 0.5, "gps.momentum_delay": 4},
    "diloco: H 8, eta .7, beta .9": {
        "simulation.method": "diloco",
        "run.budget_local_steps": 1500,
        "gps.lr": 0.7,
        "gps.momentum": 0.9,
    },
    "synchronous": {"simulation.method": "synchronous"},
}
"""The rows of the table: what differs from `BASE`."""


def example(changes: dict[str, Any]) -> RunFile:
    """`BASE` with changes, keys written "table.key"."""
    tables: dict[str, dict[str, Any]] = {}
    for name, value in (BASE | changes).items():
        table, key = name.split(".")
        tables.setdefault(table, {})[key] = value
    regions = [{"name": f"r{i}", "worker_speeds": speeds} for i, speeds in enumerate(SPEEDS)]
    return RunFile.model_validate(tables | {"region": regions})
