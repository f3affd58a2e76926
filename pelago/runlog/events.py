"""Events that drivers and roles log beside the notes of machines: a frozen class for each kind.

The kinds and the names of the fields are those of `events.jsonl` and never change.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Final, TypeAlias, get_args

# --- start and end of a process -------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class NodeStarted:
    """A process of the run began."""

    kind: ClassVar[str] = "started"
    process_s: float
    """Seconds that the process had run by then: what its imports took."""


@dataclass(frozen=True, slots=True)
class NodeStopping:
    """A signal asked the node to end."""

    kind: ClassVar[str] = "stopping"
    why: str
    """Name of the signal."""


@dataclass(frozen=True, slots=True)
class NodeFailed:
    """The node cannot go on, for a reason that a user can mend."""

    kind: ClassVar[str] = "failed"
    error: str


@dataclass(frozen=True, slots=True)
class NodeCrashed:
    """The node broke an invariant or met an error that nothing handles."""

    kind: ClassVar[str] = "crashed"
    error: str
    report: str
    """Path of the crash report."""


@dataclass(frozen=True, slots=True)
class NodeFinished:
    """The node ends. ``error`` is empty when all went well."""

    kind: ClassVar[str] = "finished"
    reason: str
    error: str


@dataclass(frozen=True, slots=True)
class NodePaused:
    """The process did not run for a while: it was stopped, or its host slept."""

    kind: ClassVar[str] = "paused"
    seconds: float


@dataclass(frozen=True, slots=True)
class DeviceChosen:
    """The device that a worker or an evaluator computes on."""

    kind: ClassVar[str] = "device"
    device: str


@dataclass(frozen=True, slots=True)
class ModelBuilt:
    """Where the architecture and the first parameters of a worker's model come from."""

    kind: ClassVar[str] = "model"
    origin: str


@dataclass(frozen=True, slots=True)
class InitialModelBuilt:
    """Where the first global model comes from."""

    kind: ClassVar[str] = "initial_model"
    origin: str


@dataclass(frozen=True, slots=True)
class ResultsWritten:
    """The results of a run that is over were written, or not all of them."""

    kind: ClassVar[str] = "results_written"
    failures: tuple[str, ...]
    """Results that could not be written, and why."""


@dataclass(frozen=True, slots=True)
class ResultNotWritten:
    """A file of the results could not be written."""

    kind: ClassVar[str] = "not_written"
    why: str


# --- connections ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class WaitingForServer:
    """As the note `Waiting`, with the address of the server."""

    kind: ClassVar[str] = "waiting"
    awaited: str
    """Written as ``for``."""
    server: str


@dataclass(frozen=True, slots=True)
class ServerConnected:
    """The control connection to a server is up."""

    kind: ClassVar[str] = "connected"
    server: str


@dataclass(frozen=True, slots=True)
class ServerDisconnected:
    """The control connection to a server is down."""

    kind: ClassVar[str] = "disconnected"
    server: str


@dataclass(frozen=True, slots=True)
class ServerUnresolved:
    """The host name of a server is not known yet."""

    kind: ClassVar[str] = "unresolved"
    server: str
    at: str
    why: str


@dataclass(frozen=True, slots=True)
class ServerMoved:
    """The host name of a server has other addresses now."""

    kind: ClassVar[str] = "moved"
    server: str
    at: str
    to: tuple[str, ...]
    """The new addresses."""


@dataclass(frozen=True, slots=True)
class ConnectionRenewed:
    """A silent connection to a server was closed and is opened again."""

    kind: ClassVar[str] = "renewed"
    server: str
    socket: str


@dataclass(frozen=True, slots=True)
class StripesChosen:
    """A client has another number of bulk connections to a server, because of the payloads in one direction."""

    kind: ClassVar[str] = "stripes"
    server: str
    stripes: int
    direction: str
    why: str


@dataclass(frozen=True, slots=True)
class WindowChosen:
    """The window of a stripe to a peer is another one, since it has measured this rate and this round trip."""

    kind: ClassVar[str] = "window"
    to: str
    window_bytes: int
    bytes_per_s: int
    round_trip_ms: float


@dataclass(frozen=True, slots=True)
class ServerPortUnreachable:
    """One port of a server answers and this one does not."""

    kind: ClassVar[str] = "unreachable"
    server: str
    socket: str
    at: str


@dataclass(frozen=True, slots=True)
class ServerPortReachable:
    """A port of a server that did not answer does so now."""

    kind: ClassVar[str] = "reachable"
    server: str
    socket: str
    at: str


@dataclass(frozen=True, slots=True)
class ClientBlocked:
    """A client's host reaches one port of this server and not this one."""

    kind: ClassVar[str] = "unreached"
    host: str
    socket: str
    port: int


