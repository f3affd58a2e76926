"""The evaluator's machine: what the evaluator decides.

It takes the decisions and carries out nothing. The evaluator pulls global versions from the
GPS, has them measured, some of them exported too, and reports the held-out loss.

Invariants that `check` asserts are numbered E1... in docs/ARCHITECTURE.md.
"""

from dataclasses import dataclass
from typing import Final, Literal, TypeAlias, assert_never

from pelago.core.machine import (
    FAILED,
    PS_PER_MS,
    Finish,
    Received,
    Send,
    SetTick,
    Started,
    StopRequested,
    Tick,
)
from pelago.core.names import BlobId, Peer, Version
from pelago.core.notes.common import Stuck
from pelago.core.notes.worker import Exported, ExportFailed, ValidationMeasured
from pelago.core.tensor_effects import Release
from pelago.core.training_effects import Progress, Validate, Validated
from pelago.core.transitions import Transition, TransitionTable
from pelago.core.watchdog import Watchdog
from pelago.wire.messages import (
    Effect,
    Evaluated,
    EvaluatorEvent,
    Goodbye,
    Heartbeat,
    Leave,
    Message,
    Model,
    Pull,
    Refuse,
    Rejoin,
    Stop,
    Wait,
    Welcome,
    WorkerReport,
)
from worker.client_settings import ClientSettings

EvaluatorState: TypeAlias = Literal["joining", "idle", "validating", "leaving", "gone"]
WORKING: Final = ("joining", "idle", "validating")

TRANSITIONS: Final = TransitionTable(
    "evaluator",
    "joining",
    (
        Transition("joining", "idle", "_on_welcome", "the GPS welcomed it"),
        Transition("idle", "joining", "_on_rejoin", "the GPS does not know it any more"),
        Transition("idle", "validating", "_on_model", "a version came that is due"),
        Transition("validating", "idle", "_on_validated", "the version is measured"),
        *(Transition(source, "gone", "_on_refuse", "the GPS refused it") for source in WORKING),
        *(
            Transition(source, "gone", "_on_tick", "the GPS was silent for too long")
            for source in WORKING
        ),
        Transition("validating", "gone", "_on_stuck", "the measuring is stuck"),
        Transition("joining", "gone", "_leave", "it was asked to stop"),
        Transition(
            "idle", "leaving", "_leave", "it was asked to stop, or the last version is measured"
        ),
        Transition("validating", "leaving", "_leave", "it was asked to stop"),
        Transition("leaving", "gone", "_on_goodbye", "the GPS said goodbye"),
    ),
)


@dataclass(frozen=True, slots=True)
class EvaluatorSettings:
    """The settings of the evaluator's machine."""

    client: ClientSettings
    validation_interval_steps: int
    """Local steps, counted in the whole run, between two versions to measure."""
    export_interval_ps: int = 0
    """Time between two exports; 0: it exports the last version only."""


