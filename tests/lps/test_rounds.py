"""How an LPS lends its workers samples and takes their updates in."""

from dataclasses import replace

import pytest

from pelago.core.machine import PS_PER_MS, Delivered, PeerLost, Send, Tick
from pelago.core.names import PushId
from pelago.core.notes.lps import RoundRejected, UnexpectedPull, UpdateApplied
from pelago.core.tensor_effects import Apply, Measure, Measured, Pin, Release
from pelago.wire.messages import Ack, Busy, Grant, LeaseRequest, Leave, Offer, Pull
from tests.lps.driver import LpsDriver, global_model, gps_welcome, lease, reply, update

L1, L2 = lease(1, ((0, 4),)), lease(2, ((4, 8),))


@pytest.fixture
def driver() -> LpsDriver:
    return LpsDriver().serve()


# --- leases -----------------------------------------------------------------------------------


def test_with_nothing_ahead_of_need_exactly_what_is_wanted_is_asked_for_when_it_is_wanted() -> None:
    """
    1. No worker asks for anything: the GPS is asked for nothing.
    2. w0 wants 4, w1 wants 6: one request at a time, first come first served.
    3. Each is answered at once when the grant comes; nothing is kept in hand.
    """
    driver = LpsDriver().serve().join("w0").join("w1")
    assert driver.served == [Apply("load", -99), Release(-99)]
    assert driver.hears("w0", Pull(4, 0)) == [Send("gps", LeaseRequest(1, 4, 0))]
    assert driver.hears("w1", Pull(6, 0)) == []
    assert driver.grant(1, ((0, 4),)) == [
        Pin(1),
        Send("w0", reply(0, L1), 1),
        Release(1),
        Send("gps", LeaseRequest(2, 6, 0)),
    ]
    assert driver.grant(2, ((4, 10),)) == [
        Pin(2),
        Send("w1", reply(0, lease(2, ((4, 10),))), 2),
        Release(2),
    ]
    assert driver.lps.workers.leases.pool.total == 0


def test_samples_are_there_before_they_are_wanted() -> None:
    """
    1. No worker has joined: the GPS is asked for nothing.
    2. w0 wants 8. Until it is known how long a round takes, two such rounds are kept in hand, and a sixteenth
       more, so that the LPS need not ask in every round.
    3. It took 2 s, so 60 s are 30 rounds, and one more that may begin at any time: 248 in hand.
    4. A second worker is answered at once. Its clock does not count what is in hand.
    """
    driver = LpsDriver(lease_ahead_ps=60_000 * PS_PER_MS)
    driver.serve().join("w0").join("w1")
    assert driver.served == [Apply("load", -99), Release(-99)]
    assert driver.hears("w0", Pull(8, 0)) == [Send("gps", LeaseRequest(1, 8 + 17, 17))]
    first = lease(1, ((0, 8),))
    assert driver.grant(1, ((0, 25),))[1:] == [Send("w0", reply(0, first), 1), Release(1)]
    driver.after(2.0)
    effects = driver.push("w0", update(first, next_samples=8))
    assert effects[-1] == Send("gps", LeaseRequest(2, 248 + 15 - 9, 248 + 15))
    assert driver.grant(2, ((100, 354),)) == []
    assert driver.hears("w1", Pull(8, 0))[1] == Send(
        "w1", reply(1, lease(3, ((16, 24),), 1, 91)), 3
    )


def test_what_is_to_be_in_hand_follows_the_pace_of_the_workers() -> None:
    """A round of half a minute: three in hand for a minute, and not thirty."""
    driver = LpsDriver(lease_ahead_ps=60_000 * PS_PER_MS).serve().join("w0")
    work = driver.work("w0", samples=8)
    driver.after(30.0)
    effects = driver.push("w0", update(work, next_samples=8))
    assert effects[-1] == Send("gps", LeaseRequest(2, 24 + 1 - 9, 24 + 1))


def test_a_region_whose_workers_are_gone_asks_for_nothing_ahead() -> None:
    driver = LpsDriver(lease_ahead_ps=60_000 * PS_PER_MS).serve().join("w0")
    driver.grant(driver.hears("w0", Pull(8, 0))[-1].message.request, ((0, 25),))  # type: ignore[union-attr]
    left = driver.hears("w0", Leave("enough", None, (), (), ()))
    assert not any(isinstance(each, Send) and each.peer == "gps" for each in left)


