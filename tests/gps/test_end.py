"""Budgets, and how a run ends with its ledger settled."""

from dataclasses import replace

import pytest

from pelago.core.leases import LedgerTotals
from pelago.core.machine import (
    PS_PER_MS,
    Delivered,
    Finish,
    Send,
    StopRequested,
    Tick,
)
from pelago.core.names import PushId, Version
from pelago.core.notes.common import Draining
from pelago.core.notes.gps import (
    EvaluatorLeft,
    RegionLeft,
    RegionSummary,
    RunStatus,
    Settled,
    UnexpectedOfRegion,
    ValidationReported,
)
from pelago.core.notes.note import VOCABULARY, Note
from pelago.core.tensor_effects import Apply, Loaded, Measured, Pin, Release
from pelago.wire.messages import (
    Ack,
    Goodbye,
    Heartbeat,
    LeaseRequest,
    Leave,
    Offer,
    Pull,
    Push,
    Rejoin,
    Stop,
    WorkerReport,
)
from tests.gps.driver import (
    REPORT,
    SETTINGS,
    GpsDriver,
    found,
    hello,
    model,
    update,
)
from tests.machine_driver import without_notes

E1, E2, U1 = PushId(1, 1), PushId(2, 1), PushId(1, 1)
BUDGET = "budget of local steps reached"
LEFT = Leave("run finished", None, (), (), ())


@pytest.fixture
def driver() -> GpsDriver:
    """Both regions are in and hold samples: eu 0..40, us 40..60."""
    return GpsDriver().load().join("lps-1", "eu", samples=40).join("lps-2", "us", samples=20)


def test_the_budget_of_steps_ends_the_run_with_the_update_that_reaches_it(
    driver: GpsDriver,
) -> None:
    """
    1. 9 of 10 steps: answered as always.
    2. The 10th: applied and acknowledged, but not answered; all regions are asked to stop.
    3. Nothing is applied or lent any more.
    """
    assert len(driver.push("lps-1", update(E1, ((0, 12),), steps=9), -1)) == 7
    effects = driver.push("lps-2", update(U1, ((40, 44),), steps=1), -2)
    assert effects[0] == Apply("step", -2)
    assert effects[3:] == [
        Send("lps-2", Ack(U1, "applied")),
        Draining(BUDGET),
        Send("lps-1", Stop(BUDGET)),
        Send("lps-2", Stop(BUDGET)),
    ]
    assert driver.hears("lps-1", LeaseRequest(2, 8, 0)) == []
    assert driver.hears("lps-1", Offer(E2)) == []
    driver.hears("lps-1", update(E2, ((12, 16),)), -3)
    assert driver.happens(Measured(-3, 1.0, finite=True)) == [Release(-3)]
    assert driver.hears("lps-2", Offer(U1))[0] == Send("lps-2", Ack(U1, "applied"))
    assert driver.gps.model.counted_steps == 10


def test_the_budget_of_minutes_ends_the_run(driver: GpsDriver) -> None:
    """Counted from the first lease, not from the start."""
    driver = GpsDriver(replace(SETTINGS, budget_ps=60_000 * PS_PER_MS)).load()
    assert without_notes(driver.after(100).happens(Tick())) == []
    driver.join("lps-1", "eu", samples=8)
    driver.after(59).hears("lps-1", Heartbeat(REPORT))
    assert without_notes(driver.happens(Tick())) == []
    effects = driver.after(1).happens(Tick())
    assert effects[0] == Draining("budget of minutes reached")
    assert effects[1] == Send("lps-1", Stop("budget of minutes reached"))


