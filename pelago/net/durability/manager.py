"""The durability manager of a node: everything between its machine and its journal.

Events are journalled as they are handled, messages wait until the journal holds their cause, snapshots are
begun when they are due, and the history gets its lines. See `pelago.net.durability.journal` for the rules.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

from pelago.config.fields import Durability
from pelago.core.machine import PS_PER_MS
from pelago.core.names import BlobId
from pelago.core.notes.note import Note
from pelago.durable import record
from pelago.durable.record import Begun
from pelago.durable.replay import UNCOMMITTED
from pelago.net.context import NodeContext
from pelago.net.durability import archive, file_header
from pelago.net.durability.archive import Copier
from pelago.net.durability.journal import (
    SNAPSHOT_MODELS,
    Journal,
    JournalListener,
    JournalPosition,
)
from pelago.net.durability.restore import Restored, state
from pelago.net.durability.state_folder import StateFolder
from pelago.net.durability.state_reader import RecoveredState
from pelago.net.tensors.tensors import Tensors
from pelago.runlog.events import JournalBlocked, JournalUnblocked, SnapshotFailed, SnapshotWritten
from pelago.runlog.history import HistoryLine, HistoryNote, IncarnationBegun
from pelago.tensor.snapshot import PlaneSnapshot
from pelago.wire.messages import Event, Message

COMMITTED_S: Final = 10.0
"""How long a node that is done waits for the disk to take its last events."""
FRESH_MS: Final = 10_000
"""The greatest age of a snapshot that other processes read, if two models have come since. With small models the
journal takes long to grow so much that a snapshot is due."""
RETRY_MS_MIN: Final = 5_000
RETRY_MS_MAX: Final = 60_000
"""A snapshot that could not be written is tried again after the first, then after twice as long each time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StateStore:
    """Where a node keeps its state, and what was recovered from there.

    ``is_read``: other processes may read its newest snapshot while it runs, so it is kept recent.
    ``name``: of the node in the run. ``incarnation``: the one that goes on, or begins. ``facts``: what
    its snapshots say of it besides. ``copier``: takes snapshots away from this host.
    """

    store: StateFolder
    durability: Durability
    name: str
    incarnation: int
    recovered: RecoveredState | None = None
    facts: Mapping[str, str] = field(default_factory=dict)
    copier: Copier | None = None
    is_read: bool = False


