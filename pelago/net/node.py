"""The real driver: runs one machine on uvloop, ZeroMQ and threads.

Facts from sockets, timers, signals, the tensor threads and the trainer become events; every effect
the machine answers with is carried out here. The machine is called on the event loop's thread only,
one event at a time, in the order in which the facts came.
"""

import asyncio
import os
import random
import signal
import time
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, assert_never

import zmq

from pelago.core.errors import OtherProtocol, OtherRun, PelagoError, WireError
from pelago.core.listening import Listening
from pelago.core.machine import (
    FAILED,
    PS_PER_S,
    Finish,
    Machine,
    Note,
    PeerLost,
    Received,
    Restarted,
    Send,
    SetTick,
    Started,
    StopRequested,
    Tick,
)
from pelago.core.names import BlobId, Peer, Version
from pelago.core.tensor_effects import Apply, Difference, Loaded, Measure, Pin, Release
from pelago.core.training_effects import Cancel, Train, Validate
from pelago.durable.record import Begun
from pelago.net.command import EXIT_FAILED
from pelago.net.crash_report import RecentEvents
from pelago.net.durability.manager import DurabilityManager, StateStore
from pelago.net.durability.restore import Restored, restore
from pelago.net.limits import Limits, Patience
from pelago.net.signals import listen
from pelago.net.sockets.dialler import Dialler
from pelago.net.sockets.listener import Listener
from pelago.net.sockets.pair import Bind, Connect, SocketPair, client, serve
from pelago.net.telemetry import Telemetry
from pelago.net.tensors.lane import Tensors
from pelago.net.tensors.training import TrainerPort, TrainingThread
from pelago.net.transfer.transfers import Transfers
from pelago.protocol.client_session import UNANSWERED
from pelago.tensor.manifest import Manifest
from pelago.tensor.plane import Plane
from pelago.wire.codec import decode_message, encode, encode_refusal, peek_hello
from pelago.wire.messages import PROTOCOL_VERSION, Effect, Event, Message, Welcome

EXIT_CRASHED: Final = 70
FAREWELL_S: Final = 0.5
"""How long a server that is done still answers."""
HOUSEKEEPING_S: Final = 0.25
LISTEN_FIRST_S: Final = 0.1
"""So long a process that was stopped hears what came meanwhile, before its machine's next tick."""
LISTENING_TURNS: Final = 2
"""A loop that comes to its timers later than so many of their intervals did not listen in between."""
MISSED_S: Final = 1.0
"""So long a pause of the process is worth a line in the log."""
COUNTERS_EVERY: Final = 20
"""The counters are logged once in so many rounds of housekeeping."""
CRASHED: Final = "crashed"
"""`Finish.reason` of a node that broke an invariant of its own."""

