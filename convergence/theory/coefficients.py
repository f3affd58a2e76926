"""How much of every gradient is in every model of a run: the coefficients of a method, measured.

SGD, delayed Nesterov, merges, carrying and replaying are linear, and no decision depends on a tensor. So
every model of a run is the start minus a combination of the gradients computed so far, whose
coefficients depend on the settings and on the order and times of events, but on no data. A run in which the j-th
gradient is the j-th unit vector therefore *is* the matrix of the coefficients: the daemons' machines
and planes compute it, and no method needs a formula of its own.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from convergence.cluster import GPS, Arrival, Cluster, HandedOut
from convergence.methods import WorkerUnit
from convergence.problems import tensors
from convergence.problems.problem import Job
from convergence.problems.sgd import Noise, Vector, descend, steps
from convergence.problems.tensors import TensorPlane
from pelago.config.fields import InFlight
from pelago.config.run_file import RunFile
from pelago.config.servers import ServerSection
from pelago.core.ports import Payload, TensorPort
from pelago.sim.planes import Round
from pelago.tensor.manifest import Manifest
from pelago.wire.messages import TensorSpec

GRADIENTS_MAX: Final = 4096
"""A matrix of coefficients is then 128 MiB, and its norm takes about a minute of one core."""


@dataclass(frozen=True, slots=True)
class Gradient:
    """A gradient that a run computed: the mean of one step of one round."""

    first_sample: int
    """Its name: no other step begins with this sample."""
    batch: int
    rate: float
    """Learning rate of SGD at this step."""
    shares: int
    """How many models of a round are averaged, of which the step's is one."""
    time_ps: float
    """When its step begins; steps of a round are equally long."""


@dataclass(frozen=True, slots=True)
class Course:
    """Coefficients of a run with N gradients, numbered in the order of their time."""

    gradients: tuple[Gradient, ...]
    points: NDArray[np.float64]
    """[N, N]: gradient j is computed at start - sum_i points[j, i] g_i; strictly lower triangular."""
    global_models: NDArray[np.float64]
    """[N, N]: the GPS's model when the step of gradient j begins is start - sum_i global_models[j, i] g_i."""
    final: Vector
    """[N]: the coefficients of the GPS's last model."""
    gains: Vector
    """[N]: the limit of each coefficient of every model if the run went on."""


class UnitGradients:
    """A problem of ``size`` dimensions whose n-th gradient, as they are asked for, is the n-th unit vector.

    It starts at 0, so that models are minus their coefficients.
    """

    validates = False

    def __init__(self, run: RunFile, size: int) -> None:
        self._run = run
        self._manifest = Manifest((TensorSpec("coefficients", (size,)),))
        self.specs = self._manifest.specs
        self.fingerprint = self._manifest.fingerprint
        self.points = np.zeros((size, size))
        """Row n: coefficients of the point of gradient n."""
        self.jobs: list[Job] = []
        """The jobs of the gradients, in their order."""
        self._asked = 0
        self._none = Noise(0, size, 0.0)

    def server_plane(self, server: ServerSection, in_flight: InFlight | None) -> TensorPort:
        """The daemons' plane, with zeros in it."""
        initial = torch.zeros(self._manifest.numel, dtype=torch.float64)
        return tensors.server_plane(self._manifest, server, in_flight, initial)

    def client_plane(self) -> TensorPlane:
        """Payloads only."""
        return tensors.client_plane(self._manifest, torch.float64)

    def train(self, jobs: Sequence[Job]) -> list[Round]:
        """Rounds of plain SGD along unit vectors."""
        return [self._round(job) for job in jobs]

    def _round(self, job: Job) -> Round:
        self.jobs.append(job)
        return Round(descend(job, self._run, self._none, self._gradient), job.steps, 0.0)

    def _gradient(self, point: Vector, first_sample: int) -> Vector:
        self.points[self._asked] = -point
        unit = np.zeros(len(point))
        unit[self._asked] = 1.0
        self._asked += 1
        return unit

    def validate(self, payload: Payload) -> tuple[float, int]:
        """Nothing is measured."""
        return 0.0, 0

    def value(self, plane: TensorPort) -> float | None:
        """None: the model has more than one parameter."""
        return None


