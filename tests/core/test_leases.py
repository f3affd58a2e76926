"""Every sample is in one place, in the run's ledger and in a region's table of leases."""

from random import Random

import pytest

from pelago.core.leases import SPENT_SPANS_MAX, LeaseTable, LedgerTotals, SampleLedger
from pelago.core.names import Lease, PushId
from pelago.core.spans import SpanSet
from pelago.durable import image


def test_fresh_samples_are_lent_in_order() -> None:
    ledger = SampleLedger()
    assert ledger.lend("eu", 8) == ((0, 8),)
    assert ledger.lend("us", 4) == ((8, 12),)
    assert ledger.cursor == 12
    assert ledger.holds("eu", ((0, 3), (5, 8)))
    assert not ledger.holds("eu", ((8, 9),))
    assert not ledger.holds("asia", ((0, 1),))
    ledger.check()


def test_returned_samples_are_lent_before_fresh_ones() -> None:
    ledger = SampleLedger()
    ledger.lend("eu", 8)
    ledger.give_back("eu", ((2, 4),))
    assert ledger.lend("us", 4) == ((2, 4), (8, 10))
    ledger.give_back("us", ((2, 4),))
    assert ledger.lend("us", 1) == ((2, 3),)
    assert ledger.cursor == 10
    ledger.check()


def test_an_exchange_spends_what_it_applied_and_what_it_dropped() -> None:
    ledger = SampleLedger()
    ledger.lend("eu", 8)
    ledger.consume("eu", ((0, 4),), ((4, 6),))
    ledger.check()
    assert ledger.totals() == LedgerTotals(8, 4, 2, 0, 0, 2, 0)


def test_a_lost_region_gives_everything_back() -> None:
    ledger = SampleLedger()
    ledger.lend("eu", 8)
    ledger.consume("eu", ((0, 4),), ())
    assert ledger.reclaim("eu") == 4
    assert ledger.reclaim("eu") == 0
    assert ledger.lend("us", 5) == ((4, 8), (8, 9))
    ledger.check()


def test_a_leaving_region_settles_only_what_it_still_holds() -> None:
    """It may name samples of an exchange that was applied here, if the acknowledgement was lost."""
    ledger = SampleLedger()
    ledger.lend("eu", 16)
    ledger.consume("eu", ((0, 4),), ())
    ledger.settle("eu", unexchanged=((0, 6),), dropped=((6, 8),))
    ledger.check()
    assert ledger.totals() == LedgerTotals(
        issued=16,
        applied=4,
        dropped_in_flight=2,
        unexchanged=2,
        returned=8,
        held=0,
        duplicated=0,
    )


def test_a_region_cannot_spend_what_it_does_not_hold() -> None:
    ledger = SampleLedger()
    ledger.lend("eu", 8)
    with pytest.raises(AssertionError):
        ledger.consume("us", ((0, 4),), ())


def test_a_long_run_keeps_a_small_ledger_that_still_balances() -> None:
    """Applied and dropped spans alternate many times, and one slow region holds its samples long."""
    ledger = SampleLedger()
    straggler = ledger.lend("asia", 4)
    for number in range(3 * SPENT_SPANS_MAX):
        spans = ledger.lend("eu", 2)
        applied, dropped = ((spans, ()), ((), spans))[number % 2]
        ledger.consume("eu", applied, dropped)
        if number == SPENT_SPANS_MAX + 5:
            ledger.give_back("asia", straggler)
            assert ledger.lend("us", 4) == straggler
            ledger.consume("us", straggler, ())
    ledger.check()
    assert len(ledger.applied) + len(ledger.dropped) <= SPENT_SPANS_MAX
    samples = 6 * SPENT_SPANS_MAX
    half = samples // 2
    assert ledger.totals() == LedgerTotals(samples + 4, half + 4, half, 0, 0, 0, 0)


