"""The exchange with the GPS: when it begins, what it contains, that it is the only one, and that it ends."""

import pytest

from lps.exchange import InFlight
from pelago.core.machine import Delivered, PeerLost, Received, Send, Tick
from pelago.core.names import PushId, Spans, Version
from pelago.core.notes.common import GoingOn, Waiting
from pelago.core.notes.lps import (
    ExchangeAnswered,
    ExchangeBegun,
    GlobalMerged,
    LpsJoined,
    Rejoining,
)
from pelago.core.tensor_effects import Apply, Difference, Measured, Operation, Release
from pelago.wire.messages import (
    Ack,
    Busy,
    Grant,
    Heartbeat,
    LeaseRequest,
    Offer,
    Pull,
    Push,
    Rejoin,
    Stop,
    Wait,
)
from tests.lps.driver import (
    GPS_HELLO,
    REJOINING,
    LpsDriver,
    global_model,
    gps_welcome,
    hello,
    update,
)
from tests.machine_driver import without_notes

E1, E2 = PushId(1, 1), PushId(2, 1)


def exchange(
    push: PushId,
    spans: Spans,
    dropped: Spans = (),
    *,
    base: int = 0,
    updates: int = 2,
) -> Push:
    """What the GPS is sent: every update was of two steps and 64 tokens."""
    return Push(push, Version(9, base), 2 * updates, updates, 64 * updates, 1.5, spans, dropped, 0)


@pytest.fixture
def driver() -> LpsDriver:
    """K = 2."""
    return LpsDriver().serve().join("w0")


@pytest.fixture
def offered(driver: LpsDriver) -> LpsDriver:
    """The first exchange: updates 1 and 2, samples 0..8, difference 3."""
    driver.updates("w0", 2)
    return driver


@pytest.fixture
def sent(offered: LpsDriver) -> LpsDriver:
    assert offered.hears("gps", Grant(E1)) == [Send("gps", exchange(E1, ((0, 8),)), 3)]
    return offered


def answered(outcome: str) -> ExchangeAnswered:
    """What is noted of the first exchange."""
    return ExchangeAnswered(1, 1, outcome)


def test_an_exchange_is_due_exactly_at_k(driver: LpsDriver) -> None:
    """The difference is taken right behind the step; the worker is answered before that."""
    first = driver.updates("w0", 1)
    assert not any(isinstance(effect, Difference) for effect in first)
    effects = driver.updates("w0", 1)
    assert effects[0] == Apply("step", -101)
    assert effects[3:] == [
        Send("w0", Ack(PushId(2, 1), "applied")),
        Difference(3),
        ExchangeBegun(number=1, fence=1, updates=2, version=2, spans=((0, 8),), dropped=()),
        Send("gps", Offer(E1)),
    ]


def test_only_one_exchange_is_in_flight_and_workers_do_not_wait_for_it(offered: LpsDriver) -> None:
    """Twice K more updates: each is applied and answered, and nothing is sent to the GPS."""
    for _ in range(4):
        effects = offered.updates("w0", 1)
        assert effects[0].__class__ is Apply
        assert not any(isinstance(effect, Difference) for effect in effects)
    assert offered.lps.report().in_flight_updates == 4
    assert offered.lps.report().exchanging


def test_a_round_trip_merges_the_global_model(sent: LpsDriver) -> None:
    """
    1. It arrived: nothing follows from that. It was applied: that is noted, once.
    2. The global model comes: the difference is released, the model merged with weight alpha.
    """
    assert sent.happens(Delivered("gps", 3, payload_bytes=100)) == []
    assert sent.hears("gps", Ack(E1, "applied")) == [answered("applied")]
    assert sent.hears("gps", Ack(E1, "applied")) == []
    assert sent.hears("gps", global_model(1, E1), -9) == [
        Release(3),
        Apply("merge", -9, 0.25),
        Release(-9),
        GlobalMerged(1, 2),
    ]
    assert sent.lps.report().exchanges == 1
    assert not sent.lps.report().exchanging
    assert sent.lps.model.wan_bytes == 300


