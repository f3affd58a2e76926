"""How an LPS deals with its workers: joining, loss, reports."""

from dataclasses import replace

import pytest

from lps.members import DEPARTED_MAX
from lps.state import WORKERS_NAMED_EVERY, WORKERS_NAMED_MAX
from pelago.core.machine import PS_PER_MS, Delivered, PeerLost, Send, Tick
from pelago.core.names import Address, Lease, Version
from pelago.core.notes.common import UnexpectedMessage
from pelago.core.notes.lps import WorkerJoined, WorkerLeft, WorkerRefused
from pelago.core.tensor_effects import Measured, Pin, Release
from pelago.wire.messages import (
    PROTOCOL_VERSION,
    Ack,
    Evaluated,
    Goodbye,
    Grant,
    Heartbeat,
    LeaseRequest,
    Leave,
    Message,
    Model,
    Offer,
    Pull,
    Push,
    Refuse,
    RegionReport,
    Rejoin,
    Wait,
    WorkerReport,
)
from tests.lps.driver import REPORT, LpsDriver, hello, lease, reply, update, welcome

L1, L2 = lease(1, ((0, 4),)), lease(2, ((4, 8),))


@pytest.fixture
def driver() -> LpsDriver:
    return LpsDriver().serve()


# --- joining ----------------------------------------------------------------------------------


def left(why: str, work: Lease) -> WorkerLeft:
    """w0 is gone, and with it the lease that it held."""
    return WorkerLeft(group=0, peer="w0", why=why, lease=work.push.lease, spans=work.spans)


def test_workers_get_the_groups_that_no_worker_holds(driver: LpsDriver) -> None:
    assert driver.hears("w0", hello()) == [
        WorkerJoined(0, "w0"),
        Send("w0", welcome(0)),
    ]
    assert driver.hears("w2", hello(2))[1] == Send("w2", welcome(2))
    assert driver.hears("w1", hello())[1] == Send("w1", welcome(1))
    assert driver.hears("w3", hello())[1] == Send("w3", welcome(3))


def test_a_repeated_hello_is_answered_alike(driver: LpsDriver) -> None:
    driver.join("w0")
    assert driver.hears("w0", hello()) == [Send("w0", welcome(0))]
    assert driver.hears("w0", hello(0)) == [Send("w0", welcome(0))]


def test_until_an_lps_has_joined_the_gps_no_worker_can_join_it() -> None:
    driver = LpsDriver()
    waiting = Wait("the GPS, for which the LPS of eu waits")
    assert driver.hears("w0", hello()) == [Send("w0", waiting)]
    assert driver.hears("w0", update(L1), -1) == [Send("w0", Rejoin()), Release(-1)]


@pytest.mark.parametrize(
    ("message", "fault"),
    [
        (
            replace(hello(), protocol=1),
            f"protocol 1 is not {PROTOCOL_VERSION}: update the older node",
        ),
        (replace(hello(), role="evaluator"), "an LPS serves workers, not evaluator"),
        (
            replace(hello(), address=Address("us")),
            "region 'us' is not this LPS's 'eu'",
        ),
        (hello(group=65536), "group 65536 is not below 65536"),
        (
            replace(hello(), fingerprint="other"),
            "model fingerprint 'other' is not the run's 'model':"
            " the worker's model differs from the GPS's",
        ),
        (
            replace(hello(), corpus="other"),
            "corpus digest 'other' is not the run's 'corpus':"
            " the worker's corpus or tokenizer differs from the GPS's",
        ),
    ],
)
def test_a_worker_that_does_not_fit_is_refused_with_the_reason(
    driver: LpsDriver, message: Message, fault: str
) -> None:
    refused = [WorkerRefused("w0", fault), Send("w0", Refuse(fault))]
    assert driver.hears("w0", message) == refused
    assert driver.hears("w0", message, -1) == [*refused, Release(-1)]
    assert len(driver.lps.workers.members) == 0


def test_the_last_group_that_fits_is_let_in(driver: LpsDriver) -> None:
    assert driver.hears("w0", hello(group=65535))[1] == Send("w0", welcome(65535))


@pytest.mark.parametrize("incarnation", [1, 2])
def test_a_process_that_is_not_later_waits_for_a_group_that_is_held(
    driver: LpsDriver, incarnation: int
) -> None:
    driver.hears("w0", hello(0, incarnation=2))
    assert driver.hears("w1", hello(0, incarnation)) == [
        Send("w1", Wait("group 0, which another process holds"))
    ]


