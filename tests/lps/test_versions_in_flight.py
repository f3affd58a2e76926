"""Workers that wait for room for another version of the region's model."""

import pytest

from lps.workers import NO_ROOM
from pelago.core.machine import Delivered, PeerLost, Restarted, Send, Tick
from pelago.wire.messages import Heartbeat, Model, Pull, Wait
from tests.lps.driver import LpsDriver, update


def models_sent(effects: list[object]) -> list[tuple[str, int]]:
    """(peer, version) of each model."""
    return [
        (each.peer, each.message.version.counter)
        for each in effects
        if isinstance(each, Send) and isinstance(each.message, Model)
    ]


@pytest.fixture
def driver() -> LpsDriver:
    """w0 reads version 0 slowly; w1 trains on it, and its update makes version 1."""
    driver = LpsDriver(versions_max=1).serve().join("w0").join("w1").join("w2")
    driver.work("w0")
    trained = driver.work("w1")
    driver.happens(Delivered("w1", 2))
    driver.push("w1", update(trained))
    return driver


def test_a_worker_waits_and_is_told_while_a_slow_one_reads_an_older_version(
    driver: LpsDriver,
) -> None:
    told = driver.hears("w1", Pull(4, 0))
    assert Send("w1", Wait(NO_ROOM)) in told
    assert models_sent(told) == []
    arrived = driver.happens(Delivered("w0", 1))
    lent = driver.grant(3, ((8, 12),)) if not models_sent(arrived) else arrived
    assert models_sent(lent) == [("w1", 1)]


def test_a_reader_that_is_lost_makes_room(driver: LpsDriver) -> None:
    driver.hears("w1", Pull(4, 0))
    lost = driver.happens(PeerLost("w0", "cut"))
    lent = driver.grant(3, ((8, 12),)) if not models_sent(lost) else lost
    assert models_sent(lent) == [("w1", 1)]


def test_a_reader_that_falls_silent_makes_room(driver: LpsDriver) -> None:
    """Its process may be dead, and the driver gives up on its transfer much later."""
    driver.hears("w1", Pull(4, 0))
    driver.after(4.0)
    driver.hears("w1", Heartbeat(None))
    driver.after(2.0)
    effects = driver.happens(Tick())
    assert models_sent(effects) == [("w1", 1)]


def test_after_a_restart_nothing_is_on_its_way(driver: LpsDriver) -> None:
    driver.happens(Restarted())
    driver.hears("w1", Pull(4, 0))
    assert models_sent(driver.grant(3, ((8, 12),))) == [("w1", 1)]


def test_without_a_limit_every_worker_gets_the_newest_version() -> None:
    driver = LpsDriver().serve().join("w0").join("w1")
    driver.work("w0")
    driver.push("w1", update(driver.work("w1")))
    driver.hears("w1", Pull(4, 0))
    assert models_sent(driver.grant(3, ((8, 12),))) == [("w1", 1)]
