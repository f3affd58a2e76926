"""The local parameter server's decisions: HALoS's inner server, with leases and exactly-once updates.

This machine gives each event to the conversation that it belongs to: `lps.membership` and
`lps.exchange_session` with the GPS, `lps.workers` with the workers. It decides itself what concerns
several of them. Nothing here performs anything. Invariants are numbered L1... in docs/ARCHITECTURE.md and
asserted by `check`. Source of the algorithm: Kim et al., HALoS, ICML 2025 (arXiv 2506.04531), and the
behaviour of the authors' simulator.
"""

from dataclasses import replace
from typing import Final, assert_never

from lps.exchange import Exchanges
from lps.exchange_session import ExchangeSession
from lps.machine_settings import LpsSettings
from lps.members import Member
from lps.membership import RunMembership
from lps.model import RegionModel
from lps.workers import RegionWorkers
from pelago.core.durable import durable
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
from pelago.core.names import Address, BlobId, Peer, PushId
from pelago.core.notes.common import Draining, GivingUp, ServerRestarted, UnexpectedMessage
from pelago.core.notes.lps import Rejoining
from pelago.core.tensor_effects import Apply, Loaded, Measured, Release
from pelago.protocol.client_session import ClientSession
from pelago.protocol.update_admission import UpdateAdmission
from pelago.wire.messages import (
    PROTOCOL_VERSION,
    Ack,
    Busy,
    Effect,
    Failed,
    Goodbye,
    Grant,
    Heartbeat,
    Hello,
    LeaseAhead,
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
    ServerEvent,
    Stop,
    Wait,
    Welcome,
)

WORKERS_NAMED_MAX: Final = 16
WORKERS_NAMED_EVERY: Final = 16
"""Up to `WORKERS_NAMED_MAX` workers are named in every heartbeat to the GPS, more of them only in one of
`WORKERS_NAMED_EVERY`."""


