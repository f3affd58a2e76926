"""The conformance problem of HALoS's released simulator: one float64 parameter.

th is 1 at the start; a local step of worker w is plain SGD on (th - b_w)^2 / 2 with rate 1e-3,

    th <- th - 1e-3 * (th - b_w),    b_w = (w - 7.5) / 10,

where w = 0, 1, ... counts the workers of the whole file in order. The formula is the published one, for
the paper's 16 workers; it stays as it is for other numbers, so the mean of the b_w is 0 for 16 only.
"""

from typing import Final

import torch

from convergence.tensors import TensorPlane
from pelago.config import RunFile, Server
from pelago.core.names import Lease
from pelago.sim.ports import Payload, PlanePort, Round
from pelago.tensor.manifest import Manifest
from pelago.tensor.optim import DelayedNesterov
from pelago.tensor.plane import Plane
from pelago.wire.messages import TensorSpec

LOCAL_RATE: Final = 1e-3
START: Final = 1.0


class Scalar:
    """One parameter in float64, on the daemons' own tensor plane and optimiser."""

    def __init__(self, run: RunFile) -> None:
        self._run = run
        self._manifest = Manifest((TensorSpec("th", (1,)),))
        self.specs = self._manifest.specs
        self.fingerprint = self._manifest.fingerprint
        workers = sum(len(region.worker_speeds) for region in run.region)
        self.targets = [(w - 7.5) / 10 for w in range(workers)]
        """b_w of each worker."""

    def gps_plane(self) -> PlanePort:
        """Delayed Nesterov with the GPS's settings."""
        return self._server(self._run.gps, carry=False)

    def lps_plane(self) -> PlanePort:
        """Delayed Nesterov with the LPS's settings."""
        return self._server(self._run.lps, carry=self._run.lps.in_flight == "carry")

    def worker_plane(self) -> PlanePort:
        """Payloads only."""
        return TensorPlane(Plane(self._manifest, None, dtype=torch.float64, exchanges=False))

    def train(self, worker: int, lease: Lease, steps: int, payload: Payload) -> Round:
        """Local steps of plain SGD; the loss reported is that of the start, (th - b_w)^2 / 2."""
        start = self._number(payload)
        target = self.targets[worker]
        end = start
        for _ in range(steps):
            end -= LOCAL_RATE * (end - target)
        delta = torch.tensor([start - end], dtype=torch.float64)
        return Round(delta, lease.samples, (start - target) ** 2 / 2)

    def validate(self, payload: Payload) -> tuple[float, int]:
        """The mean of the workers' losses."""
        th = self._number(payload)
        return sum((th - target) ** 2 / 2 for target in self.targets) / len(self.targets), 1

    def value(self, plane: PlanePort) -> float | None:
        """The parameter itself."""
        assert isinstance(plane, TensorPlane)
        return float(plane.plane.model())

    def _server(self, server: Server, carry: bool) -> PlanePort:
        outer = DelayedNesterov.from_eta(
            server.lr, server.momentum, server.momentum_delay, server.momentum_activation
        )
        plane = Plane(self._manifest, outer, carry=carry, dtype=torch.float64)
        return TensorPlane.loaded(plane, torch.tensor([START], dtype=torch.float64))

    def _number(self, payload: Payload) -> float:
        assert isinstance(payload, torch.Tensor)
        return float(payload)
