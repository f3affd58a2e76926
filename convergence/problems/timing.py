"""A problem without tensors, for studies of time alone."""

from collections.abc import Sequence

from convergence.problems.problem import Job
from pelago.config.fields import InFlight
from pelago.config.run_file import RunFile
from pelago.config.servers import ServerSection
from pelago.core.ports import Payload, TensorPort
from pelago.sim.planes import Round, TimingPlane
from pelago.wire.messages import TensorSpec


class Timing:
    """No tensors, only the times of events. Every update is accepted, and every loss is 0."""

    validates = False

    def __init__(self, run: RunFile) -> None:
        assert run.simulation is not None
        # An fp32 model of this size; the links charge its bytes.
        self.specs = (TensorSpec("timing", (max(1, run.simulation.model_bytes // 4),)),)
        self.fingerprint = "timing"
        self._sequence_length = run.data.sequence_length

    def server_plane(self, server: ServerSection, in_flight: InFlight | None) -> TensorPort:
        """Names of payloads only."""
        return TimingPlane()

    def client_plane(self) -> TensorPort:
        """Names of payloads only."""
        return TimingPlane()

    def train(self, jobs: Sequence[Job]) -> list[Round]:
        """Nothing is trained."""
        return [Round(None, job.steps * job.batch * self._sequence_length, 0.0) for job in jobs]

    def validate(self, payload: Payload) -> tuple[float, int]:
        """Nothing is measured."""
        return 0.0, 0

    def value(self, plane: TensorPort) -> float | None:
        """None: there are no parameters."""
        return None
