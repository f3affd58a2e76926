"""The events and effects of workers and of the evaluator: training on a lease, and measuring the held-out loss."""

from pelago.core.frozen import frozen
from pelago.core.names import BlobId, Lease, PushId, Version


@frozen
class Progress:
    """The trainer makes progress. ``steps``: local steps of the lease that are done so far; one event may report
    several. ``skipped``: steps among them whose gradient was not finite, so that they changed nothing.
    ``push`` None: the evaluator measures, and ``steps`` counts its batches."""

    push: PushId | None
    steps: int
    skipped: int = 0


@frozen
class Trained:
    """The trainer finished a lease; ``blob`` is the pseudo-gradient, start minus end. ``skipped``: steps
    among ``steps`` that changed nothing, since their gradient was not finite."""

    push: PushId
    blob: BlobId
    steps: int
    tokens: int
    loss: float
    skipped: int = 0


@frozen
class Validated:
    """The evaluator measured the held-out loss (nats per token) of a version. ``fault``: why it could not
    be exported, if an export was asked for and failed."""

    version: Version
    loss: float
    tokens: int
    fault: str = ""


@frozen
class Train:
    """Train from the parameters ``blob`` on a lease: the one long effect. `Progress` and `Trained` follow.
    ``blob`` None: from those that the last round left, rebased if `Rebase` said so. ``group``: for which group of
    the region."""

    lease: Lease
    version: Version
    blob: BlobId | None
    group: int


@frozen
class Rebase:
    """Rebase the round under way, before its next step; if none is, the parameters that the last one left.

    With θ the parameters now, θ_s those at which the round began, and M those of ``blob``: θ <- M + (θ - θ_s),
    then θ_s <- M. So the pseudo-gradient of the round does not change.
    """

    blob: BlobId


@frozen
class Cancel:
    """Stop training on a lease. No event follows for it."""

    push: PushId


@frozen
class Validate:
    """Measure the held-out loss of ``blob``, and export the model too if ``export``. `Validated` follows."""

    version: Version
    blob: BlobId
    export: bool
