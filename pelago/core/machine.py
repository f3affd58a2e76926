"""The vocabulary that machines and drivers share: events go in, effects come out.

A machine is ``handle(event, now) -> list[Effect]`` and ``check()``. Events are facts, effects are
wishes. ``now`` and every delay are integer picoseconds of the driver's clock, whose origin means
nothing. Effects on tensors (`Pin`, `Difference`, `Apply`, `Release`) and `Send`s with a blob run in
the order in which they were emitted; nothing in this vocabulary carries a tensor.

``M`` is the union of messages (`pelago.wire.messages.Message`), which lies one layer up.
"""

from typing import Any, Final, Generic, Literal, Protocol, TypeAlias, TypeVar, Union

from pelago.core.frozen import frozen
from pelago.core.names import BlobId, Lease, Peer, PushId, Version

PS_PER_MS = 10**9
"""Picoseconds in a millisecond."""
PS_PER_S = 1000 * PS_PER_MS
"""Picoseconds in a second."""

M = TypeVar("M")

Operation = Literal["step", "load", "merge", "merge_carry", "merge_replay"]
"""What `Apply` does with the parameters."""


# --- events: facts -------------------------------------------------------------------------------


@frozen
class Started:
    """The driver runs; first event of every machine."""


@frozen
class Restarted:
    """The process was gone and another one has its state, bit for bit; first event of a machine that
    was restored. What was on its way to and from it is lost, and so is the time in between."""


@frozen
class Loaded:
    """The parameters are in the arena already (made from a seed, or read from a file)."""

    version: Version


@frozen
class Received(Generic[M]):
    """A message came; if it has a payload, all of it is staged and its checksums held."""

    peer: Peer
    message: M
    blob: BlobId | None = None


@frozen
class Delivered:
    """All of a payload that this node sent has arrived."""

    peer: Peer
    blob: BlobId


@frozen
class PeerLost:
    """The driver gave up on a peer, or a transfer to it."""

    peer: Peer
    reason: str


@frozen
class Measured:
    """Facts about a staged payload, computed on this node from the bytes themselves."""

    blob: BlobId
    norm: float
    finite: bool


@frozen
class Tick:
    """The one periodic timer of a machine fired."""


@frozen
class Progress:
    """The trainer goes on: it has finished so many local steps of a lease, and perhaps a part of the next;
    several may be told of at once. ``skipped``: of how many the gradient was not finite, so that they changed
    nothing. ``push`` None: it measures, and has done so many batches of that."""

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
    be exported, if that was wished and failed."""

    version: Version
    loss: float
    tokens: int
    fault: str = ""


@frozen
class StopRequested:
    """The user or the operating system asks this node to end in good order."""

    reason: str


Event: TypeAlias = Union[
    Started,
    Loaded,
    Received[M],
    Delivered,
    PeerLost,
    Measured,
    Tick,
    Progress,
    Trained,
    Validated,
    StopRequested,
    Restarted,
]
"""Append only: an event's place in this union is its tag in journals."""


# --- effects: wishes -----------------------------------------------------------------------------


@frozen
class Send(Generic[M]):
    """Send a message, with a payload or without. The driver keeps the payload until it left."""

    peer: Peer
    message: M
    blob: BlobId | None = None


@frozen
class SetTick:
    """Fire `Tick` every so many picoseconds from now on."""

    interval_ps: int


@frozen
class Measure:
    """Answer with `Measured` for a staged payload."""

    blob: BlobId


@frozen
class Apply:
    """Change the parameters with a staged payload, in the order of emission.

    ``step``: one step of the server's outer optimiser along ``weight * blob``.
    ``load``: model and snapshot become the blob.
    ``merge``: model <- (1 - weight) * model + weight * blob; snapshot <- model.
    ``merge_carry``: as ``merge``, then snapshot <- model + (model at the last `Difference` - model just
    before the merge), so that the next `Difference` contains the movement made in between.
    ``merge_replay``: the merge is made at the send point, and the movement made since is replayed on
    it: snapshot <- (1 - weight) * sent + weight * blob, model <- snapshot + (model - sent), where sent
    is the model at the last `Difference`. So the next `Difference` contains that movement too.
    """

    operation: Operation
    blob: BlobId
    weight: float = 1.0


@frozen
class Pin:
    """Name the parameters as they are now ``blob``; later changes do not touch it.

    ``average``: name their running mean instead, if the driver's plane keeps one.
    """

    blob: BlobId
    average: bool = False


@frozen
class Difference:
    """Name ``snapshot - model`` as it is now ``blob``: the pseudo-gradient of an exchange."""

    blob: BlobId


@frozen
class Release:
    """The machine needs this payload no more; it is freed when no send uses it."""

    blob: BlobId


@frozen
class Train:
    """Train from the parameters ``blob`` on a lease: the one long effect. Answers `Progress`, `Trained`.
    ``group``: for which group of the region."""

    lease: Lease
    version: Version
    blob: BlobId
    group: int


@frozen
class Cancel:
    """Stop training on a lease; nothing is answered for it any more."""

    push: PushId


@frozen
class Validate:
    """Measure the held-out loss of ``blob``, and export it too if ``export``. Answers `Validated`."""

    version: Version
    blob: BlobId
    export: bool


@frozen
class Note:
    """A line for the node's event log; changes nothing."""

    kind: str
    fields: dict[str, Any]


FAILED: Final = "failed"
"""`Finish.reason` of a node that cannot go on through no fault of its own."""


@frozen
class Finish:
    """This node is done. ``error`` is empty when all went well."""

    reason: str
    error: str = ""


Effect: TypeAlias = Union[
    Send[M],
    SetTick,
    Measure,
    Apply,
    Pin,
    Difference,
    Release,
    Train,
    Cancel,
    Validate,
    Note,
    Finish,
]


class Machine(Protocol[M]):
    """What a driver drives."""

    def handle(self, event: Event[M], now: int) -> list[Effect[M]]:
        """Take one fact, return the wishes that follow from it, in order."""
        ...

    def expects(self, peer: Peer, message: M) -> bool:
        """Whether this node wants the payload that comes with a message: what nobody asked for is turned away
        before a byte of it is kept. Changes nothing."""
        ...

    def check(self) -> None:
        """Assert every invariant of this machine."""
        ...