def test_a_round_larger_than_any_of_the_run_file_is_not_asked_for(driver: LpsDriver) -> None:
    """Nor when an update asks for it as its next lease; the update is applied."""
    driver.join("w0")
    assert driver.hears("w0", Pull(9, 0)) == [UnexpectedPull("w0", 9)]
    effects = driver.push("w0", update(driver.work("w0"), next_samples=1 << 32))
    assert Send("w0", Ack(L1.push, "applied")) in effects
    assert not [each for each in effects if isinstance(each, Send) and each.peer == "gps"]


@pytest.mark.parametrize(
    "claims",
    [{"steps": 5}, {"steps": 1 << 48}, {"steps": 0}, {"tokens": 4 * 64 + 1}, {"tokens": 1 << 48}],
)
def test_an_update_that_claims_more_than_its_lease_gives_is_not_measured(
    driver: LpsDriver, claims: dict[str, int]
) -> None:
    """A lease of four samples of 64 tokens each gives four steps and 256 tokens at the most."""
    driver.join("w0")
    message = update(driver.work("w0"))
    driver.hears("w0", Offer(message.push))
    effects = driver.hears("w0", replace(message, **claims), -1)
    assert not [each for each in effects if isinstance(each, Measure)]
    assert driver.lps.model.version == 0
    most = replace(message, steps=4, tokens=4 * 64)
    assert driver.hears("w0", most, -2) == [Measure(-2)]


def test_a_base_that_does_not_exist_yet_counts_as_the_newest(driver: LpsDriver) -> None:
    driver.join("w0")
    driver.push("w0", update(driver.work("w0"), base=1 << 40))
    assert (driver.lps.model.version, driver.lps.model.staleness_max) == (1, 0)


def test_a_payload_is_expected_when_it_was_granted_and_until_it_is_here(driver: LpsDriver) -> None:
    """1. Two offer, and there is one place. 2. It comes. 3. It is measured: the other's is expected."""
    driver.join("w0").join("w1")
    first, second = (update(driver.work(peer)) for peer in ("w0", "w1"))
    lps = driver.lps
    assert not lps.expects("w0", first)
    driver.hears("w0", Offer(first.push))
    driver.hears("w1", Offer(second.push))
    assert lps.expects("w0", first)
    for peer, message in (("w1", second), ("w0", second), ("w1", first), ("stranger", first)):
        assert not lps.expects(peer, message)
    assert not lps.expects("w0", reply(1, L1))
    driver.hears("w0", first, -1)
    assert not lps.expects("w0", first)
    driver.happens(Measured(-1, 1.0, finite=True))
    assert lps.expects("w1", second)
    driver.happens(PeerLost("w1", "silent"))
    assert not lps.expects("w1", second)


def test_of_the_gps_only_the_first_model_and_answers_are_expected() -> None:
    driver = LpsDriver(updates_per_exchange=1)
    lps = driver.lps
    assert not lps.expects("gps", global_model(0))
    driver.hears("gps", gps_welcome())
    assert lps.expects("gps", global_model(0))
    assert not lps.expects("w0", global_model(0))
    driver = LpsDriver(updates_per_exchange=1).serve().join("w0")
    lps = driver.lps
    assert not lps.expects("gps", global_model(1))
    driver.push("w0", update(driver.work("w0")))
    exchange = lps.exchanges.current
    assert exchange is not None
    assert lps.expects("gps", global_model(1, exchange.push))
    assert not lps.expects("gps", global_model(1, PushId(7, 1)))


def test_a_pull_that_is_repeated_before_the_answer_changes_nothing(driver: LpsDriver) -> None:
    driver.join("w0")
    driver.hears("w0", Pull(4, 0))
    assert driver.hears("w0", Pull(4, 0)) == []
    assert len(driver.grant(1, ((0, 4),))) == 3
    assert driver.hears("w0", Pull(4, 0)) == []


def test_a_lost_answer_is_given_again_with_the_same_lease(driver: LpsDriver) -> None:
    """Also if it had arrived and the worker asks all the same. The model is then the newest one."""
    driver.join("w0").join("w1")
    assert driver.work("w0") == L1
    driver.push("w1", update(driver.work("w1")))
    again = driver.hears("w0", Pull(4, 0))
    assert again[1] == Send("w0", reply(1, L1), 3)
    assert driver.hears("w0", Pull(4, 0)) == []
    driver.happens(PeerLost("w0", "cut"))
    assert driver.hears("w0", Pull(4, 0))[1] == Send("w0", reply(1, L1), 4)
    driver.happens(Delivered("w0", 3))
    assert driver.hears("w0", Pull(4, 0)) == []
    driver.happens(Delivered("w0", 4))
    assert driver.hears("w0", Pull(4, 0))[1] == Send("w0", reply(1, L1), 5)


