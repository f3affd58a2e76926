"""Recovery of a simulated server from its disk: the last snapshot, then a replay of the journal since it
(`pelago.durable.replay`)."""

from dataclasses import dataclass, field

from pelago.core.machine import Machine, Received
from pelago.core.names import BlobId
from pelago.core.notes.note import Note
from pelago.core.ports import Payload
from pelago.durable import image, record
from pelago.durable.record import HEAD_BYTES, Kind
from pelago.durable.replay import replay_event
from pelago.sim.disk import DiskContents
from pelago.sim.planes import DurablePlane
from pelago.wire.messages import Effect, Event, Message


@dataclass(slots=True)
class ReplayedServer:
    """The result of a recovery."""

    now: int = 0
    """The server's clock at its last event, in picoseconds."""
    last_blob: BlobId = 0
    """The lowest number that the driver gave to a payload."""
    blobs: dict[BlobId, None] = field(default_factory=dict)
    """Payloads that its machine holds."""
    replayed: list[tuple[int, Event, list[Effect]]] = field(default_factory=list)
    """Each replayed event with its number and the machine's effects."""

    @property
    def notes(self) -> list[tuple[int, Note]]:
        """The machine's notes, each with the number of its event."""
        return [
            (n, each)
            for n, _, effects in self.replayed
            for each in effects
            if isinstance(each, Note)
        ]


def recover(
    contents: DiskContents, run: str, machine: Machine[Message], plane: DurablePlane
) -> ReplayedServer:
    """Bring a fresh machine and a fresh plane to the state at the end of the journal. Raises `CheckpointError`."""
    found = ReplayedServer()
    if contents.snapshot is not None:
        head = record.parse_head(contents.snapshot.state, None)
        assert head is not None
        state, found.last_blob = record.unpack(contents.snapshot.state[HEAD_BYTES:])
        image.restore(machine, state)
        found.now = head.second
        plane.restore(contents.snapshot.plane)
        found.blobs = dict.fromkeys(contents.snapshot.blobs)
    payloads: dict[BlobId, Payload] = {}
    for each in contents.records:
        if each.head.kind is Kind.CHUNK:
            payloads[each.head.first] = each.payload
            found.last_blob = min(found.last_blob, each.head.first)
            continue
        event = record.unpack_event(run, each.body)
        if isinstance(event, Received) and event.blob is not None:
            plane.adopt(event.blob, payloads.pop(event.blob))
            found.blobs[event.blob] = None
        found.now = each.head.second
        effects = replay_event(machine, event, found.now, plane, found.blobs)
        found.replayed.append((each.head.number, event, effects))
    return found
