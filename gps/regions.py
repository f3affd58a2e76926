"""The regions of the run: which process serves each, its fence, and the samples that are lent to it."""

from collections.abc import Collection
from dataclasses import dataclass, field, replace

from gps.clock import RunClock
from gps.machine_settings import GpsSettings
from pelago.core.dedupe import Outcome, Outcomes
from pelago.core.durable import durable
from pelago.core.leases import SampleLedger
from pelago.core.machine import Send
from pelago.core.names import BlobId, Peer, PushId, Spans
from pelago.core.notes.gps import RegionJoined, RegionLeft, RegionSummary
from pelago.core.refusals import Client
from pelago.protocol.update_admission import UpdateAdmission
from pelago.wire.messages import (
    SAMPLES_MAX,
    Effect,
    Hello,
    LeaseGrant,
    LeaseRequest,
    RegionReport,
    Rejoin,
    Wait,
)


@durable()
@dataclass(slots=True)
class Region:
    """One region of the run file."""

    name: str
    fence: int
    """The fence of the process that serves it; the next process gets a higher one."""
    peer: Peer | None = None
    """The LPS process that serves it; None: there is none."""
    incarnation: int = -1
    heard_at: int = 0
    updates: int = 0
    request: int = 0
    """Its newest lease request, and what was lent for it: a repeat gets the same answer."""
    lent: Spans = ()
    clock: int = 0
    """Samples that had been handed out in the whole run before those, but for what others kept in hand. It does
    not go back when others have more in hand, nor when another process serves the region."""
    ahead: int = 0
    """Samples that it had in hand after its newest request, and that no worker waited for."""
    replying: BlobId | None = None
    """The model that is on its way to it."""
    waits: bool = False
    """Whether it waits for the model, since there is no room for another version."""
    waits_for: PushId | None = None
    """The exchange that the model is to answer then."""
    report: RegionReport | None = None
    outcomes: Outcomes = field(default_factory=Outcomes)
    newest: int = 0
    """Newest exchange of this fence that was settled."""

    def admit(self, peer: Peer, incarnation: int, now: int) -> None:
        """Another process serves the region from now on. Its requests and exchanges are numbered from 1."""
        self.peer, self.incarnation, self.heard_at = peer, incarnation, now
        self.fence += 1
        self.request, self.lent, self.ahead, self.replying = 0, (), 0, None
        self.waits = False
        self.outcomes, self.newest = Outcomes(), 0

    def part(self) -> None:
        """No process serves the region any more. The next one gets a higher fence."""
        self.peer, self.ahead, self.replying = None, 0, None
        self.waits = False

    def reported(self, report: RegionReport) -> None:
        """Keep a report. One without workers leaves the last known ones in place."""
        if not report.workers and self.report is not None:
            report = replace(report, workers=self.report.workers)
        self.report = report

    def outcome(self, push: PushId) -> Outcome | None:
        """The outcome of an exchange; None: it has not been decided."""
        if push.fence != self.fence:
            return "fenced"
        return None if push.lease > self.newest else self.outcomes.get(push.lease)

    def settle(self, push: PushId, outcome: Outcome) -> None:
        """An exchange was decided. A region has one at a time, numbered upwards."""
        assert push.fence == self.fence, (push, self.fence)
        assert push.lease > self.newest, (push, self.newest)
        self.outcomes.record(push.lease, outcome)
        self.newest = push.lease

    def summary(self) -> RegionSummary:
        """For the event log and the live view: counts, however many workers there are."""
        report = self.report
        workers = report.workers if report else ()
        losses = [each.loss for each in workers if each.rounds]
        return RegionSummary(
            serving=self.peer is not None,
            exchanges=self.updates,
            updates=report.updates if report else 0,
            staleness_max=report.staleness_max if report else 0,
            exchanging=report.exchanging if report else False,
            workers=len(workers),
            steps=sum(each.steps for each in workers),
            tokens=sum(each.tokens for each in workers),
            loss=sum(losses) / len(losses) if losses else None,
        )

    def check(self) -> None:
        """Assert that a model is on its way only to a process that serves the region."""
        assert self.replying is None or self.peer is not None


