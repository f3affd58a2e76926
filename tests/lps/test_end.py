"""How a region drains, settles and leaves, and which messages change nothing then."""

import pytest

from lps.exchange import InFlight
from lps.state import Lps
from pelago.core.dedupe import Outcome
from pelago.core.machine import Event, Finish, Restarted, Send, StopRequested, Tick
from pelago.core.names import PushId, Spans, Version
from pelago.core.notes.common import Draining, LeftUnanswered
from pelago.core.notes.lps import LpsJoined, Rejoining
from pelago.core.tensor_effects import Loaded, Measured, Release
from pelago.core.training_effects import Progress, Trained, Validated
from pelago.protocol.client_session import GIVE_UP_AFTER_PS, LEAVE_TICKS_MAX, UNANSWERED
from pelago.wire.messages import (
    Ack,
    Evaluated,
    Goodbye,
    Grant,
    Heartbeat,
    LeaseRequest,
    Leave,
    Message,
    Offer,
    Pull,
    Refuse,
    Rejoin,
    Stop,
    Welcome,
)
from tests.lps.driver import (
    GPS_HELLO,
    REJOINING,
    REPORT,
    LpsDriver,
    global_model,
    gps_welcome,
    hello,
    update,
)
from tests.machine_driver import without_notes

E1 = PushId(1, 1)
FAREWELL = Leave("run finished", REPORT, (), (), ())


@pytest.fixture
def driver() -> LpsDriver:
    return LpsDriver().serve().join("w0")


@pytest.fixture
def draining(driver: LpsDriver) -> LpsDriver:
    """The run is over; w0 has not left yet."""
    assert driver.hears("gps", Stop("budget")) == [
        Draining("budget"),
        Send("w0", Stop("budget")),
    ]
    return driver


@pytest.fixture
def leaving(draining: LpsDriver) -> LpsDriver:
    effects = draining.hears("w0", FAREWELL)
    leave = Leave("drained", draining.lps.report(), (), (), ())
    assert effects[1:] == [Send("w0", Goodbye()), Send("gps", leave)]
    return draining


def settled(driver: LpsDriver) -> tuple[Spans, Spans, Spans]:
    """What the region says at the end: (returned, unexchanged, dropped)."""
    leave = driver.lps.session.leaving
    assert leave is not None
    return leave.returned, leave.unexchanged, leave.dropped


# --- draining ---------------------------------------------------------------------------------


def test_a_stopped_region_waits_for_its_workers_and_tells_them(draining: LpsDriver) -> None:
    """
    1. Stop is said once more by the user, and by the GPS: once is enough.
    2. Heartbeats, pulls, and newcomers are answered with it, and it is repeated on the tick.
    3. Samples that come late are not taken; none are asked for.
    """
    assert draining.hears("gps", Stop("budget")) == []
    assert draining.happens(StopRequested("enough")) == []
    stop = Send("w0", Stop("run finished"))
    assert draining.hears("w0", Heartbeat(REPORT)) == [stop]
    assert draining.hears("w0", Pull(4, 0)) == [stop]
    assert draining.hears("w9", hello()) == [Send("w9", Stop("run finished"))]
    assert without_notes(draining.happens(Tick())) == [
        Send("gps", Heartbeat(draining.lps.report())),
        stop,
    ]
    assert draining.grant(1, ((0, 4),)) == []


def test_a_region_without_workers_leaves_at_once() -> None:
    driver = LpsDriver().serve()
    effects = driver.happens(StopRequested("enough"))
    assert effects[-1] == Send("gps", Leave("drained", driver.lps.report(), (), (), ()))


def test_a_worker_that_is_silent_at_the_end_is_not_waited_for(draining: LpsDriver) -> None:
    """
    1. It is lost, and asked to join again in case it still runs.
    2. The region leaves on the same tick.
    """
    effects = without_notes(draining.after(6).happens(Tick()))
    assert effects[0] == Send("w0", Rejoin())
    assert isinstance(effects[-1], Send)
    assert isinstance(effects[-1].message, Leave)
    assert draining.hears("w0", Heartbeat(REPORT)) == [Send("w0", Rejoin())]
    assert draining.hears("w0", FAREWELL) == [Send("w0", Goodbye())]


def test_an_update_in_hand_at_the_end_is_still_applied(driver: LpsDriver) -> None:
    """It is not exchanged any more, and its worker gets no other."""
    driver.updates("w0", 1)
    work = driver.work("w0")
    driver.hears("w0", Offer(work.push))
    driver.hears("w0", update(work, next_samples=4), -1)
    driver.hears("gps", Stop("budget"))
    effects = driver.happens(Measured(-1, 1.0, finite=True))
    assert effects[-2:] == [
        Send("w0", Ack(work.push, "applied")),
        Send("w0", Stop("run finished")),
    ]
    driver.hears("w0", FAREWELL)
    assert settled(driver) == ((), ((0, 8),), ())


