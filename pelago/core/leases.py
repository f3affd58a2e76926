"""Who may train on which samples, and where each sample is.

The GPS has a `SampleLedger`: every sample below the cursor is in exactly one of its sets, so their sizes
always add up; `duplicated` counts samples that would be in two. An LPS has a `LeaseTable`, which cuts the
region's samples into leases for worker groups. A lease is open until its update is applied or it is
revoked, so the table is also the deduplication window for updates.
"""

from dataclasses import dataclass
from itertools import chain
from typing import Final

from pelago.core.dedupe import Outcome, Outcomes
from pelago.core.durable import durable
from pelago.core.names import Lease, PushId, Spans
from pelago.core.spans import SpanSet


@dataclass(frozen=True, slots=True)
class LedgerTotals:
    """Sizes of the ledger's sets in samples: issued = applied + dropped_in_flight + unexchanged + returned + held."""

    issued: int
    applied: int
    dropped_in_flight: int
    unexchanged: int
    returned: int
    held: int
    duplicated: int


SPENT_SPANS_MAX: Final = 4096
"""Spans of spent samples that are kept before the oldest are only counted; see `SampleLedger.closed`."""


@durable()
class SampleLedger:
    """All samples of the run: lent to regions, consumed by their exchanges, given back, lent again.

    Samples below ``closed`` are all spent: none is held and none is free. Only their counts are kept
    (``closed_totals``), not their spans, so the ledger stays small however long the run is.
    """

    def __init__(self) -> None:
        self.closed = 0
        self.closed_totals = {"applied": 0, "dropped": 0, "unexchanged": 0}
        self.cursor = 0
        """First sample that was never lent."""
        self.free = SpanSet()
        self.held: dict[str, SpanSet] = {}
        self.applied = SpanSet()
        self.dropped = SpanSet()
        self.unexchanged = SpanSet()
        self.duplicated = 0

    def lend(self, region: str, samples: int) -> Spans:
        """Lend samples to a region: returned ones first, then fresh ones. Returns their spans."""
        returned = min(samples, self.free.total)
        spans = self.free.take(returned) if returned else ()
        fresh = samples - returned
        if fresh:
            spans = (*spans, (self.cursor, self.cursor + fresh))
            self.cursor += fresh
        self._held(region).add(spans)
        return spans

    def holds(self, region: str, spans: Spans) -> bool:
        """Whether a region holds all of these samples."""
        return self._held(region).holds(spans)

    def consume(self, region: str, applied: Spans, dropped: Spans) -> None:
        """An exchange was applied: its samples are spent, and so are those that the region dropped."""
        self._move(region, applied, self.applied)
        self._move(region, dropped, self.dropped)
        if sum(len(spent) for spent in self._spent().values()) > SPENT_SPANS_MAX:
            self._close()

    def give_back(self, region: str, spans: Spans) -> None:
        """Samples of a region may be lent again."""
        self._move(region, spans, self.free)

    def settle(self, region: str, unexchanged: Spans, dropped: Spans) -> None:
        """A region left at the end of the run. ``unexchanged``: samples that it applied and never exchanged;
        ``dropped``: samples whose updates it dropped; the rest of what it holds is returned. If the
        acknowledgement of an exchange was lost, the region names samples that were applied here: only
        samples that it still holds are moved."""
        held = self._held(region)
        self._move(region, held.common(unexchanged), self.unexchanged)
        self._move(region, held.common(dropped), self.dropped)
        self.reclaim(region)

    def reclaim(self, region: str) -> int:
        """Take back everything a region holds, to be lent again. Returns how many samples."""
        held = self._held(region)
        samples = held.total
        self._move(region, held.spans(), self.free)
        return samples

    def reopen(self) -> None:
        """A finished run goes on: samples that regions never exchanged may be lent again."""
        self.free.add(self.unexchanged.clear())

    def totals(self) -> LedgerTotals:
        """The current sizes."""
        return LedgerTotals(
            issued=self.cursor,
            applied=self.applied.total + self.closed_totals["applied"],
            dropped_in_flight=self.dropped.total + self.closed_totals["dropped"],
            unexchanged=self.unexchanged.total + self.closed_totals["unexchanged"],
            returned=self.free.total,
            held=sum(held.total for held in self.held.values()),
            duplicated=self.duplicated,
        )

    def check(self) -> None:
        """Assert that every sample below the cursor is in exactly one set."""
        sets = [self.free, self.applied, self.dropped, self.unexchanged, *self.held.values()]
        everything = SpanSet()
        for each in sets:
            each.check()
            assert everything.add(each) == 0, "a sample is in two sets of the ledger"
        closed = SpanSet(((0, self.closed),) if self.closed else ())
        assert everything.add(closed) == 0, (
            "a sample that was spent is in a set of the ledger again"
        )
        assert sum(self.closed_totals.values()) == self.closed
        assert everything.total == self.cursor, (everything.spans(), self.cursor)
        assert self.duplicated == 0

    def _spent(self) -> dict[str, SpanSet]:
        return {"applied": self.applied, "dropped": self.dropped, "unexchanged": self.unexchanged}

    def _close(self) -> None:
        """Keep only the counts of spent samples below the lowest one that is held or free."""
        alive = [self.free, *self.held.values()]
        low = min((next(iter(each))[0] for each in alive if each), default=self.cursor)
        for name, spent in self._spent().items():
            old = spent.common(((0, low),))
            spent.remove(old)
            self.closed_totals[name] += sum(stop - start for start, stop in old)
        self.closed = low

    def _held(self, region: str) -> SpanSet:
        held = self.held.get(region)
        if held is None:
            held = self.held[region] = SpanSet()
        return held

    def _move(self, region: str, spans: Spans, target: SpanSet) -> None:
        self._held(region).remove(spans)
        self.duplicated += target.add(spans)
        for start, stop in spans:
            if start < self.closed:
                self.duplicated += min(stop, self.closed) - start


