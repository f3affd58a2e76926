"""A later incarnation of a GPS, which continues from an earlier state that may not have been the last."""

from dataclasses import replace

import pytest

from gps.machine_settings import GpsSettings
from gps.result import result
from gps.state import Gps
from pelago.config.run_file import RunFile
from pelago.core.machine import PS_PER_MS, Received, Restarted, Send, StopRequested
from pelago.core.names import PushId, Version
from pelago.core.notes.gps import RegionJoined
from pelago.durable.image import restore, take
from pelago.wire.messages import Ack, Heartbeat, LeaseRequest, Leave, Offer, Pull, Rejoin, Welcome
from tests.gps.driver import SETTINGS, GpsDriver, hello, update

E1 = PushId(1, 1)
LATER = replace(SETTINGS, incarnation=1000)


@pytest.fixture
def driver() -> GpsDriver:
    """Eu has 0..8, of which 0..4 are in version 1, and us 8..16."""
    driver = GpsDriver().load().join("lps-1", "eu", samples=8).join("lps-2", "us", samples=8)
    driver.push("lps-1", update(E1, ((0, 4),), steps=3), -1)
    return driver


def reopened(driver: GpsDriver, settings: GpsSettings = LATER) -> GpsDriver:
    """The driver of a later incarnation, which continues from the state of this GPS."""
    later = GpsDriver(settings)
    restore(later.gps, take(driver.gps))
    later.gps.reopen()
    later.gps.check()
    later.now = driver.now
    later.happens(Restarted())
    return later


def test_it_goes_on_with_the_model_and_lends_what_is_not_in_it(driver: GpsDriver) -> None:
    later = reopened(driver)
    assert later.gps.model.version == Version(1000, 1)
    assert later.gps.model.counted_steps == 3
    later.join("lps-1", "eu")
    [grant] = later.hears("lps-1", LeaseRequest(1, 20, 0))
    assert isinstance(grant, Send)
    assert grant.message.spans == ((4, 16), (16, 24))  # type: ignore[union-attr]


def test_what_peers_hold_of_the_incarnation_before_is_void(driver: GpsDriver) -> None:
    """1. No peer is known any more. 2. Fences are above any that was given since."""
    later = reopened(driver)
    for message in (Heartbeat(None), Offer(E1), LeaseRequest(2, 8, 0), Pull(0, 0)):
        assert later.hears("lps-1", message) == [Send("lps-1", Rejoin())]
    [_, welcome] = later.hears("lps-1", hello("lps", "eu"))
    assert isinstance(welcome, Send)
    assert isinstance(welcome.message, Welcome)
    assert (welcome.message.fence, welcome.message.incarnation) == (1000, 1000)
    assert later.hears("lps-1", Offer(PushId(2, 1)))[-1] == Send("lps-1", Ack((2, 1), "fenced"))


def test_what_was_being_measured_is_forgotten(driver: GpsDriver) -> None:
    driver.hears("lps-2", Offer(E1))
    driver.hears("lps-2", update(E1, ((8, 16),)), -2)
    later = reopened(driver)
    assert later.gps.admission.staging.ask("any", E1)
    assert not later.gps.admission.measuring


def test_a_run_that_had_ended_goes_on(driver: GpsDriver) -> None:
    """1. The run ended, and samples that eu had applied never came here. 2. The later incarnation lends them
    again, and the time since the end does not count."""
    driver.after(1).happens(StopRequested("enough"))
    driver.hears("lps-1", Leave("drained", None, (), ((4, 6),), ()))
    driver.hears("lps-2", Leave("drained", None, (), (), ()))
    assert driver.gps.phase == "finished"
    assert driver.gps.ledger.totals().unexchanged == 2
    ended = driver.gps.clock.elapsed_ps()
    driver.after(3600)
    later = reopened(driver)
    assert later.gps.phase == "serving"
    assert later.gps.ledger.totals().unexchanged == 0
    assert later.gps.ledger.free.spans() == ((4, 16),)
    assert later.gps.clock.elapsed_ps() - ended <= driver.now - ended
    assert later.gps.end_reason == ""


def test_regions_may_be_added_and_struck(driver: GpsDriver) -> None:
    later = reopened(driver, replace(LATER, regions=("us", "asia")))
    assert later.hears("lps-3", hello("lps", "asia"))[0] == RegionJoined("asia", 1000, 0)
    assert "is not in the run" in str(later.hears("lps-1", hello("lps", "eu")))


def test_only_a_later_incarnation_can_reopen(driver: GpsDriver) -> None:
    gps = Gps(SETTINGS)
    restore(gps, take(driver.gps))
    with pytest.raises(AssertionError):
        gps.reopen()


def test_samples_are_counted_with_the_batch_size_of_their_time(driver: GpsDriver) -> None:
    """1. An exchange of 4 samples. 2. The run goes on with larger batches: one of 8 samples, 4 more dropped."""
    later = reopened(driver).join("lps-1", "eu").join("lps-2", "us")
    later.hears("lps-2", LeaseRequest(1, 12, 0))
    later.push("lps-2", update(PushId(1, 1000), ((4, 12),), ((12, 16),)), -2)
    tables = {"worker": {"batch_size": 512}, "region": [{"name": "eu", "worker_speeds": [1.0]}]}
    run = RunFile.model_validate(tables)
    found = result(later.gps, run, clock="real", model_parameters=4)
    assert (found["counted_steps"], found["samples"], found["tokens"]) == (4, 16, 128)


def test_time_goes_on_from_the_state(driver: GpsDriver) -> None:
    elapsed = driver.after(2).gps.clock.elapsed_ps()
    later = reopened(driver)
    later.gps.handle(Received("unknown", Heartbeat(None)), driver.now + 5 * PS_PER_MS)
    assert later.gps.clock.elapsed_ps() <= elapsed + 2 * 10**12 + 5 * PS_PER_MS