def test_what_a_leaving_worker_had_in_hand_is_fenced(driver: LpsDriver) -> None:
    """
    1. Its update is being measured when it leaves: its samples return.
    2. The region leaves too: the update is not applied.
    """
    work = driver.work("w0")
    driver.hears("w0", update(work), -1)
    driver.hears("gps", Stop("budget"))
    driver.hears("w0", FAREWELL)
    assert settled(driver) == (work.spans, (), ())
    assert driver.happens(Measured(-1, 1.0, finite=True)) == [
        Release(-1),
        Send("w0", Ack(work.push, "fenced")),
    ]


@pytest.mark.parametrize(
    ("in_flight", "outcome", "unexchanged", "dropped"),
    [
        ("drop", None, ((0, 8),), ((8, 12),)),
        ("drop", "applied", (), ((8, 12),)),
        ("carry", None, ((0, 12),), ()),
        ("replay", None, ((0, 12),), ()),
        ("carry", "applied", ((8, 12),), ()),
        ("replay", "applied", ((8, 12),), ()),
    ],
)
def test_every_sample_is_settled(
    in_flight: InFlight, outcome: Outcome | None, unexchanged: Spans, dropped: Spans
) -> None:
    """0..8 in the exchange under way, 8..12 applied since, 12..16 leased, 16..24 in the pool."""
    driver = LpsDriver(in_flight=in_flight).serve().join("w0")
    driver.updates("w0", 3)
    driver.work("w0")
    driver.lps.workers.leases.pool.add(((16, 24),))
    if outcome is not None:
        driver.hears("gps", Ack(E1, outcome))
    driver.hears("gps", Stop("budget"))
    effects = driver.hears("w0", FAREWELL)
    assert Release(3) in effects
    assert settled(driver) == (((12, 24),), unexchanged, dropped)


# --- leaving ----------------------------------------------------------------------------------


def test_the_region_is_gone_when_its_leave_is_settled(leaving: LpsDriver) -> None:
    assert leaving.hears("gps", Goodbye()) == [Finish("run finished")]
    assert leaving.hears("gps", Goodbye()) == []
    assert leaving.happens(Tick()) == []
    assert leaving.happens(StopRequested("enough")) == []
    assert leaving.hears("gps", Refuse("another run")) == []
    assert leaving.hears("gps", gps_welcome(2)) == []
    assert leaving.hears("w9", hello()) == [Send("w9", Stop("run finished"))]
    assert leaving.hears("gps", Rejoin()) == []


def test_leave_is_repeated_until_it_is_answered_but_not_without_limit(leaving: LpsDriver) -> None:
    leave = Send("gps", leaving.lps.session.leaving)
    for _ in range(LEAVE_TICKS_MAX):
        assert leaving.happens(Tick()) == [leave]
    assert leaving.happens(Tick()) == [
        LeftUnanswered(),
        Finish("drained"),
    ]


def test_a_gps_that_does_not_know_a_leaving_region_settles_it_too(leaving: LpsDriver) -> None:
    assert leaving.hears("gps", Rejoin()) == [Finish("run finished")]


def test_a_goodbye_without_a_leave_is_ignored(driver: LpsDriver) -> None:
    assert driver.hears("gps", Goodbye()) == []
    assert driver.lps.membership.phase == "serving"


def test_a_region_that_is_not_in_just_ends() -> None:
    """Also after an eviction: it holds nothing that could be settled."""
    assert LpsDriver().happens(StopRequested("enough")) == [Finish("enough")]
    assert LpsDriver().hears("gps", Stop("budget")) == [Finish("budget")]
    driver = LpsDriver().serve().join("w0")
    driver.hears("gps", Rejoin())
    assert driver.hears("gps", Stop("budget")) == [Send("w0", Stop("budget")), Finish("budget")]


def test_a_region_evicted_while_it_drains_says_hello_and_leaves_when_it_is_empty(
    draining: LpsDriver,
) -> None:
    assert without_notes(draining.hears("gps", Rejoin())) == [REJOINING, GPS_HELLO]
    assert draining.hears("gps", gps_welcome(2)) == [LpsJoined(2)]
    effects = draining.hears("w0", FAREWELL)
    assert isinstance(effects[-1], Send)
    assert isinstance(effects[-1].message, Leave)


def test_a_refused_region_ends_with_the_servers_words() -> None:
    driver = LpsDriver()
    assert driver.hears("gps", Refuse("no such region")) == [
        Finish("refused", error="no such region")
    ]
    assert driver.happens(Tick()) == []
    assert driver.hears("gps", Refuse("no such region")) == []


# --- a driver that loses nothing, and events that change nothing ------------------------------


def test_a_model_that_is_in_the_arena_already_is_not_transferred() -> None:
    """And without a tick nothing is repeated. The virtual driver uses both."""
    driver = LpsDriver(tick_ps=0)
    assert driver.happens(Loaded(Version(9, 0))) == []
    driver.join("w0")
    assert driver.hears("gps", gps_welcome()) == [LpsJoined(1)]
    assert driver.lps.membership.phase == "serving"
    assert driver.lps.model.wan_bytes == 0


