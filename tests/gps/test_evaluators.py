"""Which version an evaluator is sent, and when; and what its reports count for."""

from dataclasses import replace

import pytest

from gps import evaluators
from pelago.core.machine import (
    Delivered,
    PeerLost,
    Send,
    StopRequested,
    Tick,
)
from pelago.core.names import PushId
from pelago.core.notes.common import UnexpectedMessage
from pelago.core.notes.gps import (
    EvaluatorLeft,
    ValidationReported,
)
from pelago.core.tensor_effects import Pin, Release
from pelago.wire.messages import (
    Effect,
    Goodbye,
    Heartbeat,
    LeaseRequest,
    Leave,
    Offer,
    Pull,
    Rejoin,
)
from tests.gps.driver import (
    REPORT,
    GpsDriver,
    found,
    hello,
    model,
    update,
    welcome,
)
from tests.machine_driver import without_notes

E1, E2 = PushId(1, 1), PushId(2, 1)
LEFT = Leave("run finished", None, (), (), ())


@pytest.fixture
def driver() -> GpsDriver:
    """Both regions are in and hold samples: eu 0..40, us 40..60."""
    return GpsDriver().load().join("lps-1", "eu", samples=40).join("lps-2", "us", samples=20)


def test_an_evaluator_gets_the_first_version_at_once_and_the_next_when_it_is_due(
    driver: GpsDriver,
) -> None:
    """
    1. It asks for the first version: there it is.
    2. It reports, and asks for a version with 3 steps behind it: there is none yet.
    3. 2 steps: none yet. 3 steps: there it is. Time is when that version was reached.
    """
    assert driver.evaluate() == [Pin(1, average=True), Send("judge", model(0, 0), 1), Release(1)]
    assert driver.happens(Delivered("judge", 1)) == []
    assert driver.hears("judge", found(0, 0, 5.5)) == [
        ValidationReported(version=0, counted_steps=0, elapsed_ps=0, loss=5.5, tokens=100)
    ]
    assert driver.hears("judge", Pull(0, 3)) == []
    driver.after(1).push("lps-1", update(E1, ((0, 4),), steps=2), -1)
    effects = driver.after(1).push("lps-1", update(E2, ((4, 8),), steps=1), -2)
    assert effects[-3:] == [Pin(4, average=True), Send("judge", model(2, 3), 4), Release(4)]
    driver.after(5).hears("judge", found(2, 3))
    assert driver.gps.evaluators.validations == [(0, 0, 5.5), (2 * 10**12, 3, 2.5)]


def test_evaluators_get_the_mean_and_regions_never_do(driver: GpsDriver) -> None:
    """Regions train from the model itself: at first, after an exchange, and when they ask once more."""
    pins: dict[str, set[bool]] = {}

    def note_pins(effects: list[Effect]) -> None:
        pinned = {each.blob: each.average for each in effects if isinstance(each, Pin)}
        for each in effects:
            if isinstance(each, Send) and each.blob is not None:
                pins.setdefault(each.peer, set()).add(pinned[each.blob])

    note_pins(driver.hears("lps-1", Pull(0, 0)))
    note_pins(driver.evaluate())
    driver.happens(Delivered("judge", 2))
    driver.hears("judge", Pull(0, 1))
    note_pins(driver.push("lps-1", update(E1, ((0, 4),)), -1))
    driver.happens(PeerLost("lps-1", "cut"))
    note_pins(driver.hears("lps-1", Offer(E1)))
    driver.happens(Delivered("judge", 4))
    driver.hears("judge", Pull(0, 99))
    note_pins(driver.happens(StopRequested("enough")))
    assert pins == {"lps-1": {False}, "judge": {True}}
    assert driver.gps.model._next_blob == 7  # Six models were sent: three to each.


def test_what_was_sent_before_the_first_lease_was_reached_at_the_start_of_the_run() -> None:
    driver = GpsDriver().load()
    driver.after(100).evaluate()
    driver.after(100).join("lps-1", "eu", samples=40)
    driver.after(1).hears("judge", found(0, 0, 5.5))
    assert driver.gps.evaluators.validations == [(0, 0, 5.5)]


