"""Which processes may join the GPS, which replace others, and which are lost."""

from dataclasses import replace

import pytest

from gps.state import Gps
from pelago.core.machine import Event, Send, Started, Tick
from pelago.core.names import PushId, Version
from pelago.core.notes.gps import RegionJoined, RegionLeft, UnexpectedOfRegion
from pelago.core.tensor_effects import Loaded, Release
from pelago.core.training_effects import Progress, Trained, Validated
from pelago.wire.messages import (
    PROTOCOL_VERSION,
    Ack,
    Evaluated,
    Goodbye,
    Heartbeat,
    LeaseGrant,
    LeaseRequest,
    Leave,
    Message,
    Model,
    Offer,
    Pull,
    Push,
    Refuse,
    Rejoin,
    Wait,
)
from tests.gps.driver import REPORT, SETTINGS, GpsDriver, hello, update, welcome
from tests.machine_driver import MachineDriver, without_notes

E1 = PushId(1, 1)


def test_a_driver_that_loses_nothing_needs_no_tick() -> None:
    assert MachineDriver(Gps(replace(SETTINGS, tick_ps=0))).happens(Started()) == []


def test_a_region_is_let_in_with_a_fence_and_the_manifest() -> None:
    driver = GpsDriver()
    assert driver.hears("lps-1", hello("lps", "eu")) == [
        RegionJoined("eu", 1, 0),
        Send("lps-1", welcome(1)),
    ]


def test_a_repeated_hello_is_answered_alike_and_costs_no_lease() -> None:
    driver = GpsDriver().load().join("lps-1", "eu", samples=8)
    assert driver.hears("lps-1", hello("lps", "eu")) == [Send("lps-1", welcome(1))]
    assert driver.gps.ledger.totals().held == 8


def test_before_the_model_is_there_a_region_waits_for_it() -> None:
    """
    1. It may join, but neither its Pull nor its LeaseRequest is answered; it asks again.
    2. The model is loaded: both are.
    """
    driver = GpsDriver().join("lps-1", "eu")
    assert driver.hears("lps-1", Pull(0, 0)) == []
    assert driver.hears("lps-1", LeaseRequest(1, 8, 0)) == []
    driver.load()
    assert len(driver.hears("lps-1", Pull(0, 0))) == 3
    assert driver.hears("lps-1", LeaseRequest(1, 8, 0)) == [
        Send("lps-1", LeaseGrant(1, 1, ((0, 8),), 0))
    ]


@pytest.mark.parametrize(
    ("message", "fault"),
    [
        (
            replace(hello("lps", "eu"), protocol=1),
            f"protocol 1 is not {PROTOCOL_VERSION}: update the older node",
        ),
        (hello("lps", "asia"), "region 'asia' is not in the run; there are ['eu', 'us']"),
        (hello("worker", "eu"), "workers attach to their region's LPS, not to the GPS"),
        (
            replace(hello("evaluator"), fingerprint="other"),
            "model fingerprint 'other' is not the run's 'model'",
        ),
        (
            replace(hello("evaluator"), corpus="other"),
            "corpus digest 'other' is not the run's 'corpus'",
        ),
    ],
)
def test_a_process_that_does_not_fit_is_refused_with_the_reason(
    message: Message, fault: str
) -> None:
    driver = GpsDriver().load()
    assert driver.hears("unknown", message) == [Send("unknown", Refuse(fault))]
    assert driver.hears("unknown", message, -1) == [Send("unknown", Refuse(fault)), Release(-1)]
    assert driver.hears("unknown", Pull(0, 0)) == [Send("unknown", Rejoin())]


@pytest.mark.parametrize("incarnation", [1, 2])
def test_a_process_that_is_not_later_waits_for_a_region_that_is_served(incarnation: int) -> None:
    driver = GpsDriver().load().join("lps-2", "eu", samples=8, incarnation=2)
    assert driver.hears("lps-1", hello("lps", "eu", incarnation)) == [
        Send("lps-1", Wait("region eu, which another process serves"))
    ]
    assert driver.gps.ledger.totals().held == 8


def test_a_later_process_takes_a_region_over_with_a_higher_fence() -> None:
    """
    1. A later process says Hello: what the earlier one held returns.
    2. The earlier one's update is dropped with its payload.
    3. It says Hello, but the region is served.
    """
    driver = GpsDriver().load().join("lps-1", "eu", samples=8)
    assert driver.hears("lps-2", hello("lps", "eu", 2)) == [
        RegionLeft("eu", "replaced by a later process"),
        RegionJoined("eu", 2, 8),
        Send("lps-2", welcome(2)),
    ]
    assert driver.hears("lps-1", update(E1, ((0, 8),)), -1) == [
        Send("lps-1", Rejoin()),
        Release(-1),
    ]
    assert driver.hears("lps-1", hello("lps", "eu", 1)) == [
        Send("lps-1", Wait("region eu, which another process serves"))
    ]
    assert driver.gps.model.updates == 0


