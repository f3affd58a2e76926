"""How the GPS lends samples and takes updates in: once, whole, in order, or not at all."""

from dataclasses import replace
from typing import Any

import pytest

from pelago.core.machine import Delivered, PeerLost, Send, Tick
from pelago.core.names import PushId, Version
from pelago.core.notes.gps import ExchangeArrived, ExchangeRejected
from pelago.core.tensor_effects import Apply, Measure, Measured, Pin, Release
from pelago.wire.messages import (
    Ack,
    Grant,
    LeaseGrant,
    LeaseRequest,
    Model,
    Offer,
    Pull,
)
from tests.gps.driver import SETTINGS, GpsDriver, hello, update

E1, E2, U1 = PushId(1, 1), PushId(2, 1), PushId(1, 1)


def model(counter: int, steps: int, answers: PushId | None) -> Model:
    return Model(Version(1, counter), steps, None, answers, final=False)


def arrival(version: int, steps: int, cumulative: int, **changed: Any) -> ExchangeArrived:
    arrived = ExchangeArrived(
        region="eu",
        version=version,
        exchange=E1.lease,
        fence=E1.fence,
        spans=((0, 24),),
        dropped=((24, 32),),
        steps=steps,
        cumulative_steps=cumulative,
        elapsed_ps=0,
        staleness=0,
        norm=1.0,
        loss=1.5,
    )
    return replace(arrived, **changed)


@pytest.fixture
def driver() -> GpsDriver:
    """Both regions are in and hold samples: eu 0..40, us 40..60."""
    return GpsDriver().load().join("lps-1", "eu", samples=40).join("lps-2", "us", samples=20)


# --- leases -----------------------------------------------------------------------------------


def test_a_repeated_request_gets_the_same_samples_and_an_older_one_nothing(
    driver: GpsDriver,
) -> None:
    assert driver.hears("lps-1", LeaseRequest(1, 40, 0)) == [
        Send("lps-1", LeaseGrant(1, 1, ((0, 40),), 0))
    ]
    granted = [Send("lps-1", LeaseGrant(2, 1, ((60, 68),), 60))]
    assert driver.hears("lps-1", LeaseRequest(2, 8, 0)) == granted
    assert driver.hears("lps-1", LeaseRequest(2, 8, 0)) == granted
    assert driver.hears("lps-1", LeaseRequest(1, 40, 0)) == []
    assert driver.gps.ledger.totals().held == 68


def test_a_request_for_nothing_is_not_answered(driver: GpsDriver) -> None:
    assert driver.hears("lps-1", LeaseRequest(2, 0, 0)) == []


def test_time_is_counted_from_the_first_lease() -> None:
    driver = GpsDriver().load()
    driver.after(10).join("lps-1", "eu")
    assert driver.gps.clock.elapsed_ps() == 0
    driver.after(10).hears("lps-1", LeaseRequest(1, 8, 0))
    driver.after(3).hears("lps-1", LeaseRequest(2, 8, 0))
    assert driver.gps.clock.elapsed_ps() == 3 * 10**12


# --- the exchange -----------------------------------------------------------------------------


def test_an_exchange_from_the_offer_to_the_answer(driver: GpsDriver) -> None:
    """
    1. It is offered: a staging place is free.
    2. It has arrived: its norm and finiteness are measured here.
    3. It is applied, then acknowledged, then answered with the version that it made.
    """
    assert driver.hears("lps-1", Offer(E1)) == [Send("lps-1", Grant(E1))]
    assert driver.hears("lps-1", update(E1, ((0, 24),), ((24, 32),)), -1) == [Measure(-1)]
    assert driver.happens(Measured(-1, 1.0, finite=True)) == [
        Apply("step", -1),
        Release(-1),
        arrival(version=1, steps=1, cumulative=1),
        Send("lps-1", Ack(E1, "applied")),
        Pin(1),
        Send("lps-1", model(1, 1, E1), 1),
        Release(1),
    ]
    totals = driver.gps.ledger.totals()
    assert (totals.applied, totals.dropped_in_flight, totals.held) == (24, 8, 28)
    assert (driver.gps.model.counted_steps, driver.gps.model.tokens) == (1, 64)


def test_staleness_is_how_many_versions_came_between(driver: GpsDriver) -> None:
    driver.push("lps-2", update(U1, ((40, 44),)), -1)
    driver.push("lps-2", update(PushId(2, 1), ((44, 48),), base=1), -2)
    effects = driver.push("lps-1", update(E1, ((0, 4),)), -3)
    assert effects[2] == arrival(3, 1, 3, staleness=2, spans=((0, 4),), dropped=())