def test_an_evaluator_that_asks_again_while_the_model_comes_gets_one_model(
    driver: GpsDriver,
) -> None:
    driver.evaluate()
    assert driver.hears("judge", Pull(0, 0)) == []
    assert driver.happens(Delivered("judge", 1)) == []
    effects = driver.push("lps-1", update(E1, ((0, 4),), steps=2), -1)
    assert not [each for each in effects if isinstance(each, Send) and each.peer == "judge"]


def test_the_steps_of_a_finding_are_the_gps_own(driver: GpsDriver) -> None:
    driver.evaluate()
    driver.hears("judge", replace(found(0, 0), counted_steps=1 << 47))
    assert driver.gps.evaluators.validations[0][1] == 0


def test_evaluators_that_are_lost_before_they_measure_leave_nothing_that_grows(
    driver: GpsDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluators, "REACHED_MAX", 3)
    for number in range(1, 7):
        driver.evaluate(f"judge-{number}")
        driver.push("lps-1", update(PushId(number, 1), ((number, number + 1),)), -number)
    assert [version.counter for version in driver.gps.evaluators._reached] == [3, 4, 5]


def test_a_repeated_finding_counts_once(driver: GpsDriver) -> None:
    driver.evaluate()
    driver.hears("judge", found(0, 0))
    assert driver.hears("judge", found(0, 0)) == []
    assert driver.hears("judge", found(7, 70)) == []
    assert len(driver.gps.evaluators.validations) == 1


def test_findings_of_several_evaluators_are_kept_in_order(driver: GpsDriver) -> None:
    """One measures the first version slowly, the other the next one fast."""
    driver.evaluate("slow")
    driver.after(1).push("lps-1", update(E1, ((0, 4),)), -1)
    driver.evaluate("fast")
    driver.hears("fast", found(1, 1, 2.0))
    driver.hears("slow", found(0, 0, 5.5))
    assert [steps for _, steps, _ in driver.gps.evaluators.validations] == [0, 1]


def test_a_model_that_is_on_its_way_to_an_evaluator_is_not_sent_twice(driver: GpsDriver) -> None:
    driver.evaluate()
    assert driver.hears("judge", Pull(0, 0)) == []
    driver.happens(PeerLost("judge", "cut"))
    assert driver.hears("judge", Pull(0, 0))[1] == Send("judge", model(0, 0), 2)


def test_an_evaluator_before_the_model_is_loaded_asks_again() -> None:
    driver = GpsDriver()
    assert driver.evaluate() == []
    driver.load()
    assert driver.hears("judge", Pull(0, 0))[0] == Pin(1, average=True)


def test_a_finding_before_the_first_lease_is_at_time_zero() -> None:
    driver = GpsDriver().load()
    driver.evaluate()
    driver.after(5).hears("judge", found(0, 0))
    assert driver.gps.evaluators.validations == [(0, 0, 2.5)]


def test_an_evaluator_may_say_hello_again_and_is_answered_while_it_runs(
    driver: GpsDriver,
) -> None:
    driver.evaluate()
    assert driver.hears("judge", hello("evaluator")) == [Send("judge", welcome(0))]
    for _ in range(3):
        assert driver.after(4).hears("judge", Heartbeat(None)) == [Send("judge", Heartbeat(None))]
        assert driver.hears("lps-1", Heartbeat(REPORT))
        assert without_notes(driver.happens(Tick())) == []


def test_a_silent_evaluator_is_forgotten(driver: GpsDriver) -> None:
    driver.evaluate()
    assert EvaluatorLeft("lost: no heartbeat") in driver.after(6).happens(Tick())
    assert driver.hears("judge", Pull(0, 0)) == [Send("judge", Rejoin())]


def test_an_evaluator_may_leave_while_the_run_goes_on(driver: GpsDriver) -> None:
    driver.evaluate()
    assert driver.hears("judge", LEFT) == [
        EvaluatorLeft("run finished"),
        Send("judge", Goodbye()),
    ]
    assert driver.hears("judge", LEFT) == [Send("judge", Goodbye())]
    assert driver.happens(Delivered("judge", 1)) == []


def test_what_an_evaluator_never_says_is_noted_and_dropped(driver: GpsDriver) -> None:
    driver.evaluate()
    note = UnexpectedMessage("judge", "LeaseRequest")
    assert driver.hears("judge", LeaseRequest(1, 8, 0)) == [note]
    assert driver.hears("judge", update(E1, ((0, 4),)), -1) == [
        UnexpectedMessage("judge", "Push"),
        Release(-1),
    ]
