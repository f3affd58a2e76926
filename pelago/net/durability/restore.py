"""Restores a machine and its tensors from a recovered state.

First the snapshot, then a replay of all events since (`pelago.durable.replay`).
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from pelago.core.errors import CheckpointError, WireError
from pelago.core.machine import Machine, Received
from pelago.core.names import BlobId, Peer
from pelago.durable import image, record
from pelago.durable.record import Begun, Head, Kind
from pelago.durable.replay import replay_event
from pelago.net.durability.state_reader import RecoveredState, StoredSnapshot
from pelago.net.telemetry import Telemetry
from pelago.runlog.events import NodeRestored, SnapshotDamaged
from pelago.runlog.history import HistoryLine, HistoryNote
from pelago.tensor.manifest import Manifest
from pelago.tensor.plane import Plane
from pelago.wire.codec import decode_message
from pelago.wire.messages import Message, TensorSpec, Welcome


@dataclass(frozen=True, slots=True)
class Arriving:
    """A payload on its way in: the plane has those of its chunks that had arrived."""

    blob: BlobId
    begun: Begun
    message: Message


@dataclass(slots=True)
class Restored:
    """The state of a node at the end of the process before this one."""

    plane: Plane | None
    now: int = 0
    """The machine's clock at its last event."""
    last_blob: BlobId = 0
    """The lowest number that the driver gave a payload."""
    held: dict[BlobId, None] = field(default_factory=dict)
    """Payloads that the machine still needs."""
    arriving: dict[Peer, Arriving] = field(default_factory=dict)
    """The payload that each peer was sending, in the order in which they began."""
    finished: dict[Peer, Arriving] = field(default_factory=dict)
    """The last complete payload of each peer, as far as the journal goes back."""
    events: int = 0
    """How many events were replayed."""
    history: list[HistoryLine] = field(default_factory=list)
    """The lines of the history that follow from those events."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Seconds that each part of the recovery took."""


def restore(
    recovered: RecoveredState,
    run: str,
    machine: Machine[Message],
    plane: Plane | None,
    make_plane: Callable[[Manifest], Plane] | None,
) -> Restored:
    """Bring a fresh machine, and its plane if it has one yet, to the end of the recovered state.

    ``plane``: of a server that makes its own model, as at its first start, if there is no
    snapshot. ``make_plane`` makes an empty one. Raises `CheckpointError`.
    """
    started = time.perf_counter()
    found = Restored(plane)
    if recovered.snapshot is not None:
        _restore_snapshot(recovered, machine, found, make_plane)
    found.seconds["snapshot"] = time.perf_counter() - started
    _replay(recovered, run, machine, found, make_plane)
    found.seconds["journal"] = time.perf_counter() - started - found.seconds["snapshot"]
    return found


def log_restored(telemetry: Telemetry, recovered: RecoveredState, restored: Restored) -> None:
    """Log from what a node was restored, and which damaged snapshots were passed over."""
    snapshot = recovered.snapshot
    instead = "the journal from its beginning" if snapshot is None else snapshot.name
    for fault in recovered.passed_over:
        telemetry.event(SnapshotDamaged(fault, instead))
    event = NodeRestored(
        events=restored.events,
        snapshot_bytes=0 if snapshot is None else snapshot.bytes,
        journal_bytes=recovered.bytes,
        torn_bytes=recovered.torn_bytes,
        arriving=len(restored.arriving),
        snapshot_s=round(restored.seconds["snapshot"], 4),
        journal_s=round(restored.seconds["journal"], 4),
    )
    telemetry.event(event)


def state(
    machine: Machine[Message],
    manifest: Manifest | None,
    last_blob: BlobId,
    facts: Mapping[str, str],
) -> bytes:
    """The body of a snapshot's STATE."""
    specs = None if manifest is None else [[spec.name, list(spec.shape)] for spec in manifest.specs]
    chunk_bytes = None if manifest is None else manifest.chunk_bytes
    return record.pack([image.take(machine), specs, chunk_bytes, last_blob, dict(facts)])


@dataclass(frozen=True, slots=True)
class SnapshotContents:
    """The contents of a snapshot's STATE, as `state` packed them."""

    image: Any
    manifest: Manifest | None
    last_blob: BlobId
    facts: dict[str, str]
    """Other facts that the node stores, so that it need not find them out again."""

    @classmethod
    def of(cls, snapshot: StoredSnapshot) -> Self:
        """Raises `CheckpointError`."""
        try:
            taken, specs, chunk_bytes, last_blob, facts = snapshot.image
            manifest = None if specs is None else _manifest(specs, chunk_bytes)
            return cls(taken, manifest, last_blob, dict(facts))
        except (ValueError, TypeError) as error:
            raise CheckpointError(
                f"a snapshot's state is not one of this Pelago: {error}"
            ) from None


