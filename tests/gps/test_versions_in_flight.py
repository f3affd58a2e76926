"""Regions and evaluators that wait for room for another version of the global model."""

from dataclasses import replace

import pytest

from gps.exchanges import NO_ROOM
from pelago.core.machine import Delivered, PeerLost, Send
from pelago.core.names import PushId
from pelago.wire.messages import Model, Pull, Wait
from tests.gps.driver import SETTINGS, GpsDriver, update

E1, U1, U2 = PushId(1, 1), PushId(1, 1), PushId(2, 1)


def models_sent(effects: list[object]) -> list[tuple[str, int, PushId | None]]:
    """(peer, version, exchange that it answers) of each model."""
    return [
        (each.peer, each.message.version.counter, each.message.answers)
        for each in effects
        if isinstance(each, Send) and isinstance(each.message, Model)
    ]


@pytest.fixture
def driver() -> GpsDriver:
    """lps-1 reads version 1 slowly."""
    driver = GpsDriver(replace(SETTINGS, versions_max=1)).load()
    driver.join("lps-1", "eu", samples=4).join("lps-2", "us", samples=8)
    assert models_sent(driver.push("lps-1", update(E1, ((0, 4),)), -1)) == [("lps-1", 1, E1)]
    return driver


def test_the_answer_to_an_exchange_waits_for_a_slow_reader_and_the_region_is_told(
    driver: GpsDriver,
) -> None:
    applied = driver.push("lps-2", update(U1, ((4, 8),)), -2)
    assert models_sent(applied) == []
    assert Send("lps-2", Wait(NO_ROOM)) in applied
    assert models_sent(driver.happens(Delivered("lps-1", 1))) == [("lps-2", 2, U1)]
    assert models_sent(driver.happens(Delivered("lps-2", 2))) == []


def test_what_is_answered_after_the_wait_is_the_newest_exchange(driver: GpsDriver) -> None:
    """The region gave up waiting, and pushed again."""
    driver.push("lps-2", update(U1, ((4, 8),)), -2)
    driver.push("lps-2", update(U2, ((8, 12),)), -3)
    assert models_sent(driver.happens(PeerLost("lps-1", "cut"))) == [("lps-2", 3, U2)]


def test_a_region_that_left_is_not_answered_any_more(driver: GpsDriver) -> None:
    driver.push("lps-2", update(U1, ((4, 8),)), -2)
    driver.join("lps-3", "us", incarnation=2)
    assert models_sent(driver.happens(Delivered("lps-1", 1))) == []


def test_an_evaluator_gets_its_version_when_there_is_room(driver: GpsDriver) -> None:
    driver.push("lps-2", update(U1, ((4, 8),)), -2)
    assert models_sent(driver.evaluate()) == []
    assert models_sent(driver.happens(Delivered("lps-1", 1))) == [("lps-2", 2, U1)]
    assert models_sent(driver.happens(Delivered("lps-2", 2))) == [("judge", 2, None)]


def test_a_pull_of_the_version_that_is_on_its_way_needs_no_room(driver: GpsDriver) -> None:
    assert models_sent(driver.hears("lps-2", Pull(0, 0))) == [("lps-2", 1, None)]