@durable(settings=("_settings", "_clock", "_ledger", "_admission"))
class Regions:
    """All regions, in the order of the run file: joining, leases, leaving."""

    def __init__(
        self,
        settings: GpsSettings,
        clock: RunClock,
        ledger: SampleLedger,
        admission: UpdateAdmission,
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._ledger = ledger
        self._admission = admission
        # The fences of an incarnation begin at its number, which is a time in seconds, and grow less often than
        # once a second. So no two incarnations give the same fence, and a later one gives higher fences.
        self._by_name = {name: Region(name, settings.incarnation - 1) for name in settings.regions}

    def __getitem__(self, name: str) -> Region:
        return self._by_name[name]

    def values(self) -> Collection[Region]:
        """All of them."""
        return self._by_name.values()

    def served_by(self, peer: Peer) -> Region | None:
        """The region that a process serves; None: it serves none."""
        for region in self._by_name.values():
            if region.peer == peer:
                return region
        return None

    def peers(self) -> list[Peer]:
        """The processes that serve a region."""
        return [each.peer for each in self._by_name.values() if each.peer is not None]

    def present(self) -> list[Client]:
        """The names of the regions that are served."""
        return [each.name for each in self._by_name.values() if each.peer is not None]

    def join(self, peer: Peer, message: Hello) -> list[Effect]:
        """A process asks to serve a region of the run."""
        region = self._by_name[message.address.region]
        effects: list[Effect] = []
        if region.peer != peer:
            # Incarnations are seconds of wall clocks, which may be wrong, so any process may replace a silent one.
            silent = self._clock.now - region.heard_at > self._settings.lost_after_ps
            earlier = message.incarnation <= region.incarnation
            if region.peer is not None and earlier and not silent:
                return [Send(peer, Wait(f"region {region.name}, which another process serves"))]
            if region.peer is not None:
                effects += self.part(region, "replaced by a later process")
            returned = self._ledger.reclaim(region.name)
            region.admit(peer, message.incarnation, self._clock.now)
            effects.append(RegionJoined(region.name, region.fence, returned))
        return [*effects, Send(peer, self._settings.welcome(region.fence))]

    def lend(self, region: Region, peer: Peer, message: LeaseRequest) -> list[Effect]:
        """A region asks for samples. A repeated request gets the same answer, an earlier one none."""
        if message.request > region.request and 0 < message.samples <= SAMPLES_MAX:
            self._clock.lend()
            region.request = message.request
            others = sum(each.ahead for each in self._by_name.values() if each is not region)
            region.clock = max(region.clock, self._ledger.cursor - others)
            region.lent = self._ledger.lend(region.name, message.samples)
            # A region cannot have more in hand than it holds, whatever it claims.
            region.ahead = max(0, min(message.ahead, self._ledger.held[region.name].total))
        if message.request != region.request:
            return []
        return [Send(peer, LeaseGrant(region.request, region.fence, region.lent, region.clock))]

    def part(self, region: Region, reason: str) -> list[Effect]:
        """The process of a region is gone; the next one that serves it gets a higher fence."""
        assert region.peer is not None
        effects = self._admission.free(region.peer)
        region.part()
        return [RegionLeft(region.name, reason), *effects]

    def part_silent(self, silence_ps: int) -> list[Effect]:
        """Give up the processes that were silent for longer. Their samples are lent again."""
        effects: list[Effect] = []
        for region in self._by_name.values():
            if region.peer is None or self._clock.now - region.heard_at <= silence_ps:
                continue
            peer = region.peer
            effects += [*self.part(region, "lost: no heartbeat"), Send(peer, Rejoin())]
            self._ledger.reclaim(region.name)
        return effects

    def silent_since(self, then: int) -> list[Peer]:
        """Processes that serve a region and were not heard after ``then``."""
        silent = [each.peer for each in self._by_name.values() if each.heard_at < then]
        return [peer for peer in silent if peer is not None]

    def reply_ended(self, peer: Peer, blob: BlobId | None) -> None:
        """The model arrived at a process, or (None) was lost on the way."""
        for region in self._by_name.values():
            if region.peer == peer and (blob is None or region.replying == blob):
                region.replying = None

    def restarted(self) -> None:
        """A new process: transfers are lost, and silence counts from now, since no process was listening."""
        for region in self._by_name.values():
            region.replying, region.heard_at = None, self._clock.now

    def reopen(self) -> None:
        """No region is served any more, and all samples that regions hold are lent again."""
        for region in self._by_name.values():
            region.part()
            # As in `__init__`, but higher than all that is known, if that grew faster.
            region.fence = max(region.fence, self._settings.incarnation - 1)
            self._ledger.reclaim(region.name)

    def check(self) -> None:
        """Assert what holds of each region."""
        for region in self._by_name.values():
            region.check()
            # G3: only a region that a process serves holds samples.
            assert region.peer is not None or not self._ledger.held.get(region.name), region.name