def test_a_later_process_takes_a_group_over_with_its_work_undone(driver: LpsDriver) -> None:
    """
    1. The later process gets a higher fence; the samples of the earlier one are free again.
    2. The earlier one's update is dropped, whether it still sends under its name or not.
    3. The later process trains on the same samples, under a new lease.
    """
    driver.join("w0", 0)
    old = driver.work("w0")
    assert driver.hears("w1", hello(0, incarnation=2)) == [
        left("replaced by a later process", old),
        WorkerJoined(0, "w1"),
        Send("w1", welcome(0, fence=2)),
    ]
    assert driver.hears("w0", Offer(old.push)) == [Send("w0", Rejoin())]
    assert driver.hears("w0", update(old), -1) == [Send("w0", Rejoin()), Release(-1)]
    new = driver.work("w1")
    assert new == lease(2, old.spans, fence=2)
    assert driver.hears("w1", Offer(old.push)) == [Send("w1", Ack(old.push, "fenced"))]
    assert driver.lps.model.version == 0


# --- loss -------------------------------------------------------------------------------------


def test_the_samples_of_a_silent_worker_are_leased_to_another(driver: LpsDriver) -> None:
    """
    1. w0 is silent for longer than is allowed: w1, which waited, has its samples.
    2. Its update, measured a moment too late, is fenced; it must introduce itself.
    3. It joins again with a higher fence.
    """
    driver.join("w0").join("w1")
    work = driver.work("w0")
    driver.hears("w0", update(work), -1)
    driver.after(4).hears("w1", Pull(4, 0))
    assert Send("w0", Rejoin()) not in driver.after(1).happens(Tick())
    effects = driver.after(0.001).happens(Tick())
    assert effects[:5] == [
        left("lost: no heartbeat", work),
        Pin(2),
        Send("w1", reply(0, lease(2, work.spans)), 2),
        Release(2),
        Send("w0", Rejoin()),
    ]
    assert driver.happens(Measured(-1, 1.0, finite=True)) == [
        Release(-1),
        Send("w0", Ack(work.push, "fenced")),
    ]
    assert driver.hears("w0", Heartbeat(REPORT)) == [Send("w0", Rejoin())]
    assert driver.hears("w0", hello(0))[1] == Send("w0", welcome(0, fence=2))
    assert driver.lps.model.version == 0


def test_any_message_shows_that_a_worker_is_alive(driver: LpsDriver) -> None:
    driver.join("w0")
    for _ in range(3):
        assert driver.after(4).hears("w0", Heartbeat(None)) == [Send("w0", Heartbeat(None))]
        assert Send("w0", Rejoin()) not in driver.happens(Tick())


def test_a_worker_that_leaves_returns_its_lease_and_its_place(driver: LpsDriver) -> None:
    driver.join("w0").join("w1")
    works = [driver.work(peer) for peer in ("w0", "w1")]
    driver.hears("w0", Offer(works[0].push))
    driver.hears("w1", Offer(works[1].push))
    assert driver.hears("w0", Leave("enough", REPORT, (), (), ())) == [
        left("enough", works[0]),
        Send("w1", Grant(works[1].push)),
        Send("w0", Goodbye()),
    ]
    assert driver.hears("w0", Leave("enough", REPORT, (), (), ())) == [Send("w0", Goodbye())]
    assert driver.lps.workers.leases.pool.spans() == works[0].spans


def test_a_transfer_lost_to_an_unknown_peer_changes_nothing(driver: LpsDriver) -> None:
    assert driver.happens(PeerLost("w9", "cut")) == []
    assert driver.happens(Delivered("w9", 5)) == []


@pytest.mark.parametrize(
    "message", [Pull(4, 0), Heartbeat(REPORT), Offer(L1.push), update(L1), Ack(L1.push, "applied")]
)
def test_an_unknown_peer_is_asked_to_join(driver: LpsDriver, message: Message) -> None:
    assert driver.hears("w9", message) == [Send("w9", Rejoin())]
    assert driver.hears("w9", message, -1) == [Send("w9", Rejoin()), Release(-1)]


