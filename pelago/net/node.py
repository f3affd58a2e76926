"""The real driver: runs one machine on uvloop, ZeroMQ and threads.

Whatever happens on sockets, timers, signals, the tensor threads and the trainer becomes an event. Every effect
that the machine returns is carried out by the executor that knows its type. The machine is called on the event loop's
thread only, one event at a time, in the order in which the events were posted.
"""

import asyncio
import os
import signal
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol, TypeAlias

from pelago.core.errors import PelagoError, WireError
from pelago.core.machine import (
    FAILED,
    Finish,
    Machine,
    PeerLost,
    Received,
    Restarted,
    Send,
    SetTick,
    Started,
    StopRequested,
)
from pelago.core.names import BlobId, Peer, Version
from pelago.core.notes.common import UnexpectedMessage, Waiting
from pelago.core.notes.gps import UnexpectedOfRegion
from pelago.core.notes.lps import UnexpectedPull
from pelago.core.notes.note import NOTES, VOCABULARY, Note
from pelago.core.tensor_effects import Loaded
from pelago.durable.record import Begun
from pelago.net.clock import HOUSEKEEPING_S, NodeClock, TickTimer
from pelago.net.command import EXIT_FAILED
from pelago.net.context import NodeContext, NodeEffectMethods
from pelago.net.crash_report import RecentEvents
from pelago.net.dispatcher import Dispatcher
from pelago.net.durability.manager import DurabilityManager, StateStore
from pelago.net.durability.restore import Restored, log_restored, restore
from pelago.net.limits import Limits, Patience
from pelago.net.signals import listen
from pelago.net.sockets.connections import Connections
from pelago.net.sockets.pair import Bind, Connect
from pelago.net.telemetry import Telemetry
from pelago.net.tensors.tensors import Tensors
from pelago.net.transfer.transfers import Transfers
from pelago.protocol.client_session import UNANSWERED
from pelago.runlog.events import (
    NodeCrashed,
    NodeFailed,
    NodeFinished,
    NodePaused,
    NodeStopping,
    WaitingForServer,
)
from pelago.tensor.encodings.encoding import Encoding
from pelago.tensor.encodings.plain import FP32
from pelago.tensor.manifest import Manifest
from pelago.tensor.plane import Plane
from pelago.wire.codec import encode
from pelago.wire.messages import Effect, Event, Message

EXIT_CRASHED: Final = 70
FAREWELL_S: Final = 0.5
"""How long a server that is done still answers."""
MISSED_S: Final = 1.0
"""A pause of the process that lasts so long is logged."""
COUNTERS_EVERY: Final = 20
"""The counters are logged once in so many rounds of housekeeping."""
CRASHED: Final = "crashed"
"""`Finish.reason` of a node that broke an invariant of its own."""

PAUSED: Final = "paused"
"""`Finish.reason` of a durable server that was stopped to be started again: the run goes on."""


class NodeExecutor(Protocol):
    """Carries out effects that only some nodes know, such as a worker's training."""

    def methods(self) -> NodeEffectMethods:
        """How each type of effect is carried out."""
        ...

    def close(self) -> None:
        """The node ends: release everything."""
        ...