@pytest.mark.parametrize(
    ("power", "weights"),
    [
        (0.0, [1.0, 1.0, 1.0]),
        (0.5, [1.0, 2**-0.5, 3**-0.5]),
        (1.0, [1.0, 1 / 2, 1 / 3]),
        (2.0, [1.0, 1 / 4, 1 / 9]),
    ],
)
def test_an_update_counts_less_the_staler_it_is(power: float, weights: list[float]) -> None:
    """Two regions take turns, then one is two versions behind. Power 0 is 1.0 to the bit."""
    driver = GpsDriver(replace(SETTINGS, staleness_power=power)).load()
    driver.join("lps-1", "eu", samples=40).join("lps-2", "us", samples=20)
    found = [
        driver.push("lps-2", update(U1, ((40, 44),), base=0), -1)[0],
        driver.push("lps-2", update(PushId(2, 1), ((44, 48),), base=0), -2)[0],
        driver.push("lps-1", update(E1, ((0, 4),), base=0), -3)[0],
    ]
    assert found == [
        Apply("step", blob, pytest.approx(weight, rel=1e-15) if power else weight)
        for blob, weight in zip((-1, -2, -3), weights, strict=True)
    ]


@pytest.mark.parametrize(("base", "weight"), [(2**63, 1.0), (1, 1.0), (-1, 2**-1000.0)])
def test_a_base_that_never_was_gives_no_update_more_than_its_whole_weight(
    base: int, weight: float
) -> None:
    """A peer may claim anything: it never makes its update count more, and never ends the GPS."""
    driver = (
        GpsDriver(replace(SETTINGS, staleness_power=1000.0)).load().join("lps-1", "eu", samples=40)
    )
    effects = driver.push("lps-1", update(E1, ((0, 4),), base=base), -1)
    assert effects[0] == Apply("step", -1, weight)


def test_an_offer_of_what_is_being_measured_is_not_answered(driver: GpsDriver) -> None:
    driver.hears("lps-1", Offer(E1))
    driver.hears("lps-1", update(E1, ((0, 4),)), -1)
    assert driver.hears("lps-1", Offer(E1)) == []


def test_updates_of_two_regions_may_have_one_name(driver: GpsDriver) -> None:
    """The second one comes while the first is being measured, and is no repeat of it."""
    driver.hears("lps-1", update(E1, ((0, 4),)), -1)
    assert driver.hears("lps-2", Offer(U1)) == [Send("lps-2", Grant(U1))]
    assert driver.hears("lps-2", update(U1, ((40, 44),)), -2) == [Measure(-2)]
    for peer, blob in (("lps-1", -1), ("lps-2", -2)):
        effects = driver.happens(Measured(blob, 1.0, finite=True))
        assert Send(peer, Ack(E1, "applied")) in effects


def test_an_update_that_comes_twice_is_applied_once(driver: GpsDriver) -> None:
    """
    1. Its repeat comes while it is measured: dropped.
    2. Its repeat comes after it was applied: acknowledged again, and not measured.
    """
    message = update(E1, ((0, 4),))
    driver.hears("lps-1", message, -1)
    assert driver.hears("lps-1", message, -2) == [Release(-2)]
    driver.happens(Measured(-1, 1.0, finite=True))
    assert driver.hears("lps-1", message, -3) == [Release(-3), Send("lps-1", Ack(E1, "applied"))]
    assert driver.gps.model.updates == 1
    assert driver.happens(Measured(-3, 1.0, finite=True)) == []


def test_a_lost_answer_is_given_again_when_it_is_asked_for(driver: GpsDriver) -> None:
    """
    1. The answer is on its way: only the acknowledgement is repeated.
    2. It was lost: with the acknowledgement comes the newest version, as the answer.
    3. It is on its way again.
    4. It arrived, but the region asks all the same: it gets it once more.
    """
    driver.push("lps-1", update(E1, ((0, 4),)), -1)
    ack = Send("lps-1", Ack(E1, "applied"))
    assert driver.hears("lps-1", Offer(E1)) == [ack]
    assert driver.happens(PeerLost("lps-1", "cut")) == []
    driver.push("lps-2", update(U1, ((40, 44),)), -2)
    again = [ack, Pin(3), Send("lps-1", model(2, 2, E1), 3), Release(3)]
    assert driver.hears("lps-1", Offer(E1)) == again
    assert driver.hears("lps-1", Offer(E1)) == [ack]
    assert driver.happens(Delivered("lps-1", 3)) == []
    assert driver.hears("lps-1", Offer(E1))[2] == Send("lps-1", model(2, 2, E1), 4)


