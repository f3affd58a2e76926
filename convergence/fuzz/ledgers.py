"""The ledgers that a server's notes give: samples trained, exchanges begun, updates that arrived.

A ledger is the sum of its entries, one for each relevant note, so it can be rebuilt from the entries that
survive a crash.
"""

from dataclasses import dataclass, field
from typing import TypeAlias

from pelago.core.names import PushId
from pelago.core.notes.gps import ExchangeArrived
from pelago.core.notes.lps import ExchangeBegun, Rejoining, UpdateApplied
from pelago.core.spans import SpanSet
from pelago.wire.messages import Push

LedgerNote: TypeAlias = UpdateApplied | ExchangeBegun | Rejoining | ExchangeArrived
"""The notes that ledgers hold."""


@dataclass(frozen=True, slots=True)
class LedgerEntry:
    """A note, the number of the record of its event, and the update that it is about."""

    number: int
    note: LedgerNote
    push: Push | None
    peer: str
    """The peer whose update it is; empty: this server's own, or none."""


@dataclass(slots=True)
class LocalLedger:
    """The ledger of an LPS."""

    updates: dict[PushId, Push] = field(default_factory=dict)
    """Updates that it applied."""
    begun: dict[PushId, Push] = field(default_factory=dict)
    """Exchanges that it began."""
    fresh: SpanSet = field(default_factory=SpanSet)
    """Samples that it trained on and that are in no exchange yet."""

    def add(self, entry: LedgerEntry) -> None:
        """Add an entry. Raises `AssertionError` if it contradicts an earlier one."""
        push = entry.push
        match entry.note:
            case UpdateApplied():
                assert push is not None
                assert push.push not in self.updates, f"{push.push} was applied twice"
                assert self.fresh.add(push.spans) == 0, f"{push.spans} were trained on twice"
                self.updates[push.push] = push
            case ExchangeBegun():
                assert push is not None
                assert push.push not in self.begun, f"{push.push} was begun twice"
                inside = SpanSet()
                assert inside.add((*push.spans, *push.dropped)) == 0
                assert inside.spans() == self.fresh.spans(), (
                    f"an exchange holds {inside.spans()}, trained were {self.fresh.spans()}"
                )
                self.fresh.clear()
                self.begun[push.push] = push
            case Rejoining():
                self.fresh.clear()

    def has(self, _peer: str, push: PushId) -> bool:
        """Whether an update of a peer was applied."""
        return push in self.updates


@dataclass(slots=True)
class GlobalLedger:
    """The ledger of a GPS. The key of an update is the name of its region's process and its own name."""

    updates: dict[tuple[str, PushId], Push] = field(default_factory=dict)
    applied: SpanSet = field(default_factory=SpanSet)
    dropped: SpanSet = field(default_factory=SpanSet)
    steps: int = 0
    tokens: int = 0
    regions: dict[str, int] = field(default_factory=dict)
    """Updates of each region."""

    def add(self, entry: LedgerEntry) -> None:
        """Add an entry. Raises `AssertionError` if it contradicts an earlier one."""
        note, push, peer = entry.note, entry.push, entry.peer
        if not isinstance(note, ExchangeArrived):
            return
        assert push is not None
        assert (peer, push.push) not in self.updates, f"{push.push} of {peer} was applied twice"
        for spans in (push.spans, push.dropped):
            assert not self.applied.common(spans), f"{spans} were applied before"
            assert not self.dropped.common(spans), f"{spans} were dropped before"
        self.applied.add(push.spans)
        self.dropped.add(push.dropped)
        self.updates[peer, push.push] = push
        self.steps += push.steps
        self.tokens += push.tokens
        self.regions[note.region] = self.regions.get(note.region, 0) + 1

    def has(self, peer: str, push: PushId) -> bool:
        """Whether an update of a peer was applied."""
        return (peer, push) in self.updates