def test_samples_that_are_lent_again_say_that_the_exchange_was_rejected(sent: LpsDriver) -> None:
    """1. The rejection itself is lost; a grant has samples of the exchange. 2. No ledger has them twice, and the
    global model replaces the region's. 3. The rejection comes late: it changes nothing more."""
    asked = sent.hears("w0", Pull(8, 0))[-1]
    assert isinstance(asked, Send)
    assert isinstance(asked.message, LeaseRequest)
    assert sent.grant(asked.message.request, ((0, 8),))[0] == answered("rejected")
    member = sent.lps.workers.members.get("w0")
    assert member is not None
    assert member.leases
    sent.push("w0", update(member.leases[0]))
    assert sent.hears("gps", Ack(E1, "rejected")) == []
    assert Apply("load", -9) in sent.hears("gps", global_model(0, E1), -9)


def test_a_model_that_overtakes_the_outcome_answers_the_exchange(sent: LpsDriver) -> None:
    assert sent.hears("gps", global_model(1, E1), -9)[0] == answered("unknown")
    assert sent.hears("gps", Ack(E1, "applied")) == []


def test_k_counts_from_the_merge_and_not_from_the_send(sent: LpsDriver) -> None:
    sent.updates("w0", 1)
    sent.hears("gps", global_model(1, E1), -9)
    assert not any(isinstance(e, Difference) for e in sent.updates("w0", 1))
    assert any(isinstance(e, Difference) for e in sent.updates("w0", 1))


def test_dropped_work_is_named_and_its_steps_are_counted(sent: LpsDriver) -> None:
    """
    1. One update in flight: the merge loses its movement.
    2. The next exchange holds the two since the merge, names the lost one, counts three.
    """
    sent.updates("w0", 1)
    sent.hears("gps", global_model(5, E1), -9)
    sent.updates("w0", 2)
    expected = exchange(E2, ((12, 20),), ((8, 12),), base=5, updates=3)
    assert sent.hears("gps", Grant(E2)) == [Send("gps", expected, 7)]


@pytest.mark.parametrize(
    ("in_flight", "operation"), [("carry", "merge_carry"), ("replay", "merge_replay")]
)
def test_work_that_is_kept_is_in_the_next_exchange(
    in_flight: InFlight, operation: Operation
) -> None:
    driver = LpsDriver(in_flight=in_flight).serve().join("w0")
    driver.updates("w0", 3)
    assert Apply(operation, -9, 0.25) in driver.hears("gps", global_model(5, E1), -9)
    driver.updates("w0", 2)
    expected = exchange(E2, ((8, 20),), base=5, updates=3)
    assert driver.hears("gps", Grant(E2)) == [Send("gps", expected, 7)]


def test_an_exchange_inside_one_region_is_counted_as_local_traffic() -> None:
    driver = LpsDriver(wan=False).serve().join("w0")
    assert (driver.lps.model.wan_bytes, driver.lps.model.lan_bytes) == (0, 100)


def test_a_rejected_exchange_starts_the_region_afresh(sent: LpsDriver) -> None:
    """
    1. One update is in flight; the GPS rejects the exchange and takes its samples back.
    2. It may lend them to this region again before its model comes: no ledger has them twice.
    3. The global model replaces the region's whole; what was in flight is lost.
    """
    sent.updates("w0", 1)
    assert sent.hears("gps", Ack(E1, "rejected")) == [answered("rejected")]
    sent.hears("w0", Pull(8, 0))
    sent.grant(4, ((0, 8),))
    member = sent.lps.workers.members.get("w0")
    assert member is not None
    assert member.leases
    sent.push("w0", update(member.leases[0]))
    assert sent.hears("gps", global_model(0, E1), -9)[:3] == [
        Release(3),
        Apply("load", -9),
        Release(-9),
    ]
    sent.updates("w0", 2)
    grant = sent.hears("gps", Grant(E2))
    assert isinstance(grant[0], Send)
    assert isinstance(grant[0].message, Push)
    assert grant[0].message.dropped == ((0, 12),)


def test_a_lost_answer_is_asked_for_until_it_comes(sent: LpsDriver) -> None:
    """In the released code it stops the region for good; here the same offer asks for it.

    1. It arrived, it was acknowledged, the model is lost: the offer is repeated.
    2. K more updates do not start another exchange meanwhile.
    3. The offer brings the acknowledgement again, and then the model: merged, once.
    """
    sent.happens(Delivered("gps", 3))
    sent.hears("gps", Ack(E1, "applied"))
    assert Send("gps", Offer(E1)) in sent.after(1).happens(Tick())
    sent.updates("w0", 2)
    assert Send("gps", Offer(E1)) in sent.after(1).happens(Tick())
    assert sent.hears("gps", Ack(E1, "applied")) == []
    effects = sent.hears("gps", global_model(1, E1), -9)
    assert Apply("merge", -9, 0.25) in effects
    assert sent.hears("gps", global_model(1, E1), -10) == [Release(-10)]
    assert Send("gps", Offer(E1)) not in sent.after(5).happens(Tick())


