"""The client's end: it joins, sends heartbeats, and delivers one update at a time, whatever is lost."""

import pytest

from pelago.core.machine import PS_PER_MS, PS_PER_S, Finish, Send
from pelago.core.names import Address, PushId, Version
from pelago.core.notes.common import GoingOn, Waiting
from pelago.protocol.client_session import GIVE_UP_AFTER_PS, UNANSWERED, ClientSession
from pelago.wire.messages import (
    PROTOCOL_VERSION,
    Grant,
    Heartbeat,
    Hello,
    Offer,
    Push,
    WorkerReport,
)

RETRY, LOST = 1000 * PS_PER_MS, 5000 * PS_PER_MS
HELLO = Hello(PROTOCOL_VERSION, "worker", Address("eu"), 7, "model", "corpus")
REPORT = WorkerReport(0, 1, 2, 3, 4, 5, 6.0)
PUSH = PushId(3, 1)


def push(name: PushId = PUSH) -> Push:
    return Push(
        push=name,
        base=Version(1, 0),
        steps=2,
        updates=1,
        tokens=8,
        loss=1.0,
        spans=((0, 4),),
        dropped=(),
        next_samples=4,
    )


@pytest.fixture
def session() -> ClientSession:
    return ClientSession("lps", HELLO, RETRY, LOST)


@pytest.fixture
def joined(session: ClientSession) -> ClientSession:
    session.join()
    session.heard(0)
    session.welcome(fence=1, group=0)
    return session


def test_hello_is_said_until_it_is_answered(session: ClientSession) -> None:
    """
    1. Hello at the start.
    2. No answer yet: on the tick, a line that names the server it waits for, and Hello.
    3. On the next tick Hello without the line.
    4. The server says what it waits for itself: another line, once.
    5. Welcome: it goes on, and from now on it asks for the group that it was given.
    """
    assert session.join() == [Send("lps", HELLO)]
    assert session.tick(REPORT, 0) == [
        Waiting("lps to answer"),
        Send("lps", HELLO),
    ]
    assert session.tick(REPORT, RETRY) == [Send("lps", HELLO)]
    assert session.heard(RETRY) == []
    assert session.waiting("the GPS") == [Waiting("the GPS")]
    assert session.waiting("the GPS") == []
    assert session.welcome(fence=4, group=2) == [GoingOn()]
    assert (session.joined, session.fence) == (True, 4)
    assert session.join() == [
        Send("lps", Hello(PROTOCOL_VERSION, "worker", Address("eu", 2), 7, "model", "corpus"))
    ]
    assert not session.joined


def test_a_silent_server_is_named_once_and_its_return_too(joined: ClientSession) -> None:
    assert joined.tick(REPORT, LOST) == [Send("lps", Heartbeat(REPORT))]
    assert joined.tick(REPORT, LOST + 1) == [
        Waiting("lps to answer"),
        Send("lps", Heartbeat(REPORT)),
    ]
    assert joined.tick(REPORT, LOST + 2) == [Send("lps", Heartbeat(REPORT))]
    assert joined.heard(LOST + 3) == [GoingOn()]
    assert joined.tick(REPORT, LOST + 4) == [Send("lps", Heartbeat(REPORT))]


def test_an_update_is_offered_sent_and_settled(joined: ClientSession) -> None:
    assert joined.offer(push(), 5, 0) == [Send("lps", Offer(PUSH))]
    assert joined.granted(Grant(PUSH), 1) == [Send("lps", push(), 5)]
    joined.delivered(5, 2)
    upload = joined.finished(PUSH)
    assert upload is not None
    assert (upload.blob, upload.state) == (5, "arrived")
    assert joined.upload is None
    assert joined.finished(PUSH) is None


def test_a_lost_offer_is_repeated_after_the_retry_time(joined: ClientSession) -> None:
    joined.offer(push(), 5, 0)
    assert joined.tick(None, RETRY - 1) == [Send("lps", Heartbeat(None))]
    offered = [Send("lps", Heartbeat(None)), Send("lps", Offer(PUSH))]
    assert joined.tick(None, RETRY) == offered
    assert joined.tick(None, RETRY + 1) == [Send("lps", Heartbeat(None))]
    assert joined.tick(None, 2 * RETRY) == offered


