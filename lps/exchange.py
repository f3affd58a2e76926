"""Which samples and steps are in which exchange of a region with the GPS.

fresh    applied since the last send; in the next exchange
sending  in the exchange under way
flight   applied while an exchange is under way: "drop" loses their movement at the merge (as the
         released HALoS code does), "carry" and "replay" keep it for the next exchange
dropped  lost in this way; the next exchange names them

"carry" and "replay" record the same. They differ in the region's own model: "carry" merges it as
it is when the answer arrives, which scales the movement in flight by 1 - alpha; "replay" merges it as it
was when it was sent, and adds that movement on top, whole.
"""

from dataclasses import dataclass
from typing import Final, Literal, TypeAlias, assert_never

from pelago.core.dedupe import Outcome
from pelago.core.durable import durable
from pelago.core.names import BlobId, PushId, Spans, Version
from pelago.core.spans import SpanSet
from pelago.core.tensor_effects import Difference, Operation
from pelago.core.transitions import Transition, TransitionTable
from pelago.wire.messages import Push

InFlight: TypeAlias = Literal["drop", "carry", "replay"]
"""What happens to updates applied between the send and the merge; the run file's `lps.in_flight`."""


ExchangeState: TypeAlias = Literal["begun", "applied", "rejected", "merged", "void"]

EXCHANGE: Final = TransitionTable(
    "exchange",
    "begun",
    (
        Transition("begun", "applied", "apply", "the GPS applied the update"),
        Transition("begun", "rejected", "reject", "the GPS rejected the update"),
        Transition("rejected", "applied", "apply", "the GPS contradicts itself"),
        Transition("applied", "rejected", "reject", "the GPS contradicts itself"),
        Transition("begun", "merged", "merge", "the model that answers came, the outcome did not"),
        Transition("applied", "merged", "merge", "the model that answers came"),
        Transition(
            "rejected", "merged", "merge", "the model that answers came, and replaces the region's"
        ),
        Transition("begun", "void", "end", "the region joins anew, or leaves"),
        Transition("applied", "void", "end", "the region joins anew, or leaves"),
        Transition("rejected", "void", "end", "the region joins anew, or leaves"),
    ),
)


@durable()
@dataclass(slots=True)
class Exchange:
    """One exchange: the samples in it, and what became of it."""

    push: PushId
    spans: Spans
    dropped: Spans
    state: ExchangeState = "begun"

    def apply(self) -> None:
        """The GPS says that it applied the update."""
        if self.state != "applied":
            self._enter("applied")

    def reject(self) -> None:
        """The GPS says that it rejected the update."""
        if self.state != "rejected":
            self._enter("rejected")
        # The GPS took the samples back; they may be ours again already, under a new lease.
        self.spans = self.dropped = ()

    def merge(self) -> None:
        """The global model that answers it was merged."""
        self._enter("merged")

    def end(self) -> None:
        """It will not be merged."""
        self._enter("void")

    def _enter(self, target: ExchangeState) -> None:
        self.state = EXCHANGE.move(self.state, target)


