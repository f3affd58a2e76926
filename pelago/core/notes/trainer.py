"""What a worker's trainer logs, in its own thread: what became of the optimiser's moments."""

from typing import ClassVar, TypeAlias

from pelago.core.frozen import frozen


@frozen
class OptimiserRestored:
    """The optimiser goes on with moments that an earlier process kept."""

    kind: ClassVar[str] = "optimiser_taken_up"
    age_s: float
    """Of the moments."""
    samples: int
    """Samples that the run lent since they were kept."""
    steps: int
    """Steps that made them."""


@frozen
class OptimiserCold:
    """The optimiser begins without moments in the middle of a run."""

    kind: ClassVar[str] = "optimiser_cold"
    why: str
    warm_up_steps: int


@frozen
class OptimiserNotKept:
    """The moments of the optimiser could not be written."""

    kind: ClassVar[str] = "optimiser_not_kept"
    why: str


TrainerNote: TypeAlias = OptimiserRestored | OptimiserCold | OptimiserNotKept