def test_a_pull_without_a_lease_is_not_answered(driver: LpsDriver) -> None:
    driver.join("w0")
    assert driver.hears("w0", Pull(0, 0)) == []


def test_a_lost_lease_request_is_repeated(driver: LpsDriver) -> None:
    """
    1. After the retry time the same request, with its number.
    2. A grant with another number does not answer it, nor does a second grant.
    """
    driver.join("w0")
    driver.hears("w0", Pull(4, 0))
    asked = Send("gps", LeaseRequest(1, 4, 0))
    assert asked not in driver.after(0.9).happens(Tick())
    assert asked in driver.after(0.1).happens(Tick())
    assert asked not in driver.after(0.9).happens(Tick())
    assert driver.grant(2, ((0, 4),)) == []
    assert len(driver.grant(1, ((0, 4),))) == 3
    assert driver.grant(1, ((0, 4),)) == []
    assert asked not in driver.after(5).happens(Tick())


def test_a_worker_that_left_the_queue_holds_up_no_other(driver: LpsDriver) -> None:
    driver.join("w0").join("w1")
    driver.hears("w0", Pull(100, 0))
    driver.hears("w1", Pull(4, 0))
    driver.hears("w0", Leave("enough", None, (), (), ()))
    effects = driver.grant(1, ((0, 100),))
    assert effects[1] == Send("w1", reply(0, L1), 1)


# --- updates ----------------------------------------------------------------------------------


def test_an_update_from_the_offer_to_the_next_lease(driver: LpsDriver) -> None:
    """
    1. Offered: a place is free. Arrived: it is measured here.
    2. Applied, then acknowledged; the next lease is asked for.
    3. The answer has the version that it made.
    """
    driver.join("w0")
    assert driver.work("w0") == L1
    assert driver.hears("w0", Offer(L1.push)) == [Send("w0", Grant(L1.push))]
    assert driver.hears("w0", update(L1, next_samples=4), -1) == [Measure(-1)]
    assert driver.happens(Measured(-1, 1.0, finite=True)) == [
        Apply("step", -1),
        Release(-1),
        UpdateApplied(version=1, lease=1, spans=L1.spans, steps=2, staleness=0, norm=1.0, loss=1.5),
        Send("w0", Ack(L1.push, "applied")),
        Send("gps", LeaseRequest(2, 4, 0)),
    ]
    assert driver.grant(2, ((4, 8),)) == [Pin(2), Send("w0", reply(1, L2, L1.push), 2), Release(2)]


def test_with_samples_in_hand_the_answer_follows_the_acknowledgement_at_once() -> None:
    driver = LpsDriver(lease_ahead_ps=PS_PER_MS).serve().join("w0")
    driver.hears("w0", Pull(4, 0))
    driver.grant(1, ((0, 30),))
    first = driver.work("w0")
    driver.after(1.0)
    effects = driver.push("w0", update(first, next_samples=4))
    assert effects[3:] == [
        Send("w0", Ack(first.push, "applied")),
        Pin(2),
        Send("w0", reply(1, L2, L1.push), 2),
        Release(2),
    ]


def test_an_update_proves_that_the_model_it_began_from_arrived(driver: LpsDriver) -> None:
    """The driver has not said so yet; the next model is sent all the same."""
    driver.join("w0")
    driver.hears("w0", Pull(4, 0))
    driver.grant(1, ((0, 4),))
    driver.push("w0", update(L1, next_samples=4))
    assert len(driver.grant(2, ((4, 8),))) == 3
    driver.happens(Delivered("w0", 1))
    assert driver.hears("w0", Pull(4, 0)) == []


def test_an_update_that_comes_twice_is_applied_once(driver: LpsDriver) -> None:
    driver.join("w0")
    message = update(driver.work("w0"))
    driver.hears("w0", message, -1)
    assert driver.hears("w0", message, -2) == [Release(-2)]
    assert driver.hears("w0", Offer(L1.push)) == []
    driver.happens(Measured(-1, 1.0, finite=True))
    ack = Send("w0", Ack(L1.push, "applied"))
    assert driver.hears("w0", message, -3) == [Release(-3), ack]
    assert driver.hears("w0", Offer(L1.push)) == [ack]
    assert driver.happens(Measured(-1, 1.0, finite=True)) == []
    assert driver.lps.model.version == 1