def test_after_an_eviction_the_arena_is_not_trusted() -> None:
    driver = LpsDriver()
    driver.happens(Loaded(Version(9, 0)))
    driver.hears("gps", gps_welcome())
    driver.hears("gps", Rejoin())
    assert driver.hears("gps", gps_welcome(2))[-1] == Send("gps", Pull(0, 0))


@pytest.mark.parametrize(
    "event",
    [
        Progress(E1, 1),
        Trained(E1, -1, 1, 1, 1.0),
        Validated(Version(9, 0), 1.0, 1),
    ],
    ids=lambda event: type(event).__name__,
)
def test_an_event_of_a_trainer_is_a_fault_of_the_driver(
    driver: LpsDriver, event: Event[Message]
) -> None:
    with pytest.raises(AssertionError, match=type(event).__name__):
        driver.happens(event)


def test_a_measurement_that_was_not_asked_for_changes_nothing(driver: LpsDriver) -> None:
    assert driver.happens(Measured(-55, 1.0, True)) == []


@pytest.mark.parametrize(
    "message",
    [
        Heartbeat(None),
        gps_welcome(2),
        Grant(E1),
        Ack(E1, "applied"),
        global_model(0),
        Goodbye(),
        Evaluated(Version(9, 0), 0, 1.0, 1),
        LeaseRequest(1, 4, 0),
    ],
    ids=lambda message: type(message).__name__,
)
def test_what_the_gps_says_out_of_turn_changes_nothing(driver: LpsDriver, message: Message) -> None:
    assert driver.hears("gps", message) == []
    assert not isinstance(message, Welcome) or driver.lps.session.fence == 1


def test_a_payload_with_a_message_that_has_none_is_released(driver: LpsDriver) -> None:
    assert driver.hears("gps", Heartbeat(None), -1) == [Release(-1)]


# --- the invariants ---------------------------------------------------------------------------


def test_the_check_sees_a_broken_lps(driver: LpsDriver) -> None:
    driver.join("w1")
    work = driver.work("w0")
    lps: Lps = driver.lps
    first, second = lps.workers.members.get("w0"), lps.workers.members.get("w1")
    assert first is not None
    assert second is not None
    second.leases = (work,)
    with pytest.raises(AssertionError):  # A lease with two holders.
        lps.check()
    first.leases = second.leases = ()
    with pytest.raises(AssertionError):  # An open lease without one.
        lps.check()
    first.leases = (work,)
    lps.workers.leases.open.clear()
    with pytest.raises(AssertionError):  # A holder of a lease that is not open.
        lps.check()
    first.leases = ()
    lps.check()
    first.sent = 1
    with pytest.raises(AssertionError):  # A version from the future.
        lps.check()
    first.sent = 0
    lps.exchanges.begin(1, 0)
    with pytest.raises(AssertionError):  # An exchange without its payload.
        lps.check()


def test_a_region_that_was_drained_serves_again_when_it_is_started_again(driver: LpsDriver) -> None:
    """1. It was asked to end, and left. 2. The next process joins again, and its workers with it."""
    drained(driver, StopRequested("enough"))
    effects = driver.happens(Restarted())
    assert effects[-2:] == [Rejoining(), GPS_HELLO]
    assert driver.hears("gps", gps_welcome(2)) == [
        LpsJoined(2),
        Send("gps", Pull(0, 0)),
    ]
    driver.hears("gps", global_model(0), -1)
    assert driver.lps.membership.phase == "serving"
    assert isinstance(without_notes(driver.hears("w0", hello()))[0].message, Welcome)  # type: ignore[union-attr]
    assert driver.happens(Restarted())[-1].__class__ is not Finish


def test_a_region_whose_run_is_over_ends_again_when_it_is_started_again(driver: LpsDriver) -> None:
    drained(driver, None)
    assert driver.happens(Restarted())[-1] == Finish("run finished")


def drained(driver: LpsDriver, asked: StopRequested | None) -> None:
    """It ends, because it was asked to, or because the run does."""
    if asked is None:
        driver.hears("gps", Stop("budget"))
    else:
        driver.happens(asked)
    driver.hears("w0", Leave("stop", None, (), (), ()))
    assert driver.hears("gps", Goodbye())[-1] == Finish("run finished")


def test_an_lps_whose_gps_is_gone_for_good_ends_with_an_error_and_keeps_its_state() -> None:
    """Started again it waits as long again, and goes on if the GPS is back."""
    driver = LpsDriver().serve().join("w0", 0)
    work = driver.work("w0")
    driver.now += GIVE_UP_AFTER_PS + 1
    driver.hears("w0", Heartbeat(None))
    ended = [each for each in driver.happens(Tick()) if isinstance(each, Finish)]
    assert [each.reason for each in ended] == [UNANSWERED]
    assert "network.give_up_after_ms" in ended[0].error
    driver.happens(Restarted())
    assert not [each for each in driver.happens(Tick()) if isinstance(each, Finish)]
    assert driver.lps.membership.phase == "serving"
    assert driver.lps.workers.leases.find(work.push) is not None