def test_an_acknowledgement_proves_that_the_update_arrived(sent: LpsDriver) -> None:
    """The driver never reported that it arrived, but it is acknowledged."""
    sent.hears("gps", Ack(E1, "applied"))
    assert Send("gps", Offer(E1)) in sent.after(1).happens(Tick())


def test_a_failed_transfer_is_offered_again(sent: LpsDriver) -> None:
    assert sent.happens(PeerLost("gps", "cut")) == []
    assert Send("gps", Offer(E1)) in sent.after(1).happens(Tick())
    assert sent.hears("gps", Grant(E1)) == [Send("gps", exchange(E1, ((0, 8),)), 3)]


def test_busy_is_waited_for_and_a_late_grant_is_enough(offered: LpsDriver) -> None:
    assert offered.hears("gps", Busy(E1, 1000)) == []
    assert offered.hears("gps", Grant(E1)) == [Send("gps", exchange(E1, ((0, 8),)), 3)]
    assert offered.hears("gps", Grant(E1)) == []


def test_an_answer_that_overtakes_its_acknowledgement_is_merged(sent: LpsDriver) -> None:
    assert Apply("merge", -9, 0.25) in sent.hears("gps", global_model(1, E1), -9)
    assert sent.hears("gps", Ack(E1, "applied")) == []


@pytest.mark.parametrize("answers", [None, E2, PushId(1, 0)])
def test_a_model_that_answers_something_else_is_released(
    sent: LpsDriver, answers: PushId | None
) -> None:
    assert sent.hears("gps", global_model(1, answers), -9) == [Release(-9)]


def test_a_model_that_was_not_asked_for_is_released(driver: LpsDriver) -> None:
    assert driver.hears("gps", global_model(1, E1), -9) == [Release(-9)]
    assert driver.hears("gps", global_model(1, E1)) == []


def test_the_outcome_of_another_exchange_is_not_this_ones(sent: LpsDriver) -> None:
    for push in (E2, PushId(1, 0)):
        assert sent.hears("gps", Ack(push, "fenced")) == []
    assert sent.lps.membership.phase == "serving"


# --- joining the GPS --------------------------------------------------------------------------


def test_the_first_model_is_loaded_whole() -> None:
    """
    1. Hello, until there is a Welcome. 2. Pull, until there is a model. 3. It serves.
    """
    driver = LpsDriver()
    assert driver.happens(Tick()) == [Waiting("gps to answer"), GPS_HELLO]
    assert driver.hears("gps", Wait("its model")) == [Waiting("its model")]
    assert driver.hears("gps", gps_welcome()) == [
        GoingOn(),
        LpsJoined(1),
        Send("gps", Pull(0, 0)),
    ]
    assert driver.hears("gps", gps_welcome(2)) == []
    beat = Send("gps", Heartbeat(driver.lps.report()))
    assert driver.after(0.5).happens(Tick()) == [beat]
    assert driver.after(0.5).happens(Tick()) == [beat, Send("gps", Pull(0, 0))]
    assert driver.hears("gps", global_model(3), -1) == [Apply("load", -1), Release(-1)]
    assert driver.hears("gps", global_model(3), -2) == [Release(-2)]
    assert driver.lps.model.wan_bytes == 100


def test_the_bytes_of_a_payload_are_those_in_which_it_travelled() -> None:
    """A model that comes and a difference that goes may each have a size of their own, other than the manifest's."""
    driver = LpsDriver().serve().join("w0")
    driver.updates("w0", 2)
    before = driver.lps.model.wan_bytes
    driver.happens(Delivered("gps", 3, payload_bytes=30))
    driver.happens(Received("gps", global_model(1, E1), -9, payload_bytes=7))
    assert driver.lps.model.wan_bytes == before + 37


def test_workers_are_served_as_soon_as_the_model_is_there() -> None:
    """They may be in before it."""
    driver = LpsDriver()
    driver.hears("gps", gps_welcome())
    driver.join("w0")
    assert driver.hears("w0", Pull(4, 0)) == []
    assert driver.hears("gps", global_model(0), -1) == [
        Apply("load", -1),
        Release(-1),
        Send("gps", LeaseRequest(1, 4, 0)),
    ]


