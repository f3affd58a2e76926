"""Conversations with a worker's machine: joining and rounds."""

from dataclasses import replace

import pytest

from pelago.core.machine import (
    Delivered,
    Event,
    Finish,
    PeerLost,
    Send,
    Started,
    StopRequested,
    Tick,
)
from pelago.core.names import Address, Lease, PushId, Version
from pelago.core.notes.common import GoingOn, Waiting
from pelago.core.notes.worker import (
    RoundFailed,
    RoundTrained,
    UpdateFenced,
    UpdateRejected,
    WorkerAdmitted,
)
from pelago.core.tensor_effects import Loaded, Measured, Release
from pelago.core.training_effects import Cancel, Progress, Train, Validated
from pelago.wire.messages import (
    Ack,
    Busy,
    Evaluated,
    Failed,
    Goodbye,
    Grant,
    Heartbeat,
    Message,
    Model,
    Offer,
    Pull,
    Refuse,
    Rejoin,
    Stop,
    Wait,
    WorkerReport,
)
from tests.machine_driver import MachineDriver
from tests.worker.worker_states import (
    CLIENT,
    DROPPED,
    HELLO,
    HELLO_AGAIN,
    LEASE,
    MODEL,
    NO_REPORT,
    PULL,
    PUSH,
    SETTINGS,
    STATES,
    TRAINED,
    UPDATE,
    WELCOME,
)
from worker.state import Worker


def test_a_worker_takes_the_speed_of_the_group_that_the_server_chose() -> None:
    """The run file gives group 0 rounds of 16 samples, 1 of 12, 2 of 4; a group beyond gets the default."""
    settings = replace(SETTINGS, group_samples=(16, 12, 4))
    for group, samples in ((2, 4), (7, 8)):
        worker = MachineDriver(Worker(settings))
        worker.happens(Started())
        pull = Send("eu", Pull(samples, 0))
        assert pull in worker.hears("eu", replace(WELCOME, group=group))


# --- the round --------------------------------------------------------------------------------


def test_a_round_from_the_lease_to_the_next(uploading: MachineDriver) -> None:
    """
    1. The offer is granted: the update is sent.
    2. It arrived, it was applied: its payload is released.
    3. The answer brings the next model and lease: training goes on, from the new version.
    """
    assert uploading.hears("eu", Grant(PUSH)) == [Send("eu", UPDATE, -2)]
    assert uploading.happens(Delivered("eu", -2)) == []
    assert uploading.hears("eu", Ack(PUSH, "applied")) == [Release(-2)]
    lease = Lease(PushId(12, 3), ((24, 32),), 24)
    model = Model(Version(1, 5), 0, lease, None, final=False)
    assert uploading.hears("eu", model, -3) == [Train(lease, Version(1, 5), -3, 2), Release(-3)]


def test_a_driver_that_loses_nothing_needs_no_tick() -> None:
    worker = MachineDriver(Worker(replace(SETTINGS, client=replace(CLIENT, tick_ps=0))))
    assert worker.happens(Started()) == [Send("eu", HELLO)]


def test_steps_tokens_rounds_and_time_are_reported(training: MachineDriver) -> None:
    """Busy time grows while it trains; steps of other leases and repeats do not count."""
    training.happens(Progress(PUSH, 1))
    training.happens(Progress(PushId(10, 3), 1))
    training.after(1)
    assert training.happens(Tick()) == [
        Send("eu", Heartbeat(WorkerReport(2, 0, 1, 0, 1000, 1000, 0.0, quiet_ms=1000)))
    ]
    training.happens(Progress(PUSH, 2))
    training.after(1).happens(TRAINED)
    training.hears("eu", Ack(PUSH, "applied"))
    training.hears("eu", Ack(PUSH, "applied"))
    training.happens(Progress(PUSH, 2))
    assert training.after(0.5).happens(Tick()) == [
        Send("eu", Heartbeat(WorkerReport(2, 1, 2, 64, 2000, 2500, 1.5)))
    ]


