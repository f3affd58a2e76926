"""The disk of a virtual server: what a crash leaves, and which damage is found."""

from random import Random

import pytest

from pelago.core.errors import CheckpointError
from pelago.core.machine import Received, Restarted, Started, Tick
from pelago.core.names import PushId
from pelago.durable.record import Kind
from pelago.sim.disk import Disk
from pelago.wire.messages import Offer

ASKS = Received("worker", Offer(PushId(3, 1)))
GETS = Received("worker", Offer(PushId(3, 1)), -1)


def begun() -> Disk:
    disk = Disk("a-run", "gps", "gps-1", 9)
    disk.begin()
    return disk


def full(events: int = 6) -> Disk:
    """Everything is durable."""
    disk = begun()
    for now in range(events):
        disk.event(Tick(), now, None)
    disk.written(disk.last)
    return disk


def test_what_was_written_is_read_again_with_its_payload() -> None:
    disk, payload = begun(), object()
    assert [disk.event(Started(), 5, None), disk.event(GETS, 7, payload)] == [1, 3]
    disk.written(3)
    recovered = disk.read()
    kinds = [(each.head.kind, each.head.number, each.head.second) for each in recovered.records]
    assert kinds == [(Kind.EVENT, 1, 5), (Kind.CHUNK, 2, 0), (Kind.EVENT, 3, 7)]
    assert recovered.records[1].payload is payload
    assert recovered.number == disk.last == disk.durable == 3


def test_a_crash_leaves_all_that_was_durable_and_a_prefix_of_the_rest() -> None:
    left = []
    for seed in range(40):
        disk = full(3)
        for now in range(4):
            disk.event(ASKS, now, None)
        disk.crash(Random(seed))
        left.append(disk.read().number)
    assert sorted(set(left)) == [3, 4, 5, 6, 7]


def test_a_journal_goes_on_behind_its_torn_end() -> None:
    for seed in range(20):
        disk = full(3)
        disk.event(ASKS, 3, None)
        disk.crash(Random(seed))
        number = disk.read().number
        assert disk.event(Restarted(), 4, None) == number + 1
        disk.written(disk.last)
        assert disk.read().number == number + 1


def test_a_damaged_record_before_the_last_is_found() -> None:
    found = 0
    for seed in range(200):
        disk = full()
        mend = disk.damage(Random(seed))
        assert mend is not None
        with pytest.raises(CheckpointError):
            disk.read()
        mend()
        found += disk.read().number == 6
    assert found == 200


def test_damage_to_a_disk_with_one_record_looks_like_a_torn_end() -> None:
    disk = begun()
    disk.written(0)
    assert disk.damage(Random(1)) is None


def test_a_whole_snapshot_takes_the_place_of_what_is_before_it() -> None:
    disk = full(3)
    disk.snapshot(["state"], "plane", (4,), 2)
    disk.event(ASKS, 3, None)
    disk.finish_snapshot()
    disk.written(disk.last)
    recovered = disk.read()
    assert recovered.snapshot is not None
    assert (recovered.snapshot.number, recovered.snapshot.plane, recovered.snapshot.blobs) == (
        3,
        "plane",
        (4,),
    )
    assert [each.head.number for each in recovered.records] == [4]


def test_a_snapshot_that_is_not_whole_does_not_exist_and_costs_nothing() -> None:
    disk = full(3)
    disk.snapshot(["state"], "plane", (), 2)
    disk.event(ASKS, 3, None)
    disk.written(disk.last)
    disk.crash(Random(1))
    recovered = disk.read()
    assert recovered.snapshot is None
    assert [each.head.number for each in recovered.records] == [1, 2, 3, 4]


@pytest.mark.parametrize("begun", [False, True])
def test_a_snapshot_counts_once_its_journal_has_begun(begun: bool) -> None:
    """The disk is slow: the journal's header was still queued when all of the snapshot was there."""
    disk = full(3)
    disk.event(ASKS, 3, None)
    disk.snapshot(["state"], "plane", (), 3)
    disk.finish_snapshot()
    if begun:
        disk.written(4)
    disk._queue.clear()
    disk.crash(Random(1))
    recovered = disk.read()
    numbers = [each.head.number for each in recovered.records]
    assert (recovered.snapshot is not None, numbers) == (
        (True, []) if begun else (False, [1, 2, 3])
    )
    assert disk.event(Restarted(), 4, None) == recovered.number + 1
    disk.written(recovered.number + 1)
    assert disk.read().number == recovered.number + 1


