"""The worker's machine: what a worker decides.

It takes the decisions and carries out nothing. A worker asks its LPS for a model and a lease, trains,
uploads the update, and gets the next model and lease as the answer.

Invariants that `check` asserts are numbered W1... in docs/ARCHITECTURE.md.
"""

from dataclasses import dataclass
from typing import Final, Literal, TypeAlias, assert_never

from pelago.core.machine import (
    FAILED,
    PS_PER_MS,
    Delivered,
    Finish,
    PeerLost,
    Received,
    Send,
    SetTick,
    Started,
    StopRequested,
    Tick,
)
from pelago.core.names import BlobId, Lease, Peer, PushId, Version
from pelago.core.notes.common import Stuck
from pelago.core.notes.worker import (
    RoundFailed,
    RoundTrained,
    UpdateFenced,
    UpdateRejected,
    WorkerAdmitted,
)
from pelago.core.tensor_effects import Release
from pelago.core.training_effects import Cancel, Progress, Train, Trained
from pelago.core.transitions import Transition, TransitionTable
from pelago.core.watchdog import Watchdog
from pelago.wire.messages import (
    Ack,
    Busy,
    Effect,
    Failed,
    Goodbye,
    Grant,
    Leave,
    Message,
    Model,
    Pull,
    Push,
    Refuse,
    Rejoin,
    Stop,
    Wait,
    Welcome,
    WorkerEvent,
    WorkerReport,
)
from worker.client_settings import ClientSettings

WorkerState: TypeAlias = Literal[
    "joining", "idle", "training", "uploading", "failed", "leaving", "gone"
]
JOINED: Final = ("idle", "training", "uploading", "failed")

TRANSITIONS: Final = TransitionTable(
    "worker",
    "joining",
    (
        Transition("joining", "idle", "_on_welcome", "the LPS welcomed it"),
        Transition("idle", "training", "_on_model", "a model came with a lease"),
        Transition("training", "uploading", "_on_trained", "the lease is trained"),
        Transition("training", "failed", "_fail", "no gradient of the lease was finite"),
        Transition("uploading", "idle", "_on_ack", "the LPS answered the update"),
        Transition("failed", "idle", "_on_ack", "the LPS took the lease back"),
        *(
            Transition(source, "joining", "_rejoin", "it must join again")
            for source in ("joining", *JOINED)
        ),
        *(
            Transition(source, "gone", "_on_refuse", "the LPS refused it")
            for source in ("joining", *JOINED)
        ),
        *(
            Transition(source, "gone", "_on_tick", "the LPS was silent for too long")
            for source in ("joining", *JOINED)
        ),
        Transition("training", "gone", "_on_stuck", "the trainer is stuck"),
        Transition("joining", "gone", "_leave", "it was asked to stop"),
        *(
            Transition(source, "leaving", "_leave", "it was asked to stop, or the run ended")
            for source in JOINED
        ),
        Transition("leaving", "gone", "_on_goodbye", "the LPS said goodbye"),
    ),
)


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """The settings of a worker's machine."""

    client: ClientSettings
    round_samples: int
    """Samples of one lease: local steps times batch size."""
    group_samples: tuple[int, ...] = ()
    """Samples of one lease for each group that the run file names, if the server chooses the group."""