def test_a_sample_that_was_spent_long_ago_and_comes_again_is_a_duplicate() -> None:
    ledger = SampleLedger()
    for number in range(SPENT_SPANS_MAX + 2):
        spans = ledger.lend("eu", 2)
        ledger.consume("eu", *(((spans, ()), ((), spans))[number % 2]))
    assert ledger.closed > 0
    ledger.held["eu"].add(((0, 2),))
    ledger.consume("eu", ((0, 2),), ())
    assert ledger.totals().duplicated == 2
    with pytest.raises(AssertionError):
        ledger.check()


def test_the_ledger_sees_a_sample_in_two_places_and_one_that_is_gone() -> None:
    ledger = SampleLedger()
    ledger.lend("eu", 8)
    ledger.applied.add(((0, 1),))
    with pytest.raises(AssertionError, match="two sets"):
        ledger.check()
    ledger.applied.clear()
    ledger.held["eu"].remove(((0, 1),))
    with pytest.raises(AssertionError):
        ledger.check()
    ledger.held["eu"].add(((0, 1),))
    ledger.duplicated = 1
    with pytest.raises(AssertionError):
        ledger.check()


def test_a_lease_is_cut_from_the_lowest_samples() -> None:
    table = LeaseTable(incarnation=1)
    table.add(((8, 16),), 8)
    lease = table.lend(group=0, fence=3, samples=6)
    assert lease == Lease(PushId((1 << 32) + 1, 3), ((8, 14),), 8)
    assert lease.samples == 6
    assert table.lend(group=1, fence=1, samples=3) is None
    second = table.lend(group=1, fence=1, samples=2)
    assert second == Lease(PushId((1 << 32) + 2, 1), ((14, 16),), 14)
    table.check()


def test_an_open_lease_is_found_by_number_and_fence() -> None:
    table = LeaseTable(0)
    table.pool.add(((0, 8),))
    lease = table.lend(0, 1, 4)
    assert lease is not None
    held = table.find(lease.push)
    assert held is not None
    assert (held.lease, held.group) == (lease, 0)
    assert table.find(PushId(lease.push.lease, 2)) is None
    assert table.find(PushId(lease.push.lease + 1, 1)) is None
    assert table.outcome(PushId(lease.push.lease, 2)) == "fenced"


def test_a_lease_is_consumed_once() -> None:
    table = LeaseTable(0)
    table.pool.add(((0, 8),))
    lease = table.lend(0, 1, 4)
    assert lease is not None
    assert table.consume(lease.push) == ((0, 4),)
    assert table.outcome(lease.push) == "applied"
    with pytest.raises(KeyError):
        table.consume(lease.push)


def test_a_lease_given_back_is_lent_under_a_new_number() -> None:
    table = LeaseTable(0)
    table.pool.add(((0, 4),))
    first = table.lend(0, 1, 4)
    assert first is not None
    table.give_back(first.push, "rejected")
    second = table.lend(1, 1, 4)
    assert second is not None
    assert second.push != first.push
    assert second.spans == first.spans
    assert table.outcome(first.push) == "rejected"
    table.check()


def test_voiding_revokes_everything_that_was_not_consumed() -> None:
    table = LeaseTable(0)
    table.pool.add(((0, 12),))
    leases = [table.lend(group, 1, 4) for group in (0, 1)]
    assert leases[0] is not None
    assert leases[1] is not None
    table.consume(leases[0].push)
    assert table.void() == ((4, 12),)
    assert table.pool.total == 0
    assert table.open == {}
    assert table.outcome(leases[1].push) == "fenced"


def test_a_later_incarnation_never_reuses_a_number() -> None:
    """Not even after four billion leases of the earlier one."""
    numbers = []
    for incarnation in (1_900_000_000, 1_900_000_001):
        table = LeaseTable(incarnation)
        table.pool.add(((0, 4),))
        lease = table.lend(0, 1, 4)
        assert lease is not None
        numbers.append(lease.push.lease)
    assert numbers[1] - numbers[0] == 1 << 32
    assert numbers[1] < 1 << 63