def course(run: RunFile) -> Course:
    """Measure the coefficients of a run file's method. Its problem does not matter.

    Raises `ValueError` for what the theorem does not cover: movement that is dropped or discounted, a
    step jitter, lost nodes, more than `GRADIENTS_MAX` gradients.
    """
    assert run.simulation is not None
    _check(run)
    simulation = run.simulation.model_copy(update={"problem": "timing"})
    run = run.model_copy(update={"simulation": simulation})
    leases: list[HandedOut] = []
    cluster = Cluster(run)
    cluster.on_lease = leases.append
    units = {unit.members[0].worker: unit for unit in cluster.layout.units}
    cluster.replay()
    size = sum(_gradients(units[each.worker]) for each in leases)
    if size > GRADIENTS_MAX:
        raise ValueError(f"run: {size} gradients are more than {GRADIENTS_MAX}")
    problem = UnitGradients(run, size)
    models: list[Vector] = []
    times: list[int] = []

    def on_arrival(_: Arrival) -> None:
        times.append(cluster.simulation.now)
        models.append(-_model(cluster))

    cluster = Cluster(run, on_arrival=on_arrival, problem=problem)
    cluster.replay()
    gradients = _in_time(problem.jobs, leases, cluster)
    order = sorted(range(len(gradients)), key=lambda number: gradients[number].time_ps)
    ordered = tuple(gradients[number] for number in order)
    points = problem.points[np.ix_(order, order)]
    if np.triu(points).any():
        raise ValueError("run: a gradient depends on a later one")
    versions = np.searchsorted(times, [each.time_ps for each in ordered], side="right")
    reached = np.array([np.zeros(size), *models])[:, order]
    rates = np.array([each.rate / each.shares for each in ordered])
    return Course(ordered, points, reached[versions], reached[-1], rates * _server_gain(cluster))


def _check(run: RunFile) -> None:
    assert run.simulation is not None
    two_levels = run.simulation.method in ("halos", "regional-groups")
    if two_levels and run.lps.in_flight == "drop":
        raise ValueError("lps.in_flight = 'drop': what is dropped has no gain; use carry or replay")
    if run.gps.staleness_power:
        raise ValueError(f"gps.staleness_power = {run.gps.staleness_power}: must be 0")
    if run.simulation.step_jitter:
        raise ValueError(f"simulation.step_jitter = {run.simulation.step_jitter}: must be 0")
    if run.simulation.event:
        raise ValueError("simulation.event: nodes must not be lost")


def _model(cluster: Cluster) -> Vector:
    plane = cluster.plane(GPS)
    assert isinstance(plane, TensorPlane)
    found: Vector = plane.plane.model().numpy()
    return found


def _gradients(unit: WorkerUnit) -> int:
    """Number of gradients in a round of a unit."""
    if unit.averages == "gradients":
        return unit.members[0].steps
    return sum(member.steps for member in unit.members)


def _in_time(jobs: Sequence[Job], leases: Sequence[HandedOut], cluster: Cluster) -> list[Gradient]:
    """When and how each gradient of the jobs was computed, in the order of the jobs."""
    units = {unit.members[0].worker: unit for unit in cluster.layout.units}
    spans = sorted(
        ((start, each) for each in leases for start, _ in each.lease.spans), key=itemgetter(0)
    )
    starts = [start for start, _ in spans]
    found = []
    for job in jobs:
        lease = spans[bisect_right(starts, job.spans[0][0]) - 1][1]
        unit = units[lease.worker]
        duration_ps = unit.duration_ps(
            cluster.settings.step_ms, cluster.run.worker.batch_size, [1.0] * len(unit.members)
        )
        shares = len(unit.members) if unit.averages == "models" else 1
        for number, (first, rate) in enumerate(steps(job, cluster.run.worker)):
            time_ps = lease.time_ps + number / job.steps * duration_ps
            found.append(Gradient(first, job.batch, rate, shares, time_ps))
    return found


def _server_gain(cluster: Cluster) -> float:
    """The total effect of a unit of pseudo-gradient in the end: delayed Nesterov's gain is eta / (1 - beta)."""
    seen = cluster.layout.run
    gain = 1.0
    for server in (seen.lps, seen.gps):
        gain *= server.lr / (1 - server.momentum)
    return gain
