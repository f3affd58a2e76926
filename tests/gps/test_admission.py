"""Which update may be sent to the GPS when there are fewer places than updates, and which region loses one."""

from dataclasses import replace

import pytest

from pelago.core.machine import PeerLost, Send, Tick
from pelago.core.names import PushId
from pelago.core.notes.gps import RegionLeft
from pelago.core.tensor_effects import Measure, Measured, Release
from pelago.wire.messages import (
    Ack,
    Busy,
    Grant,
    Heartbeat,
    Offer,
    Rejoin,
)
from tests.gps.driver import SETTINGS, GpsDriver, update

E1, E2, U1 = PushId(1, 1), PushId(2, 1), PushId(1, 1)


@pytest.fixture
def driver() -> GpsDriver:
    """Both regions are in and hold samples: eu 0..40, us 40..60."""
    return GpsDriver().load().join("lps-1", "eu", samples=40).join("lps-2", "us", samples=20)


def test_updates_beyond_the_staging_limit_wait_in_turn(driver: GpsDriver) -> None:
    """
    1. One place: the second region is answered that it is taken.
    2. The first update is measured, and the second region is granted the place by itself.
    """
    assert driver.hears("lps-1", Offer(E1)) == [Send("lps-1", Grant(E1))]
    assert driver.hears("lps-2", Offer(U1)) == [Send("lps-2", Busy(U1, 1000))]
    assert driver.hears("lps-1", update(E1, ((0, 4),)), -1) == [Measure(-1)]
    effects = driver.happens(Measured(-1, 1.0, finite=True))
    assert effects[0] == Send("lps-2", Grant(U1))
    assert driver.hears("lps-1", Offer(E2)) == [Send("lps-1", Busy(E2, 1000))]


def test_a_lost_grant_is_given_again(driver: GpsDriver) -> None:
    driver.hears("lps-1", Offer(E1))
    assert driver.hears("lps-1", Offer(E1)) == [Send("lps-1", Grant(E1))]


def test_a_lost_transfer_gives_its_place_to_the_next(driver: GpsDriver) -> None:
    driver.hears("lps-1", Offer(E1))
    driver.hears("lps-2", Offer(U1))
    assert driver.happens(PeerLost("lps-1", "cut")) == [Send("lps-2", Grant(U1))]


def test_a_lost_region_gives_its_place_to_the_next(driver: GpsDriver) -> None:
    driver.hears("lps-1", Offer(E1))
    driver.after(30).hears("lps-2", Offer(U1))
    effects = driver.after(31).happens(Tick())
    assert effects[:3] == [
        RegionLeft("eu", "lost: no heartbeat"),
        Send("lps-2", Grant(U1)),
        Send("lps-1", Rejoin()),
    ]


def test_a_silent_region_gives_its_place_to_the_next_long_before_it_is_lost(
    driver: GpsDriver,
) -> None:
    """
    1. It is silent for 5 s: the other one has its place. It would be lost only after a minute.
    2. It is heard again: its update is granted a place like any other.
    """
    driver.hears("lps-1", Offer(E1))
    driver.hears("lps-2", Offer(U1))
    driver.after(5.1).hears("lps-2", Heartbeat(None))
    assert Send("lps-2", Grant(U1)) in driver.happens(Tick())
    assert driver.gps.regions["eu"].peer == "lps-1"
    assert driver.hears("lps-1", Offer(E1)) == [Send("lps-1", Busy(E1, 1000))]


def test_a_slow_region_gives_its_place_to_one_that_waits_and_its_update_still_counts(
    driver: GpsDriver,
) -> None:
    """Its turn lasts four times 5 s as long as it is not known how long the other one needs."""
    driver.hears("lps-1", Offer(E1))
    driver.hears("lps-2", Offer(U1))
    granted = []
    ticks = 4 * SETTINGS.lost_after_ps // SETTINGS.tick_ps
    for _ in range(ticks + 1):
        granted.append(Send("lps-2", Grant(U1)) in driver.happens(Tick()))
        for peer in ("lps-1", "lps-2"):
            driver.hears(peer, Heartbeat(None))
    assert granted == [False] * ticks + [True]
    message = update(E1, ((0, 4),))
    assert driver.gps.expects("lps-1", message)
    assert driver.hears("lps-1", message, -1) == [Measure(-1)]
    assert Send("lps-1", Ack(E1, "applied")) in driver.happens(Measured(-1, 1.0, finite=True))
    assert driver.gps.admission.staging.granted == {"lps-2": U1}


def test_an_update_whose_outcome_is_known_holds_no_place(driver: GpsDriver) -> None:
    """
    1. lps-1 is granted a place, falls silent, comes back and holds the place under its old fence.
    2. It asks about the old update: fenced, and the place is free for the other.
    """
    driver = GpsDriver(replace(SETTINGS, staged_max=1)).load()
    driver.join("lps-1", "eu", samples=8).join("lps-2", "us", samples=8)
    old = PushId(7, 0)
    driver.gps.admission.staging.ask("lps-1", old)
    assert driver.hears("lps-2", Offer(U1)) == [Send("lps-2", Busy(U1, 1000))]
    assert driver.hears("lps-1", Offer(old)) == [
        Send("lps-2", Grant(U1)),
        Send("lps-1", Ack(old, "fenced")),
    ]


def test_a_repeat_of_an_old_update_frees_no_place_of_a_newer_one(driver: GpsDriver) -> None:
    driver.push("lps-1", update(E1, ((0, 4),)), -1)
    driver.hears("lps-1", Offer(E2))
    driver.hears("lps-2", Offer(U1))
    assert driver.hears("lps-1", update(E1, ((0, 4),)), -2) == [
        Release(-2),
        Send("lps-1", Ack(E1, "applied")),
    ]