@pytest.mark.parametrize("reported", [[1, 2], [2], [1, 1, 2, 2], [2, 1], [1], []], ids=str)
def test_steps_are_counted_once_however_they_are_reported(
    training: MachineDriver, reported: list[int]
) -> None:
    """One by one, all at once, again, late, or by the end of the round only; the next one starts at 0."""
    steps = lambda: training.machine.report().steps  # type: ignore[attr-defined] # noqa: E731
    for count in reported:
        training.happens(Progress(PUSH, count))
    assert steps() == max(reported, default=0)
    training.happens(TRAINED)
    training.happens(Progress(PUSH, 2))
    assert steps() == 2
    training.hears("eu", Ack(PUSH, "applied"))
    second = Lease(PushId(12, 3), ((24, 32),), 24)
    training.hears("eu", Model(Version(1, 5), 0, second, None, final=False), -3)
    for count in reported:
        training.happens(Progress(second.push, count))
    assert steps() == 2 + max(reported, default=0)


def test_busy_is_waited_for(uploading: MachineDriver) -> None:
    """
    1. The server has no place: nothing is sent.
    2. The Grant comes by itself when there is one.
    """
    assert uploading.hears("eu", Busy(PUSH, 1000)) == []
    assert uploading.hears("eu", Grant(PUSH)) == [Send("eu", UPDATE, -2)]


def test_a_lost_grant_is_asked_for_again(uploading: MachineDriver) -> None:
    uploading.hears("eu", Busy(PUSH, 1000))
    beat = Send("eu", Heartbeat(WorkerReport(2, 0, 2, 64, 2000, 2500, 1.5)))
    assert uploading.after(0.5).happens(Tick()) == [beat]
    assert uploading.after(0.5).happens(Tick())[1:] == [Send("eu", Offer(PUSH))]


def test_a_failed_transfer_is_offered_again(uploading: MachineDriver) -> None:
    uploading.hears("eu", Grant(PUSH))
    assert uploading.happens(PeerLost("eu", "cut")) == []
    assert uploading.after(1).happens(Tick())[1:] == [Send("eu", Offer(PUSH))]


def test_an_unanswered_pull_is_repeated(idle: MachineDriver) -> None:
    beat = Send("eu", Heartbeat(replace(NO_REPORT, alive_ms=500)))
    assert idle.after(0.5).happens(Tick()) == [beat]
    assert idle.after(0.5).happens(Tick())[1:] == [PULL]
    assert len(idle.after(0.5).happens(Tick())) == 1


def test_after_an_acknowledgement_the_answer_is_waited_for_before_it_is_asked_for(
    uploading: MachineDriver,
) -> None:
    uploading.after(60).hears("eu", Ack(PUSH, "applied"))
    assert len(uploading.after(0.5).happens(Tick())) == 1
    assert uploading.after(0.5).happens(Tick())[1:] == [PULL]


def test_a_rejected_update_is_forgotten_and_does_not_count_as_a_round(
    uploading: MachineDriver,
) -> None:
    assert uploading.hears("eu", Ack(PUSH, "rejected")) == [
        Release(-2),
        UpdateRejected(11),
    ]
    assert uploading.machine.report().rounds == 0  # type: ignore[attr-defined]
    assert uploading.hears("eu", MODEL, -3) == [Train(LEASE, Version(1, 4), -3, 2), Release(-3)]


def test_a_round_without_a_finite_gradient_gives_its_lease_back(training: MachineDriver) -> None:
    """
    1. There is no update to send; a `Failed` message is sent instead, and repeated until it is answered.
    2. The next model comes before the answer: it is the answer that counts.
    3. Skipped steps are reported, also those of a round that succeeds.
    """
    failed = Send("eu", Failed(PUSH, 2, 8))
    assert training.happens(Progress(PUSH, 1, 1)) == []
    assert training.after(2).happens(replace(TRAINED, skipped=2)) == [
        Release(-2),
        RoundFailed(2, "no gradient was finite"),
        failed,
    ]
    assert training.hears("eu", MODEL, -3) == [Release(-3)]
    assert failed not in training.after(0.5).happens(Tick())
    report = replace(NO_REPORT, steps=2, skipped=2, busy_ms=2000, alive_ms=3000)
    assert training.after(0.5).happens(Tick()) == [Send("eu", Heartbeat(report)), failed]
    rejected = Ack(PUSH, "rejected")
    assert training.hears("eu", rejected) == [UpdateRejected(11)]
    assert training.hears("eu", rejected) == []
    training.hears("eu", MODEL, -4)
    assert training.happens(replace(TRAINED, skipped=1, blob=-5))[0] == RoundTrained(
        steps=2, loss=1.5, busy_ms=0.0, skipped=1
    )
    assert training.machine.report().skipped == 3  # type: ignore[attr-defined]


