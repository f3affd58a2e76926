"""Conversations with the evaluator's machine."""

from dataclasses import replace

import pytest

from pelago.core.machine import (
    PS_PER_MS,
    Delivered,
    Event,
    Finish,
    PeerLost,
    Send,
    SetTick,
    Started,
    StopRequested,
    Tick,
)
from pelago.core.names import Address, PushId, Version
from pelago.core.notes.common import GoingOn, LeftUnanswered, Stuck, Waiting
from pelago.core.notes.worker import Exported, ExportFailed, ValidationMeasured
from pelago.core.tensor_effects import Loaded, Measured, Release
from pelago.core.training_effects import Progress, Trained, Validate, Validated
from pelago.protocol.client_session import GIVE_UP_AFTER_PS, LEAVE_TICKS_MAX, UNANSWERED
from pelago.wire.messages import (
    PROTOCOL_VERSION,
    Evaluated,
    Goodbye,
    Grant,
    Heartbeat,
    Hello,
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
from tests.machine_driver import MachineDriver
from worker.client_settings import ClientSettings
from worker.evaluator.state import Evaluator, EvaluatorSettings

CLIENT = ClientSettings(
    server="gps",
    address=Address(""),
    incarnation=5,
    fingerprint="model",
    corpus="corpus",
    tick_ps=500 * PS_PER_MS,
    retry_ps=1000 * PS_PER_MS,
    lost_after_ps=5000 * PS_PER_MS,
)
SETTINGS = EvaluatorSettings(CLIENT, validation_interval_steps=10)
HELLO = Send("gps", Hello(PROTOCOL_VERSION, "evaluator", Address(""), 5, "model", "corpus"))
WELCOME = Welcome(1, 0, -1, (), "model", "corpus")
V0, V3 = Version(1, 0), Version(1, 3)
MODEL = Model(V3, 24, None, None, final=False)
FOUND = Send("gps", Evaluated(V3, 24, 2.5, 100))
LEAVE = Send("gps", Leave("run finished", FOUND.message, (), (), ()))
BEAT = Send("gps", Heartbeat(None))


@pytest.fixture
def joining() -> MachineDriver:
    evaluator = MachineDriver(Evaluator(SETTINGS))
    assert evaluator.happens(Started()) == [SetTick(CLIENT.tick_ps), HELLO]
    return evaluator


@pytest.fixture
def idle(joining: MachineDriver) -> MachineDriver:
    assert joining.hears("gps", WELCOME) == [Send("gps", Pull(0, 0))]
    return joining


@pytest.fixture
def validating(idle: MachineDriver) -> MachineDriver:
    assert idle.hears("gps", MODEL, -1) == [Validate(V3, -1, export=False), Release(-1)]
    return idle


@pytest.fixture
def leaving(idle: MachineDriver) -> MachineDriver:
    """After the last version."""
    final = replace(MODEL, final=True)
    assert idle.hears("gps", final, -1) == [Validate(V3, -1, export=True), Release(-1)]
    assert idle.happens(Validated(V3, 2.5, 100)) == [
        ValidationMeasured(24, 2.5, True),
        Exported(3, 24),
        LEAVE,
    ]
    return idle


STATES = ["joining", "idle", "validating", "leaving"]


def test_a_version_is_measured_and_the_next_threshold_asked_for(validating: MachineDriver) -> None:
    """With 24 counted steps and one validation every 10, the next is due at 30."""
    assert validating.happens(Validated(V3, 2.5, 100)) == [
        ValidationMeasured(24, 2.5, False),
        FOUND,
        Send("gps", Pull(0, 30)),
    ]


@pytest.mark.parametrize(("counted", "due"), [(0, 10), (9, 10), (10, 20), (11, 20), (39, 40)])
def test_the_next_threshold_is_the_next_multiple(
    idle: MachineDriver, counted: int, due: int
) -> None:
    idle.hears("gps", replace(MODEL, counted_steps=counted), -1)
    assert idle.happens(Validated(V3, 2.5, 100))[-1] == Send("gps", Pull(0, due))


def test_what_may_have_been_lost_is_sent_again(validating: MachineDriver) -> None:
    """The finding is repeated with the request until the next version comes; nothing is sent while it measures."""
    busy = WorkerReport(-1, 0, 0, 0, 0, 0, 0.0, quiet_ms=1000)
    assert validating.after(1).happens(Tick()) == [Send("gps", Heartbeat(busy))]
    validating.happens(Validated(V3, 2.5, 100))
    assert validating.happens(Tick()) == [BEAT]
    assert validating.after(1).happens(Tick()) == [BEAT, FOUND, Send("gps", Pull(0, 30))]


def test_an_unanswered_first_question_is_repeated(idle: MachineDriver) -> None:
    assert idle.after(1).happens(Tick()) == [BEAT, Send("gps", Pull(0, 0))]


def test_the_last_version_is_exported_measured_and_ends_it(leaving: MachineDriver) -> None:
    assert leaving.happens(StopRequested("enough")) == []
    assert leaving.hears("gps", Goodbye()) == [Finish("run finished")]
    assert leaving.hears("gps", Goodbye()) == []
    assert leaving.happens(Tick()) == []


def test_the_last_finding_is_repeated_with_the_leave_but_not_without_limit(
    leaving: MachineDriver,
) -> None:
    for _ in range(LEAVE_TICKS_MAX):
        assert leaving.happens(Tick()) == [LEAVE]
    assert leaving.happens(Tick()) == [LeftUnanswered(), Finish("run finished")]


def test_the_end_of_the_run_is_no_end_before_the_last_version(validating: MachineDriver) -> None:
    """
    1. The GPS sends Stop while an earlier version is measured: it goes on.
    2. The last version may be the one just measured: it is measured again, because it is exported.
    """
    assert validating.hears("gps", Stop("budget")) == []
    validating.happens(Validated(V3, 2.5, 100))
    final = replace(MODEL, final=True)
    assert validating.hears("gps", final, -2) == [Validate(V3, -2, export=True), Release(-2)]


def test_an_older_version_is_not_measured(validating: MachineDriver) -> None:
    validating.happens(Validated(V3, 2.5, 100))
    assert validating.hears("gps", replace(MODEL, version=V0), -2) == [Release(-2)]


@pytest.mark.parametrize("state", ["joining", "validating", "leaving"])
def test_a_model_that_was_not_asked_for_is_released(
    state: str, request: pytest.FixtureRequest
) -> None:
    assert request.getfixturevalue(state).hears("gps", MODEL, -9) == [Release(-9)]


def test_a_model_without_its_payload_starts_nothing(idle: MachineDriver) -> None:
    assert idle.hears("gps", MODEL) == []


def test_a_measurement_that_was_not_ordered_changes_nothing(validating: MachineDriver) -> None:
    assert validating.happens(Validated(V0, 9.0, 1)) == []
    validating.happens(Validated(V3, 2.5, 100))
    assert validating.happens(Validated(V3, 2.5, 100)) == []


def test_a_forgotten_evaluator_joins_again_and_goes_on_measuring(validating: MachineDriver) -> None:
    """
    1. The GPS does not know it: Hello, on every tick.
    2. Welcome: the measurement is not disturbed.
    3. It ends: the finding is sent and the next version asked for.
    """
    assert validating.hears("gps", Rejoin()) == [HELLO]
    assert validating.happens(Tick()) == [HELLO]
    assert validating.hears("gps", WELCOME) == []
    assert validating.happens(Validated(V3, 2.5, 100))[1:] == [FOUND, Send("gps", Pull(0, 30))]


def test_a_forgotten_idle_evaluator_asks_again(idle: MachineDriver) -> None:
    assert idle.hears("gps", Rejoin()) == [HELLO]
    assert idle.hears("gps", WELCOME) == [Send("gps", Pull(0, 0))]
    assert idle.hears("gps", WELCOME) == []


def test_it_notes_what_it_waits_for(joining: MachineDriver) -> None:
    assert joining.hears("gps", Wait("nothing")) == [Waiting("nothing")]
    assert joining.hears("gps", WELCOME) == [GoingOn(), Send("gps", Pull(0, 0))]


@pytest.mark.parametrize("state", STATES[:3])
def test_a_refused_evaluator_ends_with_the_servers_words(
    state: str, request: pytest.FixtureRequest
) -> None:
    evaluator: MachineDriver = request.getfixturevalue(state)
    refusal = Refuse("another corpus")
    assert evaluator.hears("gps", refusal) == [Finish("refused", error="another corpus")]
    assert evaluator.hears("gps", refusal) == []
    assert evaluator.happens(Tick()) == []


@pytest.mark.parametrize("state", ["idle", "validating"])
def test_a_stopped_evaluator_leaves(state: str, request: pytest.FixtureRequest) -> None:
    """The measurement in progress is not reported."""
    evaluator: MachineDriver = request.getfixturevalue(state)
    leave = Send("gps", Leave("enough", None, (), (), ()))
    assert evaluator.happens(StopRequested("enough")) == [leave]
    assert evaluator.happens(Validated(V3, 2.5, 100)) == []
    assert evaluator.happens(Tick()) == [leave]
    assert evaluator.hears("gps", Rejoin()) == [Finish("enough")]
    assert evaluator.hears("gps", Rejoin()) == []


def test_an_evaluator_that_is_not_in_just_ends(joining: MachineDriver) -> None:
    assert joining.happens(StopRequested("enough")) == [Finish("enough")]


@pytest.mark.parametrize("state", STATES)
def test_heartbeats_and_strange_messages_change_nothing(
    state: str, request: pytest.FixtureRequest
) -> None:
    evaluator: MachineDriver = request.getfixturevalue(state)
    assert evaluator.hears("gps", Heartbeat(None)) == []
    assert evaluator.hears("gps", Stop("budget")) == []
    assert evaluator.hears("gps", Grant(PushId(1, 1)), -9) == [Release(-9)]
    assert evaluator.hears("gps", Grant(PushId(1, 1))) == []


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize(
    "event",
    [
        Loaded(V0),
        Delivered("gps", 1),
        PeerLost("gps", "cut"),
        Measured(1, 1.0, True),
        Trained(PushId(1, 1), 0, 1, 1, 1.0),
    ],
    ids=lambda event: type(event).__name__,
)
def test_an_event_of_another_role_is_a_fault_of_the_driver(
    state: str, event: Event[Message], request: pytest.FixtureRequest
) -> None:
    with pytest.raises(AssertionError, match=type(event).__name__):
        request.getfixturevalue(state).happens(event)


def test_a_last_version_that_cannot_be_exported_is_measured_and_ends_it_with_an_error(
    idle: MachineDriver,
) -> None:
    idle.hears("gps", replace(MODEL, final=True), -1)
    found = idle.happens(Validated(V3, 2.5, 100, fault="the disk is full"))
    assert found[1:] == [ExportFailed("the disk is full"), LEAVE]
    assert idle.hears("gps", Goodbye()) == [Finish("run finished", error="the disk is full")]


def test_a_version_is_exported_at_its_interval_and_any_newer_version_is_asked_for() -> None:
    """1. Exports are due every 60 s: the first version comes at once, and is not exported. 2. After a minute a newer
    one is asked for, although the next validation is not due, measured and exported. 3. The export failed: this is
    noted, and the next export is a minute later."""
    settings = replace(SETTINGS, export_interval_ps=60_000 * PS_PER_MS)
    evaluator = MachineDriver(Evaluator(settings))
    evaluator.happens(Started())
    evaluator.hears("gps", WELCOME)
    assert evaluator.hears("gps", MODEL, -1)[0] == Validate(V3, -1, export=False)
    assert evaluator.happens(Validated(V3, 2.5, 100))[-1] == Send("gps", Pull(0, 30))
    assert evaluator.after(59).happens(Tick())[-1] == Send("gps", Pull(0, 30))
    assert evaluator.after(1).happens(Tick())[-1] == Send("gps", Pull(0, 25))
    newer = replace(MODEL, version=Version(1, 4), counted_steps=26)
    effects = evaluator.hears("gps", newer, -2)
    assert Validate(Version(1, 4), -2, export=True) in effects
    effects = evaluator.happens(Validated(Version(1, 4), 2.4, 100, fault="no room"))
    assert ExportFailed("no room") in effects
    assert effects[-1] == Send("gps", Pull(0, 30))
    assert evaluator.after(59).happens(Tick())[-1] == Send("gps", Pull(0, 30))
    assert evaluator.after(1).happens(Tick())[-1] == Send("gps", Pull(0, 27))


def test_a_driver_that_loses_nothing_needs_no_tick() -> None:
    assert MachineDriver(Evaluator(replace(SETTINGS, client=replace(CLIENT, tick_ps=0)))).happens(
        Started()
    ) == [HELLO]


def test_the_check_sees_a_broken_evaluator(validating: MachineDriver) -> None:
    evaluator = validating.machine
    assert isinstance(evaluator, Evaluator)
    evaluator.state = "idle"
    with pytest.raises(AssertionError):
        evaluator.check()
    evaluator.state = "validating"
    validating.happens(Validated(V3, 2.5, 100))
    evaluator.version = V0
    with pytest.raises(AssertionError):
        evaluator.check()


@pytest.mark.parametrize("state", STATES[:-1])
def test_an_evaluator_whose_gps_is_gone_for_good_ends_with_an_error(
    state: str, request: pytest.FixtureRequest
) -> None:
    evaluator: MachineDriver = request.getfixturevalue(state)
    evaluator.happens(Tick())
    evaluator.now += GIVE_UP_AFTER_PS + 1
    ended = [each for each in evaluator.happens(Tick()) if isinstance(each, Finish)]
    assert [each.reason for each in ended] == [UNANSWERED]
    assert evaluator.happens(Tick()) == []


def test_an_evaluator_that_is_stuck_leaves_with_what_it_found_and_ends() -> None:
    evaluator = MachineDriver(
        Evaluator(replace(SETTINGS, client=replace(CLIENT, stuck_after_ps=1000 * PS_PER_MS)))
    )
    evaluator.happens(Started())
    evaluator.hears("gps", WELCOME)
    evaluator.hears("gps", MODEL, -1)
    for batches in range(1, 30):
        evaluator.after(1.0).happens(Progress(None, batches))
        evaluator.happens(Tick())
    evaluator.happens(Validated(V3, 2.5, 100))
    evaluator.hears("gps", replace(MODEL, version=Version(1, 4)), -2)
    sent = evaluator.after(20.0).happens(Tick())[-1]
    assert sent == Send("gps", Heartbeat(WorkerReport(-1, 0, 0, 0, 0, 0, 0.0, quiet_ms=20_000)))
    note, leave, finish = evaluator.after(0.001).happens(Tick())
    assert isinstance(note, Stuck)
    assert leave == Send("gps", Leave("stuck", FOUND.message, (), (), ()))
    assert isinstance(finish, Finish)
    assert "measuring the model is stuck: no progress for 20 s" in finish.error