# --- evicted ----------------------------------------------------------------------------------


def test_an_evicted_region_voids_what_it_holds_and_starts_afresh(sent: LpsDriver) -> None:
    """
    1. The GPS does not know it any more: leases, pool and exchange are void; Hello.
    2. A worker's update on a void lease is fenced, also one that was being measured.
    3. Nothing is lent, no request is repeated, and no worker may join until there is a Welcome.
    4. It gets a higher fence and the whole global model, and goes on, with numbers of its own.
    """
    sent.join("w1")
    work, other = sent.work("w0"), sent.work("w1")
    sent.hears("w0", update(work), -7)
    assert sent.hears("gps", Rejoin()) == [Rejoining(), Release(3), REJOINING, GPS_HELLO]
    assert sent.happens(Measured(-7, 1.0, finite=True)) == [
        Release(-7),
        Send("w0", Ack(work.push, "fenced")),
    ]
    assert sent.hears("w1", Offer(other.push)) == [Send("w1", Ack(other.push, "fenced"))]
    assert sent.hears("w1", Pull(4, 0)) == []
    assert sent.hears("w2", hello()) == [Send("w2", Wait("the GPS, for which the LPS of eu waits"))]
    assert sent.happens(Tick()) == [GPS_HELLO]
    assert sent.hears("gps", global_model(1, E1), -8) == [Release(-8)]
    assert sent.hears("gps", gps_welcome(2)) == [
        LpsJoined(2),
        Send("gps", Pull(0, 0)),
    ]
    assert sent.hears("gps", global_model(4), -9) == [
        Apply("load", -9),
        Release(-9),
        Send("gps", LeaseRequest(5, 4, 0)),
    ]
    assert sent.grant(5, ((40, 44),), fence=2)[1].__class__ is Send
    sent.lps.workers.members.get("w1").replying = None  # type: ignore[union-attr]
    member = sent.lps.workers.members.get("w1")
    assert member is not None
    assert member.leases
    sent.push("w1", update(member.leases[0]))
    sent.hears("w0", Pull(4, 0))
    sent.grant(6, ((44, 48),), fence=2)
    effects = sent.push("w0", update(sent.work("w0")))
    assert effects[-1] == Send("gps", Offer(PushId(2, 2)))


def test_a_fenced_exchange_means_that_the_region_was_evicted(sent: LpsDriver) -> None:
    assert sent.hears("gps", Ack(E1, "fenced")) == [
        Rejoining(),
        Release(3),
        REJOINING,
        GPS_HELLO,
    ]


@pytest.mark.parametrize("fence", [0, 2])
def test_an_old_welcome_is_found_out_by_the_grant_that_does_not_fit(
    driver: LpsDriver, fence: int
) -> None:
    """Otherwise the region would ask for samples without end. The Welcome is older than another one of the same
    GPS, or than the GPS itself, whose fences may be lower."""
    driver.hears("w0", Pull(4, 0))
    assert driver.grant(1, ((0, 4),), fence=fence) == [Rejoining(), REJOINING, GPS_HELLO]
    driver.hears("gps", gps_welcome(fence))
    assert driver.hears("gps", global_model(0), -1)[-1] == Send("gps", LeaseRequest(2, 4, 0))


def test_a_region_evicted_before_it_had_a_model_asks_for_it_again() -> None:
    driver = LpsDriver()
    driver.hears("gps", gps_welcome())
    assert driver.hears("gps", Rejoin()) == [Rejoining(), REJOINING, GPS_HELLO]
    assert driver.hears("gps", gps_welcome(2)) == [LpsJoined(2)]
    assert Send("gps", Pull(0, 0)) in driver.after(1).happens(Tick())


def test_a_region_evicted_at_the_end_leaves_all_the_same(sent: LpsDriver) -> None:
    sent.hears("gps", Stop("budget"))
    assert without_notes(sent.hears("gps", Rejoin())) == [Release(3), REJOINING, GPS_HELLO]


def test_a_stopped_region_takes_no_global_model(sent: LpsDriver) -> None:
    sent.hears("gps", Stop("budget"))
    assert sent.hears("gps", global_model(1, E1), -9) == [Release(-9)]
