"""A convex problem with everything known: one ill-conditioned quadratic a region, in float64.

    f_r(x) = 1/2 (x - b_r)^T A (x - b_r),    f(x) = sum_r p_r f_r(x),

with A diagonal, its eigenvalues spaced evenly in their logarithm from 0.01 to 1 (condition number 100;
the one of a single dimension is 1), and p_r region r's share of the speed of all workers: its share of
the samples when no worker waits. The b_r are random directions with sum_r p_r b_r = 0 and
sum_r p_r |b_r|^2 = simulation.heterogeneity^2, so the optimum of f is 0 whatever the regions' data, and
what a method does not weigh by samples shows as a bias. Training starts at x = (1, ..., 1).
"""

from collections.abc import Sequence
from typing import Final

import numpy as np
import torch

from convergence.problems import tensors
from convergence.problems.problem import Job
from convergence.problems.sgd import Noise, Vector, descend, numbers
from convergence.problems.tensors import TensorPlane
from pelago.config.fields import InFlight
from pelago.config.run_file import RunFile
from pelago.config.servers import ServerSection
from pelago.core.errors import ConfigError
from pelago.core.ports import Payload, TensorPort
from pelago.core.prng import derive
from pelago.sim.planes import Round
from pelago.tensor.manifest import Manifest
from pelago.wire.messages import TensorSpec

EIGENVALUE_MIN: Final = 0.01
EIGENVALUE_MAX: Final = 1.0
START: Final = 1.0
"""Start value of every coordinate."""


class Quadratic:
    """Raises `ConfigError` for heterogeneity in a single region."""

    validates = True

    def __init__(self, run: RunFile) -> None:
        assert run.simulation is not None
        dimension = run.simulation.dimension
        self._run = run
        self._manifest = Manifest((TensorSpec("quadratic", (dimension,)),))
        self.specs = self._manifest.specs
        self.fingerprint = self._manifest.fingerprint
        self.eigenvalues: Vector = np.geomspace(EIGENVALUE_MAX, EIGENVALUE_MIN, dimension)
        """Eigenvalues of A, shape [dimension], in falling order."""
        speeds = np.array([sum(region.worker_speeds) for region in run.region])
        self.shares: Vector = speeds / speeds.sum()
        """p_r, shape [regions]."""
        self.targets = _targets(run, self.shares, dimension)
        """b_r, shape [regions, dimension]."""
        self._noise = Noise(run.run.seed, dimension, run.simulation.noise)

    def server_plane(self, server: ServerSection, in_flight: InFlight | None) -> TensorPort:
        """The daemons' plane, with the start in it."""
        initial = torch.full((self._manifest.numel,), START, dtype=torch.float64)
        return tensors.server_plane(self._manifest, server, in_flight, initial)

    def client_plane(self) -> TensorPlane:
        """Payloads only."""
        return tensors.client_plane(self._manifest, torch.float64)

    def target(self, job: Job) -> Vector:
        """Where the optimum of a job's data lies, shape [dimension]: the b_r weighted by samples."""
        weights = [part.samples / job.batch for part in job.parts]
        found: Vector = np.array(weights) @ self.targets[[part.region for part in job.parts]]
        return found

    def train(self, jobs: Sequence[Job]) -> list[Round]:
        """Rounds of plain SGD; the loss reported is f_r at the start, that of the mean b_r for a group."""
        return [self._round(job) for job in jobs]

    def _round(self, job: Job) -> Round:
        target = self.target(job)
        delta = descend(
            job, self._run, self._noise, lambda point, _: self.eigenvalues * (point - target)
        )
        away = numbers(job.start) - target
        return Round(delta, job.steps * job.batch, float(self.eigenvalues @ away**2) / 2)

    def validate(self, payload: Payload) -> tuple[float, int]:
        """f(x) - f*, exactly 1/2 x^T A x."""
        return float(self.eigenvalues @ numbers(payload) ** 2) / 2, 1

    def value(self, plane: TensorPort) -> float | None:
        """None: the model has more than one parameter."""
        return None


def _targets(run: RunFile, shares: Vector, dimension: int) -> Vector:
    assert run.simulation is not None
    heterogeneity = run.simulation.heterogeneity
    if not heterogeneity:
        return np.zeros((len(shares), dimension))
    if len(shares) == 1:
        raise ConfigError(
            f"simulation.heterogeneity = {heterogeneity}: the data of one region cannot differ; use 0"
        )
    key = derive("quadratic targets", run.run.seed)
    directions = np.random.Generator(np.random.Philox(key=key)).standard_normal(
        (len(shares), dimension)
    )
    directions -= shares @ directions
    found: Vector = directions * (heterogeneity / np.sqrt(shares @ (directions**2).sum(axis=1)))
    return found
