"""The regions and evaluators that the GPS knows: who serves them, their fences, what they were told."""

from dataclasses import dataclass, field, replace
from typing import Any

from pelago.core.dedupe import Outcome, Outcomes
from pelago.core.durable import durable
from pelago.core.names import BlobId, Peer, PushId, Spans
from pelago.wire.messages import RegionReport


@durable()
@dataclass(slots=True)
class Region:
    """One region of the run file."""

    name: str
    fence: int
    """Of the process that serves it; the next one gets a higher one."""
    peer: Peer | None = None
    """The LPS process that serves it; None: nobody does."""
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
    report: RegionReport | None = None
    outcomes: Outcomes = field(default_factory=Outcomes)
    newest: int = 0
    """Newest exchange of this fence that was settled."""

    def admit(self, peer: Peer, incarnation: int, now: int) -> None:
        """Another process serves the region from now on, with books of its own."""
        self.peer, self.incarnation, self.heard_at = peer, incarnation, now
        self.fence += 1
        self.request, self.lent, self.ahead, self.replying = 0, (), 0, None
        self.outcomes, self.newest = Outcomes(), 0

    def part(self) -> None:
        """Nobody serves the region any more. Its fence grows when somebody does again."""
        self.peer, self.ahead, self.replying = None, 0, None

    def reported(self, report: RegionReport) -> None:
        """It says how far it is; without its workers, of whom what it said last holds."""
        if not report.workers and self.report is not None:
            report = replace(report, workers=self.report.workers)
        self.report = report

    def outcome(self, push: PushId) -> Outcome | None:
        """What became of an exchange; None: it has not been decided."""
        if push.fence != self.fence:
            return "fenced"
        return None if push.lease > self.newest else self.outcomes.get(push.lease)

    def settle(self, push: PushId, outcome: Outcome) -> None:
        """An exchange was decided. A region has one at a time, numbered upwards."""
        assert push.fence == self.fence, (push, self.fence)
        assert push.lease > self.newest, (push, self.newest)
        self.outcomes.record(push.lease, outcome)
        self.newest = push.lease

    def summary(self) -> dict[str, Any]:
        """For the event log and the live view: counts, however many workers there are."""
        report = self.report
        workers = report.workers if report else ()
        losses = [each.loss for each in workers if each.rounds]
        return {
            "serving": self.peer is not None,
            "exchanges": self.updates,
            "updates": report.updates if report else 0,
            "staleness_max": report.staleness_max if report else 0,
            "exchanging": report.exchanging if report else False,
            "workers": len(workers),
            "steps": sum(each.steps for each in workers),
            "tokens": sum(each.tokens for each in workers),
            "loss": sum(losses) / len(losses) if losses else None,
        }

    def check(self) -> None:
        """Assert that nothing is on its way to nobody."""
        assert self.replying is None or self.peer is not None


@durable()
@dataclass(slots=True)
class _Evaluator:
    heard_at: int
    after_steps: int | None = None
    replying: BlobId | None = None


@durable()
class Evaluators:
    """Those who measure the global model. There may be none, or several."""

    def __init__(self) -> None:
        self._evaluators: dict[Peer, _Evaluator] = {}

    def __len__(self) -> int:
        return len(self._evaluators)

    def admit(self, peer: Peer, now: int) -> None:
        """A process introduced itself, perhaps again."""
        self._evaluators.setdefault(peer, _Evaluator(now)).heard_at = now

    def heard(self, peer: Peer, now: int) -> bool:
        """Something came from a peer. Returns whether it is an evaluator."""
        evaluator = self._evaluators.get(peer)
        if evaluator is not None:
            evaluator.heard_at = now
        return evaluator is not None

    def wants(self, peer: Peer, after_steps: int) -> None:
        """It asks for the first version with so many counted steps."""
        evaluator = self._evaluators[peer]
        if evaluator.replying is None:  # Otherwise what it asks for is on its way.
            evaluator.after_steps = after_steps

    def ready(self, counted_steps: int, final: bool) -> list[Peer]:
        """Those to whom the model goes now; the final one goes to all that ask."""
        return [
            peer
            for peer, each in self._evaluators.items()
            if each.replying is None
            and each.after_steps is not None
            and (final or each.after_steps <= counted_steps)
        ]

    def replying(self, peer: Peer, blob: BlobId) -> None:
        """The model is on its way to it."""
        evaluator = self._evaluators[peer]
        evaluator.replying, evaluator.after_steps = blob, None

    def reply_ended(self, peer: Peer, blob: BlobId | None) -> None:
        """The model arrived there, or (None) was lost."""
        evaluator = self._evaluators.get(peer)
        if evaluator is not None and (blob is None or evaluator.replying == blob):
            evaluator.replying = None

    def restarted(self, now: int) -> None:
        """What was on its way to them is lost, and they were not heard because nobody listened."""
        for each in self._evaluators.values():
            each.replying, each.heard_at = None, now

    def silent_since(self, then: int) -> list[Peer]:
        """Those of which nothing was heard after ``then``."""
        return [peer for peer, each in self._evaluators.items() if each.heard_at < then]

    def remove(self, peer: Peer) -> None:
        """It left, or is lost."""
        self._evaluators.pop(peer, None)
