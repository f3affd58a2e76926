"""The evaluators of the global model: which version each is sent, and the held-out losses that they report."""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

from gps.clock import RunClock
from gps.machine_settings import GpsSettings
from gps.model import GlobalModel
from pelago.core.durable import durable
from pelago.core.machine import PS_PER_MS, Send
from pelago.core.names import BlobId, Peer, Version
from pelago.core.notes.gps import EvaluatorLeft, ValidationReported
from pelago.wire.messages import (
    Effect,
    Evaluated,
    Goodbye,
    Hello,
    Leave,
    Refuse,
    RegionReport,
    WorkerReport,
)

REACHED_MAX: Final = 64
"""Versions whose measurement is awaited: more than evaluators are ever at work on."""


@durable()
@dataclass(slots=True)
class _Evaluator:
    heard_at: int
    after_steps: int | None = None
    """It waits for the first version with so many counted steps; None: it does not wait."""
    replying: BlobId | None = None
    """The model that is on its way to it."""


@durable(settings=("_settings", "_clock", "_model"))
class Evaluators:
    """Those who measure the global model. There may be none, or several."""

    def __init__(self, settings: GpsSettings, clock: RunClock, model: GlobalModel) -> None:
        self.validations: list[tuple[int, int, float]] = []
        """(picoseconds after the first lease, counted steps, held-out loss) in order of the versions."""
        self._settings = settings
        self._clock = clock
        self._model = model
        self._evaluators: dict[Peer, _Evaluator] = {}
        self._reached: OrderedDict[Version, tuple[int, int]] = OrderedDict()
        """When a version that an evaluator was sent was reached, and its counted steps, until it is measured;
        at most `REACHED_MAX`, since an evaluator may be lost before it measures."""

    def __len__(self) -> int:
        return len(self._evaluators)

    def join(self, peer: Peer, message: Hello) -> list[Effect]:
        """A process introduces itself, perhaps again."""
        for name, theirs, ours in (
            ("model fingerprint", message.fingerprint, self._settings.fingerprint),
            ("corpus digest", message.corpus, self._settings.corpus),
        ):
            if theirs != ours:
                return [Send(peer, Refuse(f"{name} {theirs!r} is not the run's {ours!r}"))]
        now = self._clock.now
        self._evaluators.setdefault(peer, _Evaluator(now)).heard_at = now
        return [Send(peer, self._settings.welcome(0))]

    def __contains__(self, peer: Peer) -> bool:
        return peer in self._evaluators

    def heard(self, peer: Peer) -> bool:
        """Something came from a peer. Returns whether it is an evaluator."""
        evaluator = self._evaluators.get(peer)
        if evaluator is not None:
            evaluator.heard_at = self._clock.now
        return evaluator is not None

    def is_stuck(self, report: WorkerReport | RegionReport | None) -> bool:
        """Whether an evaluator that reports so made no progress for too long."""
        limit_ps = self._settings.stuck_after_ps
        quiet_ms = report.quiet_ms if isinstance(report, WorkerReport) else 0
        return limit_ps > 0 and quiet_ms * PS_PER_MS > limit_ps

    def wants(self, peer: Peer, after_steps: int) -> None:
        """It asks for the first version with so many counted steps."""
        evaluator = self._evaluators[peer]
        if evaluator.replying is None:  # Otherwise what it asks for is on its way.
            evaluator.after_steps = after_steps

    def serve(self, *, final: bool) -> list[Effect]:
        """Send the model to those who wait for this version; the final one goes to all who wait."""
        effects: list[Effect] = []
        model = self._model
        for peer, evaluator in self._evaluators.items():
            if evaluator.replying is not None or evaluator.after_steps is None:
                continue
            if evaluator.after_steps > model.counted_steps and not final:
                continue
            if not model.has_room(peer, average=True):
                continue
            # What is measured and exported is the running mean, where one is kept; training goes on
            # from the model itself.
            blob, reply = model.reply(peer, None, final=final, average=True)
            evaluator.replying, evaluator.after_steps = blob, None
            self._reached[model.version] = self._clock.reached_at, model.counted_steps
            if len(self._reached) > REACHED_MAX:
                self._reached.popitem(last=False)
            effects += reply
        return effects

    def reply_ended(self, peer: Peer, blob: BlobId | None) -> None:
        """The model arrived there, or (None) was lost on the way."""
        evaluator = self._evaluators.get(peer)
        if evaluator is not None and (blob is None or evaluator.replying == blob):
            evaluator.replying = None

    def evaluated(self, message: Evaluated) -> list[Effect]:
        """A version was measured. The second report of a version changes nothing."""
        reached = self._reached.pop(message.version, None)
        if reached is None:
            return []  # A repeat.
        reached_at, counted_steps = reached
        started_at = self._clock.started_at
        # The first version may have been there, and measured, before the first lease.
        elapsed = 0 if started_at is None else max(0, reached_at - started_at)
        self.validations.append((elapsed, counted_steps, message.loss))
        self.validations.sort()
        note = ValidationReported(
            version=message.version.counter,
            counted_steps=counted_steps,
            elapsed_ps=elapsed,
            loss=message.loss,
            tokens=message.tokens,
        )
        return [note]

    def goodbye(self, peer: Peer, message: Leave) -> list[Effect]:
        """Answer the Leave of a process that serves no region. It may report a version that it measured, also
        if it is an evaluator that was given up."""
        report = message.report
        recorded = self.evaluated(report) if isinstance(report, Evaluated) else []
        return [*recorded, Send(peer, Goodbye())]

    def remove(self, peer: Peer, reason: str) -> list[Effect]:
        """It left, or is given up."""
        self._evaluators.pop(peer, None)
        return [EvaluatorLeft(reason)]

    def remove_silent(self, then: int) -> list[Effect]:
        """Give up those of which nothing was heard after ``then``."""
        silent = [peer for peer, each in self._evaluators.items() if each.heard_at < then]
        return [effect for peer in silent for effect in self.remove(peer, "lost: no heartbeat")]

    def restarted(self) -> None:
        """A new process: transfers are lost, and silence counts from now, since no process was listening."""
        for each in self._evaluators.values():
            each.replying, each.heard_at = None, self._clock.now

    def reopen(self) -> None:
        """Forget the processes. The losses stay."""
        self._evaluators.clear()
        self._reached.clear()
