"""Rounds without an accepted update, one after the other: whose fault it is, and how the region ends."""

from dataclasses import replace

import pytest

from lps.state import Lps
from pelago.core.machine import Finish, Restarted, Send, Tick
from pelago.core.names import Lease
from pelago.core.notes.common import Draining, GivingUp
from pelago.core.notes.lps import RoundRejected
from pelago.core.notes.note import Note
from pelago.core.tensor_effects import Measured
from pelago.durable.image import restore, take
from pelago.protocol.client_session import LEAVE_TICKS_MAX
from pelago.wire.messages import Ack, Effect, Failed, Goodbye, Leave, Refuse, Stop, WorkerReport
from tests.lps.driver import GPS_HELLO, SETTINGS, LpsDriver, update


@pytest.fixture
def driver() -> LpsDriver:
    """It serves, and allows three rounds of a worker without an accepted update."""
    return LpsDriver().serve()


def fails(driver: LpsDriver, peer: str) -> list[Effect]:
    """A round of a worker gives no finite gradient."""
    return driver.hears(peer, Failed(driver.work(peer).push, 2, 4))


def too_large(driver: LpsDriver, peer: str) -> list[Effect]:
    """A round of a worker gives an update that is too large."""
    return driver.push(peer, update(driver.work(peer), next_samples=4), norm=11.0)


def test_a_failed_round_returns_its_samples_and_is_answered_with_the_next(
    driver: LpsDriver,
) -> None:
    """Repeated, it is answered again and changes nothing more."""
    driver.join("w0")
    work = driver.work("w0")
    failed = Failed(work.push, 2, 4)
    effects = driver.hears("w0", failed)
    why = "no gradient of 2 steps was finite"
    assert effects[:2] == [
        RoundRejected("w0", 0, why),
        Send("w0", Ack(work.push, "rejected")),
    ]
    lease = driver.lps.workers.members.get("w0").leases[0]  # type: ignore[union-attr]
    assert isinstance(lease, Lease)
    assert (lease.spans, lease.push) == (work.spans, (work.push.lease + 1, 1))
    assert driver.hears("w0", failed) == [Send("w0", Ack(work.push, "rejected"))]
    assert driver.hears("w0", replace(failed, push=lease.push._replace(fence=9))) == [
        Send("w0", Ack(lease.push._replace(fence=9), "fenced"))
    ]
    assert driver.lps.report().rejected == 1
    assert driver.lps.model.version == 0


def test_a_worker_whose_rounds_all_fail_is_refused_while_others_do_better(
    driver: LpsDriver,
) -> None:
    """Its lease went back, and its group may be held by another process; the other worker trains on."""
    driver.join("w0").join("w1")
    assert Send("w0", Ack(driver.work("w0").push, "rejected")) in fails(driver, "w0")
    too_large(driver, "w0")
    driver.updates("w1", 1)
    effects = fails(driver, "w0")
    [refusal] = [
        each for each in effects if isinstance(each, Send) and type(each.message) is Refuse
    ]
    assert refusal.peer == "w0"
    assert "no update of worker eu/0 can be applied: the last 3 in a row" in str(refusal)
    assert "worker.max_lr = 0.5" in str(refusal)
    assert driver.lps.workers.members.get("w0") is None
    driver.updates("w1", 1)
    driver.join("w9")
    fails(driver, "w9")
    assert driver.lps.workers.members.get("w9") is None, "it has the place of one that failed"
    assert driver.lps.membership.phase == "serving"


def failed_region(driver: LpsDriver) -> list[Effect]:
    """Both workers' rounds give no update; returns what follows from the last of them."""
    driver.join("w0").join("w1")
    for round_of in ("w0", "w1", "w0"):
        too_large(driver, round_of)
    return fails(driver, "w0")


def test_a_region_in_which_no_worker_learns_leaves_with_the_reason(driver: LpsDriver) -> None:
    """
    1. All workers are stopped, and their samples are given back.
    2. The GPS hears why; the process ends with an error.
    3. Started again, it begins afresh from the global model.
    """
    effects = failed_region(driver)
    assert [type(each) for each in effects if isinstance(each, Note)] == [
        RoundRejected,
        GivingUp,
        Draining,
    ]
    for peer in ("w0", "w1"):
        assert Send(peer, Stop("this region learns nothing")) in effects
        answers = driver.hears(
            peer, Leave("enough", WorkerReport(0, 0, 1, 0, 0, 0, 0.0), (), (), ())
        )
    [leave] = [each.message for each in answers if isinstance(each, Send) and each.peer == "gps"]
    assert isinstance(leave, Leave)
    assert leave.error.startswith("no update of worker eu/0 can be applied: the last 3")
    assert leave.returned
    assert driver.hears("gps", Goodbye()) == [Finish("run finished", leave.error)]
    lps = Lps(SETTINGS)
    restore(lps, take(driver.lps))
    effects = lps.handle(Restarted(), driver.now)
    assert GPS_HELLO in effects
    assert (lps.membership.phase, lps.workers.error, lps.workers.refusals.in_a_row) == (
        "joining",
        "",
        {},
    )


def test_the_user_sees_the_error_also_where_the_gps_does_not_answer(driver: LpsDriver) -> None:
    failed_region(driver)
    for peer in ("w0", "w1"):
        driver.hears(peer, Leave("enough", None, (), (), ()))
    ends = [driver.happens(Tick()) for _ in range(LEAVE_TICKS_MAX + 1)][-1]
    [finish] = [each for each in ends if isinstance(each, Finish)]
    assert "worker.max_lr" in finish.error


def test_a_refused_region_stops_its_workers_and_asks_again_when_it_is_started_again(
    driver: LpsDriver,
) -> None:
    driver.join("w0")
    effects = driver.hears("gps", Refuse("no more"))
    assert effects == [Send("w0", Stop("refused")), Finish("refused", "no more")]
    lps = Lps(SETTINGS)
    restore(lps, take(driver.lps))
    assert GPS_HELLO in lps.handle(Restarted(), driver.now)


def test_the_count_survives_a_restart_of_the_server(driver: LpsDriver) -> None:
    driver.join("w0")
    for _ in range(2):
        fails(driver, "w0")
    lps = Lps(SETTINGS)
    restore(lps, take(driver.lps))
    lps.handle(Restarted(), driver.now)
    driver.lps = driver.machine = lps
    assert any(isinstance(each, GivingUp) for each in fails(driver, "w0"))


def test_what_was_revoked_while_it_was_measured_counts_against_no_worker(driver: LpsDriver) -> None:
    driver.join("w0")
    driver.hears("w0", update(driver.work("w0")), -1)
    driver.hears("w0", Leave("enough", None, (), (), ()))
    driver.happens(Measured(-1, 1.0, finite=False))
    assert driver.lps.workers.refusals.total == 0