NodeExecutorFactory: TypeAlias = Callable[[NodeContext, Tensors], NodeExecutor]
"""Makes an executor for a node that begins to run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeSettings:
    """Settings of a node, beside its machine.

    ``name``: of this process, unique in the run; what servers call it. ``server``: where it listens, or None;
    ``upstreams``: the servers that it belongs to. ``executors``: for the effects that only some nodes know.
    ``loaded``: the version that is in the plane at the start. ``crash_file``: where a broken invariant is
    reported.
    """

    run_id: str
    name: Peer
    server: Bind | None = None
    upstreams: tuple[Connect, ...] = ()
    executors: tuple[NodeExecutorFactory, ...] = ()
    limits: Limits = field(default_factory=Limits)
    encoding: Encoding = FP32
    """Encoding of the payloads that this node sends, and the only one that it accepts."""
    patience: Patience = field(default_factory=Patience)
    loaded: Version | None = None
    crash_file: Path = Path("crash.json")
    check_invariants: bool = False
    handle_signals: bool = True
    on_note: Callable[[Note], None] | None = None
    """Called with each note of the machine, except those about unexpected messages."""


class Node:
    """One machine, and everything that it runs on.

    ``plane`` may be None if ``plane_factory`` makes it from the manifest in a server's Welcome, or from what
    ``state_store`` holds.
    """

    def __init__(
        self,
        machine: Machine[Message],
        settings: NodeSettings,
        telemetry: Telemetry,
        plane: Plane | None = None,
        plane_factory: Callable[[Manifest], Plane] | None = None,
        state_store: StateStore | None = None,
    ) -> None:
        self.machine = machine
        self.settings = settings
        self.telemetry = telemetry
        self.clock = NodeClock()
        self.tensors: Tensors
        self.transfers: Transfers
        self.durability: DurabilityManager | None = None
        self._plane = plane
        self._plane_factory = plane_factory
        self._state_store = state_store
        self._context = NodeContext(
            run_id=settings.run_id,
            name=settings.name,
            machine=machine,
            limits=settings.limits,
            encoding=settings.encoding,
            patience=settings.patience,
            telemetry=telemetry,
            clock=self.clock.read,
            post=self.post,
            on_fault=self._crash,
            on_work_fault=self._on_work_fault,
        )
        self._connections = Connections(self._context, settings.server, settings.upstreams)
        self._methods: dict[type, Callable[[Any], None]] = {}
        self._recent = RecentEvents()
        self._inbox: deque[Event] = deque()
        self._handling = False
        self._crashed = False
        self._failure = ""
        """Why this node leaves, if it cannot do its work."""
        self._stopping = False
        self._rounds = 0

    async def run(self) -> Finish:
        """Run the machine until it is done, or breaks an invariant (``reason`` is then `CRASHED`).

        Raises `ConfigError` if an address cannot be bound or resolved, `CheckpointError` if the recovered state
        cannot be used.
        """
        self._loop = asyncio.get_running_loop()
        self._finished: asyncio.Future[Finish] = self._loop.create_future()
        with ExitStack() as resources:
            restored = self._restore()
            self._open(resources, restored)
            self.post(Started() if restored is None else Restarted())
            if self.settings.loaded is not None:
                self.post(Loaded(self.settings.loaded))
            self.transfers.incoming.go_on()
            finish = await self._finished
            if self.durability is not None and not self._crashed:
                await self.durability.settle()
            if self.settings.server is not None and not finish.error:
                # Closing a connection discards what its client has not read yet. So a server stays a moment,
                # and answers clients that say goodbye again.
                await asyncio.sleep(FAREWELL_S)
            if not self._crashed and finish.reason != FAILED:
                await self.tensors.idle()
            return finish

    def post(self, event: Event) -> None:
        """Give the machine an event, after those that it has not handled yet."""
        self._inbox.append(event)
        if self._handling:
            return
        self._handling = True
        try:
            while self._inbox and not self._crashed:
                self._handle(self._inbox.popleft())
        finally:
            self._handling = False

    def _restore(self) -> Restored | None:
        """Go on from the recovered state, if there is one. Raises `CheckpointError`."""
        state_store = self._state_store
        if state_store is None or state_store.recovered is None:
            return None
        recovered, run_id = state_store.recovered, self.settings.run_id
        restored = restore(recovered, run_id, self.machine, self._plane, self._plane_factory)
        self._plane = restored.plane
        # The time during which no process ran does not count for the run. Only wall-clock time could say how
        # long that was, and the wall clock may have been set since.
        self.clock.go_on_from(restored.now)
        log_restored(self.telemetry, recovered, restored)
        return restored

    def _open(self, resources: ExitStack, restored: Restored | None) -> None:
        """Acquire everything; ``resources`` gives it back in the opposite order."""
        settings, context = self.settings, self._context
        resources.callback(self.telemetry.close)
        if self._state_store is not None:
            resources.callback(self._state_store.store.close)
        self._connections.open(resources)
        self._loop.set_exception_handler(self._on_loop_exception)
        resources.callback(self._loop.set_exception_handler, None)
        self.tensors = Tensors(self._plane, self.post, self._crash)
        resources.callback(self.tensors.close)
        if restored is not None:
            self.tensors.restored(restored.held, restored.last_blob)
        if self._state_store is not None:
            self.durability = DurabilityManager(
                context, self._state_store, self.tensors, restored, self._arriving
            )
            resources.callback(self.durability.close)
        self.transfers = Transfers(context, self.tensors, self._connections, self.durability)
        if restored is not None:
            self.transfers.incoming.resume(restored)
        self._connections.deliver_to(
            Dispatcher(
                context, self._connections, self.tensors, self.transfers, self._plane_factory
            )
        )
        self._ticks = TickTimer(self.clock, self.post)
        self._methods.update(self._shared_methods())
        self._methods.update(self.tensors.methods())
        for make_executor in settings.executors:
            executor = make_executor(context, self.tensors)
            resources.callback(executor.close)
            self._methods.update(executor.methods())
        if settings.handle_signals:
            resources.callback(listen(self._loop, self._on_signal))
        self._housekeeping = self._loop.call_later(HOUSEKEEPING_S, self._keep_house)
        resources.callback(self._stop_timers)

    # --- the machine -----------------------------------------------------------------------------

    def _handle(self, event: Event) -> None:
        now = self.clock.read()
        entry = self._recent.begin(now, event)
        try:
            effects = self.machine.handle(event, now)
            entry.effects = effects
            if self.settings.check_invariants:
                self.machine.check()
            if self.durability is not None:
                self.durability.event(event, now)
            if isinstance(event, Received) and event.blob is not None:
                self.tensors.held.add(event.blob)
            for effect in effects:
                self._execute(effect)
            if self.durability is not None:
                self.durability.snapshot_if_due(now)
        except Exception as error:  # Any exception here is a fault of our own.
            self._crash(error)

    def _execute(self, effect: Effect) -> None:
        method = self._methods.get(type(effect))
        assert method is not None, f"this node cannot carry out {type(effect).__name__}"
        method(effect)

    def _shared_methods(self) -> NodeEffectMethods:
        """How the effects that every node knows are carried out."""
        return {
            Send: self._send,
            SetTick: lambda effect: self._ticks.set(effect.interval_ps),
            Finish: self._end,
            **dict.fromkeys(NOTES, self._note),
        }

    def _send(self, effect: Send[Message]) -> None:
        peer, message, blob = effect.peer, effect.message, effect.blob
        try:
            encoded = encode(self.settings.run_id, message)
        except WireError as error:
            # Numbers that peers claim can add up to more than a message holds; that must not end this node.
            self.telemetry.drop("unencodable", peer, str(error))
            if blob is not None:
                self.post(PeerLost(peer, "unencodable"))
            return
        if self.durability is None:
            self._send_now(peer, encoded, blob)
        else:
            self.durability.commit(message, blob, lambda: self._send_now(peer, encoded, blob))

    def _send_now(self, peer: Peer, encoded: bytes, blob: BlobId | None) -> None:
        if blob is None:
            self._connections.send_control(peer, [encoded])
        else:
            self.transfers.send(peer, encoded, blob)

    def _arriving(self) -> list[tuple[BlobId, Begun | None]]:
        """Payloads that have arrived in part, and those whose event waits for the machine."""
        inbox = [each.blob for each in self._inbox if isinstance(each, Received)]
        waiting = [(blob, None) for blob in inbox if blob is not None]
        return [*self.transfers.incoming.arriving(), *waiting]

    def _note(self, note: Note) -> None:
        if self.durability is not None:
            self.durability.note(note)
        if isinstance(note, UnexpectedMessage | UnexpectedPull | UnexpectedOfRegion):
            # A peer may send such messages as often as it likes, and the log may not grow by them.
            peer = note.region if isinstance(note, UnexpectedOfRegion) else note.peer
            fields = VOCABULARY.fields(note).items()
            self.telemetry.drop(note.kind, peer, ", ".join(f"{k} {v}" for k, v in fields))
            return
        if isinstance(note, Waiting) and self.settings.upstreams:
            self.telemetry.event(WaitingForServer(note.awaited, self._upstream_names()))
        else:
            self.telemetry.event(note)
        if self.settings.on_note is not None:
            self.settings.on_note(note)

    def _upstream_names(self) -> str:
        return " and ".join(str(each) for each in self.settings.upstreams)

    # --- the end ---------------------------------------------------------------------------------

    def _end(self, finish: Finish) -> None:
        if finish.reason == UNANSWERED and self.settings.upstreams:
            finish = Finish(UNANSWERED, error=f"{self._upstream_names()}: {finish.error}")
        if self._failure:
            finish = Finish(FAILED, error=self._failure)
        self.telemetry.event(NodeFinished(finish.reason, finish.error))
        self._finish(finish)

    def _on_work_fault(self, error: BaseException) -> None:
        """The node's long work failed. If a user can mend it, the node hands back its lease, leaves in good order
        and says why."""
        if self._crashed or self._failure or not isinstance(error, PelagoError):
            self._crash(error)
            return
        self._failure = str(error)
        self.telemetry.event(NodeFailed(self._failure))
        self.post(StopRequested(FAILED))

    def _finish(self, finish: Finish) -> None:
        if not self._finished.done():
            self._finished.set_result(finish)

    def _crash(self, error: BaseException) -> None:
        """End at once for an error that nothing here can handle, and report it."""
        if self._crashed:
            return
        self._crashed = True
        if isinstance(error, PelagoError):
            # Such as a full disk or a wrong corpus: a user can mend it, and it is no fault of the program.
            self.telemetry.event(NodeFailed(str(error)))
            self._finish(Finish(FAILED, error=str(error)))
            return
        summary = self._recent.report(error, self.settings.crash_file)
        self.telemetry.event(NodeCrashed(summary, str(self.settings.crash_file)))
        self._finish(Finish(CRASHED, error=f"{summary}; see {self.settings.crash_file}"))

    def _on_loop_exception(self, _loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        self._crash(context.get("exception") or AssertionError(context["message"]))

    def _on_signal(self, number: signal.Signals) -> None:
        name = number.name
        if self._stopping:
            self.telemetry.line(f"second {name}: ending at once")
            self.telemetry.close()
            os._exit(128 + number)
        self._stopping = True
        self.telemetry.event(NodeStopping(name))
        if number == signal.SIGHUP and self._state_store is not None:
            # To its peers this looks like a kill; but events that are journalled need not be repeated.
            self._finish(Finish(PAUSED))
        else:
            self.post(StopRequested(name))

    # --- housekeeping ----------------------------------------------------------------------------

    def _keep_house(self) -> None:
        self._housekeeping = self._loop.call_later(HOUSEKEEPING_S, self._keep_house)
        missed_s = self.clock.missed_s()
        if missed_s >= MISSED_S:
            self.telemetry.event(NodePaused(round(missed_s, 3)))
        self.transfers.tick()
        self._connections.tick(self.transfers)
        self._rounds += 1
        if self._rounds % COUNTERS_EVERY == 0:
            self.telemetry.count()

    def _stop_timers(self) -> None:
        self._housekeeping.cancel()
        self._ticks.stop()


def exit_code(finish: Finish) -> int:
    """The exit code of the process: 0, `EXIT_FAILED`, or `EXIT_CRASHED`."""
    if finish.reason == CRASHED:
        return EXIT_CRASHED
    return EXIT_FAILED if finish.error else 0