def test_a_late_question_about_an_earlier_exchange_costs_no_model(driver: GpsDriver) -> None:
    driver.push("lps-1", update(E1, ((0, 4),)), -1)
    driver.push("lps-1", update(E2, ((4, 8),)), -2)
    driver.happens(Delivered("lps-1", 2))
    assert driver.hears("lps-1", Offer(E1)) == [Send("lps-1", Ack(E1, "applied"))]


def test_the_delivery_of_an_older_model_is_not_that_of_the_newest(driver: GpsDriver) -> None:
    driver.push("lps-1", update(E1, ((0, 4),)), -1)
    driver.push("lps-1", update(E2, ((4, 8),)), -2)
    driver.happens(Delivered("lps-1", 1))
    assert driver.hears("lps-1", Offer(E2)) == [Send("lps-1", Ack(E2, "applied"))]


def test_a_pull_is_answered_once_while_the_model_is_on_its_way(driver: GpsDriver) -> None:
    assert driver.hears("lps-1", Pull(0, 0)) == [
        Pin(1),
        Send("lps-1", model(0, 0, None), 1),
        Release(1),
    ]
    assert driver.hears("lps-1", Pull(0, 0)) == []
    driver.happens(Delivered("lps-1", 1))
    assert driver.hears("lps-1", Pull(0, 0))[0] == Pin(2)


# --- rejection --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("norm", "finite", "why"),
    [
        (1.0, False, "not finite"),
        (float("nan"), False, "not finite"),
        (10.1, True, "norm 10.1 above gps.update_norm_max = 10"),
    ],
)
def test_an_update_that_could_spoil_the_model_is_rejected(
    driver: GpsDriver, norm: float, finite: bool, why: str
) -> None:
    """Its samples return, and the region is answered with the model to start again from."""
    driver.hears("lps-1", update(E1, ((0, 4),), ((4, 8),)), -1)
    effects = driver.happens(Measured(-1, norm, finite))
    [rejected, *rest] = effects
    assert isinstance(rejected, ExchangeRejected)
    assert (rejected.region, rejected.why) == ("eu", why)
    assert rest == [
        Release(-1),
        Send("lps-1", Ack(E1, "rejected")),
        Pin(1),
        Send("lps-1", model(0, 0, E1), 1),
        Release(1),
    ]
    totals = driver.gps.ledger.totals()
    assert (totals.applied, totals.returned, totals.held) == (0, 8, 52)
    assert driver.hears("lps-1", Offer(E1)) == [Send("lps-1", Ack(E1, "rejected"))]


def test_the_largest_norm_that_is_allowed_is_applied(driver: GpsDriver) -> None:
    assert driver.push("lps-1", update(E1, ((0, 4),)), -1, norm=10.0)[0] == Apply("step", -1)


@pytest.mark.parametrize(
    ("spans", "dropped"),
    [
        (((40, 44),), ()),  # another region's
        (((0, 4),), ((44, 48),)),
        (((100, 104),), ()),  # of no region
        (((0, 8),), ((4, 6),)),  # both applied and dropped
    ],
)
def test_an_update_on_samples_that_the_region_does_not_hold_is_rejected(
    driver: GpsDriver, spans: tuple[tuple[int, int], ...], dropped: tuple[tuple[int, int], ...]
) -> None:
    effects = driver.push("lps-1", update(E1, spans, dropped), -1)
    assert isinstance(effects[0], ExchangeRejected)
    assert effects[0].why == "samples that this region does not hold"
    assert driver.gps.ledger.totals().applied == 0


def test_samples_are_not_spent_twice_under_two_names(driver: GpsDriver) -> None:
    driver.push("lps-1", update(E1, ((0, 4),)), -1)
    effects = driver.push("lps-1", update(E2, ((0, 8),)), -2)
    assert Send("lps-1", Ack(E2, "rejected")) in effects
    totals = driver.gps.ledger.totals()
    assert (totals.applied, totals.returned, totals.duplicated) == (4, 4, 0)


# --- fences -----------------------------------------------------------------------------------


