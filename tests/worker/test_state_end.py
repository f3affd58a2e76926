"""Conversations with a worker's machine: it leaves, its server is gone, or its trainer is stuck."""

from dataclasses import replace

import pytest

from pelago.core.machine import (
    PS_PER_MS,
    Finish,
    Send,
    Started,
    StopRequested,
    Tick,
)
from pelago.core.notes.common import LeftUnanswered, Stuck
from pelago.core.training_effects import Cancel, Progress
from pelago.protocol.client_session import GIVE_UP_AFTER_PS, LEAVE_TICKS_MAX, UNANSWERED
from pelago.wire.messages import (
    Goodbye,
    Heartbeat,
    Leave,
    Refuse,
    Rejoin,
    Stop,
    WorkerReport,
)
from tests.machine_driver import MachineDriver
from tests.worker.worker_states import (
    CLIENT,
    DROPPED,
    MODEL,
    NO_REPORT,
    PUSH,
    SETTINGS,
    STATES,
    TRAINED,
    WELCOME,
)
from worker.state import Worker

# --- the end ----------------------------------------------------------------------------------


@pytest.mark.parametrize("state", ["idle", "training", "uploading"])
def test_a_stopped_worker_drops_its_round_and_leaves(
    state: str, request: pytest.FixtureRequest
) -> None:
    """
    1. The server stops the run: the round in progress is dropped, and the worker sends Leave.
    2. The server sends Stop again, and the user asks for a stop too: one Leave is enough.
    3. The Leave is answered: the worker ends.
    """
    worker: MachineDriver = request.getfixturevalue(state)
    dropped = DROPPED.get(state, [])
    effects = worker.hears("eu", Stop("run finished"))
    report = worker.machine.report()  # type: ignore[attr-defined]
    assert effects == [*dropped, Send("eu", Leave("run finished", report, (), (), ()))]
    assert worker.hears("eu", Stop("run finished")) == []
    assert worker.happens(StopRequested("enough")) == []
    assert worker.hears("eu", Goodbye()) == [Finish("run finished")]
    assert worker.hears("eu", Goodbye()) == []
    assert worker.happens(Tick()) == []


@pytest.mark.parametrize("event", [Stop("run finished"), None])
def test_a_worker_that_is_not_in_just_ends(joining: MachineDriver, event: Stop | None) -> None:
    if event is None:
        assert joining.happens(StopRequested("enough")) == [Finish("enough")]
    else:
        assert joining.hears("eu", event) == [Finish("run finished")]


def test_a_server_that_does_not_know_a_leaving_worker_settles_it_too(
    leaving: MachineDriver,
) -> None:
    assert leaving.hears("eu", Rejoin()) == [Finish("enough")]
    assert leaving.hears("eu", Rejoin()) == []


def test_a_refusal_does_not_keep_a_leaving_worker(leaving: MachineDriver) -> None:
    assert leaving.hears("eu", Refuse("another run")) == []
    assert leaving.hears("eu", Goodbye()) == [Finish("enough")]


def test_leave_is_repeated_until_it_is_answered_but_not_without_limit(
    leaving: MachineDriver,
) -> None:
    farewell = [Send("eu", Leave("enough", NO_REPORT, (), (), ()))]
    for _ in range(LEAVE_TICKS_MAX):
        assert leaving.happens(Tick()) == farewell
    assert leaving.happens(Tick()) == [LeftUnanswered(), Finish("enough")]


# --- a server that is gone --------------------------------------------------------------------


@pytest.mark.parametrize("state", STATES[:-1])
def test_a_worker_whose_server_is_gone_for_good_ends_with_an_error(
    state: str, request: pytest.FixtureRequest
) -> None:
    """It drops its round, and sends nothing more."""
    worker: MachineDriver = request.getfixturevalue(state)
    worker.happens(Tick())
    worker.now += GIVE_UP_AFTER_PS + 1
    effects = worker.happens(Tick())
    ended = [each for each in effects if isinstance(each, Finish)]
    assert [each.reason for each in ended] == [UNANSWERED]
    assert "network.give_up_after_ms" in ended[0].error
    for dropped in DROPPED.get(state, []):
        assert dropped in effects
    assert worker.happens(Tick()) == []


# --- a trainer that is stuck ---------------------------------------------------------------------


def test_a_worker_whose_trainer_is_stuck_hands_its_lease_back_and_ends() -> None:
    """
    1. A step every minute: it goes on, however many there are; heartbeats report the time since the last step.
    2. Twenty minutes without a step: it gives the lease back and ends with the reason.
    """
    worker = MachineDriver(
        Worker(replace(SETTINGS, client=replace(CLIENT, stuck_after_ps=120_000 * PS_PER_MS)))
    )
    worker.happens(Started())
    worker.hears("eu", WELCOME)
    worker.hears("eu", MODEL, -1)
    worker.after(700).happens(Progress(PUSH, 0))
    for _ in range(30):
        worker.hears("eu", Heartbeat(None))
        beat = worker.after(60).happens(Tick())[-1]
        assert isinstance(beat, Send)
        assert isinstance(beat.message, Heartbeat)
        assert isinstance(beat.message.report, WorkerReport)
        assert beat.message.report.quiet_ms == 60_000
        worker.happens(Progress(PUSH, 1))
    assert not any(isinstance(each, Finish) for each in worker.after(1200).happens(Tick()))
    note, cancel, leave, finish = worker.after(0.5).happens(Tick())
    assert isinstance(note, Stuck)
    assert cancel == Cancel(PUSH)
    assert isinstance(leave, Send)
    assert isinstance(leave.message, Leave)
    assert isinstance(finish, Finish)
    assert finish.reason == "failed"
    assert "the trainer is stuck: no progress for 1,200 s" in finish.error
    assert "worker.stuck_minutes" in finish.error
    assert worker.happens(Tick()) == []


def test_a_worker_that_does_not_train_is_not_stuck() -> None:
    worker = MachineDriver(
        Worker(replace(SETTINGS, client=replace(CLIENT, stuck_after_ps=PS_PER_MS)))
    )
    worker.happens(Started())
    worker.hears("eu", WELCOME)
    worker.hears("eu", MODEL, -1)
    worker.happens(TRAINED)
    assert not any(isinstance(each, Finish) for each in worker.after(1_000).happens(Tick()))