@pytest.mark.parametrize(
    "message",
    [
        Evaluated(Version(9, 0), 0, 1.0, 1),
        LeaseRequest(1, 8, 0),
        Model(Version(9, 0), 0, None, None, final=False),
        update(L1),
    ],
    ids=lambda message: type(message).__name__,
)
def test_what_a_worker_never_says_is_noted_and_dropped(driver: LpsDriver, message: Message) -> None:
    driver.join("w0")
    note = UnexpectedMessage("w0", type(message).__name__)
    assert driver.hears("w0", message) == [note]
    if not isinstance(message, Push):
        assert driver.hears("w0", message, -1) == [note, Release(-1)]


# --- reports ----------------------------------------------------------------------------------


def report(group: int, rounds: int, loss: float = 1.0) -> WorkerReport:
    return WorkerReport(group, rounds, rounds, rounds, rounds, rounds, loss)


def test_reports_are_summed_over_the_processes_that_held_a_group(driver: LpsDriver) -> None:
    """
    1. w0 holds group 0 and reports 5 rounds, whichever group its report names.
    2. It is replaced; the later process reports 2: the group has done 7.
    3. Group 1 is counted apart.
    """
    driver.join("w0", 0).join("w1", 1)
    driver.hears("w0", Heartbeat(report(44, 5)))
    assert driver.lps.report().workers == (report(0, 5),)
    driver.hears("w1", Heartbeat(report(1, 1)))
    driver.hears("w2", hello(0, incarnation=2))
    driver.hears("w2", Heartbeat(report(0, 2, loss=0.5)))
    assert driver.lps.report().workers == (report(0, 7, loss=0.5), report(1, 1))


def test_a_process_that_comes_back_is_not_counted_twice(driver: LpsDriver) -> None:
    """Its own numbers went on counting while it was away."""
    driver.join("w0")
    driver.hears("w0", Heartbeat(report(0, 5)))
    driver.after(6).happens(Tick())
    assert driver.lps.report().workers == (report(0, 5),)
    driver.hears("w0", hello(1))
    assert driver.lps.report().workers == (report(1, 5),)
    driver.hears("w0", Heartbeat(report(1, 6)))
    assert driver.lps.report().workers == (report(1, 6),)


def test_a_worker_that_never_reported_is_in_no_report(driver: LpsDriver) -> None:
    driver.join("w0")
    driver.hears("w0", Leave("enough", None, (), (), ()))
    assert driver.lps.report().workers == ()


def test_bytes_that_arrived_are_counted(driver: LpsDriver) -> None:
    """One model in from the GPS, one out to a worker, one update in."""
    driver.join("w0")
    driver.hears("w0", Pull(4, 0))
    driver.grant(1, ((0, 4),))
    driver.happens(Delivered("w0", 1, payload_bytes=100))
    driver.push("w0", update(L1))
    assert (driver.lps.model.wan_bytes, driver.lps.model.lan_bytes) == (100, 200)


def test_a_member_that_says_hello_again_and_again_is_not_silent() -> None:
    """1. It joined. 2. It missed the Welcome, and says Hello again while the LPS itself waits for a new GPS
    and so cannot answer. 3. It was heard all the same, and is not removed."""
    driver = LpsDriver().serve().join("w0", 0)
    driver.hears("gps", Rejoin())
    for _ in range(3):
        driver.after(4)
        assert driver.hears("w0", hello(0)) == [
            Send("w0", Wait("the GPS, for which the LPS of eu waits"))
        ]
        driver.happens(Tick())
    assert driver.lps.workers.members.get("w0") is not None


def test_a_worker_that_does_not_notice_that_its_trainer_is_stuck_loses_its_lease() -> None:
    """
    1. It makes no progress for as long as is allowed: it keeps the lease. Longer: its samples are in the pool
       again.
    2. Where rounds take long, it has the time of four rounds.
    """
    driver = LpsDriver(stuck_after_ps=60_000 * PS_PER_MS).serve().join("w0")
    driver.work("w0")
    quiet = replace(REPORT, quiet_ms=60_000)
    assert driver.hears("w0", Heartbeat(quiet)) == [Send("w0", Heartbeat(None))]
    effects = driver.hears("w0", Heartbeat(replace(quiet, quiet_ms=60_001)))
    assert isinstance(effects[0], WorkerLeft)
    assert effects[0].why == "stuck"
    assert effects[-1] == Send("w0", Rejoin())
    assert driver.lps.workers.leases.pool.total == 4
    driver.join("w0")
    work = driver.work("w0")
    driver.after(100).push("w0", update(work))
    driver.work("w0")
    assert driver.hears("w0", Heartbeat(replace(quiet, quiet_ms=400_000)))[-1] == Send(
        "w0", Heartbeat(None)
    )
    assert driver.hears("w0", Heartbeat(replace(quiet, quiet_ms=400_001)))[-1] == Send(
        "w0", Rejoin()
    )


