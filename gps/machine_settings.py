"""What the GPS's machine must know of the run. `gps.settings` makes it from the run file."""

from dataclasses import dataclass

from pelago.wire.messages import TensorSpec, Welcome


@dataclass(frozen=True, slots=True)
class GpsSettings:
    """Constant for one incarnation of the GPS; times in picoseconds."""

    regions: tuple[str, ...]
    incarnation: int
    manifest: tuple[TensorSpec, ...]
    fingerprint: str
    corpus: str
    budget_local_steps: int
    budget_ps: int
    """Time after the first lease in which there was a GPS; 0: no limit."""
    sample_tokens: int
    """Tokens of one sample."""
    update_norm_max: float
    rejected_max: int
    """Updates of a region that may be rejected in a row."""
    max_lr: float
    """Of the workers: the first thing to look at when they learn nothing."""
    staleness_power: float
    """An update based on a version that is n versions old is applied (1 + n)^-power times."""
    staged_max: int
    tick_ps: int
    """0: no heartbeats, and no peer is ever considered lost, for a driver that loses nothing."""
    retry_ps: int
    lost_after_ps: int
    region_lost_after_ps: int
    versions_max: int = 0
    """Versions of the model that may be on their way to regions and evaluators at once; 0: any number."""
    stuck_after_ps: int = 0
    """An evaluator that made no progress for so long is not waited for; 0: no limit."""

    def welcome(self, fence: int) -> Welcome:
        """The answer to a Hello. An evaluator has fence 0, and its model from elsewhere: no manifest."""
        return Welcome(
            incarnation=self.incarnation,
            fence=fence,
            group=-1,
            manifest=self.manifest if fence else (),
            fingerprint=self.fingerprint,
            corpus=self.corpus,
        )
