"""What a simulated cluster trains: a problem makes all planes and trains the workers' rounds."""

from typing import Protocol, assert_never

from pelago.config import RunFile, Simulation
from pelago.core.names import Lease
from pelago.sim.ports import Payload, PlanePort, Round, TimingPlane
from pelago.wire.messages import TensorSpec


class Problem(Protocol):
    """What is trained, and with what."""

    @property
    def specs(self) -> tuple[TensorSpec, ...]:
        """The model's tensors, for the manifest that travels in `Welcome`."""
        ...

    @property
    def fingerprint(self) -> str:
        """The model's name."""
        ...

    def gps_plane(self) -> PlanePort:
        """The GPS's, with the initial parameters in it."""
        ...

    def lps_plane(self) -> PlanePort:
        """An LPS's, with the initial parameters in it."""
        ...

    def worker_plane(self) -> PlanePort:
        """A worker's."""
        ...

    def train(self, worker: int, lease: Lease, steps: int, payload: Payload) -> Round:
        """A round of a worker (counted over all regions) from the parameters ``payload``."""
        ...

    def validate(self, payload: Payload) -> tuple[float, int]:
        """Loss of parameters, and what it counts as tokens."""
        ...

    def value(self, plane: PlanePort) -> float | None:
        """A server's parameters, if they are one number, for `result.json`."""
        ...


class Timing:
    """No tensors: who would be where when. Every update is accepted, every loss 0."""

    def __init__(self, run: RunFile, simulation: Simulation) -> None:
        # An fp32 model of this size; the links charge its bytes.
        self.specs = (TensorSpec("timing", (max(1, simulation.model_bytes // 4),)),)
        self.fingerprint = "timing"
        self._sequence_length = run.data.sequence_length

    def gps_plane(self) -> PlanePort:
        """Names of payloads only."""
        return TimingPlane()

    def lps_plane(self) -> PlanePort:
        """Names of payloads only."""
        return TimingPlane()

    def worker_plane(self) -> PlanePort:
        """Names of payloads only."""
        return TimingPlane()

    def train(self, worker: int, lease: Lease, steps: int, payload: Payload) -> Round:
        """Nothing is trained."""
        return Round(None, lease.samples * self._sequence_length, 0.0)

    def validate(self, payload: Payload) -> tuple[float, int]:
        """Nothing is measured."""
        return 0.0, 0

    def value(self, plane: PlanePort) -> float | None:
        """There is none."""
        return None


def build(run: RunFile, simulation: Simulation) -> Problem:
    """The problem that a run file names."""
    match simulation.problem:
        case "timing":
            return Timing(run, simulation)
        case "scalar":
            # torch takes seconds to import, longer than a whole run without tensors.
            from convergence.scalar import Scalar

            return Scalar(run)
        case _:
            assert_never(simulation.problem)
