"""The conformance problem of HALoS's released simulator: one float64 parameter.

th is 1 at the start; a local step of worker w is plain SGD on (th - b_w)^2 / 2 with rate 1e-3,

    th <- th - 1e-3 * (th - b_w),    b_w = (w - 7.5) / 10,

where w = 0, 1, ... counts the workers of the whole file in order. The formula is the published one, for
the paper's 16 workers; it stays as it is for other numbers, so the mean of the b_w is 0 for 16 only.
"""

from collections.abc import Sequence
from typing import Final

import torch

from convergence.problems import tensors
from convergence.problems.problem import Job
from convergence.problems.tensors import TensorPlane
from pelago.config.fields import InFlight
from pelago.config.run_file import RunFile
from pelago.config.servers import ServerSection
from pelago.core.ports import Payload, TensorPort
from pelago.sim.planes import Round
from pelago.tensor.manifest import Manifest
from pelago.wire.messages import TensorSpec

LOCAL_RATE: Final = 1e-3
START: Final = 1.0


class Scalar:
    """One parameter in float64, on the daemons' own tensor plane and optimiser."""

    validates = False

    def __init__(self, run: RunFile) -> None:
        self._manifest = Manifest((TensorSpec("th", (1,)),))
        self.specs = self._manifest.specs
        self.fingerprint = self._manifest.fingerprint
        workers = sum(len(region.worker_speeds) for region in run.region)
        self.targets = [(w - 7.5) / 10 for w in range(workers)]
        """b_w of each worker."""

    def server_plane(self, server: ServerSection, in_flight: InFlight | None) -> TensorPort:
        """The daemons' plane, with th = 1 in it."""
        initial = torch.tensor([START], dtype=torch.float64)
        return tensors.server_plane(self._manifest, server, in_flight, initial)

    def client_plane(self) -> TensorPort:
        """Payloads only."""
        return tensors.client_plane(self._manifest, torch.float64)

    def train(self, jobs: Sequence[Job]) -> list[Round]:
        """Local steps of plain SGD; the loss reported is that of the start, (th - b)^2 / 2.

        b is the mean of the b_w of a group's workers, weighted by their samples.
        """
        return [self._round(job) for job in jobs]

    def _round(self, job: Job) -> Round:
        start = self._number(job.start)
        if len(job.parts) == 1:
            target = self.targets[job.parts[0].worker]
        else:
            target = sum(self.targets[part.worker] * part.samples for part in job.parts) / job.batch
        end = start
        for _ in range(job.steps):
            end -= LOCAL_RATE * (end - target)
        delta = torch.tensor([start - end], dtype=torch.float64)
        return Round(delta, job.steps * job.batch, (start - target) ** 2 / 2)

    def validate(self, payload: Payload) -> tuple[float, int]:
        """The mean of the workers' losses."""
        th = self._number(payload)
        return sum((th - target) ** 2 / 2 for target in self.targets) / len(self.targets), 1

    def value(self, plane: TensorPort) -> float | None:
        """The parameter itself."""
        assert isinstance(plane, TensorPlane)
        return float(plane.plane.model())

    def _number(self, payload: Payload) -> float:
        assert isinstance(payload, torch.Tensor)
        return float(payload)