def test_an_update_begun_with_the_gps_before_this_one_is_void() -> None:
    """
    The fuzzer's seeds 56 and 2145: a GPS without durability dies and another one comes, which knows nothing of
    it. Its fences begin at its incarnation, so no two incarnations give the same fence.

    1. A region was sending an exchange of the old fence, and its driver goes on sending it.
    2. By then it has joined the new GPS, which gave it samples that are numbered alike.
    """
    driver = GpsDriver(replace(SETTINGS, incarnation=1000)).load().join("lps-1", "eu", samples=8)
    assert driver.gps.regions["eu"].fence == 1000
    old, new = E1, PushId(E1.lease, 1000)
    assert driver.hears("lps-1", update(old, ((0, 4),)), -1) == [
        Release(-1),
        Send("lps-1", Ack(old, "fenced")),
    ]
    assert driver.push("lps-1", update(new, ((0, 4),)), -2)[-4] == Send(
        "lps-1", Ack(new, "applied")
    )


def test_what_was_being_measured_when_its_sender_was_replaced_is_dropped(driver: GpsDriver) -> None:
    driver.hears("lps-1", Offer(E1))
    driver.hears("lps-1", update(E1, ((0, 4),)), -1)
    driver.hears("lps-3", hello("lps", "eu", 2))
    assert driver.happens(Measured(-1, 1.0, finite=True)) == [Release(-1)]
    assert driver.gps.ledger.totals().applied == 0


def test_what_was_being_measured_when_its_sender_was_lost_and_came_back_is_dropped(
    driver: GpsDriver,
) -> None:
    driver.hears("lps-1", update(E1, ((0, 4),)), -1)
    driver.after(61).happens(Tick())
    driver.hears("lps-1", hello("lps", "eu"))
    assert driver.happens(Measured(-1, 1.0, finite=True)) == [Release(-1)]


# --- the invariants ---------------------------------------------------------------------------


def test_the_check_sees_a_broken_gps(driver: GpsDriver) -> None:
    driver.gps.model.updates += 1
    with pytest.raises(AssertionError):
        driver.gps.check()
    driver.gps.model.updates -= 1
    driver.gps.regions["eu"].peer = None
    with pytest.raises(AssertionError, match="eu"):
        driver.gps.check()
    driver.gps.regions["eu"].peer = "lps-1"
    driver.gps.phase = "finished"
    with pytest.raises(AssertionError):
        driver.gps.check()


def test_the_check_sees_a_model_on_its_way_to_no_process(driver: GpsDriver) -> None:
    driver.gps.ledger.reclaim("eu")
    region = driver.gps.regions["eu"]
    region.peer, region.replying = None, 1
    with pytest.raises(AssertionError):
        driver.gps.check()


@pytest.mark.parametrize(
    "claims",
    [{"steps": 9}, {"steps": 1 << 48}, {"steps": -1}, {"tokens": 8 * 64 + 1}, {"tokens": 1 << 48}],
)
def test_an_update_that_claims_more_than_its_samples_give_is_rejected(
    driver: GpsDriver, claims: dict[str, int]
) -> None:
    """It contains four samples of 64 tokens each, and says that four were dropped."""
    message = update(E1, ((0, 4),), ((4, 8),))
    effects = driver.push("lps-1", replace(message, **claims), -1)
    assert Send("lps-1", Ack(E1, "rejected")) in effects
    assert (
        driver.gps.model.counted_steps,
        driver.gps.model.tokens,
        driver.gps.model.version.counter,
    ) == (0, 0, 0)


def test_an_update_may_claim_a_step_and_all_tokens_of_each_sample(driver: GpsDriver) -> None:
    message = replace(update(E1, ((0, 4),), ((4, 8),)), steps=8, tokens=8 * 64)
    assert Send("lps-1", Ack(E1, "applied")) in driver.push("lps-1", message, -1)


def test_a_payload_is_expected_when_it_was_granted_and_until_it_is_here(driver: GpsDriver) -> None:
    """1. Two offer, and there is one place. 2. It comes, and is measured: the other's is expected."""
    first, second = update(E1, ((0, 4),)), update(U1, ((40, 44),))
    gps = driver.gps
    assert not gps.expects("lps-1", first)
    driver.hears("lps-1", Offer(E1))
    driver.hears("lps-2", Offer(U1))
    assert gps.expects("lps-1", first)
    for peer, message in (("lps-2", second), ("lps-1", update(E2, ((0, 4),))), ("x", first)):
        assert not gps.expects(peer, message)
    assert not gps.expects("lps-1", model(1, 1, None))
    driver.hears("lps-1", first, -1)
    assert not gps.expects("lps-1", first)
    driver.happens(Measured(-1, 1.0, finite=True))
    assert gps.expects("lps-2", second)
