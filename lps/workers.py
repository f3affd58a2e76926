"""The LPS's conversations with its workers: joining, leases, updates, leaving."""

from collections import deque
from dataclasses import replace
from itertools import chain
from typing import Final

from lps.exchange import Exchanges
from lps.exchange_session import ExchangeSession
from lps.lease_prefetch import LeasePrefetch
from lps.machine_settings import LpsSettings
from lps.members import Member, Members, hello_fault
from lps.membership import RunMembership
from lps.model import RegionModel
from pelago.core.durable import durable
from pelago.core.leases import LeaseTable
from pelago.core.machine import PS_PER_MS, Send
from pelago.core.names import BlobId, Lease, Peer, PushId, Version
from pelago.core.notes.lps import (
    RoundRejected,
    UnexpectedPull,
    UpdateApplied,
    WorkerJoined,
    WorkerLeft,
    WorkerRefused,
)
from pelago.core.refusals import Client, Refusals, hopeless, update_fault
from pelago.core.spans import SpanSet
from pelago.core.tensor_effects import Apply, Measured, Pin, Release
from pelago.protocol.update_admission import UpdateAdmission
from pelago.protocol.versions_in_flight import VersionsInFlight
from pelago.wire.messages import (
    Ack,
    Effect,
    Failed,
    Goodbye,
    Hello,
    LeaseAhead,
    Leave,
    Lent,
    Model,
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
NO_ROOM: Final = "room for another version of the model at its LPS (lps.models_max)"
"""What a worker is told that waits for it."""
STUCK_ROUNDS: Final = 4
"""A trainer without progress for as long as this many of its rounds took may be stuck."""


@durable(settings=("_settings", "_membership", "_model", "_exchanges", "_exchange", "_admission"))
class RegionWorkers:
    """The workers of the region, their leases, and their updates."""

    def __init__(
        self,
        settings: LpsSettings,
        membership: RunMembership,
        model: RegionModel,
        exchanges: Exchanges,
        exchange: ExchangeSession,
        admission: UpdateAdmission,
    ) -> None:
        self.members = Members()
        self.leases = LeaseTable(settings.incarnation)
        self.prefetch = LeasePrefetch()
        self.refusals = Refusals(settings.rejected_max)
        """Rejected rounds, by group."""
        self.error = ""
        """Why no worker's update can be applied any more; empty: they can."""
        self._settings = settings
        self._membership = membership
        self._model = model
        self._exchanges = exchanges
        self._exchange = exchange
        self._admission = admission
        self.in_flight = VersionsInFlight(settings.versions_max)
        """Versions on their way to members."""
        self._queue: deque[Peer] = deque()
        """Members that wait for a lease, first come first served."""

    # --- joining and leaving -------------------------------------------------------------------------

    def join(self, peer: Peer, message: Hello, now: int) -> list[Effect]:
        """A process asks to work for this region."""
        membership = self._membership
        region, corpus = self._settings.region, membership.corpus
        fault = hello_fault(message, region, membership.fingerprint, corpus)
        if fault:
            return [WorkerRefused(peer, fault), Send(peer, Refuse(fault))]
        effects: list[Effect] = []
        rival = self.members.holder(message.address.group)
        if rival is not None and rival.peer != peer:
            if message.incarnation <= rival.incarnation:
                what = f"group {rival.group}, which another process holds"
                return [Send(peer, Wait(what))]
            effects += self.remove(rival, "replaced by a later process", now)
        member = self.members.get(peer)
        if member is None:
            member = self.members.admit(peer, message, now)
            effects.append(WorkerJoined(member.group, peer))
        welcome = Welcome(
            incarnation=self._settings.incarnation,
            fence=member.fence,
            group=member.group,
            manifest=(),
            fingerprint=membership.fingerprint,
            corpus=membership.corpus,
        )
        return [*effects, Send(peer, welcome)]

    def is_stuck(self, member: Member, report: WorkerReport | RegionReport | None) -> bool:
        """Take a worker's report. Returns whether its trainer made no progress for too long.

        A slow trainer is not stuck, so a part of a round may take longer than several earlier rounds did.
        """
        if not isinstance(report, WorkerReport):
            return False
        member.report = replace(report, group=member.group)
        limit_ps = self._settings.stuck_after_ps
        patience_ps = max(limit_ps, STUCK_ROUNDS * member.round_ps)
        return bool(limit_ps) and report.quiet_ms * PS_PER_MS > patience_ps

    def leave(self, member: Member, message: Leave, now: int) -> list[Effect]:
        """A worker says goodbye."""
        if isinstance(message.report, WorkerReport):
            member.report = replace(message.report, group=member.group)
        goodbye: Effect = Send(member.peer, Goodbye())
        return [*self.remove(member, message.reason, now), goodbye]

    def remove(self, member: Member, reason: str, now: int) -> list[Effect]:
        """A member is gone: its samples return to the pool, and its fence makes later updates void."""
        lease, spans = None, None
        if member.leases:
            for each in member.leases:
                self.leases.give_back(each.push, "fenced")
            lease = member.leases[0].push.lease
            spans = SpanSet(chain(*[each.spans for each in member.leases])).spans()
        left = WorkerLeft(member.group, member.peer, reason, lease, spans)
        self.members.remove(member)
        if member.peer in self._queue:
            self._queue.remove(member.peer)
        freed = self._admission.free(member.peer)
        return [left, *freed, *self.serve(now)]

    def remove_silent(self, now: int) -> list[Effect]:
        """Give up the members that were silent for too long."""
        effects: list[Effect] = []
        for member in self.members.silent_since(now - self._settings.lost_after_ps):
            lost = self.remove(member, "lost: no heartbeat", now)
            effects += [*lost, Send(member.peer, Rejoin())]
        if self.in_flight.keep(lambda peer: self.members.get(peer) is not None):
            effects += self.serve(now)
        return effects

    def stop(self, reason: str) -> list[Effect]:
        """Ask all members to leave."""
        return [Send(member.peer, Stop(reason)) for member in self.members]

    def transfer_lost(self, peer: Peer, now: int) -> list[Effect]:
        """A transfer to or from a peer was given up. It asks again if it is alive."""
        has_room = self.in_flight.end(peer)
        member = self.members.get(peer)
        if member is None:
            return self.serve(now) if has_room else []
        member.replying = None
        freed = self._admission.free(peer)
        return [*freed, *self.serve(now)] if has_room else freed

    def delivered(self, peer: Peer, blob: BlobId, now: int) -> list[Effect]:
        """A model arrived at a worker."""
        member = self.members.get(peer)
        if member is not None and member.replying == blob:
            member.replying = None
        return self.serve(now) if self.in_flight.end(peer, blob) else []

    def restarted(self, now: int) -> None:
        """A new process: transfers are lost, and silence counts from now, since no process was listening."""
        self.in_flight.clear()
        for member in self.members:
            member.replying, member.heard_at = None, now

    def void(self) -> None:
        """All samples belong to other regions now: revoke every lease, and forget the rejections."""
        self.leases.void()
        self.refusals.clear()
        self.error = ""
        for member in self.members:
            member.leases = ()

    # --- leases --------------------------------------------------------------------------------------

    def pull(self, member: Member, samples: int, now: int) -> list[Effect]:
        """A worker asks for samples and the model; ``samples`` = 0: it asks for none."""
        if samples == 0 or member.replying is not None:
            return []
        if not 0 < samples <= self._settings.round_samples_max:
            # Its run file differs, or it is malicious; the region would hoard the samples that it asks for.
            return [UnexpectedPull(member.peer, samples)]
        if self._membership.is_over:
            return [Send(member.peer, Stop("run finished"))]
        member.wants = member.round_samples = samples
        if member.peer not in self._queue:
            self._queue.append(member.peer)
        effects = self.serve(now)
        if member.wants and not self._has_room(member):
            effects.append(Send(member.peer, Wait(NO_ROOM)))
        return effects

    def lease_ahead(self, member: Member, message: LeaseAhead, now: int) -> list[Effect]:
        """A worker that trains asks for its next lease. It gets none while it holds as many as it may."""
        if not 0 < message.samples <= self._settings.round_samples_max:
            return [UnexpectedPull(member.peer, message.samples)]
        if self._membership.is_over:
            return [Send(member.peer, Stop("run finished"))]
        later = [each for each in member.leases if each.push.lease > message.newest]
        if later:
            return [Send(member.peer, Lent(later[0]))]
        if len(member.leases) >= self._settings.leases_max:
            return []
        member.ahead = message.samples
        if member.peer not in self._queue:
            self._queue.append(member.peer)
        return self.serve(now)

    def serve(self, now: int) -> list[Effect]:
        """Answer waiting members, first come first served, as far as the samples in hand go; ask the
        GPS for what is missing."""
        effects: list[Effect] = []
        if self._membership.phase != "serving":
            return effects
        queue, wanted = self._queue, 0
        waiting: list[Peer] = []
        while queue:
            member = self.members.get(queue[0])
            if member is not None and member.wants and not self._has_room(member):
                waiting.append(queue.popleft())
                continue
            if member is not None:
                answers, wanted = self._serve_member(member, now)
                effects += answers
                if wanted:
                    break
            queue.popleft()
        queue.extendleft(reversed(waiting))
        needed = self.members.samples_in(self._settings.lease_ahead_ps)
        request = self.prefetch.ask(self.leases.pool.total, wanted, needed, now)
        if request is not None:
            effects.append(Send(self._settings.gps, request))
        return effects

    def _serve_member(self, member: Member, now: int) -> tuple[list[Effect], int]:
        """Give a member what it waits for. Returns also the samples that are missing for it; 0: none are."""
        effects: list[Effect] = []
        if member.wants:
            if not member.leases:
                if not self._lend(member, member.wants, now):
                    return effects, member.wants
                # A message with a second lease would overtake this model; the worker asks again.
                member.ahead = 0
            effects += self._answer(member)
        if member.ahead:
            has_room = len(member.leases) < self._settings.leases_max
            if has_room and not self._lend(member, member.ahead, now):
                return effects, member.ahead
            effects.append(Send(member.peer, Lent(member.leases[-1])))
            member.ahead = 0
        return effects, 0

    def _lend(self, member: Member, samples: int, now: int) -> bool:
        """Cut a lease for a member. Returns False if there are too few samples."""
        lease = self.leases.lend(member.group, member.fence, samples)
        if lease is not None:
            member.lend(lease, now)
        return lease is not None

    def _has_room(self, member: Member) -> bool:
        return self.in_flight.has_room(member.peer, self._newest)

    @property
    def _newest(self) -> Version:
        return Version(self._settings.incarnation, self._model.version)

    def _answer(self, member: Member) -> list[Effect]:
        blob, version = self._model.new_blob(), self._newest
        member.wants, member.replying = 0, blob
        self.in_flight.begin(member.peer, blob, version)
        member.sent = self._model.version
        message = Model(version, 0, member.leases[0], member.decided, final=False)
        return [Pin(blob), Send(member.peer, message, blob), Release(blob)]

    # --- updates -------------------------------------------------------------------------------------

    def offered(self, member: Member, push: PushId) -> list[Effect]:
        """A worker asks whether it may send an update."""
        held = self.leases.find(push)
        if held is None or held.group != member.group:
            return self._admission.settled(member.peer, push, self.leases.outcome(push))
        return self._admission.offered(member.peer, push)

    def pushed(
        self, member: Member, message: Push, blob: BlobId, payload_bytes: int
    ) -> list[Effect]:
        """An update arrived whole."""
        member.replying = None  # It trained on what we sent, so that arrived.
        held = self.leases.find(message.push)
        mine = held is not None and held.group == member.group
        tokens = self._settings.sample_tokens
        if held is None or not mine or not _trained_on(message, held.lease, tokens):
            outcome = self.leases.outcome(message.push)
            return [Release(blob), *self._admission.settled(member.peer, message.push, outcome)]
        return self._admission.arrived(member.peer, message, blob, payload_bytes)

    def failed(self, member: Member, message: Failed, now: int) -> list[Effect]:
        """A worker reports that its round failed."""
        member.replying = None  # It trained on what we sent, so that arrived.
        held = self.leases.find(message.push)
        if held is None or held.group != member.group:
            outcome = self.leases.outcome(message.push)
            return self._admission.settled(member.peer, message.push, outcome)
        why = f"no gradient of {message.steps} steps was finite"
        effects = self._admission.free(member.peer, message.push)
        return [*effects, *self._reject(member.peer, message.push, why, message.next_samples, now)]

    def measured(self, event: Measured, now: int) -> list[Effect]:
        """An update was measured: apply or reject it, and lend its worker the next samples."""
        pending = self._admission.measured(event.blob)
        if pending is None:
            return []
        peer, message, payload_bytes = pending
        effects = self._admission.free(peer, message.push)
        member = self.members.get(peer)
        if self.leases.find(message.push) is None or self._membership.phase == "joining":
            # Revoked while it was being measured: its samples are leased to others.
            outcome = self.leases.outcome(message.push)
            return [*effects, Release(event.blob), Send(peer, Ack(message.push, outcome))]
        fault = update_fault(event, self._settings.update_norm_max, NORM_KEY)
        if fault:
            effects.append(Release(event.blob))
            return [*effects, *self._reject(peer, message.push, fault, message.next_samples, now)]
        self._model.count_worker_payload(payload_bytes)
        effects += self._apply(message, event)
        effects.append(Send(peer, Ack(message.push, "applied")))
        if self._membership.phase == "serving":
            effects += self._exchange.begin_if_due(now)
        if member is not None:
            member.round_done(message.push, now)
            effects += self.pull(member, message.next_samples, now)
        return effects

    def _apply(self, message: Push, event: Measured) -> list[Effect]:
        self.refusals.accepted(self.leases.open[message.push.lease].group)
        spans = self.leases.consume(message.push)
        staleness = self._model.count(message.base.counter)
        self._exchanges.record(spans, message)
        applied = UpdateApplied(
            version=self._model.version,
            lease=message.push.lease,
            spans=spans,
            steps=message.steps,
            staleness=staleness,
            norm=event.norm,
            loss=message.loss,
        )
        return [Apply("step", event.blob), Release(event.blob), applied]

    def _reject(
        self, peer: Peer, push: PushId, why: str, next_samples: int, now: int
    ) -> list[Effect]:
        """A round is rejected: its samples are leased again. ``why``: for the user."""
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
            member.round_done(push, now)
        if verdict == "all":
            if not self._membership.is_over:
                self.error = self._hopeless(group, why)
            return effects
        if member is None:
            return effects
        if verdict == "it":
            effects.append(Send(peer, Refuse(self._hopeless(group, why))))
            return [*effects, *self.remove(member, "its updates are rejected", now)]
        return [*effects, *self.pull(member, next_samples, now)]

    def _hopeless(self, group: int, why: str) -> str:
        settings, count = self._settings, self.refusals.in_a_row[group]
        who = f"worker {settings.region}/{group}"
        return hopeless(who, count, why, settings.max_lr, settings.update_norm_max, NORM_KEY)

    def check(self) -> None:
        """Assert the invariants of workers and leases."""
        self.leases.check()
        held = [lease.push for member in self.members for lease in member.leases]
        assert len(set(held)) == len(held)  # L1: a lease has one holder.
        for push in held:  # L2: what a member holds is open, in its own group and fence.
            assert self.leases.find(push) is not None, push
        assert len(held) == len(self.leases.open), (held, self.leases.open)
        for member in self.members:
            assert (
                member.sent <= self._model.version
            )  # L4: it saw no version that is not there yet.
            assert len(member.leases) <= self._settings.leases_max  # L9


def _trained_on(message: Push, lease: Lease, sample_tokens: int) -> bool:
    """Whether an update's claims are possible: it covers its whole lease, with at most one step a sample."""
    steps = 0 < message.steps <= lease.samples
    tokens = 0 <= message.tokens <= lease.samples * sample_tokens
    return steps and tokens and message.spans == lease.spans
