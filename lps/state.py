"""The local parameter server's decisions: HALoS's inner server, with leases and exactly-once updates.

Everything that decides lives here; nothing here performs. Invariants are numbered L1... in
docs/ARCHITECTURE.md and asserted by `check`. Source of the algorithm: Kim et al., HALoS, ICML 2025
(arXiv 2506.04531), and the behaviour of the authors' simulator.
"""

from collections import deque
from dataclasses import dataclass, replace
from typing import Final, Literal, assert_never

from lps.exchange import Exchanges, InFlight
from lps.lease_prefetch import LeasePrefetch
from lps.members import Member, Members, hello_fault
from pelago.core.durable import durable
from pelago.core.leases import LeaseTable
from pelago.core.machine import (
    PS_PER_MS,
    Delivered,
    Finish,
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
from pelago.core.notes.common import Draining, GivingUp, ServerRestarted, UnexpectedMessage
from pelago.core.notes.lps import (
    ExchangeAnswered,
    ExchangeBegun,
    GlobalMerged,
    LpsJoined,
    Rejoining,
    RoundRejected,
    UnexpectedPull,
    UpdateApplied,
    WorkerJoined,
    WorkerLeft,
    WorkerRefused,
)
from pelago.core.refusals import Client, Refusals, hopeless, update_fault
from pelago.core.tensor_effects import Apply, Loaded, Measured, Pin, Release
from pelago.core.training_effects import Progress, Trained, Validated
from pelago.protocol.client_session import GIVE_UP_AFTER_PS, ClientSession
from pelago.protocol.update_admission import UpdateAdmission
from pelago.wire.messages import (
    PROTOCOL_VERSION,
    Ack,
    Busy,
    Effect,
    Event,
    Failed,
    Goodbye,
    Grant,
    Heartbeat,
    Hello,
    LeaseGrant,
    Leave,
    Message,
    Model,
    Offer,
    Outcome,
    Pull,
    Push,
    Refuse,
    RegionReport,
    Rejoin,
    Stop,
    Wait,
    Welcome,
    WorkerReport,
)

NORM_KEY: Final = "lps.update_norm_max"

STUCK_ROUNDS: Final = 4
"""A trainer of which nothing is heard for as long as so many of its rounds took may be stuck."""


WORKERS_NAMED_MAX: Final = 16
WORKERS_NAMED_EVERY: Final = 16
"""So many workers are named in every heartbeat to the GPS; more only in one of so many."""


@dataclass(frozen=True, slots=True)
class LpsSettings:
    """What an LPS's machine must know of the run."""

    gps: Peer
    region: str
    incarnation: int
    updates_per_exchange: int
    merge_weight: float
    in_flight: InFlight
    lease_ahead_ps: int
    """For so long samples are kept in hand; 0: none are asked for ahead of need."""
    round_samples_max: int
    """Samples of the largest round that a worker of the run file asks for."""
    sample_tokens: int
    """Tokens of one sample."""
    update_norm_max: float
    rejected_max: int
    """Rounds of a worker that may come to nothing in a row."""
    max_lr: float
    """Of the workers: the first thing to look at when they learn nothing."""
    staged_max: int
    payload_bytes: int
    """Of one model; 0: taken from the GPS's manifest."""
    wan: bool
    """Whether the GPS stands in another region."""
    tick_ps: int
    """0: no heartbeats and no retries, for a driver that loses nothing."""
    retry_ps: int
    lost_after_ps: int
    give_up_after_ps: int = GIVE_UP_AFTER_PS
    """So long without a word of the GPS's, and the LPS ends with an error."""
    stuck_after_ps: int = 0
    """A worker whose trainer was not heard of for so long loses its lease, if it did not end by itself;
    0: never."""


@durable(settings=("settings",))
class Lps:
    """One region's server."""

    def __init__(self, settings: LpsSettings) -> None:
        self.settings = settings
        hello = Hello(
            PROTOCOL_VERSION, "lps", Address(settings.region), settings.incarnation, "", ""
        )
        self.session = ClientSession(
            settings.gps,
            hello,
            settings.retry_ps,
            settings.lost_after_ps,
            settings.give_up_after_ps,
        )
        self.phase: Literal["joining", "loading", "serving", "draining", "leaving", "gone"] = (
            "joining"
        )
        self.version = 0
        self.leases = LeaseTable(settings.incarnation)
        self.members = Members()
        self.admission = UpdateAdmission(
            settings.staged_max, settings.retry_ps, settings.lost_after_ps, settings.tick_ps
        )
        self.exchanges = Exchanges(settings.updates_per_exchange, settings.in_flight)
        self.fingerprint = ""
        self.corpus = ""
        self.lan_bytes = 0
        self.wan_bytes = 0
        self.staleness_max = 0
        self._payload_bytes = settings.payload_bytes
        self._queue: deque[Peer] = deque()
        """Members that wait for a lease, first come first served."""
        self._prefetch = LeasePrefetch()
        self.refusals = Refusals(settings.rejected_max)
        """Rounds of its groups that came to nothing."""
        self.error = ""
        """Why this region cannot go on; empty: it can."""
        self._next_blob = 1
        self._loaded: Version | None = None
        """Global version that the driver put into the arena: no first transfer then."""
        self._pulled_at = 0
        self._ticks = 0
        self._may_return = False
        """It was this LPS that was asked to end, and not the run: started again, it serves again."""
        self._now = 0

    # --- events --------------------------------------------------------------------------------------

    def handle(self, event: Event, now: int) -> list[Effect]:
        """Take one fact, return the wishes that follow from it."""
        self._now = now
        # What is frequent comes first and is not taken apart by its pattern, which takes several times
        # as long as looking at its fields. It is so wherever a `match` is asked for every event.
        match event:
            case Received():
                if event.peer == self.settings.gps:
                    return self._on_gps_message(event.message, event.blob)
                return self._on_worker_message(event.peer, event.message, event.blob)
            case Delivered():
                return self._on_delivered(event.peer, event.blob)
            case Measured():
                return self._on_measured(event)
            case Started():
                tick: list[Effect] = (
                    [SetTick(self.settings.tick_ps)] if self.settings.tick_ps else []
                )
                return [*tick, *self.session.join()]
            case Restarted():
                return self._on_restarted()
            case PeerLost(peer, _):
                return self._on_transfer_lost(peer)
            case Tick():
                return self._on_tick()
            case StopRequested(reason):
                self._may_return = True
                return self._drain(reason)
            case Loaded(version):
                self._loaded = version
                return []
            case Progress() | Trained() | Validated():
                return []
            case _:
                assert_never(event)

    def expects(self, peer: Peer, message: Message) -> bool:
        """Updates that were granted, of members; of the GPS's models the first one, and the answer to the
        exchange under way."""
        if isinstance(message, Push):
            return self.members.get(peer) is not None and self.admission.expects(peer, message.push)
        if peer != self.settings.gps or not isinstance(message, Model):
            return False
        exchange = self.exchanges.current
        answers = exchange is not None and message.answers == exchange.push
        return self.phase == "loading" or (self.phase == "serving" and answers)

    def _on_restarted(self) -> list[Effect]:
        """Go on where the process before this one was killed. Peers ask again for what was lost on the
        way, and so do we; nobody was silent: it was us who did not listen."""
        for member in self.members:
            member.replying, member.heard_at = None, self._now
        self.session.restarted(self._now)
        effects = self.admission.restarted()
        if self.settings.tick_ps:
            effects.append(SetTick(self.settings.tick_ps))
        effects.append(ServerRestarted(self.phase, self.version))
        if self.phase == "gone" and self._may_return:
            self._may_return = False
            self.session.come_back()
            self.phase = "joining"
            return [*effects, *self._begin_anew()]
        if self.phase == "gone":
            return [*effects, Finish("run finished")]
        return effects if self.session.joined else [*effects, *self.session.join()]

    # --- the GPS's side ------------------------------------------------------------------------------

    def _on_gps_message(self, message: Message, blob: BlobId | None) -> list[Effect]:
        effects: list[Effect] = self.session.heard(self._now)
        match message:
            case LeaseGrant():
                effects += self._on_lease_grant(message)
            case Welcome() if not self.session.joined and self.phase != "gone":
                effects += self._on_welcome(message)
            case Wait(what):
                effects += self.session.waiting(what)
            case Refuse(detail) if self.phase != "gone":
                # Started again, it asks again.
                self.phase, self._may_return = "gone", True
                effects += [Send(member.peer, Stop("refused")) for member in self.members]
                effects.append(Finish("refused", error=detail))
            case Rejoin():
                effects += self._on_rejoin()
            case Grant():
                effects += self.session.granted(message, self._now)
            case Busy():
                pass  # The GPS grants when a place is free; the tick asks again if that is lost.
            case Ack(push, outcome):
                effects += self._on_exchange_ack(push.lease, push.fence, outcome)
            case Model() if blob is not None:
                effects += self._on_global_model(message, blob)
            case Stop(reason):
                effects += self._drain(reason)
            case Goodbye() if self.phase == "leaving":
                effects += self._finish()
            case _:
                effects += [Release(blob)] if blob is not None else []
        return effects

    def _on_welcome(self, message: Welcome) -> list[Effect]:
        effects = self.session.welcome(message.fence, -1)
        self.fingerprint, self.corpus = message.fingerprint, message.corpus
        if self._payload_bytes == 0:
            self._payload_bytes = 4 * sum(_elements(spec.shape) for spec in message.manifest)
        effects.append(LpsJoined(message.fence))
        if self.phase == "joining" and self._loaded is not None:
            self.exchanges.reset(self._loaded, self.version)
            self.phase, self._loaded = "serving", None
            effects += self._serve()
        elif self.phase == "joining":
            self.phase = "loading"
            effects += self._pull()
        return effects

    def _pull(self) -> list[Effect]:
        self._pulled_at = self._now
        return [Send(self.settings.gps, Pull(0, 0))]

    def _on_rejoin(self) -> list[Effect]:
        """The GPS does not know us: it gave our samples to others, or it restarted. What we hold of
        them is void, and so is the movement trained on it; the next model starts us afresh."""
        if self.phase == "gone":
            return []
        if self.phase == "leaving":
            # Nothing is left to settle with a GPS that does not know us.
            return self._finish()
        return self._begin_anew()

    def _finish(self) -> list[Effect]:
        self.phase = "gone"
        return [Finish("run finished", self.error)]

    def _begin_anew(self) -> list[Effect]:
        effects: list[Effect] = [Rejoining()]
        self.leases.void()
        self.refusals.clear()
        self.error = ""
        for member in self.members:
            member.lease = None
        upload = self.session.upload
        if upload is not None:
            self.session.finished(upload.push)
            effects.append(Release(upload.blob))
        self.exchanges.void()
        self._prefetch.void()
        if self.session.joined:
            # A late or repeated Rejoin may find us known after all: then what we voided must be lent
            # again, and this says so; a GPS that does not know us takes no notice.
            leave = Leave("rejoining", None, (), (), ())
            effects.append(Send(self.settings.gps, leave))
        if self.phase == "serving":
            self.phase = "joining"
        return [*effects, *self.session.join()]

    def _on_lease_grant(self, message: LeaseGrant) -> list[Effect]:
        if not self._prefetch.expects(message):
            return []
        if message.fence != self.session.fence:
            # The Welcome that we went by was an old one, or of a life before this one.
            return self._on_rejoin()
        if self.phase != "serving":
            return []
        self._prefetch.void()
        # If the GPS lends what is in an exchange, it rejected that; its word is late, or lost.
        rejected = self.exchanges.holding(message.spans)
        told = [] if rejected is None else self._on_exchange_ack(*rejected, "rejected")
        self.leases.add(message.spans, message.clock)
        return [*told, *self._serve()]

    def _on_global_model(self, message: Model, blob: BlobId) -> list[Effect]:
        if self.phase == "loading":
            self.phase = "serving"
            self._count_exchange_bytes()
            self.exchanges.reset(message.version, self.version)
            return [Apply("load", blob), Release(blob), *self._serve()]
        exchange = self.exchanges.current
        if self.phase != "serving" or exchange is None or message.answers != exchange.push:
            return [Release(blob)]
        self._count_exchange_bytes()
        answered = [] if exchange.outcome is not None else [_answered(exchange.push, "unknown")]
        effects: list[Effect] = [*answered, *self._exchange_released()]
        operation = self.exchanges.merge_operation()
        weight = 1.0 if operation == "load" else self.settings.merge_weight
        self.exchanges.merged(message.version, self.version)
        effects += [
            Apply(operation, blob, weight),
            Release(blob),
            GlobalMerged(message.version.counter, self.version),
        ]
        return [*effects, *self._maybe_exchange()]

    def _on_exchange_ack(self, number: int, fence: int, outcome: Outcome) -> list[Effect]:
        exchange = self.exchanges.current
        if exchange is None or exchange.push != (number, fence):
            return []
        if outcome == "fenced":
            return self._on_rejoin()
        told: list[Effect] = []
        if exchange.outcome is None:
            told.append(_answered(exchange.push, outcome))
        self.exchanges.acknowledge(outcome)
        # The update itself has done its part; if its answer is lost, the same offer asks for it again.
        if self.session.upload is not None:
            self.session.upload.state = "arrived"
        return told

    def _exchange_released(self) -> list[Effect]:
        upload = self.session.upload
        if upload is None:
            return []
        self.session.finished(upload.push)
        return [Release(upload.blob)]

    def _maybe_exchange(self) -> list[Effect]:
        if self.phase != "serving" or not self.exchanges.due(self.version):
            return []
        blob = self._new_blob()
        push = self.exchanges.begin(self.session.fence, self.version)
        begun = ExchangeBegun(
            number=push.push.lease,
            fence=push.push.fence,
            updates=push.updates,
            version=self.version,
            spans=push.spans,
            dropped=push.dropped,
        )
        return [
            self.exchanges.difference(blob),
            begun,
            *self.session.offer(push, blob, self._now),
        ]

    def _count_exchange_bytes(self) -> None:
        if self.settings.wan:
            self.wan_bytes += self._payload_bytes
        else:
            self.lan_bytes += self._payload_bytes

    # --- the workers' side ---------------------------------------------------------------------------

    def _on_worker_message(self, peer: Peer, message: Message, blob: BlobId | None) -> list[Effect]:
        member = self.members.get(peer)
        if member is not None:
            # Whatever it says: it may be a Hello that we cannot answer yet.
            member.heard_at = self._now
        effects: list[Effect]
        if isinstance(message, Hello):
            effects = self._on_hello(peer, message)
        elif member is None:
            effects = [Send(peer, Goodbye() if isinstance(message, Leave) else Rejoin())]
        else:
            match message:
                case Offer():
                    effects = self._on_offer(member, message.push)
                case Push() if blob is not None:
                    return self._on_push(member, message, blob)
                case Pull():
                    effects = self._on_pull(member, message.samples)
                case Failed():
                    effects = self._on_failed(member, message)
                case Heartbeat(report):
                    if isinstance(report, WorkerReport):
                        member.report = replace(report, group=member.group)
                        if self._is_stuck(member, report):
                            return [*self._remove(member, "stuck"), Send(peer, Rejoin())]
                    stopping = self.phase in ("draining", "leaving")
                    effects = [Send(peer, Stop("run finished") if stopping else Heartbeat(None))]
                case Leave():
                    effects = self._on_leave(member, message)
                case _:
                    effects = [UnexpectedMessage(peer, type(message).__name__)]
        if blob is not None:
            effects.append(Release(blob))
        return effects

    def _is_stuck(self, member: Member, report: WorkerReport) -> bool:
        """What goes on slowly is not stuck, so a part of a round may take longer than several rounds did."""
        limit_ps = self.settings.stuck_after_ps
        patience_ps = max(limit_ps, STUCK_ROUNDS * member.round_ps)
        return bool(limit_ps) and report.quiet_ms * PS_PER_MS > patience_ps

    def _on_hello(self, peer: Peer, message: Hello) -> list[Effect]:
        if self.phase in ("draining", "leaving", "gone"):
            return [Send(peer, Stop("run finished"))]
        if not self.session.joined:
            return [Send(peer, Wait(f"the GPS, for which the LPS of {self.settings.region} waits"))]
        fault = hello_fault(message, self.settings.region, self.fingerprint, self.corpus)
        if fault:
            return [WorkerRefused(peer, fault), Send(peer, Refuse(fault))]
        effects: list[Effect] = []
        rival = self.members.holder(message.address.group)
        if rival is not None and rival.peer != peer:
            if message.incarnation <= rival.incarnation:
                what = f"group {rival.group}, which another process holds"
                return [Send(peer, Wait(what))]
            effects += self._remove(rival, "replaced by a later process")
        member = self.members.get(peer)
        if member is None:
            member = self.members.admit(peer, message, self._now)
            effects.append(WorkerJoined(member.group, peer))
        welcome = Welcome(
            incarnation=self.settings.incarnation,
            fence=member.fence,
            group=member.group,
            manifest=(),
            fingerprint=self.fingerprint,
            corpus=self.corpus,
        )
        return [*effects, Send(peer, welcome)]

    def _on_pull(self, member: Member, samples: int) -> list[Effect]:
        if samples == 0 or member.replying is not None:
            return []
        if not 0 < samples <= self.settings.round_samples_max:
            # It has another run file's rounds, or bad intentions; the region would hoard what it asks for.
            return [UnexpectedPull(member.peer, samples)]
        if self.phase in ("draining", "leaving", "gone"):
            return [Send(member.peer, Stop("run finished"))]
        member.wants = member.round_samples = samples
        if member.peer not in self._queue:
            self._queue.append(member.peer)
        return self._serve()

    def _serve(self) -> list[Effect]:
        """Answer waiting members, first come first served, as far as the samples in hand go; ask the
        GPS for what is missing."""
        effects: list[Effect] = []
        if self.phase != "serving":
            return effects
        queue, wanted = self._queue, 0
        while queue:
            member = self.members.get(queue[0])
            if member is not None and member.wants:
                if member.lease is None:
                    member.lease = self.leases.lend(member.group, member.fence, member.wants)
                    member.lent_at = self._now
                if member.lease is None:
                    wanted = member.wants
                    break
                effects += self._answer(member)
            queue.popleft()
        needed = self.members.samples_in(self.settings.lease_ahead_ps)
        request = self._prefetch.ask(self.leases.pool.total, wanted, needed, self._now)
        if request is not None:
            effects.append(Send(self.settings.gps, request))
        return effects

    def _answer(self, member: Member) -> list[Effect]:
        blob = self._new_blob()
        member.wants, member.replying = 0, blob
        version = Version(self.settings.incarnation, self.version)
        member.sent = self.version
        message = Model(version, 0, member.lease, None, final=False)
        return [Pin(blob), Send(member.peer, message, blob), Release(blob)]

    def _on_offer(self, member: Member, push: PushId) -> list[Effect]:
        held = self.leases.find(push)
        if held is None or held.group != member.group:
            return self.admission.settled(member.peer, push, self.leases.outcome(push))
        return self.admission.offered(member.peer, push)

    def _on_push(self, member: Member, message: Push, blob: BlobId) -> list[Effect]:
        member.replying = None  # It trained on what we sent, so that arrived.
        held = self.leases.find(message.push)
        mine = held is not None and held.group == member.group
        tokens = self.settings.sample_tokens
        if held is None or not mine or not _trained_on(message, held.lease, tokens):
            outcome = self.leases.outcome(message.push)
            return [Release(blob), *self.admission.settled(member.peer, message.push, outcome)]
        return self.admission.arrived(member.peer, message, blob)

    def _on_failed(self, member: Member, message: Failed) -> list[Effect]:
        member.replying = None  # It trained on what we sent, so that arrived.
        held = self.leases.find(message.push)
        if held is None or held.group != member.group:
            outcome = self.leases.outcome(message.push)
            return self.admission.settled(member.peer, message.push, outcome)
        why = f"no gradient of {message.steps} steps was finite"
        effects = self.admission.free(member.peer, message.push)
        return [*effects, *self._reject(member.peer, message.push, why, message.next_samples)]

    def _reject(self, peer: Peer, push: PushId, why: str, next_samples: int) -> list[Effect]:
        """A round came to nothing: its samples are lent again. ``why``: for the user."""
        group = self.leases.open[push.lease].group
        self.leases.give_back(push, "rejected")
        present: list[Client] = [each.group for each in self.members]
        verdict = self.refusals.refused(group, present)
        effects: list[Effect] = [
            RoundRejected(peer, group, why),
            Send(peer, Ack(push, "rejected")),
        ]
        member = self.members.get(peer)
        if member is not None:
            member.round_done(self._now)
        if verdict == "all":
            return [*effects, *self._give_up(self._hopeless(group, why))]
        if member is None:
            return effects
        if verdict == "it":
            effects.append(Send(peer, Refuse(self._hopeless(group, why))))
            return [*effects, *self._remove(member, "its updates are rejected")]
        return [*effects, *self._on_pull(member, next_samples)]

    def _hopeless(self, group: int, why: str) -> str:
        settings, count = self.settings, self.refusals.in_a_row[group]
        who = f"worker {settings.region}/{group}"
        return hopeless(who, count, why, settings.max_lr, settings.update_norm_max, NORM_KEY)

    def _give_up(self, error: str) -> list[Effect]:
        """Leave the run. Started again, this LPS begins afresh from the global model."""
        if self.phase in ("draining", "leaving", "gone"):
            return []
        self.error, self._may_return = error, True
        return [GivingUp(error), *self._drain("this region learns nothing")]

    def _on_measured(self, event: Measured) -> list[Effect]:
        pending = self.admission.measured(event.blob)
        if pending is None:
            return []
        peer, message = pending
        effects = self.admission.free(peer, message.push)
        member = self.members.get(peer)
        if self.leases.find(message.push) is None or self.phase == "joining":
            # Revoked while it was being measured: its samples are in other hands.
            outcome = self.leases.outcome(message.push)
            return [*effects, Release(event.blob), Send(peer, Ack(message.push, outcome))]
        fault = update_fault(event, self.settings.update_norm_max, NORM_KEY)
        if fault:
            effects.append(Release(event.blob))
            return [*effects, *self._reject(peer, message.push, fault, message.next_samples)]
        effects += self._apply(message, event)
        effects.append(Send(peer, Ack(message.push, "applied")))
        effects += self._maybe_exchange()
        if member is not None:
            member.round_done(self._now)
            effects += self._on_pull(member, message.next_samples)
        return effects

    def _apply(self, message: Push, event: Measured) -> list[Effect]:
        self.refusals.accepted(self.leases.open[message.push.lease].group)
        spans = self.leases.consume(message.push)
        # A base that is no version of ours yet is a peer's mistake.
        staleness = max(0, self.version - message.base.counter)
        self.version += 1
        if staleness > self.staleness_max:
            self.staleness_max = staleness
        self.lan_bytes += self._payload_bytes
        self.exchanges.record(spans, message)
        applied = UpdateApplied(
            version=self.version,
            lease=message.push.lease,
            spans=spans,
            steps=message.steps,
            staleness=staleness,
            norm=event.norm,
            loss=message.loss,
        )
        return [Apply("step", event.blob), Release(event.blob), applied]

    def _on_leave(self, member: Member, message: Leave) -> list[Effect]:
        if isinstance(message.report, WorkerReport):
            member.report = replace(message.report, group=member.group)
        goodbye: Effect = Send(member.peer, Goodbye())
        return [*self._remove(member, message.reason), goodbye, *self._maybe_leave()]

    def _remove(self, member: Member, reason: str) -> list[Effect]:
        """A member is gone: its samples return to the pool, and what it still holds is fenced off."""
        lease, spans = None, None
        if member.lease is not None:
            self.leases.give_back(member.lease.push, "fenced")
            lease, spans = member.lease.push.lease, member.lease.spans
        left = WorkerLeft(member.group, member.peer, reason, lease, spans)
        self.members.remove(member)
        if member.peer in self._queue:
            self._queue.remove(member.peer)
        return [left, *self.admission.free(member.peer), *self._serve()]

    def _on_delivered(self, peer: Peer, blob: BlobId) -> list[Effect]:
        if peer == self.settings.gps:
            self.session.delivered(blob, self._now)
            self._count_exchange_bytes()
            return []
        self.lan_bytes += self._payload_bytes
        member = self.members.get(peer)
        if member is not None and member.replying == blob:
            member.replying = None
        return []

    def _on_transfer_lost(self, peer: Peer) -> list[Effect]:
        if peer == self.settings.gps:
            self.session.lost(self._now)
            return []
        member = self.members.get(peer)
        if member is not None:
            member.replying = None  # It asks again if it is alive.
            return self.admission.free(peer)
        return []

    # --- time, and the end ---------------------------------------------------------------------------

    def _on_tick(self) -> list[Effect]:
        if self.phase == "gone":
            return []
        effects: list[Effect] = []
        for member in self.members.silent_since(self._now - self.settings.lost_after_ps):
            effects += [*self._remove(member, "lost: no heartbeat"), Send(member.peer, Rejoin())]
        effects += self.admission.tick()
        if self.phase == "leaving":
            return [*effects, *self.session.leave_again()]
        effects += self.session.tick(self._brief_report(), self._now)
        if self.session.gives_up(self._now):
            return effects  # All stays as it is: started again, it waits again, and goes on.
        due = self._now - self.settings.retry_ps
        if self.phase == "loading" and self._pulled_at <= due and self.session.joined:
            effects += self._pull()
        request = self._prefetch.repeat(due, self._now) if self.session.joined else None
        if request is not None:
            effects.append(Send(self.settings.gps, request))
        if self.phase == "draining":
            effects += [Send(member.peer, Stop("run finished")) for member in self.members]
            effects += self._maybe_leave()
        return effects

    def _brief_report(self) -> RegionReport:
        """For a heartbeat: the GPS journals each, so many workers are not named in every one."""
        report = self.report()
        self._ticks += 1
        if len(report.workers) <= WORKERS_NAMED_MAX or self._ticks % WORKERS_NAMED_EVERY == 0:
            return report
        return replace(report, workers=())

    def report(self) -> RegionReport:
        """What this region has done so far."""
        return RegionReport(
            updates=self.version,
            exchanges=self.exchanges.count,
            in_flight_updates=self.exchanges.in_flight_updates,
            staleness_max=self.staleness_max,
            lan_bytes=self.lan_bytes,
            wan_bytes=self.wan_bytes,
            exchanging=self.exchanges.current is not None,
            workers=self.members.reports(),
            rejected=self.refusals.total,
        )

    def _drain(self, reason: str) -> list[Effect]:
        if self.phase in ("draining", "leaving", "gone"):
            return []
        if not self.session.joined:
            self.phase = "gone"
            stops: list[Effect] = [Send(member.peer, Stop(reason)) for member in self.members]
            return [*stops, Finish(reason, self.error)]
        self.phase = "draining"
        stops = [Send(member.peer, Stop(reason)) for member in self.members]
        return [Draining(reason), *stops, *self._maybe_leave()]

    def _maybe_leave(self) -> list[Effect]:
        if self.phase != "draining" or len(self.members):
            return []
        self.phase = "leaving"
        effects = self._exchange_released()
        self._prefetch.void()
        unexchanged, dropped = self.exchanges.settle()
        returned = self.leases.void()
        leave = Leave("drained", self.report(), returned, unexchanged, dropped, self.error)
        return [*effects, *self.session.leave(leave)]

    def _new_blob(self) -> BlobId:
        self._next_blob += 1
        return self._next_blob - 1

    def check(self) -> None:
        """Assert the invariants of an LPS."""
        self.leases.check()
        self.admission.check()
        self.exchanges.check(self.version)
        held = [member.lease.push for member in self.members if member.lease is not None]
        assert len(set(held)) == len(held)  # L1: a lease has one holder.
        for push in held:  # L2: what a member holds is open, in its own group and fence.
            assert self.leases.find(push) is not None, push
        assert len(held) == len(self.leases.open), (held, self.leases.open)
        # L3: one exchange in flight at most, and its payload is held exactly as long.
        exchanging = self.exchanges.current is not None
        assert exchanging == (self.session.upload is not None) or self.phase in ("leaving", "gone")
        # L8: a place is held by a member, and one at most.
        staging = self.admission.staging
        assert all(self.members.get(peer) for peer in (*staging.granted, *staging.late))
        for member in self.members:  # L4: a member never saw a version that is not there yet.
            assert member.sent <= self.version


def _trained_on(message: Push, lease: Lease, sample_tokens: int) -> bool:
    """Whether an update can be what it says: of all of its lease, a step a sample at the most."""
    steps = 0 < message.steps <= lease.samples
    tokens = 0 <= message.tokens <= lease.samples * sample_tokens
    return steps and tokens and message.spans == lease.spans


def _answered(push: PushId, outcome: Outcome | Literal["unknown"]) -> ExchangeAnswered:
    """The GPS said what became of an exchange; unknown: its answer overtook that word."""
    return ExchangeAnswered(push.lease, push.fence, outcome)


def _elements(shape: tuple[int, ...]) -> int:
    elements = 1
    for size in shape:
        elements *= size
    return elements
