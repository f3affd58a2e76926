"""Rounds that come to nothing, one after the other: whose fault it is, and what becomes of the region."""

from dataclasses import replace

import pytest

from lps.state import Lps
from pelago.core.machine import Finish, Measured, Note, Restarted, Send, Tick
from pelago.core.names import Lease
from pelago.durable.image import restore, take
from pelago.protocol.client_session import LEAVE_TICKS_MAX
from pelago.wire.messages import (
    Ack,
    Effect,
    Failed,
    Goodbye,
    Leave,
    Refuse,
    Stop,
    WorkerReport,
)
from tests.lps.driver import GPS_HELLO, SETTINGS, Room, update


@pytest.fixture
def room() -> Room:
    """It serves, and bears three rounds of a worker that come to nothing."""
    return Room().serve()


def fails(room: Room, peer: str) -> list[Effect]:
    """A round of a worker gives no finite gradient."""
    return room.hears(peer, Failed(room.work(peer).push, 2, 4))


def too_large(room: Room, peer: str) -> list[Effect]:
    """A round of a worker gives an update that is too large."""
    return room.push(peer, update(room.work(peer), next_samples=4), norm=11.0)


def test_a_failed_round_returns_its_samples_and_is_answered_with_the_next(room: Room) -> None:
    """Heard again it is answered again, and changes nothing more."""
    room.join("w0")
    work = room.work("w0")
    failed = Failed(work.push, 2, 4)
    effects = room.hears("w0", failed)
    why = {"peer": "w0", "group": 0, "why": "no gradient of 2 steps was finite"}
    assert effects[:2] == [Note("update_rejected", why), Send("w0", Ack(work.push, "rejected"))]
    lease = room.lps.members.get("w0").lease  # type: ignore[union-attr]
    assert isinstance(lease, Lease)
    assert (lease.spans, lease.push) == (work.spans, (work.push.lease + 1, 1))
    assert room.hears("w0", failed) == [Send("w0", Ack(work.push, "rejected"))]
    assert room.hears("w0", replace(failed, push=lease.push._replace(fence=9))) == [
        Send("w0", Ack(lease.push._replace(fence=9), "fenced"))
    ]
    assert room.lps.report().rejected == 1
    assert room.lps.version == 0


def test_a_worker_whose_rounds_all_fail_is_told_to_end_while_others_do_better(room: Room) -> None:
    """Its lease went back, and so may its group's next holder; the other one trains on."""
    room.join("w0").join("w1")
    assert Send("w0", Ack(room.work("w0").push, "rejected")) in fails(room, "w0")
    too_large(room, "w0")
    room.updates("w1", 1)
    effects = fails(room, "w0")
    [refusal] = [
        each for each in effects if isinstance(each, Send) and type(each.message) is Refuse
    ]
    assert refusal.peer == "w0"
    assert "no update of worker eu/0 can be applied: the last 3 in a row" in str(refusal)
    assert "worker.max_lr = 0.5" in str(refusal)
    assert room.lps.members.get("w0") is None
    room.updates("w1", 1)
    room.join("w9")
    fails(room, "w9")
    assert room.lps.members.get("w9") is None, "it has the place of one that failed"
    assert room.lps.phase == "serving"


def failed_region(room: Room) -> list[Effect]:
    """Both workers' rounds come to nothing; what follows from the last of them."""
    room.join("w0").join("w1")
    for round_of in ("w0", "w1", "w0"):
        too_large(room, round_of)
    return fails(room, "w0")


def test_a_region_of_which_no_worker_learns_leaves_with_the_reason(room: Room) -> None:
    """
    1. All workers are stopped, and their samples are given back.
    2. The GPS hears why; the process ends with an error.
    3. Started again, it begins afresh from the global model.
    """
    effects = failed_region(room)
    assert [each.kind for each in effects if isinstance(each, Note)] == [
        "update_rejected",
        "giving_up",
        "draining",
    ]
    for peer in ("w0", "w1"):
        assert Send(peer, Stop("this region learns nothing")) in effects
        told = room.hears(peer, Leave("enough", WorkerReport(0, 0, 1, 0, 0, 0, 0.0), (), (), ()))
    [leave] = [each.message for each in told if isinstance(each, Send) and each.peer == "gps"]
    assert isinstance(leave, Leave)
    assert leave.error.startswith("no update of worker eu/0 can be applied: the last 3")
    assert leave.returned
    assert room.hears("gps", Goodbye()) == [Finish("run finished", leave.error)]
    lps = Lps(SETTINGS)
    restore(lps, take(room.lps))
    effects = lps.handle(Restarted(), room.now)
    assert GPS_HELLO in effects
    assert (lps.phase, lps.error, lps.refusals.in_a_row) == ("joining", "", {})


def test_an_error_is_told_to_the_user_also_where_the_gps_does_not_answer(room: Room) -> None:
    failed_region(room)
    for peer in ("w0", "w1"):
        room.hears(peer, Leave("enough", None, (), (), ()))
    ends = [room.happens(Tick()) for _ in range(LEAVE_TICKS_MAX + 1)][-1]
    [finish] = [each for each in ends if isinstance(each, Finish)]
    assert "worker.max_lr" in finish.error


def test_a_refused_region_stops_its_workers_and_asks_again_when_it_is_started_again(
    room: Room,
) -> None:
    room.join("w0")
    effects = room.hears("gps", Refuse("no more"))
    assert effects == [Send("w0", Stop("refused")), Finish("refused", "no more")]
    lps = Lps(SETTINGS)
    restore(lps, take(room.lps))
    assert GPS_HELLO in lps.handle(Restarted(), room.now)


def test_the_count_survives_a_restart_of_the_server(room: Room) -> None:
    room.join("w0")
    for _ in range(2):
        fails(room, "w0")
    lps = Lps(SETTINGS)
    restore(lps, take(room.lps))
    lps.handle(Restarted(), room.now)
    room.lps = room.machine = lps
    assert "giving_up" in str(fails(room, "w0"))


def test_what_was_revoked_while_it_was_measured_counts_for_nobody(room: Room) -> None:
    room.join("w0")
    room.hears("w0", update(room.work("w0")), -1)
    room.hears("w0", Leave("enough", None, (), (), ()))
    room.happens(Measured(-1, 1.0, finite=False))
    assert room.lps.refusals.total == 0