@durable()
@dataclass(slots=True)
class OpenLease:
    """A lease with the worker group that holds it."""

    lease: Lease
    group: int


@durable()
class LeaseTable:
    """A region's samples: in the pool, in open leases, or spent. Numbers start above those of every
    earlier incarnation of the server, so an old push can never name a new lease."""

    def __init__(self, incarnation: int) -> None:
        self.pool = SpanSet()
        self.open: dict[int, OpenLease] = {}
        self.outcomes = Outcomes()
        self.clock = 0
        """The clock of the newest lease, in samples; later leases never have an earlier one, see `Lease.clock`."""
        self._clock_when_empty = 0
        """The clock, in samples, once all samples in the pool are lent."""
        self._next = (incarnation << 32) + 1

    def add(self, spans: Spans, clock: int) -> None:
        """The GPS lent samples. ``clock``: samples handed out in the whole run before them, those in this pool
        included."""
        self.pool.add(spans)
        self._clock_when_empty = clock + sum(stop - start for start, stop in spans)

    def lend(self, group: int, fence: int, samples: int) -> Lease | None:
        """Cut a lease from the pool, lowest samples first; None if the pool holds too few."""
        if self.pool.total < samples:
            return None
        # Not the place of the samples in the global order: other regions have trained since they came into
        # the pool.
        self.clock = max(self.clock, self._clock_when_empty - self.pool.total)
        spans = self.pool.take(samples)
        lease = Lease(PushId(self._next, fence), spans, self.clock)
        self._next += 1
        self.open[lease.push.lease] = OpenLease(lease, group)
        return lease

    def find(self, push: PushId) -> OpenLease | None:
        """The open lease that a push was trained on; None if there is none with this number and fence."""
        held = self.open.get(push.lease)
        return held if held is not None and held.lease.push == push else None

    def outcome(self, push: PushId) -> Outcome:
        """The outcome of a push whose lease is not open, or has another fence."""
        return "fenced" if push.lease in self.open else self.outcomes.get(push.lease)

    def consume(self, push: PushId) -> Spans:
        """The update trained on this lease was applied. Returns its samples."""
        return self._close(push, "applied")

    def give_back(self, push: PushId, outcome: Outcome) -> None:
        """The lease's samples return to the pool: its holder is lost, left, or its update was rejected."""
        self.pool.add(self._close(push, outcome))

    def void(self) -> Spans:
        """Revoke every lease and empty the pool. Returns all samples that were not consumed. The clock starts
        again, because the next samples may come from an incarnation of the GPS that handed out fewer."""
        self.clock = self._clock_when_empty = 0
        spans = [self._close(held.lease.push, "fenced") for held in list(self.open.values())]
        return SpanSet(chain(self.pool.clear(), *spans)).spans()

    def check(self) -> None:
        """Assert that no sample is in two places, and that the clock never goes back."""
        everything, clock = SpanSet(self.pool), 0
        for number, held in self.open.items():
            assert number == held.lease.push.lease < self._next
            assert everything.add(held.lease.spans) == 0, "a sample is leased twice"
            assert clock <= held.lease.clock <= self.clock, "the clock of the leases went back"
            clock = held.lease.clock

    def _close(self, push: PushId, outcome: Outcome) -> Spans:
        held = self.open.pop(push.lease)
        assert held.lease.push == push, (held, push)
        self.outcomes.record(push.lease, outcome)
        return held.lease.spans