@pytest.mark.parametrize("word", [Rejoin(), Stop("enough"), Refuse("no")])
def test_a_failed_round_is_forgotten_with_its_lease(training: MachineDriver, word: Message) -> None:
    training.happens(replace(TRAINED, skipped=2))
    training.hears("eu", word)
    assert training.machine.lease is None  # type: ignore[attr-defined]
    training.after(9).happens(Tick())


def test_a_fenced_worker_joins_again(uploading: MachineDriver) -> None:
    """Its lease does not count until it is welcomed with the fence of its group."""
    assert uploading.hears("eu", Ack(PUSH, "fenced")) == [
        Release(-2),
        UpdateFenced(11),
        Send("eu", HELLO_AGAIN),
    ]
    assert uploading.hears("eu", replace(WELCOME, fence=4)) == [WorkerAdmitted(2), PULL]


# --- joining ----------------------------------------------------------------------------------


def test_hello_is_repeated_until_it_is_answered(joining: MachineDriver) -> None:
    assert joining.happens(Tick()) == [
        Waiting("eu to answer"),
        Send("eu", HELLO),
    ]
    assert joining.after(0.5).happens(Tick()) == [Send("eu", HELLO)]


def test_what_the_server_waits_for_is_noted_once(joining: MachineDriver) -> None:
    assert joining.hears("eu", Wait("the GPS")) == [Waiting("the GPS")]
    assert joining.hears("eu", Wait("the GPS")) == []
    assert joining.happens(Tick()) == [Send("eu", HELLO)]
    assert joining.hears("eu", WELCOME) == [
        GoingOn(),
        WorkerAdmitted(2),
        PULL,
    ]


def test_a_worker_whose_group_was_taken_takes_any_other(training: MachineDriver) -> None:
    """
    1. It was silent for too long, and asks for its old group.
    2. Another process holds that group by now. The run file gave it no group, so it asks for any.
    """
    assert training.hears("eu", Rejoin()) == [Cancel(PUSH), Send("eu", HELLO_AGAIN)]
    training.hears("eu", Wait("group 2, which another process holds"))
    assert training.happens(Tick()) == [Send("eu", HELLO)]


def test_a_worker_that_was_given_a_group_by_its_user_insists(joining: MachineDriver) -> None:
    worker = MachineDriver(
        Worker(replace(SETTINGS, client=replace(CLIENT, address=Address("eu", 2))))
    )
    worker.happens(Started())
    worker.hears("eu", Wait("group 2, which another process holds"))
    assert worker.happens(Tick()) == [Send("eu", HELLO_AGAIN)]


def test_an_old_welcome_is_found_out_by_the_lease_that_does_not_fit(joining: MachineDriver) -> None:
    """
    1. A Welcome of an earlier membership comes late, with an old fence.
    2. The true Welcome comes second and is ignored by a node that has joined.
    3. The first lease has the true fence: the worker asks again, instead of dropping all leases from now on.
    """
    joining.hears("eu", replace(WELCOME, fence=2))
    assert joining.hears("eu", WELCOME) == []
    assert joining.hears("eu", MODEL, -1) == [Release(-1), Send("eu", HELLO_AGAIN)]
    joining.hears("eu", WELCOME)
    assert joining.hears("eu", MODEL, -2) == [Train(LEASE, Version(1, 4), -2, 2), Release(-2)]


@pytest.mark.parametrize("state", STATES[:4])
def test_a_refused_worker_ends_with_the_servers_words(
    state: str, request: pytest.FixtureRequest
) -> None:
    worker: MachineDriver = request.getfixturevalue(state)
    dropped = DROPPED.get(state, [])
    assert worker.hears("eu", Refuse("no such region")) == [
        *dropped,
        Finish("refused", error="no such region"),
    ]
    assert worker.happens(Tick()) == []
    assert worker.hears("eu", Refuse("no such region")) == []
    assert worker.happens(StopRequested("enough")) == []