@durable(settings=("_k", "_in_flight"))
class Exchanges:
    """At most one exchange is in flight; K updates after the last merge the next one is due."""

    def __init__(self, updates_per_exchange: int, in_flight: InFlight) -> None:
        self.current: Exchange | None = None
        self.count = 0
        """Exchanges merged so far."""
        self.in_flight_updates = 0
        """Updates applied while an exchange was in flight, so far."""
        self._k = updates_per_exchange
        self._in_flight: InFlight = in_flight
        self._number = 0
        self._base = Version(0, 0)
        self._merged = 0
        """Version of the region's model at the last merge."""
        self._fresh = SpanSet()
        self._flight = SpanSet()
        self._dropped = SpanSet()
        self._steps = self._updates = self._tokens = 0
        self._loss_sum = 0.0

    def record(self, spans: Spans, update: Push) -> None:
        """A worker's update was applied."""
        (self._fresh if self.current is None else self._flight).add(spans)
        self.in_flight_updates += self.current is not None
        self._steps += update.steps
        self._updates += 1
        self._tokens += update.tokens
        self._loss_sum += update.loss

    def due(self, version: int) -> bool:
        """Whether an exchange is due. Not an equality, so that a lost reply cannot stop the exchanges."""
        return self.current is None and version - self._merged >= self._k

    def begin(self, fence: int, version: int) -> Push:
        """Start an exchange. Its steps count all that was trained since the last send, as HALoS does,
        so those whose movement was dropped are counted too; its spans hold what is really inside."""
        assert self.current is None
        self._number += 1
        push = PushId(self._number, fence)
        self.current = Exchange(push, self._fresh.clear(), self._dropped.clear())
        message = Push(
            push=push,
            base=self._base,
            steps=self._steps,
            updates=self._updates,
            tokens=self._tokens,
            loss=self._loss_sum / max(1, self._updates),
            spans=self.current.spans,
            dropped=self.current.dropped,
            next_samples=0,
        )
        self._steps = self._updates = self._tokens = 0
        self._loss_sum = 0.0
        return message

    @staticmethod
    def difference(blob: BlobId) -> Difference:
        """The effect that makes the exchange's payload."""
        return Difference(blob)

    def acknowledge(self, outcome: Outcome) -> None:
        """The GPS decided the exchange."""
        assert self.current is not None
        assert outcome != "fenced", "all is void then"
        if outcome == "rejected":
            self.current.reject()
        else:
            self.current.apply()

    def awaits(self, push: PushId | None) -> bool:
        """Whether this is the exchange under way."""
        return self.current is not None and self.current.push == push

    def holding(self, spans: Spans) -> PushId | None:
        """The exchange under way, if it holds some of these samples and its outcome is not known."""
        current = self.current
        if current is None or current.state != "begun":
            return None
        inside = SpanSet((*current.spans, *current.dropped))
        return current.push if inside.common(spans) else None

    def merge_operation(self) -> Operation:
        """How to merge the global model. After a rejection it replaces the region's own model."""
        assert self.current is not None
        if self.current.state == "rejected":
            return "load"
        match self._in_flight:
            case "drop":
                return "merge"
            case "carry":
                return "merge_carry"
            case "replay":
                return "merge_replay"
            case _:
                assert_never(self._in_flight)

    def merged(self, base: Version, version: int) -> None:
        """The global model that answers the exchange was merged."""
        kept = self.merge_operation() in ("merge_carry", "merge_replay")
        target = self._fresh if kept else self._dropped
        target.add(self._flight.clear())
        assert self.current is not None
        self.current.merge()
        self.current = None
        self.count += 1
        self._base, self._merged = base, version

    def reset(self, base: Version, version: int) -> None:
        """The global model replaced the region's."""
        self._base, self._merged = base, version

    def void(self) -> None:
        """Forget everything that was not exchanged: its samples belong to other regions now."""
        if self.current is not None:
            self.current.end()
            self.current = None
        for spans in (self._fresh, self._flight, self._dropped):
            spans.clear()
        self._steps = self._updates = self._tokens = 0
        self._loss_sum = 0.0

    def settle(self) -> tuple[Spans, Spans]:
        """The end: (never exchanged, dropped) samples, those of an exchange without an answer included."""
        unexchanged, dropped = SpanSet(self._fresh), SpanSet(self._dropped)
        current = self.current
        if current is not None and current.state != "applied":
            unexchanged.add(current.spans)
            dropped.add(current.dropped)
        if self._in_flight != "drop" or current is None:
            unexchanged.add(self._flight)
        else:
            dropped.add(self._flight)
        self.void()
        return unexchanged.spans(), dropped.spans()

    def check(self, version: int) -> None:
        """Assert that no sample is in two sets, and that samples are in flight only during an exchange."""
        everything = SpanSet()
        sending = () if self.current is None else (*self.current.spans, *self.current.dropped)
        for spans in (self._fresh, self._flight, self._dropped, sending):
            assert everything.add(spans) == 0, "a sample is in two exchanges"
        assert self.current is not None or not self._flight  # L5
        # L7: an exchange claims no more steps than its samples allow; the GPS checks this.
        named = self._flight.total if self.current else self._fresh.total + self._dropped.total
        assert self._steps <= named, (self._steps, named)
        assert self._merged <= version  # L6: merged_version <= version.
