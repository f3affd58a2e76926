"""The whole protocol: every message that nodes exchange, and every limit on them.

Two closed unions. A `Message` goes from machine to machine; each is idempotent, so a driver may lose,
repeat, reorder or delay any of them. A `Frame` goes between the two ends of a transfer while a message's
payload travels in chunks. `docs/PROTOCOL.md` describes the conversations.

The codec accepts exactly what the types of fields say: ``int`` is -1 <= i < 2**64,
``str`` at most `TEXT_BYTES_MAX` bytes, tuples at most `ITEMS_MAX` items, ``float`` any double.
"""

from typing import Final, Literal, TypeAlias, Union

from pelago.core import machine
from pelago.core.frozen import frozen
from pelago.core.names import Address, Lease, PushId, Spans, Version
from pelago.core.tensor_effects import Loaded, Measured
from pelago.core.training_effects import Progress, Trained, Validated

PROTOCOL_VERSION: Final = 4
HEADER_BYTES_MAX: Final = 4 << 20
"""An encoded message; only `Welcome`, with the manifest of a large model, comes near it."""
TEXT_BYTES_MAX: Final = 1 << 10
ITEMS_MAX: Final = 1 << 16
RUN_ID_BYTES_MAX: Final = 64
CHUNK_BYTES_MAX: Final = 4 << 20
"""Payload of one chunk frame."""
STRIPES_MAX: Final = 64
"""Ordered connections that the chunks of one payload may be divided between."""
SAMPLES_MAX: Final = 1 << 32
"""Samples that one request may ask for."""
COUNT_MAX: Final = 1 << 48
"""The largest count of steps, tokens or the like that is accepted, so that sums of them still fit."""
FRAMES_MAX: Final = 3
"""Parts of one ZeroMQ message after the routing identity: envelope, and for a chunk its payload."""

Role: TypeAlias = Literal["lps", "worker", "evaluator"]
Outcome: TypeAlias = Literal["applied", "rejected", "fenced"]


@frozen
class TensorSpec:
    """One named tensor of the manifest; its place in the flat arena follows from the order."""

    name: str
    shape: tuple[int, ...]


@frozen
class WorkerReport:
    """What one worker group has done so far; of an evaluator only `quiet_ms` counts."""

    group: int
    rounds: int
    steps: int
    tokens: int
    busy_ms: int
    alive_ms: int
    loss: float
    skipped: int = 0
    """Steps among ``steps`` that changed nothing, since their gradient was not finite."""
    quiet_ms: int = 0
    """Time since the thread that trains, or measures, last reported progress; 0 if it is idle."""


@frozen
class RegionReport:
    """What one region has done so far; bytes are payload bytes that arrived. ``rejected``: rounds of its
    workers without an accepted update, see `Failed` and `Ack`."""

    updates: int
    exchanges: int
    in_flight_updates: int
    staleness_max: int
    lan_bytes: int
    wan_bytes: int
    exchanging: bool
    workers: tuple[WorkerReport, ...]
    rejected: int = 0


# --- from a client: a worker to its LPS, an LPS or the evaluator to the GPS ------------------------


@frozen
class Hello:
    """First message of a client. ``fingerprint`` names the model (empty: not known yet), ``corpus`` the data."""

    protocol: int
    role: Role
    address: Address
    incarnation: int
    fingerprint: str
    corpus: str


@frozen
class Heartbeat:
    """The sender is alive. Clients send it on every tick with their report; servers answer it without one."""

    report: WorkerReport | RegionReport | None


@frozen
class Pull:
    """A client asks for the model: with a lease of ``samples`` if that is not 0, and not before ``after_steps``
    local steps have been counted at the GPS."""

    samples: int
    after_steps: int


@frozen
class LeaseRequest:
    """An LPS asks for samples. ``request`` numbers its requests, so that a repeat gets the same answer.
    ``ahead``: how many samples it will then hold that no worker waits for."""

    request: int
    samples: int
    ahead: int


@frozen
class Offer:
    """A client asks whether it may send this update; after a silence also how it was decided."""

    push: PushId


@frozen
class Push:
    """An update; payload: the pseudo-gradient.

    ``base``: the version it started from. ``steps``: local steps to count, also those whose work was
    dropped. ``spans``: the samples inside the payload; ``dropped``: samples whose update will never be in
    one (`in_flight = "drop"`). ``next_samples``: the client also asks for its next lease, of this size (0: no).
    """

    push: PushId
    base: Version
    steps: int
    updates: int
    tokens: int
    loss: float
    spans: Spans
    dropped: Spans
    next_samples: int


@frozen
class Evaluated:
    """The held-out loss of one global version: mean nats per token over ``tokens`` held-out tokens."""

    version: Version
    counted_steps: int
    loss: float
    tokens: int


@frozen
class Leave:
    """A client leaves. It settles what it was leased and did not consume: a worker's lease simply returns;
    an LPS names the samples that it gives back, those that it applied but never exchanged, and those that it
    dropped. An evaluator's report is its last measurement, which the GPS may not have received. ``error``: why
    an LPS cannot go on although the run does, for the user; empty if there is no error."""

    reason: str
    report: WorkerReport | RegionReport | Evaluated | None
    returned: Spans
    unexchanged: Spans
    dropped: Spans
    error: str = ""


