"""A worker whose rounds overlap with the exchange of the one before (`worker.overlap`)."""

from dataclasses import replace

import pytest

from pelago.core.machine import Send, Tick
from pelago.core.names import Lease, PushId, Version
from pelago.core.notes.worker import RoundFailed, RoundTrained, UpdateFenced, UpdateRejected
from pelago.core.tensor_effects import Release
from pelago.core.training_effects import Cancel, Progress, Rebase, Train, Trained
from pelago.wire.messages import (
    Ack,
    Failed,
    LeaseAhead,
    Lent,
    Model,
    Offer,
    Pull,
    Push,
    Rejoin,
    Stop,
)
from tests.machine_driver import MachineDriver
from tests.worker.worker_states import HELLO_AGAIN, MODEL, PULL, SETTINGS, WELCOME
from worker.state import Worker

L1 = Lease(PushId(11, 3), ((16, 24),), 16)
L2 = Lease(PushId(12, 3), ((24, 32),), 24)
L3 = Lease(PushId(13, 3), ((32, 40),), 32)


def ahead(newest: int) -> Send:
    return Send("eu", LeaseAhead(newest, 8))


def trained(lease: Lease, blob: int) -> Trained:
    return Trained(lease.push, blob, 2, 64, 1.5)


def update(lease: Lease, base: int) -> Push:
    return Push(lease.push, Version(1, base), 2, 1, 64, 1.5, lease.spans, (), 8)


def answer(lease: Lease, version: int, answers: Lease) -> Model:
    return Model(Version(1, version), 0, lease, answers.push, final=False)


@pytest.fixture
def first() -> MachineDriver:
    """In its first round, from version 4, on the first lease."""
    worker = MachineDriver(Worker(replace(SETTINGS, overlap=True)))
    worker.hears("eu", WELCOME)
    assert worker.hears("eu", MODEL, -1) == [
        Train(L1, Version(1, 4), -1, 2),
        ahead(11),
        Release(-1),
    ]
    return worker


@pytest.fixture
def second(first: MachineDriver) -> MachineDriver:
    """In its second round, which began from what the first one left; the first update is being offered."""
    assert first.hears("eu", Lent(L2)) == []
    assert first.after(2).happens(trained(L1, -2)) == [
        RoundTrained(2, 1.5, 2000.0),
        Send("eu", Offer(L1.push)),
        Train(L2, Version(1, 4), None, 2),
    ]
    return first


def worker_of(driver: MachineDriver) -> Worker:
    assert isinstance(driver.machine, Worker)
    return driver.machine


def test_a_round_begins_while_the_last_update_is_on_its_way_and_is_rebased_by_the_answer(
    second: MachineDriver,
) -> None:
    """
    1. The update was applied: the next lease is asked for, since the LPS lends it from now on.
    2. The answer comes in the middle of the second round, which is rebased and goes on.
    3. The second update counts from version 4, on which its round began; the third round counts from 6.
    """
    assert second.hears("eu", Ack(L1.push, "applied")) == [Release(-2), ahead(12)]
    assert second.hears("eu", Lent(L3)) == []
    assert second.hears("eu", answer(L2, 6, L1), -3) == [Rebase(-3), Release(-3)]
    assert second.after(2).happens(trained(L2, -4))[1:] == [
        Send("eu", Offer(L2.push)),
        Train(L3, Version(1, 6), None, 2),
    ]
    upload = worker_of(second).session.upload
    assert upload is not None
    assert upload.message == update(L2, 4)


def test_a_round_that_ends_before_the_answer_waits_with_its_update(second: MachineDriver) -> None:
    """
    1. The first update is acknowledged, and no model came yet: the second one is not offered.
    2. The answer moves the parameters that the second round left; its update is offered, and the third begins.
    """
    second.hears("eu", Ack(L1.push, "applied"))
    second.hears("eu", Lent(L3))
    assert second.happens(trained(L2, -4)) == [RoundTrained(2, 1.5, 0.0)]
    assert second.hears("eu", answer(L2, 6, L1), -3) == [
        Rebase(-3),
        Send("eu", Offer(L2.push)),
        Train(L3, Version(1, 6), None, 2),
        Release(-3),
    ]


def test_without_a_lease_ahead_the_worker_waits_as_without_overlap(first: MachineDriver) -> None:
    """
    1. No lease came in time: the worker is idle after its update.
    2. The answer brings one, and the round begins from the model.
    """
    first.happens(trained(L1, -2))
    assert worker_of(first).state == "uploading"
    first.hears("eu", Ack(L1.push, "applied"))
    assert worker_of(first).state == "idle"
    assert first.hears("eu", answer(L2, 5, L1), -3) == [
        Train(L2, Version(1, 5), -3, 2),
        ahead(12),
        Release(-3),
    ]


@pytest.mark.parametrize("acknowledged", [False, True])
def test_a_late_lease_begins_the_next_round_at_once(
    first: MachineDriver, acknowledged: bool
) -> None:
    """It does not matter whether the update was acknowledged already."""
    first.happens(trained(L1, -2))
    if acknowledged:
        first.hears("eu", Ack(L1.push, "applied"))
    expected = [Train(L2, Version(1, 4), None, 2), *([ahead(12)] if acknowledged else [])]
    assert first.hears("eu", Lent(L2)) == expected