def clocks(table: LeaseTable, count: int, samples: int = 4) -> list[int]:
    """The clocks of the next leases."""
    leases = [table.lend(0, 1, samples) for _ in range(count)]
    return [lease.clock for lease in leases if lease is not None]


def test_the_clock_of_fresh_samples_is_their_place_in_the_order() -> None:
    table = LeaseTable(0)
    table.add(((8, 16),), 8)
    assert clocks(table, 2) == [8, 12]
    table.add(((100, 108),), 100)
    assert clocks(table, 2) == [100, 104]


def test_what_was_kept_in_hand_has_the_clock_of_the_time_when_a_worker_gets_it() -> None:
    """Other regions were lent samples meanwhile: 100 in all when the second eight came, less the eight that
    were in hand."""
    table = LeaseTable(0)
    table.add(((8, 16),), 8)
    table.add(((100, 108),), 100)
    assert clocks(table, 4) == [92, 96, 100, 104]


def test_what_is_lent_again_has_the_clock_of_the_time_when_it_is_lent_again() -> None:
    """
    1. Samples 0..4 return to the pool when the region has come to 3,000,004: their holder is lost.
    2. The GPS lends 4..8 of another region, when 9,000,000 were handed out, with four that are fresh.
    """
    table = LeaseTable(0)
    table.add(((0, 4),), 0)
    table.add(((3_000_000, 3_000_012),), 3_000_000)
    lost = table.lend(0, 1, 4)
    assert lost is not None
    assert clocks(table, 1) == [3_000_000]
    table.give_back(lost.push, "fenced")
    assert clocks(table, 2) == [3_000_000, 3_000_004]
    table.add(((4, 8), (9_000_000, 9_000_004)), 9_000_000)
    assert clocks(table, 3) == [8_999_996, 9_000_000, 9_000_004]
    table.add(((9_000_008, 9_000_012),), 9_000_008)
    assert clocks(table, 1) == [9_000_008]


def test_the_clock_survives_a_restart_and_begins_again_with_a_later_incarnation_of_the_gps() -> (
    None
):
    table = LeaseTable(0)
    table.add(((0, 4), (50, 54)), 50)
    assert clocks(table, 1) == [50]
    again = LeaseTable(0)
    image.restore(again, image.take(table))
    assert clocks(again, 1) == [54]
    again.void()
    again.add(((20, 24),), 20)
    assert clocks(again, 1) == [20]


def test_the_table_sees_a_sample_that_is_leased_twice() -> None:
    table = LeaseTable(0)
    table.pool.add(((0, 4),))
    table.lend(0, 1, 4)
    table.pool.add(((0, 1),))
    with pytest.raises(AssertionError, match="twice"):
        table.check()


@pytest.mark.parametrize("seed", range(20))
def test_any_history_of_a_ledger_balances(seed: int) -> None:
    """Every sample below the cursor is in exactly one set after each of 200 random operations."""
    random = Random(seed)
    ledger = SampleLedger()
    for _ in range(200):
        region = random.choice(("eu", "us", "asia"))
        held = ledger.held.get(region, SpanSet())
        part = SpanSet(held).take(random.randint(1, held.total)) if held.total else ()
        match random.randrange(5):
            case 0 | 1:
                samples = random.randint(1, 20)
                lent = ledger.lend(region, samples)
                assert sum(stop - start for start, stop in lent) == samples
            case 2:
                ledger.consume(region, part[:1], part[1:])
            case 3:
                ledger.give_back(region, part)
            case _:
                ledger.settle(region, part[:1], part[1:])
        ledger.check()
    totals = ledger.totals()
    assert totals.issued == sum(
        (
            totals.applied,
            totals.dropped_in_flight,
            totals.unexchanged,
            totals.returned,
            totals.held,
        )
    )