class Worker:
    """The state of one worker."""

    def __init__(self, settings: WorkerSettings) -> None:
        self.settings = settings
        self._client = settings.client
        self.session = settings.client.session("worker")
        self.state: WorkerState = "joining"
        self.lease: Lease | None = None
        self.base = Version(0, 0)
        self.rounds = 0
        self.steps = 0
        self.skipped = 0
        """Steps whose gradient was not finite; `steps` counts them too."""
        self.tokens = 0
        self.loss = 0.0
        self._asked_at = 0
        self._joined_at: int | None = None
        self._round_started_at = 0
        self._round_steps = 0
        """Steps of the current round that `steps` counts already."""
        self._round_skipped = 0
        self._busy_ps = 0
        self._watchdog = Watchdog(settings.client.stuck_after_ps)
        self._now = 0

    def handle(self, event: WorkerEvent, now: int) -> list[Effect]:
        """Handle one event; return the effects that follow, in order."""
        self._now = now
        # Frequent events come first, and their patterns do not unpack fields: see the LPS's machine.
        match event:
            case Received():
                return self._on_message(event.message, event.blob)
            case Delivered():
                self.session.delivered(event.blob, now)
                return []
            case Trained():
                return self._on_trained(event)
            case Started():
                tick: list[Effect] = [SetTick(self._client.tick_ps)] if self._client.tick_ps else []
                return [*tick, *self.session.join()]
            case PeerLost():
                self.session.lost(now)
                return []
            case Tick():
                return self._on_tick()
            case Progress(push, steps, skipped):
                if self.lease is not None and self.lease.push == push:
                    self._watchdog.progress(now)
                    self._count(steps, skipped)
                return []
            case StopRequested(reason):
                return self._leave(reason)
            case _:
                assert_never(event)

    def report(self) -> WorkerReport:
        """The work of this worker so far."""
        alive_ps = 0 if self._joined_at is None else self._now - self._joined_at
        running_ps = self._now - self._round_started_at if self.state == "training" else 0
        return WorkerReport(
            group=self.session.hello.address.group,
            rounds=self.rounds,
            steps=self.steps,
            tokens=self.tokens,
            busy_ms=(self._busy_ps + running_ps) // PS_PER_MS,
            alive_ms=alive_ps // PS_PER_MS,
            loss=self.loss,
            skipped=self.skipped,
            quiet_ms=self._watchdog.quiet_ps(self._now) // PS_PER_MS,
        )

    def _on_message(self, message: Message, blob: BlobId | None) -> list[Effect]:
        effects: list[Effect] = self.session.heard(self._now)
        match message:
            case Grant():
                effects += self.session.granted(message, self._now)
            case Ack():
                effects += self._on_ack(message)
            case Model() if blob is not None:
                effects += self._on_model(message, blob)
            case Welcome() if self.state == "joining":
                effects += self._on_welcome(message)
            case Wait(what):
                if self._client.address.group < 0:
                    # Another worker may have its old group by now: ask for any group.
                    self.session.hello = self._client.hello("worker")
                effects += self.session.waiting(what)
            case Refuse(detail) if self.state not in ("leaving", "gone"):
                effects += self._on_refuse(detail)
            case Rejoin() if self.state not in ("leaving", "gone"):
                effects += self._rejoin()
            case Busy():
                pass  # The server grants when a place is free; the tick asks again if that is lost.
            case Stop(reason):
                effects += self._leave(reason)
            case Rejoin() | Goodbye() if self.state == "leaving" and self.session.leaving:
                effects += self._on_goodbye(self.session.leaving)
            case _:
                effects += [Release(blob)] if blob is not None else []
        return effects

    def _on_refuse(self, detail: str) -> list[Effect]:
        effects = self._abandon()
        self._enter("gone")
        return [*effects, Finish("refused", error=detail)]

    def _on_goodbye(self, leave: Leave) -> list[Effect]:
        self._enter("gone")
        return [Finish(leave.reason)]

    def _on_welcome(self, message: Welcome) -> list[Effect]:
        effects = self.session.welcome(message.fence, message.group)
        self._enter("idle")
        if self._joined_at is None:
            self._joined_at = self._now
        return [*effects, WorkerAdmitted(message.group), *self._pull()]

    def _pull(self) -> list[Effect]:
        self._asked_at = self._now
        return [Send(self._client.server, Pull(self._round_samples(), 0))]

    def _round_samples(self) -> int:
        """Samples to ask for: those of the group that the server assigned, if the run file names it."""
        group, table = self.session.hello.address.group, self.settings.group_samples
        return table[group] if 0 <= group < len(table) else self.settings.round_samples

    def _on_model(self, message: Model, blob: BlobId) -> list[Effect]:
        if self.state != "idle" or message.lease is None:
            # A repetition, or it comes too late: the lease is given back when the worker leaves.
            return [Release(blob)]
        if message.lease.push.fence != self.session.fence:
            # Either this model is old, or the Welcome was: ask for the fence again.
            return [Release(blob), *self._rejoin()]
        self._enter("training")
        self.lease, self.base = message.lease, message.version
        self._round_started_at, self._round_steps, self._round_skipped = self._now, 0, 0
        self._watchdog.begin(self._now)
        group = self.session.hello.address.group
        return [Train(message.lease, message.version, blob, group), Release(blob)]

    def _count(self, steps: int, skipped: int) -> None:
        """``steps`` of the current round are done. Several may be reported at once, or repeatedly."""
        if steps > self._round_steps:
            self.steps += steps - self._round_steps
            self.skipped += skipped - self._round_skipped
            self._round_steps, self._round_skipped = steps, skipped

    def _on_trained(self, event: Trained) -> list[Effect]:
        if self.state != "training" or self.lease is None or self.lease.push != event.push:
            return [Release(event.blob)]
        self._watchdog.end()
        self._count(event.steps, event.skipped)
        busy_ps = self._now - self._round_started_at
        self._busy_ps += busy_ps
        if event.skipped >= event.steps:
            return [Release(event.blob), *self._fail(event)]
        self._enter("uploading")
        self.tokens += event.tokens
        self.loss = event.loss
        push = Push(
            push=event.push,
            base=self.base,
            steps=event.steps,
            updates=1,
            tokens=event.tokens,
            loss=event.loss,
            spans=self.lease.spans,
            dropped=(),
            next_samples=self._round_samples(),
        )
        note = RoundTrained(event.steps, event.loss, busy_ps / PS_PER_MS, event.skipped)
        return [note, *self.session.offer(push, event.blob, self._now)]

    def _fail(self, event: Trained) -> list[Effect]:
        """No step of this lease changed the model: give the lease back, and say why."""
        self._enter("failed")
        return [RoundFailed(event.steps, "no gradient was finite"), *self._say_failed(event.steps)]

    def _failed_on(self, push: PushId) -> bool:
        return self.state == "failed" and self.lease is not None and self.lease.push == push

    def _say_failed(self, steps: int) -> list[Effect]:
        assert self.lease is not None
        self._asked_at = self._now
        message = Failed(self.lease.push, steps, self._round_samples())
        return [Send(self._client.server, message)]

    def _on_ack(self, message: Ack) -> list[Effect]:
        upload = self.session.finished(message.push)
        if upload is None and not self._failed_on(message.push):
            return []
        self.rounds += message.outcome == "applied"
        self._enter("idle")
        self.lease, self._asked_at = None, self._now
        effects: list[Effect] = [] if upload is None else [Release(upload.blob)]
        match message.outcome:
            case "applied":
                return effects
            case "rejected":
                return [*effects, UpdateRejected(message.push.lease)]
            case "fenced":
                # A fenced holder must be welcomed again before anything it holds counts.
                return [*effects, UpdateFenced(message.push.lease), *self._rejoin()]

    def _on_tick(self) -> list[Effect]:
        if self.state == "gone":
            return []
        if self.state == "leaving":
            return self.session.leave_again()
        if self._watchdog.is_over(self._now):
            return self._on_stuck()
        effects = self.session.tick(self.report(), self._now)
        if self.session.gives_up(self._now):
            effects = [*self._abandon(), *effects]
            self._enter("gone")
            return effects
        if self._now - self._asked_at < self._client.retry_ps:
            return effects
        if self.state == "idle":
            effects += self._pull()
        elif self.state == "failed":
            effects += self._say_failed(self._round_steps)
        return effects

    def _on_stuck(self) -> list[Effect]:
        """The trainer is stuck and cannot be interrupted: give the lease back and end."""
        error = self._watchdog.stuck_message("the trainer", self._now)
        self._watchdog.end()
        leave = Leave("stuck", self.report(), (), (), ())
        effects = [Stuck(error), *self._abandon()]
        self._enter("gone")
        # Sent once: if it is lost, the server soon counts this worker as lost.
        effects.append(Send(self._client.server, leave))
        return [*effects, Finish(FAILED, error=error)]

    def _rejoin(self) -> list[Effect]:
        effects = self._abandon()
        self._enter("joining")
        return [*effects, *self.session.join()]

    def _abandon(self) -> list[Effect]:
        """Drop the current round; the server leases its samples again."""
        effects: list[Effect] = []
        if self.state == "training" and self.lease is not None:
            effects.append(Cancel(self.lease.push))
            self._busy_ps += self._now - self._round_started_at
            self._watchdog.end()
        if self.session.upload is not None:
            upload = self.session.finished(self.session.upload.push)
            assert upload is not None
            effects.append(Release(upload.blob))
        self.lease = None
        return effects

    def _leave(self, reason: str) -> list[Effect]:
        if self.state in ("leaving", "gone"):
            return []
        effects = self._abandon()
        if self.state == "joining":
            self._enter("gone")
            return [*effects, Finish(reason)]
        self._enter("leaving")
        return [*effects, *self.session.leave(Leave(reason, self.report(), (), (), ()))]

    def expects(self, peer: Peer, message: Message) -> bool:
        """Whether a payload may arrive with a message: models may at any time, also before the awaited message."""
        return peer == self._client.server and isinstance(message, Model)

    def _enter(self, target: WorkerState) -> None:
        self.state = TRANSITIONS.move(self.state, target)

    def check(self) -> None:
        """Assert the invariants of a worker."""
        training = self.state == "training"
        assert not training or self.lease is not None  # W1: it trains on a lease only.
        # W2: one round at a time; an update is under way exactly while it is being uploaded.
        assert (self.session.upload is not None) == (self.state == "uploading"), self.state
        if self.lease is not None:  # W3: what it holds bears the fence it was welcomed with.
            assert self.lease.push.fence == self.session.fence, (self.lease, self.session.fence)
        assert self.state in ("training", "uploading", "failed") or self.lease is None  # W4