def test_a_rejected_update_takes_the_round_on_top_of_it_along(second: MachineDriver) -> None:
    """
    1. The parameters hold a movement that the server refused: the round on top of them is cancelled.
    2. Its lease is trained again, from the server's model.
    """
    assert second.after(1).hears("eu", Ack(L1.push, "rejected")) == [
        Release(-2),
        UpdateRejected(11),
        Cancel(L2.push),
    ]
    assert second.happens(trained(L2, -4)) == [Release(-4)]
    assert second.hears("eu", answer(L2, 4, L1), -3) == [
        Train(L2, Version(1, 4), -3, 2),
        ahead(12),
        Release(-3),
    ]
    assert worker_of(second).report().rounds == 0


def test_a_rejected_update_takes_the_one_that_waits_along(second: MachineDriver) -> None:
    second.happens(trained(L2, -4))
    assert worker_of(second).state == "waiting"
    assert second.hears("eu", Ack(L1.push, "rejected")) == [
        Release(-2),
        UpdateRejected(11),
        Release(-4),
    ]
    assert second.hears("eu", answer(L2, 4, L1), -3)[0] == Train(L2, Version(1, 4), -3, 2)


def test_a_fenced_update_drops_both_rounds(second: MachineDriver) -> None:
    """The worker is welcomed again; leases of before, even those ahead, are forgotten."""
    assert second.hears("eu", Ack(L1.push, "fenced")) == [
        Release(-2),
        UpdateFenced(11),
        Cancel(L2.push),
        Send("eu", HELLO_AGAIN),
    ]
    second.hears("eu", replace(WELCOME, fence=4))
    again = Lease(PushId(12, 4), L2.spans, 24)
    assert second.hears("eu", replace(MODEL, lease=again), -3)[0] == Train(
        again, Version(1, 4), -3, 2
    )


@pytest.mark.parametrize("word", [Rejoin(), Stop("enough")])
def test_an_update_that_waits_is_released_when_the_worker_goes(
    second: MachineDriver, word: Rejoin | Stop
) -> None:
    second.happens(trained(L2, -4))
    effects = second.hears("eu", word)
    assert effects[:2] == [Release(-4), Release(-2)]
    assert worker_of(second).overlap.ahead == ()


def test_a_failed_round_goes_back_while_the_update_before_is_on_its_way(
    second: MachineDriver,
) -> None:
    """
    1. The second round had no finite gradient: its lease goes back; the first update is still offered.
    2. The LPS takes it back. What it sends before it decided about the first update is not used.
    3. The first update is applied, and its answer begins a round.
    """
    assert second.happens(replace(trained(L2, -4), skipped=2)) == [
        Release(-4),
        RoundFailed(2, "no gradient was finite"),
        Send("eu", Failed(L2.push, 2, 8)),
    ]
    assert second.hears("eu", Ack(L2.push, "rejected")) == [UpdateRejected(12)]
    assert worker_of(second).state == "uploading"
    assert second.hears("eu", answer(L1, 4, L2), -5) == [Release(-5)]
    second.hears("eu", Ack(L1.push, "applied"))
    assert second.hears("eu", answer(L3, 5, L1), -6)[0] == Train(L3, Version(1, 5), -6, 2)


def test_a_model_without_the_awaited_update_does_not_rebase(second: MachineDriver) -> None:
    """It may be older than the update, or come before the outcome is known; it is asked for again."""
    assert second.hears("eu", answer(L2, 6, L1), -3) == [Release(-3)]
    second.hears("eu", Ack(L1.push, "applied"))
    earlier = Model(Version(1, 4), 0, L2, None, final=False)
    assert second.hears("eu", earlier, -4) == [Release(-4)]
    assert second.after(1).happens(Progress(L2.push, 1)) == []


def test_what_does_not_come_is_asked_for_again(second: MachineDriver) -> None:
    """The model that answers, and the next lease; not while the update itself is on its way."""
    assert PULL not in second.after(5).happens(Tick())
    second.hears("eu", Ack(L1.push, "applied"))
    assert len(second.after(0.5).happens(Tick())) == 1
    assert second.after(0.5).happens(Tick())[1:] == [Send("eu", Pull(8, 0)), ahead(12)]
    second.hears("eu", answer(L2, 6, L1), -3)
    assert second.after(1).happens(Tick())[1:] == [ahead(12)]
    second.hears("eu", Lent(L3))
    assert len(second.after(1).happens(Tick())) == 1


def test_a_lease_that_comes_again_is_taken_once(second: MachineDriver) -> None:
    second.hears("eu", Lent(L2))
    assert worker_of(second).overlap.ahead == ()


def test_a_lease_of_another_fence_says_that_the_welcome_was_old(first: MachineDriver) -> None:
    other = Lease(PushId(14, 4), ((40, 48),), 40)
    assert first.hears("eu", Lent(other)) == [Cancel(L1.push), Send("eu", HELLO_AGAIN)]


def test_without_overlap_no_lease_is_taken_ahead() -> None:
    worker = MachineDriver(Worker(SETTINGS))
    worker.hears("eu", WELCOME)
    worker.hears("eu", MODEL, -1)
    assert worker.hears("eu", Lent(L2)) == []
    assert worker.happens(trained(L1, -2))[1:] == [Send("eu", Offer(L1.push))]


def test_the_check_sees_a_broken_overlap(second: MachineDriver) -> None:
    worker = worker_of(second)
    worker.overlap.waiting = (update(L2, 4), -9)
    with pytest.raises(AssertionError):  # W5: it waits in no other state.
        worker.check()
    worker.overlap.waiting = None
    worker.overlap.awaited = L3.push
    with pytest.raises(AssertionError):  # It awaits the answer to what it uploads.
        worker.check()