def _restore_snapshot(
    recovered: RecoveredState,
    machine: Machine[Message],
    found: Restored,
    make_plane: Callable[[Manifest], Plane] | None,
) -> None:
    snapshot = recovered.snapshot
    assert snapshot is not None
    kept = SnapshotContents.of(snapshot)
    image.restore(machine, kept.image)
    found.now, found.last_blob = snapshot.now, kept.last_blob
    if kept.manifest is None or snapshot.layout is None:
        return
    assert make_plane is not None, "a server that keeps its state knows how to make a plane"
    found.plane = make_plane(kept.manifest)
    found.plane.restore(snapshot.layout, snapshot.chunks)
    found.held = {blob: None for blob, _ in snapshot.layout["payloads"]}


def _manifest(specs: Any, chunk_bytes: int) -> Manifest:
    return Manifest(tuple(TensorSpec(name, tuple(shape)) for name, shape in specs), chunk_bytes)


def _replay(
    recovered: RecoveredState,
    run: str,
    machine: Machine[Message],
    found: Restored,
    make_plane: Callable[[Manifest], Plane] | None,
) -> None:
    bodies: dict[BlobId, dict[int, tuple[memoryview, int]]] = {}
    for each in recovered.records:
        head = each.head
        if head.kind is Kind.CHUNK:
            bodies.setdefault(head.first, {})[head.second] = (each.body, head.checksum)
            found.last_blob = min(found.last_blob, head.first)
            continue
        if head.kind is Kind.BEGIN:
            _begin(found, run, head, each.body)
            continue
        if head.kind is Kind.ABORT:
            bodies.pop(head.first, None)
            _end(found, head.first)
            continue
        if head.kind is not Kind.EVENT:
            raise CheckpointError(f"record {head.number} of a journal is a {head.kind.name}")
        event = record.unpack_event(run, each.body)
        if isinstance(event, Received):
            if event.blob is not None:
                whole = _stage(found, event.blob, bodies.pop(event.blob, {}))
                if not whole:
                    what = f"chunks of payload {event.blob} are missing"
                    raise CheckpointError(f"record {head.number}: {what}")
                found.held[event.blob] = None
                found.last_blob = min(found.last_blob, event.blob)
                ended = _end(found, event.blob)
                if ended is not None:
                    found.finished[event.peer] = ended
            elif found.plane is None and isinstance(event.message, Welcome):
                _meet(found, event.message, make_plane)
        found.now = head.second
        effects = replay_event(machine, event, head.second, found.plane, found.held)
        found.history += [
            HistoryLine(head.number, each) for each in effects if isinstance(each, HistoryNote)
        ]
        found.events += 1
    for arriving in found.arriving.values():
        _stage(found, arriving.blob, bodies.get(arriving.blob, {}))


def _meet(
    found: Restored, message: Welcome, make_plane: Callable[[Manifest], Plane] | None
) -> None:
    """The server's Welcome says which tensors its model has."""
    if message.manifest and make_plane is not None:
        found.plane = make_plane(Manifest(message.manifest))


def _begin(found: Restored, run: str, head: Head, body: memoryview) -> None:
    """A payload began to arrive; an older one of the same sender, if any, is superseded."""
    begun = record.unpack_begun(body)
    try:
        message = decode_message(run, begun.message)
    except WireError as error:
        raise CheckpointError(f"record {head.number}: not of this Pelago: {error}") from None
    found.arriving.pop(begun.peer, None)
    found.arriving[begun.peer] = Arriving(head.first, begun, message)
    found.last_blob = min(found.last_blob, head.first)


def _end(found: Restored, blob: BlobId) -> Arriving | None:
    """No more of a payload will arrive. Returns its description, if the journal says how it began."""
    for each in found.arriving.values():
        if each.blob == blob:
            return found.arriving.pop(each.begun.peer)
    return None


def _stage(found: Restored, blob: BlobId, chunks: dict[int, tuple[memoryview, int]]) -> bool:
    """Put what arrived of a payload into its place. Whether that is all of it."""
    plane = found.plane
    if plane is None:
        raise CheckpointError(f"payload {blob} came before the model is known")
    plane.open(blob)
    for place, (body, checksum) in chunks.items():
        plane.stage(blob, place, body, checksum)
    return plane.complete(blob)
