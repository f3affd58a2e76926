"""The global parameter server's decisions: HALoS's outer server, the sample ledger and the run's end.

Everything that decides lives here; nothing here performs. Invariants are numbered G1... in
docs/ARCHITECTURE.md and asserted by `check`. Source of the algorithm: Kim et al., HALoS, ICML 2025
(arXiv 2506.04531), and the behaviour of the authors' simulator.
"""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Final, Literal, assert_never

from gps.regions import Evaluators, Region
from pelago.core.durable import durable
from pelago.core.leases import SampleLedger
from pelago.core.machine import (
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
from pelago.core.names import BlobId, Peer, PushId, Version, samples_of
from pelago.core.refusals import Client, Refusals, Verdict, hopeless, update_fault
from pelago.core.tensor_effects import Apply, Loaded, Measured, Pin, Release
from pelago.core.training_effects import Progress, Trained, Validated
from pelago.protocol.update_admission import UpdateAdmission
from pelago.wire.messages import (
    PROTOCOL_VERSION,
    SAMPLES_MAX,
    Ack,
    Effect,
    Evaluated,
    Event,
    Goodbye,
    Heartbeat,
    Hello,
    LeaseGrant,
    LeaseRequest,
    Leave,
    Message,
    Model,
    Offer,
    Pull,
    Push,
    Refuse,
    RegionReport,
    Rejoin,
    Stop,
    TensorSpec,
    Wait,
    Welcome,
    WorkerReport,
)

NORM_KEY: Final = "gps.update_norm_max"
SETTLED: Final = "settled"
"""Kind of the note that says that the run is over and its books are closed."""
REACHED_MAX: Final = 64
"""Versions whose measurement is awaited: more than evaluators are ever at work on."""


@dataclass(frozen=True, slots=True)
class GpsSettings:
    """What the GPS's machine must know of the run."""

    regions: tuple[str, ...]
    incarnation: int
    manifest: tuple[TensorSpec, ...]
    fingerprint: str
    corpus: str
    budget_local_steps: int
    budget_ps: int
    """Time after the first lease in which there was a GPS; 0: no limit."""
    sample_tokens: int
    """Tokens of one sample."""
    update_norm_max: float
    rejected_max: int
    """Updates of a region that may be rejected in a row."""
    max_lr: float
    """Of the workers: the first thing to look at when they learn nothing."""
    staleness_power: float
    """An update based on a version that is n versions old is applied (1 + n)^-power times."""
    staged_max: int
    tick_ps: int
    """0: no heartbeats and nobody is ever lost, for a driver that loses nothing."""
    retry_ps: int
    lost_after_ps: int
    region_lost_after_ps: int
    stuck_after_ps: int = 0
    """An evaluator that made no progress for so long is not waited for; 0: for ever."""


@durable(settings=("settings",))
class Gps:
    """The one global server of a run."""

    def __init__(self, settings: GpsSettings) -> None:
        self.settings = settings
        self.phase: Literal["loading", "serving", "draining", "finished"] = "loading"
        self.version = Version(settings.incarnation, 0)
        self.updates = 0
        self.counted_steps = 0
        self.samples = 0
        """That the counted steps were trained on, dropped movement included."""
        self.tokens = 0
        self.ledger = SampleLedger()
        # A life's fences begin at its incarnation, in seconds, and grow less often than once a second: no
        # other life gives the same, and each gives higher ones than those before.
        self.regions = {name: Region(name, settings.incarnation - 1) for name in settings.regions}
        self.evaluators = Evaluators()
        self.validations: list[tuple[int, int, float]] = []
        """(picoseconds after the first lease, counted steps, held-out loss) in order of the versions."""
        self.admission = self._new_admission()
        self.started_at: int | None = None
        """When the first samples were lent: the origin of all times in the result."""
        self.ended_at: int | None = None
        self.end_reason = ""
        self.refusals = Refusals(settings.rejected_max)
        """Updates of regions that were rejected."""
        self.error = ""
        """Why the run ended although it was not over; empty: all is well."""
        self._is_settled = False
        """Whether it was said that all regions have left the run that is over."""
        self._reached: OrderedDict[Version, tuple[int, int]] = OrderedDict()
        """When a version that an evaluator was sent was reached, and its counted steps, until it is measured;
        at most `REACHED_MAX`, since an evaluator may be lost before it measures."""
        self._reached_at = 0
        self._next_blob = 1
        self._now = 0

    def _new_admission(self) -> UpdateAdmission:
        settings = self.settings
        return UpdateAdmission(
            settings.staged_max, settings.retry_ps, settings.lost_after_ps, settings.tick_ps
        )

    def handle(self, event: Event, now: int) -> list[Effect]:
        """Take one fact, return the wishes that follow from it."""
        self._now = now
        # What is frequent comes first, and is not taken apart by its pattern: see the LPS's machine.
        match event:
            case Received():
                return self._on_message(event.peer, event.message, event.blob)
            case Started():
                return [SetTick(self.settings.tick_ps)] if self.settings.tick_ps else []
            case Restarted():
                return self._on_restarted()
            case Loaded(version):
                assert version.incarnation <= self.version.incarnation
                if self.phase != "loading":
                    return []  # The run was ended before it began.
                self.phase = "serving"
                return [Note("serving", {"regions": list(self.settings.regions)})]
            case Measured():
                return self._on_measured(event)
            case Delivered(peer, blob):
                self._reply_ended(peer, blob)
                return []
            case PeerLost(peer, _):
                self._reply_ended(peer, None)
                return self.admission.free(peer)
            case Tick():
                return self._on_tick()
            case StopRequested(reason):
                return self._end(reason)
            case Progress() | Trained() | Validated():
                return []
            case _:
                assert_never(event)

    def expects(self, peer: Peer, message: Message) -> bool:
        """Updates that were granted, of regions that are served."""
        if self._served_by(peer) is None or not isinstance(message, Push):
            return False
        return self.admission.expects(peer, message.push)

    def _on_restarted(self) -> list[Effect]:
        """Go on where the process before this one was killed. Its peers ask again for what was lost on
        the way, and nobody was silent: it was us who did not listen."""
        for region in self.regions.values():
            region.replying, region.heard_at = None, self._now
        self.evaluators.restarted(self._now)
        self._is_settled = False
        effects = self.admission.restarted()
        if self.settings.tick_ps:
            effects.append(SetTick(self.settings.tick_ps))
        effects.append(Note("restarted", {"phase": self.phase, "version": self.version.counter}))
        if self.phase == "finished":
            effects.append(Finish(self.end_reason, self.error))
        return effects

    def reopen(self) -> None:
        """Become a later life of the run than the one whose state this is, which may not have been the
        last: what peers hold of any life before is void, its samples are lent anew, and an end that it
        came to is none."""
        incarnation = self.settings.incarnation
        assert incarnation > self.version.incarnation, (incarnation, self.version)
        self.version = Version(incarnation, self.version.counter)
        for region in self.regions.values():
            region.part()
            # As in `__init__`, and higher than what is known, should it have grown faster.
            region.fence = max(region.fence, incarnation - 1)
            self.ledger.reclaim(region.name)
        self.ledger.reopen()
        self.evaluators = Evaluators()
        self.admission = self._new_admission()
        self._reached.clear()
        if self.started_at is not None and self.ended_at is not None:
            self.started_at += self._now - self.ended_at  # Time since the end does not count.
        self.refusals.clear()
        self.phase, self.ended_at, self.end_reason, self.error = "serving", None, "", ""
        self._is_settled = False

    # --- who talks -----------------------------------------------------------------------------------

    def _on_message(self, peer: Peer, message: Message, blob: BlobId | None) -> list[Effect]:
        region = self._served_by(peer)
        if region is not None:
            region.heard_at = self._now
        effects: list[Effect]
        if isinstance(message, Hello):
            effects = self._on_hello(peer, message)
        elif region is not None:
            if isinstance(message, Push) and blob is not None:
                return self._on_push(region, peer, message, blob)
            effects = self._on_region_message(region, peer, message)
        elif self.evaluators.heard(peer, self._now):
            effects = self._on_evaluator_message(peer, message)
        elif isinstance(message, Leave):
            effects = self._goodbye(peer, message)
        else:
            effects = [Send(peer, Rejoin())]
        if blob is not None:
            effects.append(Release(blob))
        return effects

    def _served_by(self, peer: Peer) -> Region | None:
        for region in self.regions.values():
            if region.peer == peer:
                return region
        return None

    def _on_hello(self, peer: Peer, message: Hello) -> list[Effect]:
        if message.protocol != PROTOCOL_VERSION:
            fault = f"protocol {message.protocol} is not {PROTOCOL_VERSION}: update the older node"
            return [Send(peer, Refuse(fault))]
        match message.role:
            case "lps":
                return self._on_region_hello(peer, message)
            case "evaluator":
                return self._on_evaluator_hello(peer, message)
            case "worker":
                return [Send(peer, Refuse("workers attach to their region's LPS, not to the GPS"))]
            case _:
                assert_never(message.role)

    def _on_region_hello(self, peer: Peer, message: Hello) -> list[Effect]:
        name, names = message.address.region, self.settings.regions
        if name not in names:
            fault = f"region {name!r} is not in the run; there are {list(names)}"
            return [Send(peer, Refuse(fault))]
        region = self.regions[name]
        if self.phase in ("draining", "finished"):
            return [Send(peer, Stop(self.end_reason))]
        effects: list[Effect] = []
        if region.peer != peer:
            # Incarnations are seconds of walls' clocks, which may be wrong: who is silent gives way to anybody.
            silent = self._now - region.heard_at > self.settings.lost_after_ps
            earlier = message.incarnation <= region.incarnation
            if region.peer is not None and earlier and not silent:
                return [Send(peer, Wait(f"region {region.name}, which another process serves"))]
            if region.peer is not None:
                effects += self._part(region, "replaced by a later process")
            returned = self.ledger.reclaim(region.name)
            region.admit(peer, message.incarnation, self._now)
            note = {"region": region.name, "fence": region.fence, "returned": returned}
            effects.append(Note("region_joined", note))
        return [*effects, Send(peer, self._welcome(region.fence))]

    def _on_evaluator_hello(self, peer: Peer, message: Hello) -> list[Effect]:
        for name, theirs, ours in (
            ("model fingerprint", message.fingerprint, self.settings.fingerprint),
            ("corpus digest", message.corpus, self.settings.corpus),
        ):
            if theirs != ours:
                return [Send(peer, Refuse(f"{name} {theirs!r} is not the run's {ours!r}"))]
        self.evaluators.admit(peer, self._now)
        return [Send(peer, self._welcome(0))]

    def _welcome(self, fence: int) -> Welcome:
        return Welcome(
            incarnation=self.settings.incarnation,
            fence=fence,
            group=-1,
            manifest=self.settings.manifest if fence else (),
            fingerprint=self.settings.fingerprint,
            corpus=self.settings.corpus,
        )

    # --- regions -------------------------------------------------------------------------------------

    def _on_region_message(self, region: Region, peer: Peer, message: Message) -> list[Effect]:
        match message:
            case LeaseRequest():
                return self._on_lease_request(region, peer, message)
            case Heartbeat(report):
                if isinstance(report, RegionReport):
                    region.reported(report)
                over = self.phase in ("draining", "finished")
                return [Send(peer, Stop(self.end_reason) if over else Heartbeat(None))]
            case Pull():
                return self._reply(region, None)
            case Offer(push):
                return self._on_offer(region, peer, push)
            case Leave():
                return self._on_leave(region, peer, message)
            case _:
                fields = {"region": region.name, "message": type(message).__name__}
                return [Note("unexpected", fields)]

    def _on_lease_request(self, region: Region, peer: Peer, message: LeaseRequest) -> list[Effect]:
        if self.phase != "serving":
            return []
        if message.request > region.request and 0 < message.samples <= SAMPLES_MAX:
            if self.started_at is None:
                self.started_at = self._now
                self._reached_at = self._now
            region.request = message.request
            others = sum(each.ahead for each in self.regions.values() if each is not region)
            region.clock = max(region.clock, self.ledger.cursor - others)
            region.lent = self.ledger.lend(region.name, message.samples)
            # Not more than it can have, whatever it says.
            region.ahead = max(0, min(message.ahead, self.ledger.held[region.name].total))
        if message.request != region.request:
            return []
        return [Send(peer, LeaseGrant(region.request, region.fence, region.lent, region.clock))]

    def _on_offer(self, region: Region, peer: Peer, push: PushId) -> list[Effect]:
        outcome = region.outcome(push)
        if outcome is not None:
            settled = self.admission.settled(peer, push, outcome)
            return [*settled, *self._answer_again(region, push)]
        return self.admission.offered(peer, push) if self.phase == "serving" else []

    def _answer_again(self, region: Region, push: PushId) -> list[Effect]:
        """The region asks about an update that is settled: its answer was lost, or is still on its way."""
        if push != (region.newest, region.fence) or region.replying is not None:
            return []
        return self._reply(region, push)

    def _on_push(self, region: Region, peer: Peer, message: Push, blob: BlobId) -> list[Effect]:
        outcome = region.outcome(message.push)
        if outcome is not None:
            return [Release(blob), *self.admission.settled(peer, message.push, outcome)]
        return self.admission.arrived(peer, message, blob)

    def _on_measured(self, event: Measured) -> list[Effect]:
        pending = self.admission.measured(event.blob)
        if pending is None:
            return []
        peer, message = pending
        region = self._served_by(peer)
        effects = self.admission.free(peer, message.push)
        if self.phase != "serving" or region is None or region.outcome(message.push) is not None:
            return [*effects, Release(event.blob)]  # Over, or fenced while it was being measured.
        fault = self._update_fault(region, message, event)
        if fault:
            region.settle(message.push, "rejected")
            held = self.ledger.held[region.name]
            self.ledger.give_back(region.name, held.common(message.spans))
            self.ledger.give_back(region.name, held.common(message.dropped))
            fields = {"region": region.name, "why": fault, "norm": event.norm}
            effects += [Note("update_rejected", fields), Release(event.blob)]
            effects.append(Send(peer, Ack(message.push, "rejected")))
            verdict = self.refusals.refused(region.name, self._present())
            return [*effects, *self._on_rejected(region, peer, message.push, fault, verdict)]
        effects += self._apply(region, message, event)
        effects.append(Send(peer, Ack(message.push, "applied")))
        if self.counted_steps >= self.settings.budget_local_steps:
            return [*effects, *self._end("budget of local steps reached")]
        return [*effects, *self._reply(region, message.push), *self._serve_evaluators()]

    def _on_rejected(
        self, region: Region, peer: Peer, push: PushId, fault: str, verdict: Verdict
    ) -> list[Effect]:
        """What follows from another update of a region that came to nothing."""
        if verdict == "go on":
            return self._reply(region, push)
        settings, count = self.settings, self.refusals.in_a_row[region.name]
        error = hopeless(
            f"region {region.name}",
            count,
            fault,
            settings.max_lr,
            settings.update_norm_max,
            NORM_KEY,
        )
        if verdict == "all":
            return self._fail(error)
        self.ledger.reclaim(region.name)
        return [Send(peer, Refuse(error)), *self._part(region, "its updates are rejected")]

    def _present(self) -> list[Client]:
        return [each.name for each in self.regions.values() if each.peer is not None]

    def _fail(self, error: str) -> list[Effect]:
        """Nobody's updates can be applied any more."""
        if self.phase in ("draining", "finished"):
            return []
        self.error = error
        return [Note("giving_up", {"why": error}), *self._end("no update can be applied any more")]

    def _update_fault(self, region: Region, message: Push, event: Measured) -> str:
        fault = update_fault(event, self.settings.update_norm_max, NORM_KEY)
        if fault:
            return fault
        # A step takes a sample at least. Those of samples that were dropped count as well.
        samples = samples_of((*message.spans, *message.dropped))
        tokens_max = samples * self.settings.sample_tokens
        if not 0 <= message.steps <= samples or not 0 <= message.tokens <= tokens_max:
            claim = f"{message.steps} steps and {message.tokens} tokens"
            return f"{claim} are more than {samples} samples give"
        if not self.ledger.holds(region.name, (*message.spans, *message.dropped)):
            return "samples that this region does not hold"
        return ""

    def _apply(self, region: Region, message: Push, event: Measured) -> list[Effect]:
        self.refusals.accepted(region.name)
        self.ledger.consume(region.name, message.spans, message.dropped)
        # A base that is no version of ours yet is a peer's mistake, and cannot count more than in full.
        staleness = max(0, self.version.counter - message.base.counter)
        weight = (1.0 + staleness) ** -self.settings.staleness_power
        self.version = Version(self.version.incarnation, self.version.counter + 1)
        self.updates += 1
        self.counted_steps += message.steps
        self.samples += samples_of(message.spans) + samples_of(message.dropped)
        self.tokens += message.tokens
        self._reached_at = self._now
        region.settle(message.push, "applied")
        region.updates += 1
        fields = {
            "region": region.name,
            "version": self.version.counter,
            "exchange": message.push.lease,
            "fence": message.push.fence,
            "spans": message.spans,
            "dropped": message.dropped,
            "steps": message.steps,
            "cumulative_steps": self.counted_steps,
            "elapsed_ps": self.elapsed_ps(),
            "staleness": staleness,
            "norm": event.norm,
            "loss": message.loss,
        }
        return [Apply("step", event.blob, weight), Release(event.blob), Note("arrival", fields)]

    def _reply(self, region: Region, answers: PushId | None) -> list[Effect]:
        if self.phase == "loading" or region.peer is None:
            return []
        if answers is None and region.replying is not None:
            return []  # What it asks for is on its way.
        blob = self._new_blob()
        region.replying = blob
        message = Model(self.version, self.counted_steps, None, answers, final=False)
        return [Pin(blob), Send(region.peer, message, blob), Release(blob)]

    def _on_leave(self, region: Region, peer: Peer, message: Leave) -> list[Effect]:
        if isinstance(message.report, RegionReport):
            region.reported(message.report)
        present = self._present()
        effects = self._part(region, message.reason)
        if self.phase in ("draining", "finished"):
            self.ledger.settle(region.name, message.unexchanged, message.dropped)
        else:
            # The run goes on: what never reached the global model is trained again by others.
            self.ledger.reclaim(region.name)
        effects.append(Send(peer, Goodbye()))
        if message.error:
            effects.append(Note("region_failed", {"region": region.name, "why": message.error}))
            if self.refusals.given_up(region.name, present) == "all":
                return [*effects, *self._fail(message.error)]
        return [*effects, *self._maybe_finish()]

    def _part(self, region: Region, reason: str) -> list[Effect]:
        """A region's process is gone; whoever serves the region next gets a higher fence."""
        assert region.peer is not None
        effects = self.admission.free(region.peer)
        region.part()
        return [Note("region_left", {"region": region.name, "why": reason}), *effects]

    def _reply_ended(self, peer: Peer, blob: BlobId | None) -> None:
        for region in self.regions.values():
            if region.peer == peer and (blob is None or region.replying == blob):
                region.replying = None
        self.evaluators.reply_ended(peer, blob)

    # --- evaluators ----------------------------------------------------------------------------------

    def _on_evaluator_message(self, peer: Peer, message: Message) -> list[Effect]:
        match message:
            case Heartbeat(report):
                limit_ps = self.settings.stuck_after_ps
                quiet_ms = report.quiet_ms if isinstance(report, WorkerReport) else 0
                if limit_ps and quiet_ms * PS_PER_MS > limit_ps:
                    self.evaluators.remove(peer)
                    note = Note("evaluator_left", {"why": "stuck"})
                    return [note, Send(peer, Rejoin()), *self._maybe_finish()]
                return [Send(peer, Heartbeat(None))]
            case Pull(_, after_steps):
                self.evaluators.wants(peer, after_steps)
                return self._serve_evaluators()
            case Evaluated():
                return self._on_evaluated(message)
            case Leave(reason):
                self.evaluators.remove(peer)
                note = Note("evaluator_left", {"why": reason})
                return [note, *self._goodbye(peer, message), *self._maybe_finish()]
            case _:
                return [Note("unexpected", {"peer": peer, "message": type(message).__name__})]

    def _serve_evaluators(self) -> list[Effect]:
        if self.phase == "loading":
            return []
        final = self.phase != "serving"
        effects: list[Effect] = []
        for peer in self.evaluators.ready(self.counted_steps, final):
            blob = self._new_blob()
            self.evaluators.replying(peer, blob)
            self._reached[self.version] = self._reached_at, self.counted_steps
            if len(self._reached) > REACHED_MAX:
                self._reached.popitem(last=False)
            message = Model(self.version, self.counted_steps, None, None, final)
            # What is measured and exported is the running mean, where one is kept; training goes on
            # from the model itself.
            pin: Effect = Pin(blob, average=True)
            effects += [pin, Send(peer, message, blob), Release(blob)]
        return effects

    def _goodbye(self, peer: Peer, message: Leave) -> list[Effect]:
        """Let one go that serves no region. An evaluator that we took for lost may have found something too."""
        found = message.report
        booked = self._on_evaluated(found) if isinstance(found, Evaluated) else []
        return [*booked, Send(peer, Goodbye())]

    def _on_evaluated(self, message: Evaluated) -> list[Effect]:
        reached = self._reached.pop(message.version, None)
        if reached is None:
            return []  # A repeat.
        reached_at, counted_steps = reached
        # The first version may have been there, and measured, before the first lease.
        elapsed = 0 if self.started_at is None else max(0, reached_at - self.started_at)
        self.validations.append((elapsed, counted_steps, message.loss))
        self.validations.sort()
        fields = {
            "version": message.version.counter,
            "counted_steps": counted_steps,
            "elapsed_ps": elapsed,
            "loss": message.loss,
            "tokens": message.tokens,
        }
        return [Note("validation", fields)]

    # --- time, and the end ---------------------------------------------------------------------------

    def elapsed_ps(self) -> int:
        """Time since the first lease, until the end of the run once that came. The driver's clock stands still
        while there is no GPS."""
        if self.started_at is None:
            return 0
        return (self._now if self.ended_at is None else self.ended_at) - self.started_at

    def _on_tick(self) -> list[Effect]:
        if self.phase == "finished":
            return []
        effects: list[Effect] = []
        budget_ps = self.settings.budget_ps
        if self.phase == "serving" and budget_ps and self.elapsed_ps() >= budget_ps:
            effects += self._end("budget of minutes reached")
        silence = self.settings.lost_after_ps
        if self.phase == "serving":
            silence = self.settings.region_lost_after_ps
        for region in self.regions.values():
            if region.peer is None or self._now - region.heard_at <= silence:
                continue
            peer = region.peer
            effects += [*self._part(region, "lost: no heartbeat"), Send(peer, Rejoin())]
            self.ledger.reclaim(region.name)
        then = self._now - self.settings.lost_after_ps
        silent = [each.peer for each in self.regions.values() if each.heard_at < then]
        effects += self.admission.tick([peer for peer in silent if peer is not None])
        for peer in self.evaluators.silent_since(then):
            self.evaluators.remove(peer)
            effects.append(Note("evaluator_left", {"why": "lost: no heartbeat"}))
        if self.phase == "draining":
            peers = [each.peer for each in self.regions.values() if each.peer is not None]
            effects += [Send(peer, Stop(self.end_reason)) for peer in peers]
        return [*effects, self._status(), *self._maybe_finish()]

    def _status(self) -> Note:
        return Note(
            "status",
            {
                "phase": self.phase,
                "elapsed_ps": self.elapsed_ps(),
                "version": self.version.counter,
                "counted_steps": self.counted_steps,
                "tokens": self.tokens,
                "regions": {each.name: each.summary() for each in self.regions.values()},
            },
        )

    def _end(self, reason: str) -> list[Effect]:
        """No update is applied any more; everybody settles and leaves, the evaluator with the last version."""
        if self.phase in ("draining", "finished"):
            return []
        self.phase, self.end_reason, self.ended_at = "draining", reason, self._now
        note = Note("draining", {"why": reason})
        peers = [each.peer for each in self.regions.values() if each.peer is not None]
        stops: list[Effect] = [Send(peer, Stop(reason)) for peer in peers]
        return [note, *stops, *self._serve_evaluators(), *self._maybe_finish()]

    def _maybe_finish(self) -> list[Effect]:
        if self.phase != "draining":
            return []
        if any(region.peer is not None for region in self.regions.values()):
            return []
        if len(self.evaluators):
            # All is known but what they still find; it is written before they are waited for.
            said, self._is_settled = self._is_settled, True
            return [] if said else [Note(SETTLED, {"waiting_for": len(self.evaluators)})]
        self.phase = "finished"
        return [self._status(), Finish(self.end_reason, self.error)]

    def _new_blob(self) -> BlobId:
        self._next_blob += 1
        return self._next_blob - 1

    def check(self) -> None:
        """Assert the invariants of the GPS."""
        self.ledger.check()  # G1: every issued sample is in exactly one place, none was applied twice.
        self.admission.check()
        # G2: the model moved exactly once for every update that was answered "applied".
        assert self.updates == self.version.counter == sum(r.updates for r in self.regions.values())
        for region in self.regions.values():
            region.check()
            # G3: only a region that somebody serves, or served before it was lost, holds samples.
            assert region.peer is not None or not self.ledger.held.get(region.name), region.name
        # G5: a place is held by a region that somebody serves, and one at most.
        served = {region.peer for region in self.regions.values()}
        assert served.issuperset((*self.admission.staging.granted, *self.admission.staging.late))
        assert (self.phase == "finished") <= (self.ended_at is not None)  # G4
