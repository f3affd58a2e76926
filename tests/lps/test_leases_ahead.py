"""Leases that an LPS lends ahead of need, for workers whose rounds overlap (`worker.overlap`)."""

import pytest

from pelago.core.machine import Send
from pelago.core.notes.lps import UnexpectedPull, WorkerLeft
from pelago.core.tensor_effects import Pin, Release
from pelago.wire.messages import Ack, Failed, LeaseAhead, LeaseRequest, Leave, Lent, Pull, Stop
from tests.lps.driver import LpsDriver, lease, reply, update

L1, L2, L3 = (lease(n, ((4 * n - 4, 4 * n),)) for n in (1, 2, 3))


@pytest.fixture
def training() -> LpsDriver:
    """Worker w0 trains on the first lease; the region has eight more samples in hand."""
    driver = LpsDriver(leases_max=2).serve().join("w0")
    driver.hears("w0", Pull(4, 0))
    driver.grant(1, ((0, 12),))
    member = driver.lps.workers.members.get("w0")
    assert member is not None
    member.replying = None
    return driver


def test_a_worker_gets_the_next_lease_without_a_model(training: LpsDriver) -> None:
    """
    1. The lease after the one that it has; asked again, the same one.
    2. It holds two now: it gets no third one until an update is decided.
    3. The answer to an update names it, and brings no new lease: the worker has one.
    """
    assert training.hears("w0", LeaseAhead(1, 4)) == [Send("w0", Lent(L2))]
    assert training.hears("w0", LeaseAhead(1, 4)) == [Send("w0", Lent(L2))]
    assert training.hears("w0", LeaseAhead(2, 4)) == []
    effects = training.push("w0", update(L1, next_samples=4))
    assert effects[-4:] == [
        Send("w0", Ack(L1.push, "applied")),
        Pin(2),
        Send("w0", reply(1, L2, L1.push), 2),
        Release(2),
    ]
    assert training.hears("w0", LeaseAhead(2, 4)) == [Send("w0", Lent(L3))]


def test_a_lease_ahead_waits_for_samples(training: LpsDriver) -> None:
    training.hears("w0", LeaseAhead(1, 4))
    training.push("w0", update(L1))
    training.hears("w0", LeaseAhead(2, 4))
    training.push("w0", update(L2))
    assert training.hears("w0", LeaseAhead(3, 4)) == [Send("gps", LeaseRequest(2, 4, 0))]
    assert training.grant(2, ((12, 16),)) == [Send("w0", Lent(lease(4, ((12, 16),))))]


def test_a_lease_ahead_does_not_overtake_the_model_with_the_lease_before() -> None:
    """
    1. The worker asks for a lease ahead, and there are no samples.
    2. Its update is applied, and it waits for a model and a lease too.
    3. The samples come: it gets the model with the next lease, and asks for the one after that again.
    """
    driver = LpsDriver(leases_max=2).serve().join("w0")
    driver.work("w0")
    driver.hears("w0", LeaseAhead(1, 4))
    driver.push("w0", update(L1, next_samples=4))
    effects = driver.grant(2, ((4, 12),))
    assert effects == [Pin(2), Send("w0", reply(1, L2, L1.push), 2), Release(2)]
    assert driver.hears("w0", LeaseAhead(2, 4)) == [Send("w0", Lent(L3))]


def test_all_leases_of_a_lost_worker_are_lent_again(training: LpsDriver) -> None:
    training.hears("w0", LeaseAhead(1, 4))
    effects = training.hears("w0", Leave("enough", None, (), (), ()))
    assert effects[0] == WorkerLeft(0, "w0", "enough", 1, ((0, 8),))
    assert training.lps.workers.leases.pool.spans() == ((0, 12),)
    assert training.lps.workers.leases.open == {}


def test_a_failed_round_on_top_of_an_open_update_gives_back_its_own_lease(
    training: LpsDriver,
) -> None:
    training.hears("w0", LeaseAhead(1, 4))
    effects = training.hears("w0", Failed(L2.push, 2, 4))
    assert Send("w0", Ack(L2.push, "rejected")) in effects
    assert list(training.lps.workers.leases.open) == [1]
    assert Send("w0", Ack(L1.push, "applied")) in training.push("w0", update(L1))


def test_where_rounds_do_not_overlap_no_lease_is_lent_ahead() -> None:
    driver = LpsDriver().serve().join("w0")
    driver.work("w0")
    assert driver.hears("w0", LeaseAhead(1, 4)) == []


def test_a_lease_ahead_larger_than_a_round_is_not_lent(training: LpsDriver) -> None:
    for samples in (0, training.lps.settings.round_samples_max + 1):
        assert training.hears("w0", LeaseAhead(1, samples)) == [UnexpectedPull("w0", samples)]


def test_at_the_end_a_worker_that_asks_ahead_is_stopped(training: LpsDriver) -> None:
    training.hears("gps", Stop("over"))
    assert training.hears("w0", LeaseAhead(1, 4)) == [Send("w0", Stop("run finished"))]


def test_the_pace_of_overlapping_rounds_is_from_one_update_to_the_next(
    training: LpsDriver,
) -> None:
    """The second lease was lent long before its round began."""
    training.hears("w0", LeaseAhead(1, 4))
    training.after(3).push("w0", update(L1))
    training.after(2).push("w0", update(L2))
    member = training.lps.workers.members.get("w0")
    assert member is not None
    assert member.round_ps == 2 * 10**12


def test_the_check_sees_a_hoarder(training: LpsDriver) -> None:
    training.hears("w0", LeaseAhead(1, 4))
    workers = training.lps.workers
    member = workers.members.get("w0")
    assert member is not None
    third = workers.leases.lend(0, 1, 4)
    assert third is not None
    member.leases = (*member.leases, third)
    with pytest.raises(AssertionError):
        workers.check()