def test_what_is_lent_again_comes_with_the_present_clock() -> None:
    """
    1. eu is lent 0..8 and lost, while us has come to 1,000,008 samples.
    2. us gets 0..8 again, with four fresh ones, and the clock of now. A repeated request gets the same.
    """
    driver = GpsDriver().load().join("lps-1", "eu", samples=8).join("lps-2", "us")
    fresh = LeaseGrant(1, 1, ((8, 1_000_008),), 8)
    assert driver.hears("lps-2", LeaseRequest(1, 1_000_000, 0)) == [Send("lps-2", fresh)]
    driver.hears("lps-1", Leave("enough", None, (), (), ()))
    again = Send("lps-2", LeaseGrant(2, 1, ((0, 8), (1_000_008, 1_000_012)), 1_000_008))
    assert driver.hears("lps-2", LeaseRequest(2, 12, 0)) == [again]
    assert driver.hears("lps-2", LeaseRequest(2, 12, 0)) == [again]


def test_what_another_region_keeps_in_hand_is_not_yet_handed_out() -> None:
    """
    1. eu asks for 1,000, of which its workers want 100 now: us starts its clock at those.
    2. eu has lent 800 more when it asks again; it cannot have more in hand than it holds.
    """
    driver = GpsDriver().load().join("lps-1", "eu").join("lps-2", "us")
    driver.hears("lps-1", LeaseRequest(1, 1000, 900))
    us = LeaseGrant(1, 1, ((1000, 1100),), 100)
    assert driver.hears("lps-2", LeaseRequest(1, 100, 0)) == [Send("lps-2", us)]
    driver.hears("lps-1", LeaseRequest(2, 500, 600))
    us = LeaseGrant(2, 1, ((1600, 1601),), 1000)
    assert driver.hears("lps-2", LeaseRequest(2, 1, 0)) == [Send("lps-2", us)]


def test_a_region_cannot_keep_more_in_hand_than_it_holds() -> None:
    driver = GpsDriver().load().join("lps-1", "eu").join("lps-2", "us", samples=100)
    driver.hears("lps-1", LeaseRequest(1, 1000, 10**12))
    us = LeaseGrant(2, 1, ((1100, 1101),), 1100 - 1000)
    assert driver.hears("lps-2", LeaseRequest(2, 1, 0)) == [Send("lps-2", us)]


def test_the_clock_of_a_region_never_goes_back() -> None:
    """
    1. eu is lent 1,000 samples, us starts its clock at those; eu is lost.
    2. The next process of eu asks for them ahead of need: they are in hand again.
    3. Another process serves us. Its workers' moments are older than that.
    """
    driver = GpsDriver().load().join("lps-1", "eu", samples=1000).join("lps-2", "us", samples=10)
    assert driver.gps.regions["us"].clock == 1000
    driver.hears("lps-1", Leave("enough", None, (), (), ()))
    driver.join("lps-3", "eu", incarnation=2)
    driver.hears("lps-3", LeaseRequest(1, 1000, 1000))
    driver.hears("lps-2", Leave("enough", None, (), (), ()))
    driver.join("lps-4", "us", incarnation=2)
    (sent,) = driver.hears("lps-4", LeaseRequest(1, 10, 0))
    assert sent == Send("lps-4", LeaseGrant(1, 2, ((1000, 1010),), 1000))


def test_a_silent_process_gives_way_to_one_whose_clock_is_behind() -> None:
    """
    1. The host of a region is lost, and the wall clock of the host that replaces it is an hour behind.
    2. As long as the old process may be there the new one waits; not for the ten minutes of a lost region.
    """
    driver = GpsDriver().load().join("lps-1", "eu", samples=8, incarnation=4000)
    newcomer = hello("lps", "eu", 400)
    wait = Send("lps-2", Wait("region eu, which another process serves"))
    assert driver.after(5).hears("lps-2", newcomer) == [wait]
    assert driver.after(0.001).hears("lps-2", newcomer)[-1] == Send("lps-2", welcome(2))
    assert driver.hears("lps-1", hello("lps", "eu", 399)) == [replace(wait, peer="lps-1")]


def test_a_new_process_asks_with_numbers_of_its_own() -> None:
    """Request 1 of the new process is not the request 1 of the old one."""
    driver = GpsDriver().load().join("lps-1", "eu", samples=8).join("lps-2", "eu", incarnation=2)
    assert driver.hears("lps-2", LeaseRequest(1, 4, 0)) == [
        Send("lps-2", LeaseGrant(1, 2, ((0, 4),), 8))
    ]


