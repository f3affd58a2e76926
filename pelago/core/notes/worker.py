"""Notes of workers and evaluators."""

from typing import ClassVar

from pelago.core.frozen import frozen


@frozen
class WorkerAdmitted:
    """The LPS welcomed this worker."""

    kind: ClassVar[str] = "joined"
    group: int


@frozen
class RoundTrained:
    """A worker finished a round and offers its update."""

    kind: ClassVar[str] = "round"
    steps: int
    loss: float
    """Mean training loss, in nats a token."""
    busy_ms: float
    skipped: int = 0
    """Steps that were skipped because their gradients were not finite."""


@frozen
class RoundFailed:
    """A worker's round gave no update; it gives its lease back."""

    kind: ClassVar[str] = "round_failed"
    steps: int
    why: str


@frozen
class UpdateRejected:
    """The LPS did not apply this worker's update."""

    kind: ClassVar[str] = "update_rejected"
    lease: int


@frozen
class UpdateFenced:
    """This worker's lease was given to another worker; this one joins again."""

    kind: ClassVar[str] = "update_fenced"
    lease: int


@frozen
class ValidationMeasured:
    """An evaluator measured the held-out loss of a version of the global model."""

    kind: ClassVar[str] = "validation"
    counted_steps: int
    loss: float
    final: bool


@frozen
class Exported:
    """An evaluator wrote the model folder."""

    kind: ClassVar[str] = "exported"
    version: int
    counted_steps: int


@frozen
class ExportFailed:
    """An evaluator could not write the model folder."""

    kind: ClassVar[str] = "export_failed"
    why: str
