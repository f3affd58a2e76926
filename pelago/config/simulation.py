"""The table of the run file that only `experiments` reads: how a run is simulated."""

from typing import Literal, Self

from pydantic import model_validator

from pelago.config.fields import (
    Milliseconds,
    Natural,
    NonNegativeFloat,
    Positive,
    PositiveMilliseconds,
    Section,
)


class SimulatedEvent(Section):
    """A node that is lost without a Leave, or comes back (or comes late), at a time of the run."""

    at_ms: Milliseconds
    node: str
    """REGION/GROUP, or lps/REGION."""
    kind: Literal["lose", "join"]


class SimulationSection(Section):
    """Read by `experiments` only."""

    method: Literal[
        "halos", "regional-groups", "async-local-sgd", "diloco", "synchronous", "ideal"
    ] = "halos"
    problem: Literal["timing", "scalar", "quadratic", "nonconvex", "lm"] = "timing"
    model_bytes: Positive = 281_706_496
    """Size of a payload, as the links charge it; an `lm` model may be smaller than the one that it stands for."""
    step_ms: PositiveMilliseconds = 238.391
    """One local step of ``worker.batch_size`` samples at relative speed 1."""
    step_jitter: NonNegativeFloat = 0.0
    """Relative standard deviation of a round's compute time (lognormal, drawn from the seed)."""
    group_batch: Natural = 0
    """Samples of a step of a synchronous group; 0: batch_size for each of its workers."""
    daemons: bool = False
    """Run the machines with the daemons' settings: heartbeats, retries, limited staging, samples
    leased ahead. Needed where nodes are lost."""
    dimension: Positive = 64
    """Parameters of `quadratic` and `nonconvex`."""
    noise: NonNegativeFloat = 1.0
    """Standard deviation of the norm of one sample's gradient noise, in `quadratic` and `nonconvex`."""
    heterogeneity: NonNegativeFloat = 0.0
    """How far the regions' data differ. `quadratic`: distance of their optima from the common one;
    `lm`: share (at most 1) of a region's samples that come from a part of the corpus of its own."""
    event: tuple[SimulatedEvent, ...] = ()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.problem == "lm" and self.heterogeneity > 1:
            raise ValueError(
                f"heterogeneity = {self.heterogeneity} must not exceed 1 for problem 'lm'"
            )
        if self.event and not self.daemons:
            raise ValueError("nodes can be lost with daemons = true only: others mind no silence")
        return self