class DurabilityManager:
    """Keeps the state of one node; on the event loop's thread, but `_chunk`, which is the staging thread's.

    ``arriving`` returns the payloads that have arrived in part, and how they began (None: it is whole, and its
    event waits for the machine).
    """

    def __init__(
        self,
        context: NodeContext,
        state_store: StateStore,
        tensors: Tensors,
        restored: Restored | None,
        arriving: Callable[[], list[tuple[BlobId, Begun | None]]],
    ) -> None:
        self.held: deque[tuple[int, Callable[[], object]]] = deque()
        """Messages that wait for the journal: (number of the record, call that sends the message)."""
        self._context = context
        self._tensors = tensors
        self._arriving = arriving
        self._telemetry = context.telemetry
        self._number = 0
        """Number of the record of the event that was handled last."""
        self._settled = asyncio.Event()
        """Set when everything is written."""
        self._state_store = state_store
        self._is_first = tensors.ready and (
            state_store.recovered is None or state_store.recovered.snapshot is None
        )
        """A snapshot is due at once, so that no later process must make the initial model again."""
        self._failures = 0
        """Snapshots that could not be written since the last one that could."""
        self._retry_at: int | None = None
        self._snapshot_at = -(1 << 62)
        """The machine's clock when the last snapshot was begun."""
        self._trouble = ""
        """The last error of the journal's disk, as long as it accepts nothing; else empty."""
        self.journal = self._begin(state_store, restored)
        tensors.keep = self._chunk

    def event(self, event: Event, now: int) -> None:
        """The machine has handled an event; none of its effects has been carried out."""
        # After the machine has handled it, so that an event that breaks it is not replayed at every restart; before
        # any message leaves.
        self._number = self.journal.event(self._context.run_id, event, now)

    def commit(self, message: Message, blob: BlobId | None, send: Callable[[], None]) -> None:
        """Send a message of the event that was handled last, as soon as that is durable."""
        if isinstance(message, UNCOMMITTED) or (
            not self.held and self.journal.durable >= self._number
        ):
            send()
        elif blob is None:
            self.held.append((self._number, send))
        else:
            self._tensors.use(blob)  # The machine may let go of it before it leaves.

            def send_and_drop() -> None:
                send()
                self._tensors.drop(blob)

            self.held.append((self._number, send_and_drop))

    def begin(self, blob: BlobId, begun: Begun) -> None:
        """A payload begins to arrive."""
        self.journal.begin(blob, begun)

    def abort(self, blob: BlobId) -> None:
        """The rest of a payload will not arrive."""
        self.journal.abort(blob)

    def acknowledge(self, send: Callable[[], object]) -> None:
        """Acknowledge chunks as soon as all that have arrived by now are durable: the sender will not send them
        again."""
        if not self.held and self.journal.durable >= self.journal.last:
            send()
        else:
            self.held.append((self.journal.last, send))

    def note(self, note: Note) -> None:
        """Write a note of the machine to the history, if it is one of those."""
        if isinstance(note, HistoryNote):
            self.journal.history(HistoryLine(self._number, note))

    def snapshot_if_due(self, now: int) -> None:
        """Begin a snapshot if it is time: of this moment, whenever it is written."""
        written, tensors = self.journal, self._tensors
        plane = tensors.plane if tensors.ready else None
        copier = self._state_store.copier
        model_bytes = 0 if plane is None else plane.manifest.bytes
        wanted = self._is_first or (copier is not None and copier.due)
        if self._state_store.is_read and now - self._snapshot_at >= FRESH_MS * PS_PER_MS:
            wanted = wanted or written.bytes >= SNAPSHOT_MODELS * model_bytes > 0
        if self._failures:
            if self._retry_at is None:
                wait_ms = min(RETRY_MS_MAX, RETRY_MS_MIN << min(self._failures - 1, 8))
                self._retry_at = now + wait_ms * PS_PER_MS
            if now < self._retry_at:
                return
            wanted = True
        if not written.due(model_bytes, wanted):
            return
        self._is_first, self._retry_at, self._snapshot_at = False, None, now
        index, number = written.rotate()
        manifest = None if plane is None else plane.manifest
        taken = state(self._context.machine, manifest, tensors.last_blob, self._state_store.facts)

        def then(size: int, trouble: str) -> None:
            self._on_snapshot(size, trouble, index, number)

        if plane is None:
            written.snapshot(index, number, now, taken, None, lambda: iter(()), then)
            return
        # The journal before this one goes, and what has arrived of a payload is in it.
        for blob, begun in self._arriving():
            if begun is not None:
                written.begin(blob, begun)
            for place, chunk in plane.arrived(blob):
                written.chunk(blob, place, chunk.buffer(), chunk.checksum())
        held = frozenset(tensors.held)

        def write(found: PlaneSnapshot) -> None:
            layout = record.pack(found.layout())
            written.snapshot(index, number, now, taken, layout, lambda: iter(found.chunks), then)

        tensors.snapshot(held, write)

    def close(self) -> None:
        """Write what is queued, and wait for what is being written, at most for a time limit."""
        self.journal.close()
        if self._state_store.copier is not None:
            self._state_store.copier.close()

    async def settle(self) -> None:
        """Wait until the node's last messages may leave, at most for a time limit."""
        self._settled.clear()
        if self.journal.durable < self.journal.last:
            with suppress(TimeoutError):
                async with asyncio.timeout(COMMITTED_S):
                    await self._settled.wait()
        self._on_written(self.journal.durable)

    def _begin(self, state_store: StateStore, restored: Restored | None) -> Journal:
        recovered = state_store.recovered
        if recovered is not None:
            state_store.store.cut(recovered)
            state_store.store.cut_history(
                0 if recovered.snapshot is None else recovered.snapshot.number
            )
        else:
            state_store.store.cut_history(record.NUMBER_MAX)
        begun = Journal(
            state_store.store,
            state_store.durability,
            file_header.new_header(
                self._context.run_id,
                state_store.name,
                self._context.name,
                state_store.incarnation,
                None if recovered is None else recovered.header.salt,
            ),
            JournalPosition.after(recovered),
            JournalListener(self._on_written, self._on_trouble, self._context.on_fault),
        )
        if recovered is None:
            begun.history(HistoryLine(0, IncarnationBegun(self._context.name)))
        for each in () if restored is None else restored.history:
            begun.history(each)
        return begun

    def _chunk(self, blob: BlobId, place: int) -> None:
        # From the plane: the chunk that arrived may be a repeat with other bytes, which the plane ignored.
        self.journal.chunk(blob, place, *self._tensors.plane.read(blob, place))

    def _on_written(self, number: int) -> None:
        while self.held and self.held[0][0] <= number:
            self.held.popleft()[1]()
        if number >= self.journal.last:
            self._settled.set()

    def _on_trouble(self, trouble: str) -> None:
        if not trouble:
            self._telemetry.event(JournalUnblocked(len(self.held)))
        elif trouble != self._trouble:
            # Once, and not each time that it is tried again: the log may be on the same disk.
            self._telemetry.event(JournalBlocked(trouble, len(self.held)))
        self._trouble = trouble

    def _on_snapshot(self, size: int, trouble: str, index: int, number: int) -> None:
        if trouble:
            if not self._failures:
                self._telemetry.event(SnapshotFailed(trouble))
            self._failures += 1
            return
        self._telemetry.event(SnapshotWritten(size, self._failures))
        self._failures = 0
        copier = self._state_store.copier
        if copier is not None and copier.due:
            name = archive.name_of(self._state_store.incarnation, number)
            copier.copy(self._state_store.store, index, name, number, self._telemetry)