def test_while_it_is_being_sent_nothing_is_asked(joined: ClientSession) -> None:
    """Neither by a second Grant, nor by the tick, however long it takes."""
    joined.offer(push(), 5, 0)
    joined.granted(Grant(PUSH), 0)
    assert joined.granted(Grant(PUSH), 1) == []
    assert joined.tick(None, 3 * RETRY) == [Send("lps", Heartbeat(None))]


def test_an_update_that_arrived_without_an_answer_is_asked_about(joined: ClientSession) -> None:
    """
    1. The payload arrived, but no Ack comes: it asks for the outcome.
    2. The server never had it, or had it and restarted: it grants again, and the update is sent again.
    """
    joined.offer(push(), 5, 0)
    joined.granted(Grant(PUSH), 0)
    joined.delivered(5, 0)
    assert joined.tick(None, RETRY)[1:] == [Send("lps", Offer(PUSH))]
    assert joined.granted(Grant(PUSH), RETRY) == [Send("lps", push(), 5)]


def test_a_transfer_that_failed_is_offered_again(joined: ClientSession) -> None:
    joined.offer(push(), 5, 0)
    joined.granted(Grant(PUSH), 0)
    joined.lost(10)
    assert joined.tick(None, RETRY) == [Send("lps", Heartbeat(None))]
    assert joined.tick(None, RETRY + 10)[1:] == [Send("lps", Offer(PUSH))]


def test_a_failure_after_it_arrived_changes_nothing(joined: ClientSession) -> None:
    joined.offer(push(), 5, 0)
    joined.granted(Grant(PUSH), 0)
    joined.delivered(5, 0)
    joined.lost(1)
    assert joined.upload is not None
    assert joined.upload.state == "arrived"


def test_what_concerns_another_update_is_ignored(joined: ClientSession) -> None:
    other = PushId(2, 1)
    assert joined.granted(Grant(PUSH), 0) == []
    joined.delivered(5, 0)
    joined.lost(0)
    assert joined.finished(PUSH) is None
    joined.offer(push(), 5, 0)
    assert joined.granted(Grant(other), 0) == []
    joined.delivered(4, 0)
    assert joined.finished(other) is None
    assert joined.upload is not None
    assert joined.upload.state == "offered"


def test_one_update_at_a_time(joined: ClientSession) -> None:
    joined.offer(push(), 5, 0)
    with pytest.raises(AssertionError):
        joined.offer(push(PushId(4, 1)), 6, 0)


def test_a_client_that_is_not_welcome_offers_nothing(joined: ClientSession) -> None:
    """The update waits until the server has welcomed it again."""
    joined.offer(push(), 5, 0)
    joined.join()
    assert joined.tick(None, RETRY) == [Send("lps", joined.hello)]


GIVEN_UP = Finish(
    UNANSWERED, error="no answer for 3600 s (network.give_up_after_ms): is the run over?"
)


def test_a_server_that_never_answers_is_given_up_with_an_error(session: ClientSession) -> None:
    """The time is counted from the first request, whatever the clock showed then."""
    begun = 77 * PS_PER_S
    session.join()
    session.tick(REPORT, begun)
    assert session.tick(REPORT, begun + GIVE_UP_AFTER_PS) == [Send("lps", HELLO)]
    assert not session.gives_up(begun + GIVE_UP_AFTER_PS)
    assert session.tick(REPORT, begun + GIVE_UP_AFTER_PS + 1) == [GIVEN_UP]
    assert session.gives_up(begun + GIVE_UP_AFTER_PS + 1)


def test_a_server_that_fell_silent_is_given_up_and_any_message_postpones_that(
    joined: ClientSession,
) -> None:
    joined.heard(10)
    assert GIVEN_UP not in joined.tick(REPORT, 10 + GIVE_UP_AFTER_PS)
    joined.heard(11)
    assert GIVEN_UP not in joined.tick(REPORT, 11 + GIVE_UP_AFTER_PS)
    assert joined.tick(REPORT, 12 + GIVE_UP_AFTER_PS) == [GIVEN_UP]


def test_a_process_that_was_restored_gives_its_server_as_long_again(joined: ClientSession) -> None:
    joined.restarted(2 * GIVE_UP_AFTER_PS)
    assert GIVEN_UP not in joined.tick(REPORT, 3 * GIVE_UP_AFTER_PS)