@pytest.mark.parametrize(
    ("norm", "finite"), [(1.0, False), (float("nan"), False), (10.1, True), (float("inf"), True)]
)
def test_an_update_that_could_spoil_the_model_is_rejected(
    driver: LpsDriver, norm: float, finite: bool
) -> None:
    """Its samples are leased again, here to the same worker."""
    driver.join("w0")
    driver.work("w0")
    driver.hears("w0", update(L1, next_samples=4), -1)
    effects = driver.happens(Measured(-1, norm, finite))
    assert effects[0] == Release(-1)
    assert isinstance(effects[1], RoundRejected)
    assert effects[2:] == [
        Send("w0", Ack(L1.push, "rejected")),
        Pin(2),
        Send("w0", reply(0, lease(2, ((0, 4),)), L1.push), 2),
        Release(2),
    ]
    assert driver.hears("w0", Offer(L1.push)) == [Send("w0", Ack(L1.push, "rejected"))]


def test_the_largest_norm_that_is_allowed_is_applied(driver: LpsDriver) -> None:
    driver.join("w0")
    assert driver.push("w0", update(driver.work("w0")), norm=10.0)[0] == Apply("step", -100)


def test_staleness_is_how_many_versions_came_between(driver: LpsDriver) -> None:
    driver.join("w0").join("w1")
    work = driver.work("w0")
    driver.updates("w1", 3)
    effects = driver.push("w0", update(work))
    assert isinstance(effects[2], UpdateApplied)
    assert effects[2].staleness == 3
    assert driver.lps.report().staleness_max == 3


def test_a_worker_cannot_push_what_another_was_leased(driver: LpsDriver) -> None:
    """Nor samples other than those of the lease. The right holder is not disturbed."""
    driver.join("w0").join("w1")
    work = driver.work("w0")
    fenced = Ack(work.push, "fenced")
    assert driver.hears("w1", Offer(work.push)) == [Send("w1", fenced)]
    assert driver.hears("w1", update(work), -1) == [Release(-1), Send("w1", fenced)]
    other = replace(update(work), spans=((4, 8),))
    assert driver.hears("w0", other, -2) == [Release(-2), Send("w0", fenced)]
    assert driver.push("w0", update(work))[0] == Apply("step", -100)


def test_an_unknown_lease_is_fenced(driver: LpsDriver) -> None:
    driver.join("w0")
    assert driver.hears("w0", Offer(PushId(77, 1))) == [Send("w0", Ack(PushId(77, 1), "fenced"))]


# --- staging places ---------------------------------------------------------------------------


def test_updates_beyond_the_staging_limit_wait_in_turn(driver: LpsDriver) -> None:
    """
    1. One place: w1 and w2 are answered that it is taken.
    2. w0's update is measured: w1 is granted the place by itself; w2 when w1 is lost.
    """
    driver.join("w0").join("w1").join("w2")
    works = [driver.work(peer) for peer in ("w0", "w1", "w2")]
    assert driver.hears("w0", Offer(works[0].push)) == [Send("w0", Grant(works[0].push))]
    assert driver.hears("w1", Offer(works[1].push)) == [Send("w1", Busy(works[1].push, 1000))]
    assert driver.hears("w2", Offer(works[2].push)) == [Send("w2", Busy(works[2].push, 1000))]
    driver.hears("w0", update(works[0]), -1)
    assert driver.happens(Measured(-1, 1.0, finite=True))[0] == Send("w1", Grant(works[1].push))
    assert driver.happens(PeerLost("w1", "cut")) == [Send("w2", Grant(works[2].push))]


def test_an_update_whose_outcome_is_known_holds_no_place(driver: LpsDriver) -> None:
    """The Grant was lost, the lease was revoked: the first question about it frees the place."""
    driver.join("w0").join("w1")
    work = driver.work("w1")
    driver.lps.admission.staging.ask("w0", PushId(77, 1))
    assert driver.hears("w1", Offer(work.push)) == [Send("w1", Busy(work.push, 1000))]
    assert driver.hears("w0", Offer(PushId(77, 1))) == [
        Send("w1", Grant(work.push)),
        Send("w0", Ack(PushId(77, 1), "fenced")),
    ]