@pytest.mark.parametrize("state", STATES[:4])
def test_a_worker_that_is_not_known_any_more_drops_its_round_and_joins_again(
    state: str, request: pytest.FixtureRequest
) -> None:
    worker: MachineDriver = request.getfixturevalue(state)
    dropped = DROPPED.get(state, [])
    hello = HELLO if state == "joining" else HELLO_AGAIN
    assert worker.hears("eu", Rejoin()) == [*dropped, Send("eu", hello)]
    assert worker.happens(Tick()) == [Send("eu", hello)]


def test_a_dropped_round_was_busy_time_and_its_echoes_are_ignored(training: MachineDriver) -> None:
    """The trainer may still report on the cancelled round; another worker has the samples."""
    training.after(2).hears("eu", Rejoin())
    assert training.machine.report().busy_ms == 2000  # type: ignore[attr-defined]
    assert training.happens(Progress(PUSH, 1)) == []
    assert training.happens(TRAINED) == [Release(-2)]
    assert training.hears("eu", Grant(PUSH)) == []
    assert training.hears("eu", Ack(PUSH, "applied")) == []


# --- what does not fit ------------------------------------------------------------------------


@pytest.mark.parametrize("state", ["joining", "training", "uploading", "leaving"])
def test_a_model_that_was_not_asked_for_is_released(
    state: str, request: pytest.FixtureRequest
) -> None:
    assert request.getfixturevalue(state).hears("eu", MODEL, -9) == [Release(-9)]


def test_a_model_without_a_lease_or_without_its_payload_starts_nothing(idle: MachineDriver) -> None:
    assert idle.hears("eu", replace(MODEL, lease=None), -1) == [Release(-1)]
    assert idle.hears("eu", MODEL) == []


@pytest.mark.parametrize("state", ["idle", "training", "uploading", "leaving"])
def test_a_second_welcome_changes_nothing(state: str, request: pytest.FixtureRequest) -> None:
    worker: MachineDriver = request.getfixturevalue(state)
    assert worker.hears("eu", replace(WELCOME, fence=9)) == []
    assert worker.machine.session.fence == 3  # type: ignore[attr-defined]


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize(
    "message",
    [Evaluated(Version(1, 1), 1, 1.0, 1), Pull(1, 0), Heartbeat(None), Offer(PUSH)],
    ids=lambda message: type(message).__name__,
)
def test_a_message_that_does_not_belong_here_is_dropped_with_its_payload(
    state: str, message: Message, request: pytest.FixtureRequest
) -> None:
    worker: MachineDriver = request.getfixturevalue(state)
    assert worker.hears("eu", message) == []
    assert worker.hears("eu", message, -9) == [Release(-9)]


@pytest.mark.parametrize("state", STATES[:4])
def test_a_goodbye_without_a_leave_is_ignored(state: str, request: pytest.FixtureRequest) -> None:
    assert request.getfixturevalue(state).hears("eu", Goodbye()) == []


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize(
    "event", [Loaded(Version(1, 0)), Measured(1, 1.0, True), Validated(Version(1, 0), 1.0, 1)]
)
def test_an_event_of_a_server_or_an_evaluator_is_a_fault_of_the_driver(
    state: str, event: Event[Message], request: pytest.FixtureRequest
) -> None:
    with pytest.raises(AssertionError, match=type(event).__name__):
        request.getfixturevalue(state).happens(event)


@pytest.mark.parametrize("state", ["joining", "idle", "uploading", "leaving"])
def test_training_that_was_not_ordered_is_released(
    state: str, request: pytest.FixtureRequest
) -> None:
    worker: MachineDriver = request.getfixturevalue(state)
    assert worker.happens(replace(TRAINED, blob=-9)) == [Release(-9)]


def test_training_on_another_lease_is_released(training: MachineDriver) -> None:
    assert training.happens(replace(TRAINED, push=PushId(10, 3))) == [Release(-2)]


# --- the invariants ---------------------------------------------------------------------------


def test_the_check_sees_a_broken_worker(training: MachineDriver) -> None:
    worker = training.machine
    assert isinstance(worker, Worker)
    worker.session.fence = 4
    with pytest.raises(AssertionError):
        worker.check()
    worker.session.fence, worker.state = 3, "idle"
    with pytest.raises(AssertionError):
        worker.check()
    worker.state = "uploading"
    with pytest.raises(AssertionError):
        worker.check()
    worker.state, worker.lease = "training", None
    with pytest.raises(AssertionError):
        worker.check()