PAUSED: Final = "paused"
"""`Finish.reason` of a durable server that was stopped to be started again: the run goes on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeSettings:
    """What a node is made of, beside its machine.

    ``name``: of this process, unique in the run; what servers call it. ``server``: where it
    listens, ``client``: the server that it belongs to; either may be None. ``loaded``: the version
    that is in the plane at the start. ``crash_file``: where a broken invariant is reported.
    """

    run_id: str
    name: Peer
    server: Bind | None = None
    client: Connect | None = None
    limits: Limits = field(default_factory=Limits)
    patience: Patience = field(default_factory=Patience)
    loaded: Version | None = None
    crash_file: Path = Path("crash.json")
    check_invariants: bool = False
    handle_signals: bool = True
    on_note: Callable[[str], None] | None = None
    """Hears the kind of each note of the machine."""


class Node:
    """One machine and everything that it lives on.

    ``plane`` may be None if ``plane_factory`` makes it from the manifest in the server's Welcome, or from
    what ``state_store`` holds. ``trainer``: of workers and the evaluator only.
    """

    def __init__(
        self,
        machine: Machine[Message],
        settings: NodeSettings,
        telemetry: Telemetry,
        plane: Plane | None = None,
        plane_factory: Callable[[Manifest], Plane] | None = None,
        trainer: TrainerPort | None = None,
        state_store: StateStore | None = None,
    ) -> None:
        self.machine = machine
        self.settings = settings
        self.telemetry = telemetry
        self.tensors: Tensors
        self.transfers: Transfers
        self._plane = plane
        self._plane_factory = plane_factory
        self._trainer = trainer
        self._state_store = state_store
        self.durability: DurabilityManager | None = None
        self._listening = Listening(
            round(LISTENING_TURNS * HOUSEKEEPING_S * PS_PER_S), round(LISTEN_FIRST_S * PS_PER_S)
        )
        # A random origin: nothing can take this clock for another machine's, or for the wall's. A small one,
        # and not that of the host's clock, which may have run for a year: a journal has 64 bits for the time.
        self._origin_ps = random.SystemRandom().getrandbits(40) * 1000 - time.monotonic_ns() * 1000
        self._missed_ps = 0
        """Of what the listening clock missed, so much was logged or is not worth it."""
        self._ring = RecentEvents()
        self._inbox: deque[Event] = deque()
        self._handling = False
        self._crashed = False
        self._failure = ""
        """Why this node leaves, if training or measuring cannot be done at all."""
        self._stopping = False
        self._server: SocketPair | None = None
        self._client: SocketPair | None = None
        self._listener: Listener | None = None
        self._dialler: Dialler | None = None
        self._training: TrainingThread | None = None
        self._tick: asyncio.TimerHandle | None = None
        self._rounds = 0

    def clock(self) -> int:
        """Picoseconds in which this process listened; see `pelago.core.listening`."""
        return self._listening.read(time.monotonic_ns() * 1000) + self._origin_ps

    async def run(self) -> Finish:
        """Run the machine until it is done, or breaks an invariant (``reason`` is then `CRASHED`).

        Raises `ConfigError` if an address cannot be bound or resolved.
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
            if self._server is not None and not finish.error:
                # A connection that is closed takes with it what its client has not read yet. So a
                # server stays a moment, and answers clients that say goodbye again.
                await asyncio.sleep(FAREWELL_S)
            if not self._crashed and finish.reason != FAILED:
                await self.tensors.idle()
            return finish

    def post(self, event: Event) -> None:
        """Give the machine one fact, after those that it has not seen yet."""
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
        """Take up the life that the memory holds, if there is one. Raises `CheckpointError`."""
        state_store = self._state_store
        if state_store is None or state_store.recovered is None:
            return None
        recovered, run_id = state_store.recovered, self.settings.run_id
        restored = restore(recovered, run_id, self.machine, self._plane, self._plane_factory)
        self._plane = restored.plane
        # The machine's clock stood still while nobody was here: that is no time of the run, and how long
        # it was only the wall's clock could say, which may have been set since.
        self._origin_ps = restored.now - (self.clock() - self._origin_ps)
        for fault in recovered.passed_over:
            instead = (
                "the journal from its beginning"
                if recovered.snapshot is None
                else recovered.snapshot.name
            )
            self.telemetry.event("snapshot_damaged", why=fault, instead=instead)
        self.telemetry.event(
            "restored",
            events=restored.events,
            snapshot_bytes=0 if recovered.snapshot is None else recovered.snapshot.bytes,
            journal_bytes=recovered.bytes,
            torn_bytes=recovered.torn_bytes,
            arriving=len(restored.arriving),
            **{f"{part}_s": round(seconds, 4) for part, seconds in restored.seconds.items()},
        )
        return restored

    def _open(self, resources: ExitStack, restored: Restored | None) -> None:
        """Acquire everything; ``resources`` gives it back in the opposite order."""
        settings, telemetry = self.settings, self.telemetry
        resources.callback(telemetry.close)
        if self._state_store is not None:
            resources.callback(self._state_store.store.close)
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context(io_threads=2)
        # Waits until farewells have left, but not longer than a control socket lingers.
        resources.callback(context.term)
        if settings.server is not None:
            self._server = serve(
                context,
                settings.server,
                self._on_server_control,
                self._on_server_bulk,
                self._on_client,
                settings.patience,
                telemetry,
            )
            resources.callback(self._server.close)
            self._listener = Listener(settings.server, self._server, telemetry, self.clock)
        if settings.client is not None:
            self._client = client(
                context,
                settings.client.peer,
                settings.name,
                self._on_control,
                self._on_bulk,
                self._on_link,
                settings.patience,
                telemetry,
            )
            resources.callback(self._client.close)
            self._dialler = Dialler(
                settings.client, self._client, settings.patience, telemetry, self.clock
            )
        self._loop.set_exception_handler(self._on_loop_exception)
        resources.callback(self._loop.set_exception_handler, None)
        self.tensors = Tensors(self._plane, self.post, self._crash)
        resources.callback(self.tensors.close)
        if restored is not None:
            self.tensors.restored(restored.held, restored.last_blob)
        if self._state_store is not None:
            self.durability = DurabilityManager(
                self._state_store,
                settings.run_id,
                settings.name,
                self.machine,
                self.tensors,
                restored,
                self._arriving,
                telemetry,
                self._crash,
            )
            resources.callback(self.durability.close)
        self.transfers = Transfers(
            settings.run_id,
            self.tensors,
            settings.limits,
            self._send_control,
            self._send_bulk,
            self.post,
            self._throttle,
            telemetry,
            self.clock,
            lambda peer, message: self.machine.expects(peer, message),
            self.durability,
        )
        if restored is not None:
            self.transfers.incoming.resume(restored)
        if self._trainer is not None:
            self._training = TrainingThread(
                self._trainer, self.tensors, self.post, self._on_training_fault, self._note
            )
            resources.callback(self._training.close)
        if settings.handle_signals:
            resources.callback(listen(self._loop, self._on_signal))
        self._housekeeping = self._loop.call_later(HOUSEKEEPING_S, self._keep_house)
        resources.callback(self._stop_timers)

    # --- the machine -----------------------------------------------------------------------------

    def _handle(self, event: Event) -> None:
        now = self.clock()
        entry = self._ring.begin(now, event)
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
        except Exception as error:  # Whatever it is, it is a fault of our own.
            self._crash(error)

    def _execute(self, effect: Effect) -> None:
        match effect:
            case Send(peer, message, blob):
                self._send(peer, message, blob)
            case SetTick(interval_ps):
                listening = self._listening
                listening.gap_ps_max = min(listening.gap_ps_max, LISTENING_TURNS * interval_ps)
                self._set_tick(interval_ps / PS_PER_S)
            case Measure() | Apply() | Pin() | Difference() | Release():
                self.tensors.execute(effect)
            case Train():
                self._need_trainer().train(effect)
            case Cancel(push):
                self._need_trainer().cancel(push)
            case Validate():
                self._need_trainer().validate(effect)
            case Note(kind, fields):
                self._note(kind, fields)
            case Finish():
                self._end(effect)
            case _:
                assert_never(effect)

    def _send(self, peer: Peer, message: Message, blob: BlobId | None) -> None:
        try:
            encoded = encode(self.settings.run_id, message)
        except WireError as error:
            # Numbers that peers claim can add up to more than a message holds; that must not end us.
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
            self._send_control(peer, [encoded])
        else:
            self.transfers.send(peer, encoded, blob)

    def _arriving(self) -> list[tuple[BlobId, Begun | None]]:
        """Payloads that have arrived in part, or are still to be told to the machine."""
        inbox = [each.blob for each in self._inbox if isinstance(each, Received)]
        told = [(blob, None) for blob in inbox if blob is not None]
        return [*self.transfers.incoming.arriving(), *told]

    def _need_trainer(self) -> TrainingThread:
        assert self._training is not None, "this node has no trainer"
        return self._training

    def _note(self, kind: str, fields: dict[str, Any]) -> None:
        if self.durability is not None:
            self.durability.note(kind, fields)
        if kind == "unexpected":
            # A peer may send such as often as it likes, and the log may not grow by that.
            peer = str(fields.get("peer", fields.get("region", "?")))
            self.telemetry.drop(kind, peer, ", ".join(f"{k} {v}" for k, v in fields.items()))
            return
        connect = self.settings.client
        if kind == "waiting" and connect is not None:
            fields = {**fields, "server": str(connect)}
        self.telemetry.event(kind, **fields)
        if self.settings.on_note is not None:
            self.settings.on_note(kind)

    def _end(self, finish: Finish) -> None:
        connect = self.settings.client
        if finish.reason == UNANSWERED and connect is not None:
            where = f"{connect.peer} at {connect.host}:{connect.port}"
            finish = Finish(UNANSWERED, error=f"{where}: {finish.error}")
        if self._failure:
            finish = Finish(FAILED, error=self._failure)
        self.telemetry.event("finished", reason=finish.reason, error=finish.error)
        self._finish(finish)

    def _on_training_fault(self, error: BaseException) -> None:
        """What a user got wrong shows in training, too. The node hands its lease back and leaves in good
        order, and says why.
        """
        if self._crashed or self._failure or not isinstance(error, PelagoError):
            self._crash(error)
            return
        self._failure = str(error)
        self.telemetry.event("failed", error=self._failure)
        self.post(StopRequested(FAILED))

    def _finish(self, finish: Finish) -> None:
        if not self._finished.done():
            self._finished.set_result(finish)

    def _crash(self, error: BaseException) -> None:
        """Something that must never happen did: say what was seen, and end."""
        if self._crashed:
            return
        self._crashed = True
        if isinstance(error, PelagoError):
            # A disk that is full or a corpus that is wrong: somebody's to mend, and no fault of ours.
            self.telemetry.event("failed", error=str(error))
            self._finish(Finish(FAILED, error=str(error)))
            return
        summary = self._ring.report(error, self.settings.crash_file)
        self.telemetry.event("crashed", error=summary, report=str(self.settings.crash_file))
        self._finish(Finish(CRASHED, error=f"{summary}; see {self.settings.crash_file}"))

    def _on_loop_exception(self, _loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        self._crash(context.get("exception") or AssertionError(context["message"]))

    # --- time and signals ------------------------------------------------------------------------

    def _set_tick(self, interval_s: float) -> None:
        assert interval_s > 0
        if self._tick is not None:
            self._tick.cancel()
        self._tick = self._loop.call_later(interval_s, self._on_tick, interval_s)

    def _on_tick(self, interval_s: float) -> None:
        self._set_tick(interval_s)
        if self._listening.has_listened(time.monotonic_ns() * 1000):
            self.post(Tick())
        else:
            # Put off once only: a loop that is always late must tell its machine of time all the same.
            self._loop.call_later(LISTEN_FIRST_S, self._post_tick)

    def _post_tick(self) -> None:
        if not self._finished.done():
            self.post(Tick())

    def _keep_house(self) -> None:
        self._housekeeping = self._loop.call_later(HOUSEKEEPING_S, self._keep_house)
        self._mind_pauses()
        self.transfers.tick()
        if self._listener is not None:
            self._listener.tick()
        if self._dialler is not None and self.settings.client is not None:
            moving, progress = self.transfers.progress(self.settings.client.peer)
            self._dialler.tick(moving=moving, progress=progress)
        self._rounds += 1
        if self._rounds % COUNTERS_EVERY == 0:
            self.telemetry.count()

    def _mind_pauses(self) -> None:
        """Look at the clock, and say so if this process did not run for a while."""
        self.clock()
        missed_ps, self._missed_ps = (
            self._listening.missed_ps - self._missed_ps,
            self._listening.missed_ps,
        )
        if missed_ps >= MISSED_S * PS_PER_S:
            self.telemetry.event("paused", seconds=round(missed_ps / PS_PER_S, 3))

    def _stop_timers(self) -> None:
        self._housekeeping.cancel()
        if self._tick is not None:
            self._tick.cancel()

    def _on_signal(self, number: signal.Signals) -> None:
        name = number.name
        if self._stopping:
            self.telemetry.line(f"second {name}: ending at once")
            self.telemetry.close()
            os._exit(128 + number)
        self._stopping = True
        self.telemetry.event("stopping", why=name)
        if number == signal.SIGHUP and self._state_store is not None:
            # To its peers as if it had been killed; but nothing has to be repeated that is written yet.
            self._finish(Finish(PAUSED))
        else:
            self.post(StopRequested(name))

    # --- sockets ---------------------------------------------------------------------------------

    def _side(self, peer: Peer) -> SocketPair:
        connect = self.settings.client
        side = self._client if connect is not None and peer == connect.peer else self._server
        assert side is not None, f"no socket leads to {peer}"
        return side

    def _send_control(self, peer: Peer, parts: list[Any]) -> bool:
        return self._side(peer).control.send(peer, parts)

    def _send_bulk(self, peer: Peer, parts: list[Any]) -> bool:
        return self._side(peer).bulk.send(peer, parts)

    def _throttle(self, on: bool) -> None:
        for side in (self._server, self._client):
            if side is not None:
                side.bulk.pause() if on else side.bulk.resume()

    def _on_link(self, label: str, up: bool) -> None:
        connect = self.settings.client
        assert connect is not None
        if up:
            self.transfers.outgoing.reconnected(connect.peer)
        if label == "control":
            self.telemetry.event("connected" if up else "disconnected", server=str(connect))

    def _on_client(self, _label: str, up: bool) -> None:
        """Some client is connected anew, and which one only its next message tells."""
        if up:
            self.transfers.outgoing.ask_soon()

    def _on_bulk(self, peer: Peer, parts: list[Any]) -> None:
        self.transfers.on_bulk(peer, parts)

    def _on_server_bulk(self, peer: Peer, parts: list[zmq.Frame]) -> None:
        """From a client, who may be anybody."""
        if not self._is_impostor(peer):
            self._on_bulk(peer, parts)

    def _is_impostor(self, peer: Peer) -> bool:
        """Whether a client calls itself as we call our own server, which does not come to us."""
        connect = self.settings.client
        if connect is None or peer != connect.peer:
            return False
        self.telemetry.drop("identity", peer, "a client has the name of our own server")
        return True

    def _on_server_control(self, peer: Peer, parts: list[bytes]) -> None:
        """From a client, who may be anybody."""
        if self._is_impostor(peer):
            return
        try:
            self._on_parts(peer, parts)
        except (OtherRun, OtherProtocol) as error:
            self.telemetry.drop("stranger", peer, str(error))
            hello = peek_hello(parts[0])
            if hello is not None:
                protocol, run = hello
                ours = f"run {self.settings.run_id!r}, protocol {PROTOCOL_VERSION}"
                detail = f"this server serves {ours}, not run {run!r}, protocol {protocol}"
                self._send_control(peer, [encode_refusal(protocol, run, detail)])
        except WireError as error:
            self.telemetry.drop("malformed", peer, str(error))

    def _on_control(self, peer: Peer, parts: list[bytes]) -> None:
        """From our server."""
        try:
            self._on_parts(peer, parts)
        except WireError as error:
            self.telemetry.drop("malformed", peer, str(error))

    def _on_parts(self, peer: Peer, parts: list[bytes]) -> None:
        if len(parts) == 2:
            self.transfers.on_frame(peer, parts[0])
            return
        message = decode_message(self.settings.run_id, parts[0])
        if isinstance(message, Welcome) and not self._welcome(peer, message):
            return
        self.post(Received(peer, message))

    def _welcome(self, peer: Peer, message: Welcome) -> bool:
        """Learn the model's shape from the server, or see that it is still ours."""
        connect = self.settings.client
        if connect is None or peer != connect.peer or not message.manifest:
            return True
        try:
            manifest = Manifest(message.manifest)
        except ValueError as error:
            self.telemetry.drop("manifest", peer, str(error))
            return False
        if manifest.bytes > self.settings.limits.model_bytes_max:
            limit = self.settings.limits.model_bytes_max
            self.telemetry.drop("manifest", peer, f"{manifest.bytes} bytes exceed {limit}")
            return False
        if self.tensors.ready:
            if self.tensors.plane.manifest.fingerprint == manifest.fingerprint:
                return True
            self.telemetry.drop("manifest", peer, "the server's model is another than ours")
            return False
        assert self._plane_factory is not None, "neither a plane nor a way to make one"
        self.tensors.begin(self._plane_factory(manifest))
        return True


def exit_code(finish: Finish) -> int:
    """What a process should end with: 0, `EXIT_FAILED`, or `EXIT_CRASHED`."""
    if finish.reason == CRASHED:
        return EXIT_CRASHED
    return EXIT_FAILED if finish.error else 0