class Evaluator:
    """The state of the evaluator."""

    def __init__(self, settings: EvaluatorSettings) -> None:
        self.settings = settings
        self._client = settings.client
        self.session = settings.client.session("evaluator")
        self.state: EvaluatorState = "joining"
        self.version = Version(0, 0)
        self.after_steps = 0
        """The least number of local steps of the run in the next version to measure."""
        self.fault = ""
        """Why the last version could not be exported."""
        self._exported_at: int | None = None
        """When the last export began; before the first one: when the evaluator joined."""
        self._exports = False
        self._measured_steps = -1
        self._watchdog = Watchdog(settings.client.stuck_after_ps)
        self._model: Model | None = None
        self._found: Evaluated | None = None
        self._asked_at = 0
        self._now = 0

    def handle(self, event: EvaluatorEvent, now: int) -> list[Effect]:
        """Handle one event; return the effects that follow, in order."""
        self._now = now
        match event:
            case Started():
                tick: list[Effect] = [SetTick(self._client.tick_ps)] if self._client.tick_ps else []
                return [*tick, *self.session.join()]
            case Received(_, message, blob):
                return self._on_message(message, blob)
            case Tick():
                return self._on_tick()
            case Validated():
                return self._on_validated(event)
            case Progress():
                self._watchdog.progress(now)
                return []
            case StopRequested(reason):
                return self._leave(reason)
            case _:
                assert_never(event)

    def _on_message(self, message: Message, blob: BlobId | None) -> list[Effect]:
        effects: list[Effect] = self.session.heard(self._now)
        match message:
            case Welcome() if not self.session.joined:
                effects += self._on_welcome(message)
            case Wait(what):
                effects += self.session.waiting(what)
            case Refuse(detail) if self.state not in ("leaving", "gone"):
                effects += self._on_refuse(detail)
            case Rejoin() if self.state not in ("leaving", "gone"):
                effects += self._on_rejoin()
            case Model() if blob is not None:
                effects += self._on_model(message, blob)
            case Stop() | Heartbeat():
                pass  # The last version is still to come; the evaluator leaves after it.
            case Rejoin() | Goodbye() if self.state == "leaving" and self.session.leaving:
                effects += self._on_goodbye(self.session.leaving)
            case _:
                effects += [Release(blob)] if blob is not None else []
        return effects

    def _on_welcome(self, message: Welcome) -> list[Effect]:
        effects = self.session.welcome(message.fence, message.group)
        if self.state != "joining":
            return effects  # It is measuring, and joined again meanwhile.
        self._enter("idle")
        if self._exported_at is None:
            self._exported_at = self._now
        return [*effects, *self._ask()]

    def _on_refuse(self, detail: str) -> list[Effect]:
        self._enter("gone")
        return [Finish("refused", error=detail)]

    def _on_rejoin(self) -> list[Effect]:
        if self.state == "idle":
            self._enter("joining")
        return self.session.join()

    def _on_goodbye(self, leave: Leave) -> list[Effect]:
        self._enter("gone")
        return [Finish(leave.reason, error=self.fault)]

    def _ask(self) -> list[Effect]:
        """Ask for the next version, and repeat the last result, which may have been lost."""
        self._asked_at = self._now
        again: list[Effect] = (
            [] if self._found is None else [Send(self._client.server, self._found)]
        )
        after_steps = self.after_steps
        if self._export_due:  # Any version that is newer than the measured one.
            after_steps = min(after_steps, self._measured_steps + 1)
        return [*again, Send(self._client.server, Pull(0, after_steps))]

    @property
    def _export_due(self) -> bool:
        interval = self.settings.export_interval_ps
        began = self._now if self._exported_at is None else self._exported_at
        return 0 < interval <= self._now - began

    def _on_model(self, message: Model, blob: BlobId) -> list[Effect]:
        if self.state != "idle" or not (message.final or message.version >= self.version):
            return [Release(blob)]
        self._enter("validating")
        self.version, self._model = message.version, message
        self._exports = message.final or self._export_due
        if self._exports:
            self._exported_at = self._now
        self._watchdog.begin(self._now, is_long=self._exports)
        return [Validate(message.version, blob, export=self._exports), Release(blob)]

    def _on_validated(self, event: Validated) -> list[Effect]:
        model = self._model
        if self.state != "validating" or model is None or model.version != event.version:
            return []
        self._watchdog.end()
        self._found = Evaluated(event.version, model.counted_steps, event.loss, event.tokens)
        interval = self.settings.validation_interval_steps
        self.after_steps = (model.counted_steps // interval + 1) * interval
        self._enter("idle")
        self._model, self._measured_steps = None, model.counted_steps
        self.fault = event.fault if model.final else ""
        effects: list[Effect] = [ValidationMeasured(model.counted_steps, event.loss, model.final)]
        if event.fault:
            effects.append(ExportFailed(event.fault))
        elif self._exports:
            effects.append(Exported(model.version.counter, model.counted_steps))
        return [*effects, *(self._leave("run finished") if model.final else self._ask())]

    def _on_tick(self) -> list[Effect]:
        if self.state == "gone":
            return []
        if self.state == "leaving":
            return [
                Finish(each.reason, error=self.fault) if isinstance(each, Finish) else each
                for each in self.session.leave_again()
            ]
        if self._watchdog.is_over(self._now):
            return self._on_stuck()
        report = None
        if self.state == "validating":
            quiet_ms = self._watchdog.quiet_ps(self._now) // PS_PER_MS
            report = WorkerReport(-1, 0, 0, 0, 0, 0, 0.0, quiet_ms=quiet_ms)
        effects = self.session.tick(report, self._now)
        if self.session.gives_up(self._now):
            self._enter("gone")
            return effects
        if self.state == "idle" and self._now - self._asked_at >= self._client.retry_ps:
            effects += self._ask()
        return effects

    def _on_stuck(self) -> list[Effect]:
        """The measurement or the export is stuck: leave the server, and end."""
        error = self._watchdog.stuck_message("measuring the model", self._now)
        self._watchdog.end()
        self._enter("gone")
        leave = Leave("stuck", self._found, (), (), ())
        note = Stuck(error)
        return [note, Send(self._client.server, leave), Finish(FAILED, error=error)]

    def _leave(self, reason: str) -> list[Effect]:
        if self.state in ("leaving", "gone"):
            return []
        if self.state == "joining":
            self._enter("gone")
            return [Finish(reason)]
        self._enter("leaving")
        return self.session.leave(Leave(reason, self._found, (), (), ()))

    def expects(self, peer: Peer, message: Message) -> bool:
        """Whether a payload may arrive with a message: models may, at any time."""
        return peer == self._client.server and isinstance(message, Model)

    def _enter(self, target: EvaluatorState) -> None:
        self.state = TRANSITIONS.move(self.state, target)

    def check(self) -> None:
        """Assert the invariants of an evaluator."""
        assert (self._model is not None) == (self.state == "validating") or self.state in (
            "leaving",
            "gone",
        )  # E1: it measures one version at a time.
        assert self._found is None or self._found.version <= self.version  # E2: versions only grow.