@durable(settings=("settings",))
class Lps:
    """One region's server."""

    def __init__(self, settings: LpsSettings) -> None:
        self.settings = settings
        address = Address(settings.region)
        self.session = ClientSession(
            settings.gps,
            Hello(PROTOCOL_VERSION, "lps", address, settings.incarnation, "", ""),
            settings.retry_ps,
            settings.lost_after_ps,
            settings.give_up_after_ps,
        )
        self.membership = RunMembership(settings, self.session)
        self.model = RegionModel(settings)
        self.exchanges = Exchanges(settings.updates_per_exchange, settings.in_flight)
        self.exchange_session = ExchangeSession(settings, self.session, self.model, self.exchanges)
        self.admission = UpdateAdmission(
            settings.staged_max, settings.retry_ps, settings.lost_after_ps, settings.tick_ps
        )
        self.workers = RegionWorkers(
            settings,
            self.membership,
            self.model,
            self.exchanges,
            self.exchange_session,
            self.admission,
        )
        self._ticks = 0
        self._now = 0

    # --- events --------------------------------------------------------------------------------------

    def handle(self, event: ServerEvent, now: int) -> list[Effect]:
        """Take one event, return the effects that follow from it."""
        self._now = now
        # What is frequent comes first and is not taken apart by its pattern, which takes several times
        # as long as looking at its fields. It is so wherever a `match` is asked for every event.
        match event:
            case Received():
                if event.peer == self.settings.gps:
                    return self._on_gps_message(event)
                return self._on_worker_message(event)
            case Delivered():
                return self._on_delivered(event)
            case Measured():
                return [*self.workers.measured(event, now), *self._maybe_give_up()]
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
                self.membership.allow_return()
                return self._drain(reason)
            case Loaded(version):
                self.membership.preloaded = version
                return []
            case _:
                assert_never(event)

    def expects(self, peer: Peer, message: Message) -> bool:
        """Updates that were granted, of members; of the GPS's models the first one, and the answer to the
        exchange under way."""
        if isinstance(message, Push):
            member = self.workers.members.get(peer)
            return member is not None and self.admission.expects(peer, message.push)
        if peer != self.settings.gps or not isinstance(message, Model):
            return False
        phase = self.membership.phase
        return phase == "loading" or (phase == "serving" and self.exchanges.awaits(message.answers))

    def _on_restarted(self) -> list[Effect]:
        """Go on where the process before this one was killed. Peers repeat what was lost on the way, and so
        does this LPS."""
        self.workers.restarted(self._now)
        self.session.restarted(self._now)
        effects = self.admission.restarted()
        if self.settings.tick_ps:
            effects.append(SetTick(self.settings.tick_ps))
        phase = self.membership.phase
        effects.append(ServerRestarted(phase, self.model.version))
        if phase == "gone":
            if self.membership.come_back():
                return [*effects, *self._begin_anew()]
            return [*effects, Finish("run finished")]
        return effects if self.session.joined else [*effects, *self.session.join()]

    # --- the GPS's side ------------------------------------------------------------------------------

    def _on_gps_message(self, event: Received[Message]) -> list[Effect]:
        message, blob = event.message, event.blob
        effects: list[Effect] = self.session.heard(self._now)
        phase = self.membership.phase
        match message:
            case LeaseGrant():
                effects += self._on_lease_grant(message)
            case Welcome() if not self.session.joined and phase != "gone":
                effects += self._on_welcome(message)
            case Wait(what):
                effects += self.session.waiting(what)
            case Refuse(detail) if phase != "gone":
                effects += [*self.workers.stop("refused"), *self.membership.refused(detail)]
            case Rejoin():
                effects += self._on_rejoin()
            case Grant():
                effects += self.session.granted(message, self._now)
            case Busy():
                pass  # The GPS grants when a place is free; the tick asks again if that is lost.
            case Ack(push, outcome):
                effects += self._on_exchange_ack(push, outcome)
            case Model() if blob is not None:
                effects += self._on_global_model(message, blob, event.payload_bytes)
            case Stop(reason):
                effects += self._drain(reason)
            case Goodbye() if phase == "leaving":
                effects += self.membership.finish(self.workers.error)
            case _:
                effects += [Release(blob)] if blob is not None else []
        return effects

    def _on_welcome(self, message: Welcome) -> list[Effect]:
        effects, preloaded = self.membership.welcome(message, self._now)
        if preloaded is None:
            return effects
        self.exchanges.reset(preloaded, self.model.version)
        return [*effects, *self.workers.serve(self._now)]

    def _on_rejoin(self) -> list[Effect]:
        """The GPS does not know this region: it lent the samples to others, or it restarted. Leases and updates that
        were not exchanged are void; the region starts again from the next global model."""
        if self.membership.phase == "gone":
            return []
        if self.membership.phase == "leaving":
            # There is nothing to settle with a GPS that does not know this region.
            return self.membership.finish(self.workers.error)
        return self._begin_anew()

    def _begin_anew(self) -> list[Effect]:
        self.workers.void()
        released = self.exchange_session.release()
        self.exchanges.void()
        self.workers.prefetch.void()
        return [Rejoining(), *released, *self.membership.begin_anew()]

    def _on_lease_grant(self, message: LeaseGrant) -> list[Effect]:
        if not self.workers.prefetch.expects(message):
            return []
        if message.fence != self.session.fence:
            # The Welcome was an old one, or of an earlier incarnation of the GPS.
            return self._on_rejoin()
        if self.membership.phase != "serving":
            return []
        self.workers.prefetch.void()
        # If the GPS lends samples of an exchange, it rejected that exchange; its Ack is late, or lost.
        rejected = self.exchanges.holding(message.spans)
        decided = [] if rejected is None else self._on_exchange_ack(rejected, "rejected")
        self.workers.leases.add(message.spans, message.clock)
        return [*decided, *self.workers.serve(self._now)]

    def _on_global_model(self, message: Model, blob: BlobId, payload_bytes: int) -> list[Effect]:
        phase = self.membership.phase
        if phase == "loading":
            self.membership.loaded()
            self.model.count_exchange_payload(payload_bytes)
            self.exchanges.reset(message.version, self.model.version)
            return [Apply("load", blob), Release(blob), *self.workers.serve(self._now)]
        if phase != "serving" or not self.exchanges.awaits(message.answers):
            return [Release(blob)]
        self.model.count_exchange_payload(payload_bytes)
        return self.exchange_session.answered(message, blob, self._now)

    def _on_exchange_ack(self, push: PushId, outcome: Outcome) -> list[Effect]:
        if not self.exchanges.awaits(push):
            return []
        return (
            self._on_rejoin()
            if outcome == "fenced"
            else self.exchange_session.acknowledged(outcome)
        )

    # --- the workers' side ---------------------------------------------------------------------------

    def _on_worker_message(self, event: Received[Message]) -> list[Effect]:
        peer, message, blob = event.peer, event.message, event.blob
        member = self.workers.members.get(peer)
        if member is not None:
            # Whatever the message is: it may be a Hello that cannot be answered yet.
            member.heard_at = self._now
        effects: list[Effect]
        if isinstance(message, Hello):
            effects = self._on_hello(peer, message)
        elif member is None:
            effects = [Send(peer, Goodbye() if isinstance(message, Leave) else Rejoin())]
        elif isinstance(message, Push) and blob is not None:
            return self.workers.pushed(member, message, blob, event.payload_bytes)
        else:
            effects = self._on_member_message(member, message)
        if blob is not None:
            effects.append(Release(blob))
        return effects

    def _on_member_message(self, member: Member, message: Message) -> list[Effect]:
        workers, now = self.workers, self._now
        match message:
            case Offer():
                return workers.offered(member, message.push)
            case Pull():
                return workers.pull(member, message.samples, now)
            case LeaseAhead():
                return workers.lease_ahead(member, message, now)
            case Failed():
                return [*workers.failed(member, message, now), *self._maybe_give_up()]
            case Heartbeat(report):
                if workers.is_stuck(member, report):
                    return [*workers.remove(member, "stuck", now), Send(member.peer, Rejoin())]
                stopping = self.membership.phase in ("draining", "leaving")
                return [Send(member.peer, Stop("run finished") if stopping else Heartbeat(None))]
            case Leave():
                return [*workers.leave(member, message, now), *self._maybe_leave()]
            case _:
                return [UnexpectedMessage(member.peer, type(message).__name__)]

    def _on_hello(self, peer: Peer, message: Hello) -> list[Effect]:
        if self.membership.is_over:
            return [Send(peer, Stop("run finished"))]
        if not self.session.joined:
            return [Send(peer, Wait(f"the GPS, for which the LPS of {self.settings.region} waits"))]
        return self.workers.join(peer, message, self._now)

    def _on_delivered(self, event: Delivered) -> list[Effect]:
        if event.peer == self.settings.gps:
            self.session.delivered(event.blob, self._now)
            self.model.count_exchange_payload(event.payload_bytes)
        else:
            self.model.count_worker_payload(event.payload_bytes)
            return self.workers.delivered(event.peer, event.blob, self._now)
        return []

    def _on_transfer_lost(self, peer: Peer) -> list[Effect]:
        if peer == self.settings.gps:
            self.session.lost(self._now)
            return []
        return self.workers.transfer_lost(peer, self._now)

    # --- time, and the end ---------------------------------------------------------------------------

    def _on_tick(self) -> list[Effect]:
        if self.membership.phase == "gone":
            return []
        effects = [*self.workers.remove_silent(self._now), *self.admission.tick()]
        if self.membership.phase == "leaving":
            return [*effects, *self.session.leave_again()]
        effects += self.session.tick(self._brief_report(), self._now)
        if self.session.gives_up(self._now):
            return effects  # Nothing changes: the next process waits again, and then continues.
        effects += self.membership.pull_again(self._now)
        if self.session.joined:
            request = self.workers.prefetch.repeat(self._now - self.settings.retry_ps, self._now)
            effects += [] if request is None else [Send(self.settings.gps, request)]
        if self.membership.phase == "draining":
            effects += [*self.workers.stop("run finished"), *self._maybe_leave()]
        return effects

    def _brief_report(self) -> RegionReport:
        """For a heartbeat. The GPS journals each one, so a large region names its workers in few of them."""
        report = self.report()
        self._ticks += 1
        if len(report.workers) <= WORKERS_NAMED_MAX or self._ticks % WORKERS_NAMED_EVERY == 0:
            return report
        return replace(report, workers=())

    def report(self) -> RegionReport:
        """The region's counts so far."""
        return RegionReport(
            updates=self.model.version,
            exchanges=self.exchanges.count,
            in_flight_updates=self.exchanges.in_flight_updates,
            staleness_max=self.model.staleness_max,
            lan_bytes=self.model.lan_bytes,
            wan_bytes=self.model.wan_bytes,
            exchanging=self.exchanges.current is not None,
            workers=self.workers.members.reports(),
            rejected=self.workers.refusals.total,
        )

    def _maybe_give_up(self) -> list[Effect]:
        """Leave the run if no worker's update can be applied any more. The next process of this LPS starts from the
        global model."""
        error = self.workers.error
        if not error or self.membership.is_over:
            return []
        self.membership.allow_return()
        return [GivingUp(error), *self._drain("this region learns nothing")]

    def _drain(self, reason: str) -> list[Effect]:
        """The end of the run, or of this process: let the workers leave, then leave."""
        if self.membership.is_over:
            return []
        stops = self.workers.stop(reason)
        if not self.session.joined:
            return [*stops, *self.membership.give_up_joining(reason, self.workers.error)]
        self.membership.drain()
        return [Draining(reason), *stops, *self._maybe_leave()]

    def _maybe_leave(self) -> list[Effect]:
        if self.membership.phase != "draining" or len(self.workers.members):
            return []
        effects = self.exchange_session.release()
        self.workers.prefetch.void()
        unexchanged, dropped = self.exchanges.settle()
        returned = self.workers.leases.void()
        error = self.workers.error
        leave = Leave("drained", self.report(), returned, unexchanged, dropped, error)
        return [*effects, *self.membership.leave(leave)]

    def check(self) -> None:
        """Assert the invariants of an LPS."""
        self.workers.check()
        self.admission.check()
        self.exchanges.check(self.model.version)
        # L3: one exchange in flight at most, and its payload is held exactly as long.
        exchanging = self.exchanges.current is not None
        settled = self.membership.phase in ("leaving", "gone")
        assert exchanging == (self.session.upload is not None) or settled
        # L8: a place is held by a member, and one at most.
        staging = self.admission.staging
        assert all(self.workers.members.get(peer) for peer in (*staging.granted, *staging.late))
