"""From what a disk holds back to a server's machine and plane: the last snapshot, then everything the
machine was told since (`pelago.durable.replay`)."""

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
    """What a server was told again."""

    now: int = 0
    """Its clock at its last event."""
    last_blob: BlobId = 0
    """The lowest number that the driver gave a payload."""
    blobs: dict[BlobId, None] = field(default_factory=dict)
    """Payloads that its machine holds."""
    told: list[tuple[int, Event, list[Effect]]] = field(default_factory=list)
    """Number, event and what the machine answered."""

    @property
    def notes(self) -> list[tuple[int, Note]]:
        """What it noted, with the number of the event."""
        return [
            (n, each) for n, _, effects in self.told for each in effects if isinstance(each, Note)
        ]


def recover(
    contents: DiskContents, run: str, machine: Machine[Message], plane: DurablePlane
) -> ReplayedServer:
    """Bring a fresh machine and a fresh plane to where the past ends. Raises `CheckpointError`."""
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
        found.told.append((each.head.number, event, effects))
    return found
