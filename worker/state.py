"""The worker's machine: what a worker decides.

It takes the decisions and carries out nothing. A worker asks its LPS for a model and a lease, trains,
uploads the update, and gets the next model and lease as the answer. With `worker.overlap` it does not
wait for that answer: it asks for the next lease while it trains, begins the next round from the parameters
that it has, and rebases them when the answer comes (worker/overlap.py).

Invariants that `check` asserts are numbered W1... in docs/ARCHITECTURE.md.
"""

from dataclasses import dataclass
from typing import assert_never

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
from pelago.core.training_effects import Cancel, Progress, Rebase, Train, Trained
from pelago.core.watchdog import Watchdog
from pelago.wire.messages import (
    Ack,
    Busy,
    Effect,
    Failed,
    Goodbye,
    Grant,
    LeaseAhead,
    Leave,
    Lent,
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
from worker.overlap import Overlap
from worker.phases import JOINED, WORKER_PHASES, WorkerPhase


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """The settings of a worker's machine."""

    client: ClientSettings
    round_samples: int
    """Samples of one lease: local steps times batch size."""
    group_samples: tuple[int, ...] = ()
    """Samples of one lease for each group that the run file names, if the server chooses the group."""
    overlap: bool = False
    """The next round begins before the server has answered the update of the last one."""


class Worker:
    """The state of one worker."""

    def __init__(self, settings: WorkerSettings) -> None:
        self.settings = settings
        self._client = settings.client
        self.session = settings.client.session("worker")
        self.state: WorkerPhase = "joining"
        self.lease: Lease | None = None
        self.base = Version(0, 0)
        """The version on which the current round began."""
        self._version = Version(0, 0)
        """The newest version that the parameters are built on."""
        self.overlap = Overlap()
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
            case Lent(lease):
                effects += self._on_lent(lease)
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

    def _ask_ahead(self) -> list[Effect]:
        """Ask for the next lease while a round is trained. The LPS lends none while it has not decided about the
        update before, so nothing is asked until then."""
        if not self.settings.overlap or self.overlap.ahead or self.session.upload is not None:
            return []
        self._asked_at = self._now
        message = LeaseAhead(self.overlap.newest, self._round_samples())
        return [Send(self._client.server, message)]

    def _round_samples(self) -> int:
        """Samples to ask for: those of the group that the server assigned, if the run file names it."""
        group, table = self.session.hello.address.group, self.settings.group_samples
        return table[group] if 0 <= group < len(table) else self.settings.round_samples

    def _on_model(self, message: Model, blob: BlobId) -> list[Effect]:
        awaits = self.settings.overlap and self.state in ("training", "waiting")
        if message.lease is None or (self.state != "idle" and not awaits):
            # A repetition, or it comes too late: the lease is given back when the worker leaves.
            return [Release(blob)]
        if message.lease.push.fence != self.session.fence:
            # Either this model is old, or the Welcome was: ask for the fence again.
            return [Release(blob), *self._rejoin()]
        overlap = self.overlap
        if self.session.upload is not None or not overlap.is_answer(message):
            # Without the update that is awaited, or before its outcome is known; it is asked for again.
            return [Release(blob)]
        effects: list[Effect] = []
        if not self.settings.overlap:
            overlap.ahead = (message.lease,)
        else:
            overlap.take(message.lease)
        if self.state == "idle":
            if overlap.ahead:
                overlap.awaited, self._version = None, message.version
                effects += self._begin(blob)
        elif overlap.awaited is not None:
            overlap.awaited, self._version = None, message.version
            effects.append(Rebase(blob))
            effects += self._offer_waiting()
        return [*effects, Release(blob)]

    def _on_lent(self, lease: Lease) -> list[Effect]:
        """The next lease, ahead of need."""
        if not self.settings.overlap or self.state not in JOINED:
            return []
        if lease.push.fence != self.session.fence:
            return self._rejoin()
        if self.state == "idle" and self.overlap.awaited is None:
            return []  # There are no parameters to train; the next model brings this lease again.
        self.overlap.take(lease)
        return self._begin_ahead()

    def _begin_ahead(self) -> list[Effect]:
        """Begin the next round from the parameters that the last one left, if there is a lease for it."""
        if self.state not in ("idle", "uploading") or not self.overlap.ahead:
            return []
        return self._begin(None)

    def _begin(self, blob: BlobId | None) -> list[Effect]:
        """Begin the next round, from a server's model or from the parameters that the last round left."""
        self._enter("training")
        self.lease = lease = self.overlap.next()
        self.base = self._version
        self._round_started_at, self._round_steps, self._round_skipped = self._now, 0, 0
        self._watchdog.begin(self._now)
        group = self.session.hello.address.group
        return [Train(lease, self.base, blob, group), *self._ask_ahead()]

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
        if self.overlap.awaited is not None:
            self._enter("waiting")
            self.overlap.waiting = (push, event.blob)
            return [note]
        return [note, *self._offer(push, event.blob)]

    def _offer(self, push: Push, blob: BlobId) -> list[Effect]:
        """Upload an update; with overlap the next round begins at once."""
        self._enter("uploading")
        effects = self.session.offer(push, blob, self._now)
        if self.settings.overlap:
            self.overlap.awaited = push.push
            effects += self._begin_ahead()
        return effects

    def _offer_waiting(self) -> list[Effect]:
        """Upload the update that waited for the answer to the one before, if one did."""
        if self.overlap.waiting is None:
            return []
        push, blob = self.overlap.waiting
        self.overlap.waiting = None
        return self._offer(push, blob)

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
        if self._failed_on(message.push):
            return self._on_taken_back(message)
        upload = self.session.finished(message.push)
        if upload is None:
            return []
        self.rounds += message.outcome == "applied"
        self._asked_at = self._now
        effects: list[Effect] = [Release(upload.blob)]
        match message.outcome:
            case "applied":
                return [*effects, *self._decided()]
            case "rejected":
                return [*effects, UpdateRejected(message.push.lease), *self._restart()]
            case "fenced":
                # A fenced holder must be welcomed again before anything it holds counts.
                return [*effects, UpdateFenced(message.push.lease), *self._rejoin()]

    def _decided(self) -> list[Effect]:
        """The LPS decided about the update. It lends a lease ahead from now on."""
        if self.state != "uploading":
            return self._ask_ahead() if self.state in ("training", "waiting") else []
        self._enter("idle")
        self.lease = None
        return []

    def _restart(self) -> list[Effect]:
        """The LPS rejected an update: what was trained on top of it is dropped, and its lease is trained again from
        the next model."""
        self.overlap.awaited = None
        if self.state not in ("training", "waiting"):
            return self._decided()
        assert self.lease is not None
        effects = self._drop_round()
        self.overlap.give_again(self.lease)
        self.lease = None
        self._enter("idle")
        return effects

    def _on_taken_back(self, message: Ack) -> list[Effect]:
        """The LPS took the lease of a failed round back."""
        self._asked_at, self.lease = self._now, None
        if message.outcome == "fenced":
            return [UpdateFenced(message.push.lease), *self._rejoin()]
        if self.session.upload is None:
            self._enter("idle")
        else:
            self._enter("uploading")
        return [UpdateRejected(message.push.lease)]

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
        elif self.state in ("training", "waiting") and self.session.upload is None:
            if self.overlap.awaited is not None:
                effects += self._pull()
            effects += self._ask_ahead()
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
        effects = self._drop_round()
        if self.session.upload is not None:
            upload = self.session.finished(self.session.upload.push)
            assert upload is not None
            effects.append(Release(upload.blob))
        self.overlap.drop()
        self.lease = None
        return effects

    def _drop_round(self) -> list[Effect]:
        """Stop a round that is trained, and forget the update of one that waits."""
        effects: list[Effect] = []
        if self.state == "training" and self.lease is not None:
            effects.append(Cancel(self.lease.push))
            self._busy_ps += self._now - self._round_started_at
            self._watchdog.end()
        if self.overlap.waiting is not None:
            effects.append(Release(self.overlap.waiting[1]))
            self.overlap.waiting = None
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

    def _enter(self, target: WorkerPhase) -> None:
        self.state = WORKER_PHASES.move(self.state, target)

    def check(self) -> None:
        """Assert the invariants of a worker."""
        state, overlap, upload = self.state, self.overlap, self.session.upload
        assert (
            state not in ("training", "waiting") or self.lease is not None
        )  # W1: on a lease only.
        # W2: one round at a time, and one update under way; without overlap exactly while it uploads.
        assert state != "uploading" or upload is not None
        assert upload is None or state in self._uploads_in(), state
        for lease in (self.lease, *overlap.ahead):
            if lease is not None:  # W3: what it holds has the fence it was welcomed with.
                assert lease.push.fence == self.session.fence, (lease, self.session.fence)
        # W4: it holds a lease only while it trains or uploads, and ahead of need only with overlap.
        assert state in ("training", "waiting", "uploading", "failed") or self.lease is None
        assert not overlap.ahead or (self.settings.overlap and state in JOINED)
        # W5: a round that ended waits exactly while the update before is not answered.
        assert (overlap.waiting is not None) == (state == "waiting"), state
        assert state != "waiting" or overlap.awaited is not None
        assert upload is None or overlap.awaited in (None, upload.push), (upload, overlap.awaited)

    def _uploads_in(self) -> tuple[WorkerPhase, ...]:
        if self.settings.overlap:
            return ("training", "waiting", "uploading", "failed")
        return ("uploading",)
