"""Notes of a worker's trainer, from its own thread: whether the optimiser's moments were kept and restored."""

from typing import ClassVar, TypeAlias

from pelago.core.frozen import frozen


@frozen
class OptimiserRestored:
    """The optimiser goes on with moments that an earlier process kept."""

    kind: ClassVar[str] = "optimiser_taken_up"
    age_s: float
    """Age of the moments."""
    samples: int
    """Samples that the run has lent since the moments were kept."""
    steps: int
    """Steps from which the moments were computed."""
    dtype: str
    """Type in which they were kept; from now on it is `worker.moments_dtype`."""


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
