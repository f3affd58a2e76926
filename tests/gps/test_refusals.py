"""Updates that are rejected, one after the other, and regions that give up."""

from dataclasses import replace

import pytest

from gps.result import result
from gps.state import Gps
from pelago.config.run_file import RunFile
from pelago.core.machine import Finish, Restarted, Send
from pelago.core.names import PushId
from pelago.core.notes.gps import RegionFailed
from pelago.core.notes.note import Note
from pelago.core.tensor_effects import Measured
from pelago.durable.image import restore, take
from pelago.wire.messages import Effect, Goodbye, LeaseRequest, Leave, Model, Refuse, Stop
from tests.gps.driver import SETTINGS, GpsDriver, hello, update

ENDED = "no update can be applied any more"


@pytest.fixture
def driver() -> GpsDriver:
    """Two regions, of which each may have three updates rejected in a row."""
    driver = GpsDriver().load()
    return driver.join("lps-1", "eu", samples=400).join("lps-2", "us", samples=400)


class Numbers:
    """Exchanges of each region, counted."""

    def __init__(self) -> None:
        self.of: dict[str, int] = {}

    def next(self, peer: str, fence: int = 1) -> PushId:
        """The name of its next exchange."""
        self.of[peer] = self.of.get(peer, 0) + 1
        return PushId(self.of[peer], fence)


def exchange(driver: GpsDriver, numbers: Numbers, peer: str, norm: float) -> list[Effect]:
    """A region's next update: 1.0 is a norm that is good, 11.0 one that is too large."""
    push = numbers.next(peer)
    [region] = [each for each in driver.gps.regions.values() if each.peer == peer]
    start = next(iter(driver.gps.ledger.held[region.name]))[0]
    found = driver.push(peer, update(push, ((start, start + 4),)), -push.lease, norm=norm)
    if not driver.gps.ledger.held[region.name].holds(((start, start + 4),)):
        driver.hears(peer, LeaseRequest(region.request + 1, 4, 0))
    return found


def test_a_region_whose_updates_are_all_rejected_is_refused_while_another_does_better(
    driver: GpsDriver,
) -> None:
    numbers = Numbers()
    for _ in range(2):
        effects = exchange(driver, numbers, "lps-1", 11.0)
        assert isinstance(effects[-2], Send)
        assert isinstance(effects[-2].message, Model)
        exchange(driver, numbers, "lps-2", 1.0)
    effects = exchange(driver, numbers, "lps-1", 11.0)
    [refusal] = [each.message for each in effects if isinstance(each, Send)][1:]
    assert isinstance(refusal, Refuse)
    assert "no update of region eu can be applied: the last 3 in a row" in refusal.detail
    assert "norm 11 above gps.update_norm_max = 10" in refusal.detail
    assert "worker.max_lr = 0.5" in refusal.detail
    assert driver.gps.phase == "serving"
    assert not driver.gps.ledger.held["eu"]


def test_a_run_in_which_no_region_learns_ends_with_an_error(driver: GpsDriver) -> None:
    """Its result says so, and so does every process of the GPS that follows."""
    numbers = Numbers()
    for peer in ("lps-2", "lps-1", "lps-1"):
        exchange(driver, numbers, peer, 11.0)
    effects = exchange(driver, numbers, "lps-1", 11.0)
    assert Send("lps-1", Stop(ENDED)) in effects
    assert Send("lps-2", Stop(ENDED)) in effects
    driver.hears("lps-1", Leave("drained", None, (), (), ()))
    [finish] = [
        each
        for each in driver.hears("lps-2", Leave("drained", None, (), (), ()))
        if isinstance(each, Finish)
    ]
    assert finish.reason == ENDED
    assert "no update of region eu can be applied" in finish.error
    again = Gps(SETTINGS)
    restore(again, take(driver.gps))
    assert again.handle(Restarted(), driver.now)[-1] == finish
    run = RunFile.model_validate({"region": [{"name": "eu", "worker_speeds": [1.0]}]})
    found = result(driver.gps, run, clock="real", model_parameters=4)
    assert (found["error"], found["gps"]["rejected"]) == (finish.error, 4)


def failed(driver: GpsDriver, peer: str, region: str) -> list[Effect]:
    """A region gives up, and its LPS is started again."""
    leave = Leave("drained", None, (), (), (), f"no update of worker {region}/0 can be applied")
    effects = driver.hears(peer, leave)
    assert Send(peer, Goodbye()) in effects
    return effects


def test_the_run_goes_on_without_a_region_that_gave_up_and_ends_with_the_last_one(
    driver: GpsDriver,
) -> None:
    effects = failed(driver, "lps-1", "eu")
    assert isinstance([each for each in effects if isinstance(each, Note)][-1], RegionFailed)
    assert driver.gps.phase == "serving"
    assert not driver.gps.ledger.held["eu"]
    effects = failed(driver, "lps-2", "us")
    assert driver.gps.end_reason == ENDED
    assert effects[-1] == Finish(ENDED, "no update of worker us/0 can be applied")


def test_regions_that_give_up_by_turns_do_not_go_on_without_end(driver: GpsDriver) -> None:
    """Each comes back before the other gives up, but has had no update applied since."""
    failed(driver, "lps-1", "eu")
    driver.hears("lps-3", hello("lps", "eu", 3))
    failed(driver, "lps-2", "us")
    assert driver.gps.error


def test_a_region_that_does_better_after_it_came_back_is_no_reason_to_end(
    driver: GpsDriver,
) -> None:
    failed(driver, "lps-1", "eu")
    driver.join("lps-3", "eu", samples=8, incarnation=3)
    [start, _] = driver.gps.ledger.held["eu"].spans()[0]
    good = update(PushId(1, 2), ((start, start + 4),))
    driver.push("lps-3", good, -1)
    failed(driver, "lps-2", "us")
    assert driver.gps.phase == "serving"


def test_a_later_incarnation_begins_its_counts_at_zero(driver: GpsDriver) -> None:
    failed(driver, "lps-1", "eu"), failed(driver, "lps-2", "us")
    later = Gps(replace(SETTINGS, incarnation=1000))
    restore(later, take(driver.gps))
    later.reopen()
    assert (later.phase, later.error, later.exchanges.refusals.in_a_row) == ("serving", "", {})


def test_an_update_measured_after_the_end_changes_nothing(driver: GpsDriver) -> None:
    driver.hears("lps-1", update(PushId(1, 1), ((0, 4),)), -1)
    failed(driver, "lps-2", "us"), failed(driver, "lps-1", "eu")
    driver.happens(Measured(-1, 11.0, finite=True))
    assert driver.gps.exchanges.refusals.total == 0
