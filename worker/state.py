"""The worker's and the evaluator's decisions.

Everything that decides lives here; nothing here performs. A worker asks its LPS for a model and a lease,
trains, gets the update across and is answered with the next model and lease. The evaluator pulls global
versions from the GPS, has them measured and reports.

Invariants that `check` asserts are numbered W1... and E1... in docs/ARCHITECTURE.md.
"""

from dataclasses import dataclass
from typing import Literal, assert_never

from pelago.core.machine import (
    FAILED,
    PS_PER_MS,
    Delivered,
    Finish,
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
from pelago.core.names import Address, BlobId, Lease, Peer, PushId, Version
from pelago.core.tensor_effects import Loaded, Measured, Release
from pelago.core.training_effects import Cancel, Progress, Train, Trained, Validate, Validated
from pelago.core.watchdog import Watchdog
from pelago.protocol.client_session import GIVE_UP_AFTER_PS, ClientSession
from pelago.wire.messages import (
    PROTOCOL_VERSION,
    Ack,
    Busy,
    Effect,
    Evaluated,
    Event,
    Failed,
    Goodbye,
    Grant,
    Heartbeat,
    Hello,
    Leave,
    Message,
    Model,
    Pull,
    Push,
    Refuse,
    Rejoin,
    Role,
    Stop,
    Wait,
    Welcome,
    WorkerReport,
)


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """What a worker's or the evaluator's machine must know of the run."""

    server: Peer
    address: Address
    incarnation: int
    fingerprint: str
    corpus: str
    round_samples: int
    """Samples of one lease: local steps times batch size."""
    validation_interval_steps: int
    tick_ps: int
    """0: no heartbeats and no retries, for a driver that loses nothing."""
    retry_ps: int
    lost_after_ps: int
    stuck_after_ps: int = 0
    """What a micro-batch may take, see `Watchdog`; 0: for ever."""
    export_interval_ps: int = 0
    """Time between exports of the evaluator; 0: it exports the last version only."""
    group_samples: tuple[int, ...] = ()
    """Samples of one lease for each group that the run file names, if the server chooses the group."""
    give_up_after_ps: int = GIVE_UP_AFTER_PS
    """So long without a word of the server's, and the node ends with an error."""

    def hello(self, role: Role) -> Hello:
        """How this node introduces itself."""
        return Hello(
            PROTOCOL_VERSION,
            role,
            self.address,
            self.incarnation,
            self.fingerprint,
            self.corpus,
        )

    def session(self, role: Role) -> ClientSession:
        """This node's end of the conversation with its server."""
        return ClientSession(
            self.server, self.hello(role), self.retry_ps, self.lost_after_ps, self.give_up_after_ps
        )


class Worker:
    """One worker group of one replica of one rank."""

    def __init__(self, settings: WorkerSettings) -> None:
        self.settings = settings
        self.session = settings.session("worker")
        self.state: Literal[
            "joining", "idle", "training", "uploading", "failed", "leaving", "gone"
        ] = "joining"
        self.lease: Lease | None = None
        self.base = Version(0, 0)
        self.rounds = 0
        self.steps = 0
        self.skipped = 0
        """Of them, those whose gradient was not finite."""
        self.tokens = 0
        self.loss = 0.0
        self._asked_at = 0
        self._joined_at: int | None = None
        self._round_started_at = 0
        self._round_steps = 0
        """Steps of the round in hand that `steps` counts already."""
        self._round_skipped = 0
        self._busy_ps = 0
        self._watchdog = Watchdog(settings.stuck_after_ps)
        self._now = 0

    def handle(self, event: Event, now: int) -> list[Effect]:
        """Take one fact, return the wishes that follow from it."""
        self._now = now
        # What is frequent comes first, and is not taken apart by its pattern: see the LPS's machine.
        match event:
            case Received():
                return self._on_message(event.message, event.blob)
            case Delivered():
                self.session.delivered(event.blob, now)
                return []
            case Trained():
                return self._on_trained(event)
            case Started():
                tick: list[Effect] = (
                    [SetTick(self.settings.tick_ps)] if self.settings.tick_ps else []
                )
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
            case Loaded() | Measured() | Validated() | Restarted():
                return []
            case _:
                assert_never(event)

    def report(self) -> WorkerReport:
        """What this worker has done so far."""
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
                if self.settings.address.group < 0:
                    # Perhaps our old group has another holder by now: any other will do.
                    self.session.hello = self.settings.hello("worker")
                effects += self.session.waiting(what)
            case Refuse(detail) if self.state not in ("leaving", "gone"):
                effects += self._abandon()
                self.state = "gone"
                effects.append(Finish("refused", error=detail))
            case Rejoin() if self.state not in ("leaving", "gone"):
                effects += self._rejoin()
            case Busy():
                pass  # The server grants when a place is free; the tick asks again if that is lost.
            case Stop(reason):
                effects += self._leave(reason)
            case Rejoin() | Goodbye() if self.state == "leaving" and self.session.leaving:
                self.state = "gone"
                effects.append(Finish(self.session.leaving.reason))
            case _:
                effects += [Release(blob)] if blob is not None else []
        return effects

    def _on_welcome(self, message: Welcome) -> list[Effect]:
        effects = self.session.welcome(message.fence, message.group)
        self.state = "idle"
        if self._joined_at is None:
            self._joined_at = self._now
        return [*effects, Note("joined", {"group": message.group}), *self._pull()]

    def _pull(self) -> list[Effect]:
        self._asked_at = self._now
        return [Send(self.settings.server, Pull(self._round_samples(), 0))]

    def _round_samples(self) -> int:
        """Samples to ask for: those of the group that the server gave us, if the run file knows it."""
        group, table = self.session.hello.address.group, self.settings.group_samples
        return table[group] if 0 <= group < len(table) else self.settings.round_samples

    def _on_model(self, message: Model, blob: BlobId) -> list[Effect]:
        if self.state != "idle" or message.lease is None:
            # A repeat of what we have, or it comes too late: the lease goes back when we leave.
            return [Release(blob)]
        if message.lease.push.fence != self.session.fence:
            # Either this is an old model, or the Welcome that we went by was: ask which fence is ours.
            return [Release(blob), *self._rejoin()]
        self.state, self.lease, self.base = "training", message.lease, message.version
        self._round_started_at, self._round_steps, self._round_skipped = self._now, 0, 0
        self._watchdog.begin(self._now)
        group = self.session.hello.address.group
        return [Train(message.lease, message.version, blob, group), Release(blob)]

    def _count(self, steps: int, skipped: int) -> None:
        """So many steps of the round in hand are done. Several may be told of at once, or again."""
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
        self.state = "uploading"
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
        fields = {"steps": event.steps, "loss": event.loss, "busy_ms": busy_ps / PS_PER_MS}
        if event.skipped:
            fields["skipped"] = event.skipped
        return [Note("round", fields), *self.session.offer(push, event.blob, self._now)]

    def _fail(self, event: Trained) -> list[Effect]:
        """Nothing was learned from this lease: give it back, and say why."""
        self.state = "failed"
        fields = {"steps": event.steps, "why": "no gradient was finite"}
        return [Note("round_failed", fields), *self._say_failed(event.steps)]

    def _failed_on(self, push: PushId) -> bool:
        return self.state == "failed" and self.lease is not None and self.lease.push == push

    def _say_failed(self, steps: int) -> list[Effect]:
        assert self.lease is not None
        self._asked_at = self._now
        message = Failed(self.lease.push, steps, self._round_samples())
        return [Send(self.settings.server, message)]

    def _on_ack(self, message: Ack) -> list[Effect]:
        upload = self.session.finished(message.push)
        if upload is None and not self._failed_on(message.push):
            return []
        self.rounds += message.outcome == "applied"
        self.state, self.lease, self._asked_at = "idle", None, self._now
        effects: list[Effect] = [] if upload is None else [Release(upload.blob)]
        if message.outcome != "applied":
            effects.append(Note(f"update_{message.outcome}", {"lease": message.push.lease}))
        # A fenced holder must be welcomed again before anything it holds counts.
        return [*effects, *self._rejoin()] if message.outcome == "fenced" else effects

    def _on_tick(self) -> list[Effect]:
        if self.state == "gone":
            return []
        if self.state == "leaving":
            return self.session.leave_again()
        if self._watchdog.is_over(self._now):
            return self._give_up()
        effects = self.session.tick(self.report(), self._now)
        if self.session.gives_up(self._now):
            effects = [*self._abandon(), *effects]
            self.state = "gone"
            return effects
        if self._now - self._asked_at < self.settings.retry_ps:
            return effects
        if self.state == "idle":
            effects += self._pull()
        elif self.state == "failed":
            effects += self._say_failed(self._round_steps)
        return effects

    def _give_up(self) -> list[Effect]:
        """The trainer is stuck, and nothing brings it back: hand the lease to others and end."""
        error = _stuck("the trainer", self._watchdog, self._now)
        self._watchdog.end()
        report = self.report()
        effects = [Note("stuck", {"why": error}), *self._abandon()]
        if self.state != "joining":
            # Said once: if it is lost, we are missed soon.
            effects.append(Send(self.settings.server, Leave("stuck", report, (), (), ())))
        self.state = "gone"
        return [*effects, Finish(FAILED, error=error)]

    def _rejoin(self) -> list[Effect]:
        effects = self._abandon()
        self.state = "joining"
        return [*effects, *self.session.join()]

    def _abandon(self) -> list[Effect]:
        """Drop the round in hand; its samples are leased again by the server."""
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
        joined = self.state != "joining"
        self.state = "leaving" if joined else "gone"
        if not joined:
            return [*effects, Finish(reason)]
        return [*effects, *self.session.leave(Leave(reason, self.report(), (), (), ()))]

    def expects(self, peer: Peer, message: Message) -> bool:
        """Models, at any time: one may overtake the word for which we wait."""
        return peer == self.settings.server and isinstance(message, Model)

    def check(self) -> None:
        """Assert the invariants of a worker."""
        training = self.state == "training"
        assert not training or self.lease is not None  # W1: it trains on a lease only.
        # W2: one round at a time; an update is under way exactly while it is being uploaded.
        assert (self.session.upload is not None) == (self.state == "uploading"), self.state
        if self.lease is not None:  # W3: what it holds bears the fence it was welcomed with.
            assert self.lease.push.fence == self.session.fence, (self.lease, self.session.fence)
        assert self.state in ("training", "uploading", "failed") or self.lease is None  # W4


class Evaluator:
    """A worker that measures the global model instead of changing it."""

    def __init__(self, settings: WorkerSettings) -> None:
        self.settings = settings
        self.session = settings.session("evaluator")
        self.state: Literal["joining", "idle", "validating", "leaving", "gone"] = "joining"
        self.version = Version(0, 0)
        self.after_steps = 0
        """Counted local steps that the next version to measure must have behind it."""
        self.fault = ""
        """Why the last version could not be exported."""
        self._exported_at: int | None = None
        """When an export began, or failed; before the first one: when the evaluator joined."""
        self._exports = False
        self._measured_steps = -1
        self._watchdog = Watchdog(settings.stuck_after_ps)
        self._model: Model | None = None
        self._found: Evaluated | None = None
        self._asked_at = 0
        self._now = 0

    def handle(self, event: Event, now: int) -> list[Effect]:
        """Take one fact, return the wishes that follow from it."""
        self._now = now
        match event:
            case Started():
                tick: list[Effect] = (
                    [SetTick(self.settings.tick_ps)] if self.settings.tick_ps else []
                )
                return [*tick, *self.session.join()]
            case Received(_, message, blob):
                return self._on_message(message, blob)
            case Tick():
                return self._on_tick()
            case Validated():
                return self._on_validated(event)
            case Progress():
                self._watchdog.progress(now)
                return []
            case StopRequested(reason):
                return self._leave(reason)
            case Loaded() | Delivered() | PeerLost() | Measured() | Trained() | Restarted():
                return []
            case _:
                assert_never(event)

    def _on_message(self, message: Message, blob: BlobId | None) -> list[Effect]:
        effects: list[Effect] = self.session.heard(self._now)
        match message:
            case Welcome() if not self.session.joined:
                effects += self.session.welcome(message.fence, message.group)
                if self.state == "joining":
                    self.state = "idle"
                    if self._exported_at is None:
                        self._exported_at = self._now
                    effects += self._ask()
            case Wait(what):
                effects += self.session.waiting(what)
            case Refuse(detail) if self.state not in ("leaving", "gone"):
                self.state = "gone"
                effects.append(Finish("refused", error=detail))
            case Rejoin() if self.state not in ("leaving", "gone"):
                if self.state == "idle":
                    self.state = "joining"
                effects += self.session.join()
            case Model() if blob is not None:
                effects += self._on_model(message, blob)
            case Stop() | Heartbeat():
                pass  # The last version still comes; then we leave.
            case Rejoin() | Goodbye() if self.state == "leaving" and self.session.leaving:
                self.state = "gone"
                effects.append(Finish(self.session.leaving.reason, error=self.fault))
            case _:
                effects += [Release(blob)] if blob is not None else []
        return effects

    def _ask(self) -> list[Effect]:
        self._asked_at = self._now
        again: list[Effect] = (
            [] if self._found is None else [Send(self.settings.server, self._found)]
        )
        after_steps = self.after_steps
        if self._export_due:  # Whatever is newer than what was measured.
            after_steps = min(after_steps, self._measured_steps + 1)
        return [*again, Send(self.settings.server, Pull(0, after_steps))]

    @property
    def _export_due(self) -> bool:
        interval = self.settings.export_interval_ps
        began = self._now if self._exported_at is None else self._exported_at
        return 0 < interval <= self._now - began

    def _on_model(self, message: Model, blob: BlobId) -> list[Effect]:
        if self.state != "idle" or not (message.final or message.version >= self.version):
            return [Release(blob)]
        self.state, self.version, self._model = "validating", message.version, message
        self._exports = message.final or self._export_due
        if self._exports:
            self._exported_at = self._now
        self._watchdog.begin(self._now, is_long=self._exports)
        return [Validate(message.version, blob, export=self._exports), Release(blob)]

    def _on_validated(self, event: Validated) -> list[Effect]:
        model = self._model
        if self.state != "validating" or model is None or model.version != event.version:
            return []
        self._watchdog.end()
        self._found = Evaluated(event.version, model.counted_steps, event.loss, event.tokens)
        interval = self.settings.validation_interval_steps
        self.after_steps = (model.counted_steps // interval + 1) * interval
        self.state, self._model, self._measured_steps = "idle", None, model.counted_steps
        self.fault = event.fault if model.final else ""
        fields = {"counted_steps": model.counted_steps, "loss": event.loss, "final": model.final}
        effects: list[Effect] = [Note("validation", fields)]
        if event.fault:
            effects.append(Note("export_failed", {"why": event.fault}))
        elif self._exports:
            told = {"version": model.version.counter, "counted_steps": model.counted_steps}
            effects.append(Note("exported", told))
        return [*effects, *(self._leave("run finished") if model.final else self._ask())]

    def _on_tick(self) -> list[Effect]:
        if self.state == "gone":
            return []
        if self.state == "leaving":
            return [
                Finish(each.reason, error=self.fault) if isinstance(each, Finish) else each
                for each in self.session.leave_again()
            ]
        if self._watchdog.is_over(self._now):
            return self._give_up()
        report = None
        if self.state == "validating":
            quiet_ms = self._watchdog.quiet_ps(self._now) // PS_PER_MS
            report = WorkerReport(-1, 0, 0, 0, 0, 0, 0.0, quiet_ms=quiet_ms)
        effects = self.session.tick(report, self._now)
        if self.session.gives_up(self._now):
            self.state = "gone"
            return effects
        if self.state == "idle" and self._now - self._asked_at >= self.settings.retry_ps:
            effects += self._ask()
        return effects

    def _give_up(self) -> list[Effect]:
        """Whoever measures, or exports, is stuck: let nobody wait for us."""
        error = _stuck("measuring the model", self._watchdog, self._now)
        self._watchdog.end()
        self.state = "gone"
        leave = Leave("stuck", self._found, (), (), ())
        note = Note("stuck", {"why": error})
        return [note, Send(self.settings.server, leave), Finish(FAILED, error=error)]

    def _leave(self, reason: str) -> list[Effect]:
        if self.state in ("leaving", "gone"):
            return []
        joined = self.state != "joining"
        self.state = "leaving" if joined else "gone"
        if not joined:
            return [Finish(reason)]
        return self.session.leave(Leave(reason, self._found, (), (), ()))

    def expects(self, peer: Peer, message: Message) -> bool:
        """Models."""
        return peer == self.settings.server and isinstance(message, Model)

    def check(self) -> None:
        """Assert the invariants of an evaluator."""
        assert (self._model is not None) == (self.state == "validating") or self.state in (
            "leaving",
            "gone",
        )  # E1: it measures one version at a time.
        assert self._found is None or self._found.version <= self.version  # E2: versions only grow.


def _stuck(what: str, watchdog: Watchdog, now: int) -> str:
    quiet_s, allowed_s = (
        ps / (1000 * PS_PER_MS) for ps in (watchdog.quiet_ps(now), watchdog.allowed_ps)
    )
    return (
        f"{what} is stuck: no sign of life for {quiet_s:,.0f} s, where {allowed_s:,.0f} s are allowed"
        " (worker.stuck_minutes, or more for what is slow): look at the disk or share that the corpus lies"
        " on, and at the accelerator"
    )