def two_generations() -> Disk:
    """Snapshots of events 3 and 5, and one event more."""
    disk = full(3)
    for number in (3, 5):
        disk.snapshot([number], f"plane {number}", (), number)
        disk.event(ASKS, number + 1, None)
        disk.event(GETS, number + 1, "payload") if number == 5 else disk.event(ASKS, 5, None)
        disk.finish_snapshot()
        disk.written(disk.last)
    return disk


def test_the_snapshot_before_a_damaged_one_leads_to_the_same_event() -> None:
    for seed in range(20):
        disk = two_generations()
        number = disk.last
        assert disk.damage_newest(Random(seed))
        recovered = disk.read()
        assert recovered.snapshot is not None
        assert (recovered.snapshot.number, recovered.number) == (3, number)
        assert [each.head.number for each in recovered.records] == list(range(4, number + 1))
        assert recovered.records[-2].payload == "payload"
        assert not disk.damage_newest(Random(seed))


def test_a_damaged_snapshot_is_not_required_after_a_later_loss_of_power() -> None:
    """1. The newest snapshot is damaged, and the one before it takes its place. 2. The power is lost."""
    for seed in range(40):
        disk = two_generations()
        assert disk.damage_newest(Random(seed))
        disk.read()
        disk.lose_power(Random(seed))
        recovered = disk.salvage()
        assert recovered is not None
        assert recovered.snapshot is not None
        assert recovered.snapshot.number == disk.promised == 3


def test_files_that_a_snapshot_replaces_are_removed_when_the_next_is_begun() -> None:
    disk = two_generations()
    disk.snapshot([9], "plane 9", (), 9)
    assert not disk.damage_newest(Random(1))
    disk.finish_snapshot()
    disk.written(disk.last)
    recovered = disk.read()
    assert recovered.snapshot is not None
    assert recovered.snapshot.plane == "plane 9"


def test_a_loss_of_power_leaves_a_whole_snapshot_and_what_follows_up_to_the_first_damage() -> None:
    found = set()
    for seed in range(200):
        disk = two_generations()
        last = disk.last
        disk.lose_power(Random(seed))
        recovered = disk.salvage()
        assert recovered is not None
        assert recovered.snapshot is not None
        assert recovered.snapshot.number >= disk.promised
        numbers = [each.head.number for each in recovered.records]
        assert numbers == list(range(recovered.snapshot.number + 1, recovered.number + 1))
        assert recovered.number <= last
        found.add((recovered.snapshot.number, recovered.number))
    assert {(3, 3), (3, last), (5, 5), (5, last)} <= found


def test_what_an_old_file_held_is_not_taken_for_what_is_written_over_it() -> None:
    """1. A journal with chunks that look like records is written over. 2. The new one is torn anywhere."""
    for seed in range(60):
        disk = begun()
        for now in range(8):
            disk.event(GETS, now, "payload")
        for number in (1, 2):
            disk.snapshot([number], "plane", (), 9)
            disk.finish_snapshot()
            disk.written(disk.last)
        disk.event(ASKS, 10, None)
        disk.event(ASKS, 11, None)
        disk.crash(Random(seed))
        assert disk.read().number in (16, 17, 18)
        disk.written(disk.last)
        assert disk.read().number in (16, 17, 18)


def test_a_header_that_is_cut_and_whole_with_what_an_old_file_held_stays_whole() -> None:
    """1. A journal that is to be written over an old one is cut within its header. 2. What is read is there
    the next time as well."""
    for seed in range(200):
        disk = two_generations()
        disk.snapshot([9], "plane", (), 9)
        disk.crash(Random(seed))
        disk.read()
        disk.event(ASKS, 10, None)
        disk.written(disk.last)
        assert disk.read().number == disk.last
