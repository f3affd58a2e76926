"""A smooth non-convex problem whose constants are exact, for checking theorems, in float64.

    f(x) = sum_i a_i/2 * x_i^2 / (1 + x_i^2),    f* = f(0) = 0,

with a_i spaced evenly in their logarithm from 0.1 to 1 (the one of a single dimension is 1). For one
coordinate the second derivative is a_i (1 - 3 x^2) / (1 + x^2)^3: a_i at 0, its greatest size, and
negative beyond 1/sqrt(3). So the gradient is Lipschitz with L = max a_i = 1 and no less, f is not
convex, and not even convex along the way: training starts at x = (3/2, ..., 3/2), where every
curvature is negative. All regions have the same data, which is what our theorem is about
(`convergence.theory`).
"""

from collections.abc import Callable, Sequence
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
from pelago.sim.planes import Round
from pelago.tensor.manifest import Manifest
from pelago.wire.messages import TensorSpec

CURVATURE_MIN: Final = 0.1
CURVATURE_MAX: Final = 1.0
START: Final = 1.5
"""Start value of every coordinate."""


class Nonconvex:
    """``on_gradient``: called for every gradient with its step's first sample, and |grad f|^2 at its point.

    Raises `ConfigError` for heterogeneity.
    """

    validates = True

    def __init__(
        self, run: RunFile, on_gradient: Callable[[int, float], None] | None = None
    ) -> None:
        assert run.simulation is not None
        if run.simulation.heterogeneity:
            raise ConfigError(
                f"simulation.heterogeneity = {run.simulation.heterogeneity}: must be 0 for problem"
                " 'nonconvex', whose constants are exact for equal regions only"
            )
        dimension = run.simulation.dimension
        self.on_gradient = on_gradient
        self._run = run
        self._manifest = Manifest((TensorSpec("nonconvex", (dimension,)),))
        self.specs = self._manifest.specs
        self.fingerprint = self._manifest.fingerprint
        self.curvatures: Vector = np.geomspace(CURVATURE_MAX, CURVATURE_MIN, dimension)
        """a_i, shape [dimension]; they fall."""
        self.smoothness = CURVATURE_MAX
        """L: the least Lipschitz constant of the gradient."""
        self.gap = self.loss(np.full(dimension, START))
        """f(start) - f*."""
        self.sample_variance = run.simulation.noise**2
        """Mean squared norm of one sample's gradient noise; of a step's, divided by its samples."""
        self._noise = Noise(run.run.seed, dimension, run.simulation.noise)

    def server_plane(self, server: ServerSection, in_flight: InFlight | None) -> TensorPort:
        """The daemons' plane, with the start in it."""
        initial = torch.full((self._manifest.numel,), START, dtype=torch.float64)
        return tensors.server_plane(self._manifest, server, in_flight, initial)

    def client_plane(self) -> TensorPlane:
        """Payloads only."""
        return tensors.client_plane(self._manifest, torch.float64)

    def loss(self, point: Vector) -> float:
        """f(x) - f*."""
        squares = point**2
        return float(self.curvatures @ (squares / (1 + squares))) / 2

    def gradient(self, point: Vector) -> Vector:
        """grad f, shape [dimension]: a_i x_i / (1 + x_i^2)^2."""
        found: Vector = self.curvatures * point / (1 + point**2) ** 2
        return found

    def squared_gradient_norm(self, point: Vector) -> float:
        """|grad f(x)|^2."""
        gradient = self.gradient(point)
        return float(gradient @ gradient)

    def train(self, jobs: Sequence[Job]) -> list[Round]:
        """Rounds of plain SGD; the loss reported is f - f* at the start."""
        return [self._round(job) for job in jobs]

    def _round(self, job: Job) -> Round:
        def gradient(point: Vector, first_sample: int) -> Vector:
            found = self.gradient(point)
            if self.on_gradient is not None:
                self.on_gradient(first_sample, float(found @ found))
            return found

        delta = descend(job, self._run, self._noise, gradient)
        return Round(delta, job.steps * job.batch, self.loss(numbers(job.start)))

    def validate(self, payload: Payload) -> tuple[float, int]:
        """f(x) - f*."""
        return self.loss(numbers(payload)), 1

    def value(self, plane: TensorPort) -> float | None:
        """None: the model has more than one parameter."""
        return None