def test_the_run_ends_when_all_regions_have_settled(driver: GpsDriver) -> None:
    """
    1. The user stops the run.
    2. Each region names what it applied but never exchanged, and what it dropped.
    3. The last one to leave ends the run, and the ledger balances.
    """
    driver.push("lps-1", update(E1, ((0, 4),), ((4, 8),)), -1)
    driver.after(5).happens(StopRequested("enough"))
    assert driver.happens(StopRequested("enough")) == []
    leave = Leave("drained", REPORT, ((16, 40),), ((8, 12),), ((12, 16),))
    assert driver.hears("lps-1", leave) == [
        RegionLeft("eu", "drained"),
        Send("lps-1", Goodbye()),
    ]
    assert driver.hears("lps-1", leave) == [Send("lps-1", Goodbye())]
    effects = driver.hears("lps-2", Leave("drained", None, ((40, 60),), (), ()))
    assert effects[-1] == Finish("enough")
    assert driver.gps.regions["eu"].report == REPORT
    assert driver.gps.ledger.totals() == LedgerTotals(
        issued=60,
        applied=4,
        dropped_in_flight=8,
        unexchanged=4,
        returned=44,
        held=0,
        duplicated=0,
    )
    assert driver.after(9).happens(Tick()) == []
    assert driver.gps.clock.elapsed_ps() == 5 * 10**12


def test_stop_is_repeated_until_it_has_arrived(driver: GpsDriver) -> None:
    """On the tick, and as the answer to a heartbeat or to a Hello."""
    driver.happens(StopRequested("enough"))
    assert without_notes(driver.happens(Tick())) == [
        Send("lps-1", Stop("enough")),
        Send("lps-2", Stop("enough")),
    ]
    assert driver.hears("lps-1", Heartbeat(REPORT)) == [Send("lps-1", Stop("enough"))]
    assert driver.hears("lps-9", hello("lps", "eu", 2)) == [Send("lps-9", Stop("enough"))]


def test_a_region_that_falls_silent_at_the_end_is_not_waited_for_as_long(driver: GpsDriver) -> None:
    """For five seconds instead of sixty; the samples that it held return."""
    driver.happens(StopRequested("enough"))
    driver.after(3).hears("lps-2", Heartbeat(REPORT))
    effects = driver.after(2.5).happens(Tick())
    assert effects[0] == RegionLeft("eu", "lost: no heartbeat")
    assert driver.hears("lps-1", Leave("drained", None, (), ((0, 8),), ())) == [
        Send("lps-1", Goodbye())
    ]
    assert driver.hears("lps-2", Leave("drained", None, (), (), ()))[-1] == Finish("enough")
    assert driver.gps.ledger.totals().returned == 60


def test_a_run_that_no_region_joined_ends_at_once() -> None:
    driver = GpsDriver().load()
    assert driver.happens(StopRequested("enough"))[-1] == Finish("enough")
    assert driver.happens(StopRequested("enough")) == []


def test_a_run_that_is_stopped_before_its_model_is_there_ends_too() -> None:
    driver = GpsDriver()
    assert driver.happens(StopRequested("enough"))[-1] == Finish("enough")
    assert driver.happens(Loaded(Version(1, 0))) == []


def test_a_region_without_a_process_is_sent_no_stop() -> None:
    driver = GpsDriver().load().join("lps-1", "eu")
    effects = driver.happens(StopRequested("enough"))
    assert without_notes(effects) == [Send("lps-1", Stop("enough"))]


def test_the_evaluator_gets_the_last_version_and_the_run_waits_for_it(driver: GpsDriver) -> None:
    """
    1. It waits for step 50; the run ends at step 1. It gets that version, as the last one.
    2. The regions leave: only the evaluator is waited for now, which is noted once.
    3. It reports and leaves: the run ends.
    """
    driver.evaluate(after_steps=50)
    driver.push("lps-1", update(E1, ((0, 4),)), -1)
    effects = driver.happens(StopRequested("enough"))
    assert effects[-3:] == [
        Pin(2, average=True),
        Send("judge", model(1, 1, final=True), 2),
        Release(2),
    ]
    driver.hears("lps-1", LEFT)
    said = [Send("lps-2", Goodbye()), Settled(1)]
    assert driver.hears("lps-2", LEFT)[-2:] == said
    assert said[1] not in driver.happens(Tick())
    driver.hears("judge", found(1, 1))
    assert driver.hears("judge", LEFT)[-1] == Finish("enough")