def test_a_silent_region_forfeits_its_samples_and_may_come_back() -> None:
    """
    1. Silent for as long as is allowed: nothing happens.
    2. Longer: its samples return, it is asked to join again, and its updates are dropped.
    3. It says Hello: a higher fence. An update under the old fence is answered as fenced.
    4. The samples are lent again, to the region that asks first.
    """
    driver = GpsDriver().load().join("lps-1", "eu", samples=8)
    assert without_notes(driver.after(60).happens(Tick())) == []
    effects = driver.after(0.001).happens(Tick())
    assert effects[0] == RegionLeft("eu", "lost: no heartbeat")
    assert without_notes(effects) == [Send("lps-1", Rejoin())]
    assert driver.hears("lps-1", Heartbeat(REPORT)) == [Send("lps-1", Rejoin())]
    assert driver.hears("lps-1", hello("lps", "eu"))[1] == Send("lps-1", welcome(2))
    assert driver.hears("lps-1", Offer(E1)) == [Send("lps-1", Ack(E1, "fenced"))]
    assert driver.hears("lps-1", update(E1, ((0, 8),)), -1) == [
        Release(-1),
        Send("lps-1", Ack(E1, "fenced")),
    ]
    driver.join("lps-9", "us")
    assert driver.hears("lps-9", LeaseRequest(1, 8, 0)) == [
        Send("lps-9", LeaseGrant(1, 1, ((0, 8),), 8))
    ]


def test_any_message_shows_that_a_region_is_alive() -> None:
    driver = GpsDriver().load().join("lps-1", "eu", samples=8)
    for _ in range(5):
        driver.after(50).hears("lps-1", LeaseRequest(1, 8, 0))
        assert without_notes(driver.happens(Tick())) == []


def test_heartbeats_are_answered_and_reports_kept() -> None:
    driver = GpsDriver().load().join("lps-1", "eu")
    assert driver.hears("lps-1", Heartbeat(REPORT)) == [Send("lps-1", Heartbeat(None))]
    assert driver.hears("lps-1", Heartbeat(None)) == [Send("lps-1", Heartbeat(None))]
    assert driver.gps.regions["eu"].report == REPORT


def test_a_region_that_leaves_early_gives_everything_back() -> None:
    """The run goes on, so even what it applied itself is trained again by others."""
    driver = GpsDriver().load().join("lps-1", "eu", samples=8)
    leave = Leave("enough", REPORT, ((0, 2),), ((2, 6),), ((6, 8),))
    assert driver.hears("lps-1", leave) == [
        RegionLeft("eu", "enough"),
        Send("lps-1", Goodbye()),
    ]
    assert driver.hears("lps-1", leave) == [Send("lps-1", Goodbye())]
    assert driver.gps.ledger.totals().returned == 8


@pytest.mark.parametrize(
    "message",
    [Pull(0, 0), Heartbeat(REPORT), LeaseRequest(1, 8, 0), Offer(E1), update(E1, ((0, 8),))],
)
def test_an_unknown_peer_is_asked_to_join(message: Message) -> None:
    driver = GpsDriver().load()
    assert driver.hears("unknown", message) == [Send("unknown", Rejoin())]
    assert driver.hears("unknown", message, -1) == [Send("unknown", Rejoin()), Release(-1)]


@pytest.mark.parametrize(
    "message",
    [
        Evaluated(Version(1, 0), 0, 1.0, 1),
        Ack(E1, "applied"),
        Model(Version(1, 0), 0, None, None, final=False),
        update(E1, ()),
    ],
    ids=lambda message: type(message).__name__,
)
def test_what_a_region_never_says_is_noted_and_dropped(message: Message) -> None:
    driver = GpsDriver().load().join("lps-1", "eu")
    note = UnexpectedOfRegion("eu", type(message).__name__)
    assert driver.hears("lps-1", message) == [note]
    if not isinstance(message, Push):
        assert driver.hears("lps-1", message, -1) == [note, Release(-1)]


@pytest.mark.parametrize(
    "event",
    [
        Progress(E1, 1),
        Trained(E1, 0, 1, 1, 1.0),
        Validated(Version(1, 0), 1.0, 1),
    ],
    ids=lambda event: type(event).__name__,
)
def test_an_event_of_a_trainer_is_a_fault_of_the_driver(event: Event[Message]) -> None:
    with pytest.raises(AssertionError, match=type(event).__name__):
        GpsDriver().load().happens(event)


def test_a_model_that_is_loaded_again_changes_nothing() -> None:
    assert GpsDriver().load().happens(Loaded(Version(1, 0))) == []


def test_a_model_of_a_later_incarnation_cannot_be_loaded() -> None:
    with pytest.raises(AssertionError):
        GpsDriver().happens(Loaded(Version(10, 0)))


def test_a_region_that_says_hello_again_and_again_is_not_silent() -> None:
    """Its Welcome is lost each time; it is not removed for that."""
    driver = GpsDriver().load().join("lps-1", "eu")
    for _ in range(3):
        driver.after(50).hears("lps-1", hello("lps", "eu"))
        driver.happens(Tick())
    assert driver.gps.regions["eu"].peer == "lps-1"
