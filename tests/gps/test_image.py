"""A GPS that was restored from its image goes on as if it had never been gone."""

from dataclasses import replace

import pytest

from gps.state import Gps
from pelago.core.errors import CheckpointError
from pelago.core.machine import Received, Send
from pelago.core.names import PushId
from pelago.core.notes.gps import RegionJoined
from pelago.core.tensor_effects import Measured
from pelago.durable.image import restore, take
from pelago.wire.messages import Heartbeat, Offer, Refuse, Stop
from tests.gps.driver import REPORT, SETTINGS, GpsDriver, hello, update, welcome
from tests.lps.scenario import LpsScenario
from tests.restored_doubles import Doubles, restored

E1 = PushId(1, 1)


def used() -> GpsDriver:
    """One region was served and pushed, the other is served, and an evaluator waits."""
    driver = GpsDriver().load().join("lps-1", "eu", samples=8).join("lps-2", "us", samples=8)
    driver.hears("lps-1", Heartbeat(REPORT))
    driver.push("lps-1", update(E1, ((0, 4),), steps=3), -1)
    driver.evaluate(after_steps=5)
    return driver


def push_on(gps: Gps, driver: GpsDriver) -> list[object]:
    """Us's first exchange: the effects of a GPS when it is measured."""
    gps.handle(Received("lps-2", Offer(E1)), driver.now)
    gps.handle(Received("lps-2", update(E1, ((8, 16),), steps=3), -2), driver.now)
    return list(gps.handle(Measured(-2, 1.0, True), driver.now))


@pytest.mark.parametrize("seed", range(3))
def test_in_the_middle_of_any_run_it_can_be_restored(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    doubles = Doubles(monkeypatch, Gps, seed, chance=0.05)
    scenario = LpsScenario(seed, in_flight="carry", ahead_ticks=8, budget=160)
    scenario.run(ticks=100)
    scenario.end_faults()
    scenario.run(ticks=300)
    assert scenario.nodes["gps"].finish is not None
    doubles.assert_all_are_alike()
    assert doubles.count > 10
    assert doubles.classes >= {
        "Region",
        "RegionReport",
        "Evaluators",
        "_Evaluator",
        "SpanSet",
        "Push",
    }


def test_a_larger_budget_counts_for_a_restored_run_and_a_smaller_one_too() -> None:
    driver = used()
    smaller = restored(driver.gps, replace(SETTINGS, budget_local_steps=6))
    larger = restored(driver.gps, replace(SETTINGS, budget_local_steps=7))
    over = Send("lps-1", Stop("budget of local steps reached"))
    assert over in push_on(smaller, driver)
    assert over not in push_on(larger, driver)
    assert larger.model.counted_steps == smaller.model.counted_steps == 6
    for gps in (smaller, larger):
        gps.check()


def test_a_region_may_be_added_to_the_run_file_and_another_be_struck_from_it() -> None:
    """The added region may join; the removed one stays in the results, with its work."""
    driver = used()
    gps = restored(driver.gps, replace(SETTINGS, regions=("us", "asia")))
    gps.check()
    assert [each.name for each in gps.regions.values()] == ["eu", "us", "asia"]
    assert gps.regions["eu"] == replace(
        driver.gps.regions["eu"], outcomes=gps.regions["eu"].outcomes
    )
    assert gps.regions["eu"].outcome(E1) == "applied"
    assert gps.handle(Received("lps-3", hello("lps", "asia")), driver.now) == [
        RegionJoined("asia", 1, 0),
        Send("lps-3", welcome(1)),
    ]
    refused = gps.handle(Received("lps-4", hello("lps", "africa")), driver.now)
    known = "region 'africa' is not in the run; there are ['us', 'asia']"
    assert refused == [Send("lps-4", Refuse(known))]
    struck = gps.handle(Received("lps-5", hello("lps", "eu")), driver.now)
    assert struck == [Send("lps-5", Refuse(known.replace("africa", "eu")))]


@pytest.mark.parametrize("content", [set(), object(), lambda: None])
def test_an_attribute_that_is_neither_state_nor_a_setting_is_noticed(content: object) -> None:
    driver = used()
    for part in (
        driver.gps,
        driver.gps.ledger,
        driver.gps.evaluators,
        driver.gps.regions["eu"].outcomes,
    ):
        take(driver.gps)
        part._added = content  # type: ignore[attr-defined]
        with pytest.raises(AssertionError, match="not durable"):
            take(driver.gps)
        del part._added  # type: ignore[attr-defined]


def test_the_image_of_another_version_is_refused() -> None:
    """One that had no evaluators; one in which an exchange's number had another name."""
    image = take(used().gps)
    assert isinstance(image, list)
    place = image.index("evaluators")
    with pytest.raises(CheckpointError, match=r"Gps\.evaluators is missing"):
        restore(Gps(SETTINGS), [*image[:place], *image[place + 2 :]])
    part = image[image.index("regions") + 1]
    assert isinstance(part, list)
    regions = part[part.index("_by_name") + 1]
    assert isinstance(regions, list)
    eu = regions[regions.index("eu") + 1]
    assert isinstance(eu, list)
    eu[eu.index("newest")] = "last"
    with pytest.raises(
        CheckpointError, match=r"Gps\.regions\._by_name\['eu'\] has no field 'last'"
    ):
        restore(Gps(SETTINGS), image)