def test_an_evaluator_that_is_stuck_is_not_waited_for() -> None:
    """
    1. It measures the last version, and reports how long it made no progress: as long as is allowed, then longer.
    2. The run ends. An evaluator that makes progress, however slowly, is waited for.
    """
    driver = GpsDriver(replace(SETTINGS, stuck_after_ps=60_000 * PS_PER_MS)).load()
    driver.evaluate()
    driver.happens(StopRequested("enough"))
    for _ in range(100):
        quiet = WorkerReport(-1, 0, 0, 0, 0, 0, 0.0, quiet_ms=60_000)
        assert driver.after(4.0).hears("judge", Heartbeat(quiet)) == [
            Send("judge", Heartbeat(None))
        ]
        assert Finish("enough") not in driver.happens(Tick())
    effects = driver.hears("judge", Heartbeat(replace(quiet, quiet_ms=60_001)))
    assert effects[:2] == [EvaluatorLeft("stuck"), Send("judge", Rejoin())]
    assert effects[-1] == Finish("enough")


def test_an_evaluator_that_is_busy_at_the_end_asks_for_the_last_version_later(
    driver: GpsDriver,
) -> None:
    driver.evaluate()
    driver.happens(Delivered("judge", 1))
    driver.happens(StopRequested("enough"))
    driver.hears("judge", found(0, 0))
    assert driver.hears("judge", Pull(0, 10))[1] == Send("judge", model(0, 0, final=True), 2)


def test_an_evaluator_that_leaves_says_once_more_what_it_found(driver: GpsDriver) -> None:
    """
    1. The finding itself was lost; the Leave has it, and it is recorded.
    2. The Goodbye is lost, so the Leave comes again: it is not recorded twice.
    """
    driver.evaluate()
    leave = replace(LEFT, report=found(0, 0))
    effects = driver.hears("judge", leave)
    assert effects[-1] == Send("judge", Goodbye())
    assert [type(each) for each in effects if isinstance(each, Note)] == [
        EvaluatorLeft,
        ValidationReported,
    ]
    assert driver.hears("judge", leave) == [Send("judge", Goodbye())]
    assert driver.gps.evaluators.validations == [(0, 0, 2.5)]


def test_an_evaluator_that_was_not_sent_the_last_version_may_go(driver: GpsDriver) -> None:
    driver.evaluate("first")
    driver.push("lps-1", update(E1, ((0, 4),)), -1)
    driver.happens(StopRequested("enough"))
    driver.evaluate("second")
    assert driver.hears("first", LEFT)[1] == Send("first", Goodbye())


def test_an_evaluator_that_dies_at_the_end_is_not_waited_for_without_limit() -> None:
    driver = GpsDriver().load()
    driver.evaluate()
    driver.happens(StopRequested("enough"))
    assert driver.after(6).happens(Tick())[-1] == Finish("enough")


def test_the_status_says_what_every_region_does(driver: GpsDriver) -> None:
    status = driver.happens(Tick())[-1]
    assert isinstance(status, RunStatus)
    assert status.regions["eu"] == RegionSummary(
        serving=True,
        exchanges=0,
        updates=0,
        staleness_max=0,
        exchanging=False,
        workers=0,
        steps=0,
        tokens=0,
        loss=None,
    )


def test_the_status_names_no_workers_however_many_there_are(driver: GpsDriver) -> None:
    """1. A region's heartbeat names its workers; the next one does not. 2. They are counted all the same."""
    workers = tuple(WorkerReport(n, 1, 2, 3, 4, 5, float(n % 2), 0) for n in range(400))
    driver.hears("lps-1", Heartbeat(replace(REPORT, workers=workers)))
    driver.hears("lps-1", Heartbeat(replace(REPORT, updates=7, workers=())))
    status = driver.happens(Tick())[-1]
    assert isinstance(status, RunStatus)
    region = status.regions["eu"]
    assert len(str(VOCABULARY.fields(status))) < 1000
    assert (region.workers, region.steps, region.tokens, region.loss) == (400, 800, 1200, 0.5)
    assert region.updates == 7
    report = driver.gps.regions["eu"].report
    assert report is not None
    assert report.workers == workers


def test_an_update_without_its_payload_is_no_update(driver: GpsDriver) -> None:
    message: Push = update(E1, ((0, 4),))
    assert driver.hears("lps-1", message) == [UnexpectedOfRegion("eu", "Push")]