@dataclass(frozen=True, slots=True)
class ClientUnblocked:
    """A client's host that did not reach a port does so now."""

    kind: ClassVar[str] = "reached"
    host: str
    socket: str
    port: int


@dataclass(frozen=True, slots=True)
class InputDropped:
    """Input of a peer was dropped. Logged now and then, counted always."""

    kind: ClassVar[str] = "dropped"
    reason: str
    peer: str
    detail: str
    total: int
    """Inputs dropped for this reason so far."""


@dataclass(frozen=True, slots=True)
class PayloadAbandoned:
    """The node gave up sending a payload to a peer."""

    kind: ClassVar[str] = "transfer_failed"
    peer: str
    reason: str


@dataclass(frozen=True, slots=True)
class TransferEvicted:
    """A payload that arrived in part was given up for want of room."""

    kind: ClassVar[str] = "transfer_evicted"
    peer: str


# --- durability -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class NodeRestored:
    """A server was restored from its state folder."""

    kind: ClassVar[str] = "restored"
    events: int
    """Events that were replayed."""
    snapshot_bytes: int
    """0: there was no snapshot."""
    journal_bytes: int
    torn_bytes: int
    """Bytes of a record that was being written, and were cut off."""
    arriving: int
    """Payloads that had arrived in part."""
    snapshot_s: float
    """Seconds that reading the snapshot took."""
    journal_s: float
    """Seconds that replaying the journal took."""


@dataclass(frozen=True, slots=True)
class SnapshotDamaged:
    """A snapshot is damaged and was passed over."""

    kind: ClassVar[str] = "snapshot_damaged"
    why: str
    instead: str
    """Name of the snapshot that the server was restored from, or its journal from the beginning."""


@dataclass(frozen=True, slots=True)
class StateDiscarded:
    """An LPS cannot use its old state, removes it and begins anew."""

    kind: ClassVar[str] = "beginning_anew"
    why: str
    removed: str
    """Path of the folder."""


@dataclass(frozen=True, slots=True)
class SnapshotWritten:
    """A snapshot was written."""

    kind: ClassVar[str] = "snapshot"
    bytes: int
    failed_before: int
    """Attempts that failed since the last snapshot."""


@dataclass(frozen=True, slots=True)
class SnapshotFailed:
    """A snapshot could not be written; it is tried again."""

    kind: ClassVar[str] = "snapshot_failed"
    why: str


@dataclass(frozen=True, slots=True)
class SnapshotArchived:
    """A snapshot was copied to the archive."""

    kind: ClassVar[str] = "archived"
    url: str
    bytes: int
    seconds: float


@dataclass(frozen=True, slots=True)
class ArchiveFailed:
    """A snapshot could not be copied to the archive; the next one is."""

    kind: ClassVar[str] = "archive_trouble"
    why: str


@dataclass(frozen=True, slots=True)
class JournalBlocked:
    """The journal cannot be written; the messages that depend on it wait."""

    kind: ClassVar[str] = "disk_trouble"
    why: str
    held: int
    """Messages that wait."""


@dataclass(frozen=True, slots=True)
class JournalUnblocked:
    """The journal can be written again."""

    kind: ClassVar[str] = "disk_well"
    held: int
    """Messages that waited."""


@dataclass(frozen=True, slots=True)
class DiskForecast:
    """How much disk the node needs and has."""

    kind: ClassVar[str] = "disk"
    disks: tuple[str, ...]
    """A line for people for each disk. Written as ``told``."""


@dataclass(frozen=True, slots=True)
class DiskShort:
    """The disk may or will get full."""

    kind: ClassVar[str] = "disk_short"
    why: str


@dataclass(frozen=True, slots=True)
class OtherEvent:
    """A logged event of a kind that has no class, such as the counters of a node."""

    kind: str
    fields: dict[str, Any]


DriverEvent: TypeAlias = (
    NodeStarted
    | NodeStopping
    | NodeFailed
    | NodeCrashed
    | NodeFinished
    | NodePaused
    | DeviceChosen
    | ModelBuilt
    | InitialModelBuilt
    | ResultsWritten
    | ResultNotWritten
    | WaitingForServer
    | ServerConnected
    | ServerDisconnected
    | ServerUnresolved
    | ServerMoved
    | ConnectionRenewed
    | StripesChosen
    | WindowChosen
    | ServerPortUnreachable
    | ServerPortReachable
    | ClientBlocked
    | ClientUnblocked
    | InputDropped
    | PayloadAbandoned
    | TransferEvicted
    | NodeRestored
    | SnapshotDamaged
    | StateDiscarded
    | SnapshotWritten
    | SnapshotFailed
    | SnapshotArchived
    | ArchiveFailed
    | JournalBlocked
    | JournalUnblocked
    | DiskForecast
    | DiskShort
)
DRIVER_EVENTS: Final[tuple[type[DriverEvent], ...]] = get_args(DriverEvent)
"""All their classes."""
