"""The global parameter server's decisions: HALoS's outer server, the sample ledger and the run's end.

This machine gives each event to the conversation that it belongs to: `gps.regions`, `gps.exchanges`,
`gps.evaluators`. It decides itself in which phase the run is. Nothing here performs anything. Invariants
are numbered G1... in docs/ARCHITECTURE.md and asserted by `check`. Source of the algorithm: Kim et al.,
HALoS, ICML 2025 (arXiv 2506.04531), and the behaviour of the authors' simulator.
"""

from typing import assert_never

from gps.clock import RunClock
from gps.evaluators import Evaluators
from gps.exchanges import RegionExchanges
from gps.machine_settings import GpsSettings
from gps.model import GlobalModel
from gps.phases import GPS_PHASES, GpsPhase
from gps.regions import Region, Regions
from pelago.core.durable import durable
from pelago.core.leases import SampleLedger
from pelago.core.machine import (
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
from pelago.core.names import BlobId, Peer, Version
from pelago.core.notes.common import Draining, GivingUp, ServerRestarted, UnexpectedMessage
from pelago.core.notes.gps import RegionFailed, RunStatus, Serving, Settled, UnexpectedOfRegion
from pelago.core.tensor_effects import Loaded, Measured, Release
from pelago.protocol.update_admission import UpdateAdmission
from pelago.wire.messages import (
    PROTOCOL_VERSION,
    Effect,
    Evaluated,
    Goodbye,
    Heartbeat,
    Hello,
    LeaseRequest,
    Leave,
    Message,
    Offer,
    Pull,
    Push,
    Refuse,
    RegionReport,
    Rejoin,
    ServerEvent,
    Stop,
)


@durable(settings=("settings",))
class Gps:
    """The one global server of a run."""

    def __init__(self, settings: GpsSettings) -> None:
        self.settings = settings
        self.phase: GpsPhase = "loading"
        self.clock = RunClock()
        self.model = GlobalModel(settings.incarnation, settings.versions_max)
        self.ledger = SampleLedger()
        self.admission = UpdateAdmission(
            settings.staged_max, settings.retry_ps, settings.lost_after_ps, settings.tick_ps
        )
        self.regions = Regions(settings, self.clock, self.ledger, self.admission)
        self.exchanges = RegionExchanges(
            settings, self.clock, self.model, self.ledger, self.regions, self.admission
        )
        self.evaluators = Evaluators(settings, self.clock, self.model)
        self.end_reason = ""
        self.error = ""
        """Why the run failed; empty: it did not."""
        self._is_settled = False
        """Whether it was noted that all regions have left a run that is over."""

    def handle(self, event: ServerEvent, now: int) -> list[Effect]:
        """Take one event, return the effects that follow from it."""
        self.clock.now = now
        # What is frequent comes first, and is not taken apart by its pattern: see the LPS's machine.
        match event:
            case Received():
                return self._on_message(event.peer, event.message, event.blob)
            case Started():
                return [SetTick(self.settings.tick_ps)] if self.settings.tick_ps else []
            case Restarted():
                return self._on_restarted()
            case Loaded(version):
                return self._on_loaded(version)
            case Measured():
                return self._on_measured(event)
            case Delivered(peer, blob):
                return self._reply_ended(peer, blob)
            case PeerLost(peer, _):
                return [*self._reply_ended(peer, None), *self.admission.free(peer)]
            case Tick():
                return self._on_tick()
            case StopRequested(reason):
                return self._end(reason)
            case _:
                assert_never(event)

    def expects(self, peer: Peer, message: Message) -> bool:
        """Updates that were granted, of regions that are served."""
        if self.regions.served_by(peer) is None or not isinstance(message, Push):
            return False
        return self.admission.expects(peer, message.push)

    def _enter(self, phase: GpsPhase) -> None:
        self.phase = GPS_PHASES.move(self.phase, phase)

    @property
    def is_over(self) -> bool:
        """Whether the end of the run has come: no update is applied any more."""
        return self.phase in ("draining", "finished")

    def _on_loaded(self, version: Version) -> list[Effect]:
        assert version.incarnation <= self.model.version.incarnation
        if self.phase != "loading":
            return []  # The run was ended before it began.
        self._enter("serving")
        return [Serving(self.settings.regions)]

    def _on_restarted(self) -> list[Effect]:
        """Go on where the process before this one was killed. Its peers repeat what was lost on the way."""
        self.regions.restarted()
        self.evaluators.restarted()
        self.model.in_flight.clear()
        self._is_settled = False
        effects = self.admission.restarted()
        if self.settings.tick_ps:
            effects.append(SetTick(self.settings.tick_ps))
        effects.append(ServerRestarted(self.phase, self.model.version.counter))
        if self.phase == "finished":
            effects.append(Finish(self.end_reason, self.error))
        return effects

    def reopen(self) -> None:
        """Become a later incarnation of the GPS than the one whose state this is, which may not have been the
        newest. What peers hold of earlier incarnations is void, the samples are lent anew, and an end of the
        run is none."""
        incarnation = self.settings.incarnation
        assert incarnation > self.model.version.incarnation, (incarnation, self.model.version)
        self.model.version = Version(incarnation, self.model.version.counter)
        self.regions.reopen()
        self.ledger.reopen()
        self.evaluators.reopen()
        self.admission.clear()
        self.clock.reopen()
        self.exchanges.refusals.clear()
        if self.phase != "serving":
            self._enter("serving")
        self.end_reason, self.error = "", ""
        self._is_settled = False

    # --- messages ------------------------------------------------------------------------------------

    def _on_message(self, peer: Peer, message: Message, blob: BlobId | None) -> list[Effect]:
        region = self.regions.served_by(peer)
        if region is not None:
            region.heard_at = self.clock.now
        effects: list[Effect]
        if isinstance(message, Hello):
            effects = self._on_hello(peer, message)
        elif region is not None:
            if isinstance(message, Push) and blob is not None:
                return self.exchanges.pushed(region, peer, message, blob)
            effects = self._on_region_message(region, peer, message)
        elif self.evaluators.heard(peer):
            effects = self._on_evaluator_message(peer, message)
        elif isinstance(message, Leave):
            effects = self.evaluators.goodbye(peer, message)
        else:
            effects = [Send(peer, Rejoin())]
        if blob is not None:
            effects.append(Release(blob))
        return effects

    def _on_hello(self, peer: Peer, message: Hello) -> list[Effect]:
        if message.protocol != PROTOCOL_VERSION:
            fault = f"protocol {message.protocol} is not {PROTOCOL_VERSION}: update the older node"
            return [Send(peer, Refuse(fault))]
        match message.role:
            case "lps":
                return self._on_region_hello(peer, message)
            case "evaluator":
                return self.evaluators.join(peer, message)
            case "worker":
                return [Send(peer, Refuse("workers attach to their region's LPS, not to the GPS"))]
            case _:
                assert_never(message.role)

    def _on_region_hello(self, peer: Peer, message: Hello) -> list[Effect]:
        name, names = message.address.region, self.settings.regions
        if name not in names:
            fault = f"region {name!r} is not in the run; there are {list(names)}"
            return [Send(peer, Refuse(fault))]
        if self.is_over:
            return [Send(peer, Stop(self.end_reason))]
        return self.regions.join(peer, message)

    def _on_region_message(self, region: Region, peer: Peer, message: Message) -> list[Effect]:
        match message:
            case LeaseRequest():
                return self.regions.lend(region, peer, message) if self.phase == "serving" else []
            case Heartbeat(report):
                if isinstance(report, RegionReport):
                    region.reported(report)
                return [Send(peer, Stop(self.end_reason) if self.is_over else Heartbeat(None))]
            case Pull():
                return [] if self.phase == "loading" else self.exchanges.reply(region, None)
            case Offer(push):
                return self.exchanges.offered(region, peer, push, self.phase)
            case Leave():
                return self._on_region_leave(region, peer, message)
            case _:
                return [UnexpectedOfRegion(region.name, type(message).__name__)]

    def _on_region_leave(self, region: Region, peer: Peer, message: Leave) -> list[Effect]:
        if isinstance(message.report, RegionReport):
            region.reported(message.report)
        present = self.regions.present()
        effects = self.regions.part(region, message.reason)
        if self.is_over:
            self.ledger.settle(region.name, message.unexchanged, message.dropped)
        else:
            # The run goes on: samples that never reached the global model are leased again.
            self.ledger.reclaim(region.name)
        effects.append(Send(peer, Goodbye()))
        if message.error:
            effects.append(RegionFailed(region.name, message.error))
            if self.exchanges.refusals.given_up(region.name, present) == "all":
                return [*effects, *self._fail(message.error)]
        return [*effects, *self._maybe_finish()]

    def _on_evaluator_message(self, peer: Peer, message: Message) -> list[Effect]:
        match message:
            case Heartbeat(report):
                if self.evaluators.is_stuck(report):
                    note = self.evaluators.remove(peer, "stuck")
                    return [*note, Send(peer, Rejoin()), *self._maybe_finish()]
                return [Send(peer, Heartbeat(None))]
            case Pull(_, after_steps):
                self.evaluators.wants(peer, after_steps)
                return self._serve_evaluators()
            case Evaluated():
                return self.evaluators.evaluated(message)
            case Leave(reason):
                note = self.evaluators.remove(peer, reason)
                goodbye = self.evaluators.goodbye(peer, message)
                return [*note, *goodbye, *self._maybe_finish()]
            case _:
                return [UnexpectedMessage(peer, type(message).__name__)]

    def _serve_evaluators(self) -> list[Effect]:
        if self.phase == "loading":
            return []
        return self.evaluators.serve(final=self.is_over)

    # --- updates -------------------------------------------------------------------------------------

    def _on_measured(self, event: Measured) -> list[Effect]:
        effects, applied, error = self.exchanges.measured(event, self.phase)
        if error:
            return [*effects, *self._fail(error)]
        if applied is None:
            return effects
        if self.model.counted_steps >= self.settings.budget_local_steps:
            return [*effects, *self._end("budget of local steps reached")]
        return [*effects, *self.exchanges.reply(*applied), *self._serve_evaluators()]

    def _reply_ended(self, peer: Peer, blob: BlobId | None) -> list[Effect]:
        self.regions.reply_ended(peer, blob)
        self.evaluators.reply_ended(peer, blob)
        if not self.model.in_flight.end(peer, blob):
            return []
        return self._reply_to_all_that_wait()

    def _reply_to_all_that_wait(self) -> list[Effect]:
        return [*self.exchanges.reply_to_all_that_wait(), *self._serve_evaluators()]

    # --- time, and the end ---------------------------------------------------------------------------

    def _on_tick(self) -> list[Effect]:
        if self.phase == "finished":
            return []
        effects: list[Effect] = []
        budget_ps = self.settings.budget_ps
        if self.phase == "serving" and budget_ps and self.clock.elapsed_ps() >= budget_ps:
            effects += self._end("budget of minutes reached")
        silence = self.settings.lost_after_ps
        if self.phase == "serving":
            silence = self.settings.region_lost_after_ps
        effects += self.regions.part_silent(silence)
        then = self.clock.now - self.settings.lost_after_ps
        effects += self.admission.tick(self.regions.silent_since(then))
        effects += self.evaluators.remove_silent(then)
        serving = self.regions.peers()
        if self.model.in_flight.keep(lambda peer: peer in serving or peer in self.evaluators):
            effects += self._reply_to_all_that_wait()
        if self.phase == "draining":
            effects += [Send(peer, Stop(self.end_reason)) for peer in self.regions.peers()]
        return [*effects, self._status(), *self._maybe_finish()]

    def _status(self) -> RunStatus:
        return RunStatus(
            phase=self.phase,
            elapsed_ps=self.clock.elapsed_ps(),
            version=self.model.version.counter,
            counted_steps=self.model.counted_steps,
            tokens=self.model.tokens,
            regions={each.name: each.summary() for each in self.regions.values()},
        )

    def _fail(self, error: str) -> list[Effect]:
        """No update can be applied any more."""
        if self.is_over:
            return []
        self.error = error
        return [GivingUp(error), *self._end("no update can be applied any more")]

    def _end(self, reason: str) -> list[Effect]:
        """No update is applied any more. Regions settle and leave; evaluators get the last version."""
        if self.is_over:
            return []
        self._enter("draining")
        self.end_reason, self.clock.ended_at = reason, self.clock.now
        stops: list[Effect] = [Send(peer, Stop(reason)) for peer in self.regions.peers()]
        return [Draining(reason), *stops, *self._serve_evaluators(), *self._maybe_finish()]

    def _maybe_finish(self) -> list[Effect]:
        if self.phase != "draining" or self.regions.peers():
            return []
        if len(self.evaluators):
            # Everything but their losses is known, and is written before they are waited for.
            said, self._is_settled = self._is_settled, True
            return [] if said else [Settled(len(self.evaluators))]
        self._enter("finished")
        return [self._status(), Finish(self.end_reason, self.error)]

    def check(self) -> None:
        """Assert the invariants of the GPS."""
        self.ledger.check()  # G1: every issued sample is in exactly one place, none was applied twice.
        self.admission.check()
        # G2: the model moved exactly once for every update that was answered "applied".
        applied = sum(region.updates for region in self.regions.values())
        assert self.model.updates == self.model.version.counter == applied
        self.regions.check()
        self.model.in_flight.check()
        # G5: a staging place is held by a region that a process serves, each at most one.
        served = {region.peer for region in self.regions.values()}
        assert served.issuperset((*self.admission.staging.granted, *self.admission.staging.late))
        assert (self.phase == "finished") <= (self.clock.ended_at is not None)  # G4