def test_what_is_known_of_processes_that_are_gone_is_bounded_and_adds_up() -> None:
    """1. Far more processes than are remembered hold a group, one after another. 2. All of their rounds count,
    in one report; the last one comes back, and counts on."""
    driver = LpsDriver().serve()
    count = 3 * DEPARTED_MAX
    for number in range(count):
        driver.hears(f"w{number}", hello(0, number))
        driver.hears(f"w{number}", Heartbeat(replace(REPORT, rounds=2)))
        driver.hears(f"w{number}", Leave("enough", None, (), (), ()))
    assert len(driver.lps.workers.members._departed) == DEPARTED_MAX
    assert len(driver.lps.workers.members._before) == 1
    assert [(each.group, each.rounds) for each in driver.lps.report().workers] == [(0, 2 * count)]
    driver.hears(f"w{count - 1}", hello(0, count))
    driver.hears(f"w{count - 1}", Heartbeat(replace(REPORT, rounds=5)))
    assert [each.rounds for each in driver.lps.report().workers] == [2 * count + 3]


def test_many_workers_are_not_named_in_every_heartbeat() -> None:
    """But in one of several; few workers are named in each."""

    def named(driver: LpsDriver) -> list[int]:
        return [
            len(each.message.report.workers)
            for _ in range(2 * WORKERS_NAMED_EVERY)
            for each in driver.happens(Tick())
            if isinstance(each, Send)
            and isinstance(each.message, Heartbeat)
            and isinstance(each.message.report, RegionReport)
        ]

    few, many = LpsDriver().serve(), LpsDriver().serve()
    for driver, count in ((few, WORKERS_NAMED_MAX), (many, WORKERS_NAMED_MAX + 1)):
        for number in range(count):
            driver.hears(f"w{number}", hello())
            driver.hears(f"w{number}", Heartbeat(REPORT))
    assert named(few) == [WORKERS_NAMED_MAX] * 2 * WORKERS_NAMED_EVERY
    found = named(many)
    assert len(found) == 2 * WORKERS_NAMED_EVERY
    assert [each for each in found if each] == [WORKERS_NAMED_MAX + 1] * 2


def test_a_worker_that_leaves_waits_for_nothing_any_more(driver: LpsDriver) -> None:
    driver.join("w0")
    driver.hears("w0", Pull(4, 0))
    driver.hears("w0", Leave("enough", None, (), (), ()))
    assert list(driver.lps.workers._queue) == []


def test_a_slow_worker_gives_its_place_to_one_that_waits_and_its_update_still_counts() -> None:
    """There is one place. A turn lasts four times the 5 s that a worker may be silent, as long as it is not
    known how long the other one needs."""
    driver = LpsDriver().serve().join("w0", 0).join("w1", 1)
    slow, quick = driver.work("w0"), driver.work("w1")
    assert Send("w0", Grant(slow.push)) in driver.hears("w0", Offer(slow.push))
    driver.hears("w1", Offer(quick.push))
    granted = []
    ticks = 4 * driver.lps.settings.lost_after_ps // driver.lps.settings.tick_ps
    for _ in range(ticks + 1):
        granted.append(Send("w1", Grant(quick.push)) in driver.happens(Tick()))
        for worker in ("w0", "w1"):
            driver.hears(worker, Heartbeat(None))
    assert granted == [False] * ticks + [True]
    assert driver.lps.expects("w0", update(slow))
    for worker, lease_ in (("w0", slow), ("w1", quick)):
        driver.hears(worker, update(lease_), -int(worker[1]) - 7)
        effects = driver.happens(Measured(-int(worker[1]) - 7, 1.0, finite=True))
        assert Send(worker, Ack(lease_.push, "applied")) in effects