@frozen
class Failed:
    """A worker's round has no update, since no gradient of its ``steps`` steps was finite; its lease goes back.
    ``next_samples``: as in `Push`."""

    push: PushId
    steps: int
    next_samples: int


@frozen
class LeaseAhead:
    """A worker that trains asks for its next lease, without a model. ``newest``: number of the newest lease that it
    has taken; the answer is the first one beyond it."""

    newest: int
    samples: int


# --- from a server ---------------------------------------------------------------------------------


@frozen
class Welcome:
    """The client has joined. ``fence`` marks the leases that it gets from now on; ``group`` is a worker's index in
    the region. The manifest is for an LPS, which builds no model itself; workers and evaluators get an empty
    one."""

    incarnation: int
    fence: int
    group: int
    manifest: tuple[TensorSpec, ...]
    fingerprint: str
    corpus: str


@frozen
class Wait:
    """The client has to wait, and asks again on its next tick. ``what``: what the server itself waits for."""

    what: str


@frozen
class Refuse:
    """The client is refused for good; ``detail`` is for the user."""

    detail: str


@frozen
class Rejoin:
    """The server does not know this client (it was evicted, or the server restarted): it has to join again."""


@frozen
class LeaseGrant:
    """Samples for a region. ``clock``: how many had been handed out in the whole run before these, without those
    that other regions keep in hand."""

    request: int
    fence: int
    spans: Spans
    clock: int


@frozen
class Grant:
    """The client may send this update: a staging place is reserved for it."""

    push: PushId


@frozen
class Busy:
    """No staging place is free; the client offers its update again after ``retry_ms``."""

    push: PushId
    retry_ms: int


@frozen
class Ack:
    """How an update was decided. The decision never changes."""

    push: PushId
    outcome: Outcome


@frozen
class Model:
    """Parameters; payload: the model. ``lease`` names the samples to train them on (workers only), ``answers`` the
    update that this replies to; for a worker the last one that was decided, whose movement the model holds if it
    was applied. ``final``: no later version will come (evaluators only)."""

    version: Version
    counted_steps: int
    lease: Lease | None
    answers: PushId | None
    final: bool


@frozen
class Lent:
    """The answer to `LeaseAhead`: samples for the round after the one under way."""

    lease: Lease


@frozen
class Stop:
    """The run is over, or this server ends: the client finishes its work, settles and leaves."""

    reason: str


@frozen
class Goodbye:
    """The client's `Leave` is settled."""


Message: TypeAlias = Union[
    Hello,
    Heartbeat,
    Pull,
    LeaseRequest,
    Offer,
    Push,
    Evaluated,
    Leave,
    Welcome,
    Wait,
    Refuse,
    Rejoin,
    LeaseGrant,
    Grant,
    Busy,
    Ack,
    Model,
    Stop,
    Goodbye,
    Failed,
    LeaseAhead,
    Lent,
]
"""Append only: the place of a message in this union is its tag on the wire."""

Event: TypeAlias = machine.Event[Message]
Effect: TypeAlias = machine.Effect[Message]
SharedEvent: TypeAlias = Union[
    machine.Started,
    machine.Received[Message],
    machine.Delivered,
    machine.PeerLost,
    machine.Tick,
    machine.StopRequested,
]
"""Events of every machine that sends payloads."""
ServerEvent: TypeAlias = Union[SharedEvent, machine.Restarted, Loaded, Measured]
"""Events of the GPS and of an LPS: their tensors are loaded and measured, and their state is restored."""
WorkerEvent: TypeAlias = Union[SharedEvent, Progress, Trained]
"""Events of a worker, which trains."""
EvaluatorEvent: TypeAlias = Union[
    machine.Started,
    machine.Received[Message],
    machine.Tick,
    machine.StopRequested,
    Progress,
    Validated,
]
"""Events of the evaluator, which measures the held-out loss and sends no payload."""


# --- the two ends of one transfer --------------------------------------------------------------------


@frozen
class Begin:
    """Announces a payload. Sent again on the same stripe, with the next ``query``, it asks what has arrived there.

    ``message`` is the encoded message that the payload belongs to. ``chunks`` and ``payload_bytes`` are of the
    whole payload in its ``encoding``, which `pelago.tensor.encodings` names. The chunks are divided between
    ``stripes`` ordered connections (`pelago.protocol.stripes`); this frame is of the one with number ``stripe``,
    of whose chunks the receiver has acknowledged ``acknowledged`` so far.
    """

    transfer: int
    query: int
    message: bytes
    chunks: int
    payload_bytes: int
    encoding: str
    stripe: int = 0
    stripes: int = 1
    acknowledged: int = 0


@frozen
class Chunk:
    """One chunk of the payload, encoded, in the part that follows. ``index`` counts the chunks of the whole payload;
    ``checksum`` is XXH3-64 of the encoded bytes."""

    transfer: int
    index: int
    checksum: int


@frozen
class Have:
    """What has arrived of one stripe: all of its chunks below ``through``, and those in ``beyond``, counted within the
    stripe. ``query`` is the newest of this stripe that was seen."""

    transfer: int
    query: int
    through: int
    beyond: Spans
    stripe: int = 0


@frozen
class Abort:
    """This transfer ends, on all stripes: superseded, refused, or unknown to the receiver."""

    transfer: int
    reason: str


Frame: TypeAlias = Union[Begin, Chunk, Have, Abort]
