"""A limited number of updates is under way to a server; the others wait in turn."""

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from pelago.core.names import PushId
from pelago.protocol.staging import PEERS_MAX, Staging

A1, A2, B1, C1 = PushId(1, 1), PushId(2, 1), PushId(3, 1), PushId(4, 1)


def test_places_are_given_until_there_are_none_and_then_in_turn() -> None:
    staging = Staging(1)
    assert staging.ask("a", A1)
    assert not staging.ask("b", B1)
    assert not staging.ask("c", C1)
    assert staging.free("a") == [("b", B1)]
    assert staging.free("b") == [("c", C1)]
    assert staging.free("c") == []
    assert staging.granted == {}


def test_a_peer_that_asks_again_keeps_its_place_in_the_queue() -> None:
    staging = Staging(1)
    staging.ask("a", A1)
    staging.ask("b", B1)
    staging.ask("c", C1)
    assert not staging.ask("b", B1)
    assert staging.free("a") == [("b", B1)]


def test_a_peer_that_waits_is_given_a_place_for_what_it_asked_last() -> None:
    staging = Staging(1)
    staging.ask("b", B1)
    staging.ask("a", A1)
    assert not staging.ask("a", A2)
    assert staging.free("b") == [("a", A2)]


def test_a_peer_that_holds_a_place_uses_it_for_its_next_update() -> None:
    staging = Staging(1)
    assert staging.ask("a", A1)
    assert staging.ask("a", A2)
    assert staging.granted == {"a": A2}


def test_a_peer_that_gives_up_waiting_is_given_nothing() -> None:
    staging = Staging(1)
    staging.ask("a", A1)
    staging.ask("b", B1)
    assert staging.free("b") == []
    assert staging.free("a") == []


def test_an_old_update_does_not_free_the_place_of_a_newer_one() -> None:
    """Nor does it remove a newer one from the queue."""
    staging = Staging(1)
    staging.ask("a", A2)
    staging.ask("b", B1)
    assert staging.free("a", A1) == []
    assert staging.granted == {"a": A2}
    assert staging.free("b", C1) == []
    assert staging.free("a", A2) == [("b", B1)]


def test_several_places_are_filled_at_once() -> None:
    staging = Staging(2)
    assert staging.ask("a", A1)
    assert staging.ask("b", B1)
    assert not staging.ask("c", C1)
    assert staging.free("a") == [("c", C1)]
    assert set(staging.granted) == {"b", "c"}


def test_there_is_at_least_one_place() -> None:
    with pytest.raises(AssertionError):
        Staging(0)


def passes(staging: Staging, ticks: int, silent: tuple[str, ...] = ()) -> list[tuple[str, PushId]]:
    """Let a number of ticks pass, with a patience of ten. Returns the peers that got a place."""
    return [each for _ in range(ticks) for each in staging.tick(10, silent)]


def test_a_peer_that_holds_a_place_for_long_while_another_waits_loses_it_and_may_still_deliver() -> (
    None
):
    """The turn is four times what the other needs; as that is not known, it is taken to be the patience."""
    staging = Staging(1)
    staging.ask("a", A1)
    staging.ask("b", B1)
    assert passes(staging, 40) == []
    assert passes(staging, 1) == [("b", B1)]
    assert staging.granted == {"b": B1}
    assert staging.expects("a", A1)
    assert not staging.expects("a", A2)
    assert staging.free("a", A1) == []
    assert not staging.expects("a", A1)


def test_no_peer_loses_a_place_that_no_other_waits_for() -> None:
    staging = Staging(1)
    staging.ask("a", A1)
    assert passes(staging, 100, ("a",)) == []
    assert staging.granted == {"a": A1}


def needs(staging: Staging, peer: str, push: PushId, ticks: int) -> None:
    """An update arrives, a number of ticks after it was granted."""
    assert staging.ask(peer, push)
    passes(staging, ticks)
    staging.arrived(peer, push)
    staging.free(peer, push)


def test_a_turn_is_four_times_what_the_waiting_peer_needs() -> None:
    """Updates that all take long are sent one after the other, and not all at once."""
    staging = Staging(1)
    needs(staging, "b", B1, 100)
    staging.ask("a", A1)
    staging.ask("b", B1)
    assert passes(staging, 400) == []
    assert passes(staging, 1) == [("b", B1)]


def test_slow_first_peers_do_not_block_a_peer_that_was_never_served() -> None:
    """The time that they needed does not count for others."""
    staging = Staging(1)
    needs(staging, "a", A1, 10_000)
    staging.ask("a", A2)
    staging.ask("b", B1)
    assert passes(staging, 41) == [("b", B1)]


def test_how_long_a_late_update_took_is_known_as_well() -> None:
    staging = Staging(1)
    staging.ask("a", A1)
    staging.ask("b", B1)
    assert passes(staging, 41) == [("b", B1)]
    staging.arrived("a", A1)
    staging.free("a", A1)
    assert not staging.ask("a", A2)
    assert passes(staging, 4 * 41) == []
    assert passes(staging, 1) == [("a", A2)]


def test_a_turn_is_no_shorter_than_the_patience() -> None:
    staging = Staging(1)
    needs(staging, "c", C1, 0)
    staging.ask("b", B1)
    staging.ask("c", C1)
    assert passes(staging, 10) == []
    assert passes(staging, 1) == [("c", C1)]


def test_a_silent_peer_loses_its_place_at_once_and_is_not_expected() -> None:
    staging = Staging(1)
    staging.ask("a", A1)
    staging.ask("b", B1)
    assert passes(staging, 1, ("a",)) == [("b", B1)]
    assert not staging.expects("a", A1)


def test_asking_again_makes_no_turn_longer() -> None:
    staging = Staging(1)
    staging.ask("a", A1)
    staging.ask("b", B1)
    passes(staging, 1)
    assert staging.ask("a", A1)
    assert passes(staging, 40) == [("b", B1)]
    assert not staging.ask("a", A1)
    assert passes(staging, 40) == []
    assert passes(staging, 1) == [("a", A1)]


def test_no_more_updates_are_late_than_there_are_places() -> None:
    staging = Staging(1)
    for peer, push in (("a", A1), ("b", B1), ("c", C1)):
        staging.ask(peer, push)
    passes(staging, 3 * 41)
    assert staging.granted == {"c": C1}
    assert staging.late == {"a": A1}


def test_a_peer_that_needs_more_than_a_turn_has_a_longer_one_next_time() -> None:
    """The late update never arrives, so there is no room for b to be late; c is fast. When b's update has arrived,
    its turn is as short as before."""
    staging = Staging(1)
    needs(staging, "c", C1, 0)
    staging.ask("a", A1)
    staging.ask("c", C1)
    assert passes(staging, 11) == [("c", C1)]
    assert staging.late == {"a": A1}
    for turn in (10, 20, 40, 80, 80):
        staging.free("c", C1)
        assert staging.ask("b", B1)
        staging.ask("c", C1)
        assert passes(staging, turn) == []
        assert passes(staging, 1) == [("c", C1)]
        assert not staging.expects("b", B1)
    staging.free("c", C1)
    needs(staging, "b", B1, 50)
    staging.ask("b", B1)
    staging.ask("c", C1)
    assert passes(staging, 10) == []
    assert passes(staging, 1) == [("c", C1)]


def test_for_a_limited_number_of_peers_it_is_remembered_how_long_they_need() -> None:
    staging = Staging(1)
    for number in range(2 * PEERS_MAX):
        needs(staging, f"peer-{number}", PushId(number, 1), 0)
    staging.check()


class Crowd(RuleBasedStateMachine):
    """Whichever peers come and go, the limit holds and no place stays empty while a peer waits."""

    @initialize(limit=st.integers(1, 3))
    def open(self, limit: int) -> None:
        self.limit = limit
        self.staging = Staging(limit)
        self.waiting: list[str] = []

    @rule(peer=st.sampled_from("abcdef"), number=st.integers(0, 5))
    def ask(self, peer: str, number: int) -> None:
        if self.staging.ask(peer, PushId(number, 1)):
            assert peer not in self.waiting
        elif peer not in self.waiting:
            self.waiting.append(peer)

    @rule(peer=st.sampled_from("abcdef"))
    def free(self, peer: str) -> None:
        if peer in self.waiting:
            self.waiting.remove(peer)
        admitted = [each for each, _ in self.staging.free(peer)]
        assert admitted == self.waiting[: len(admitted)]
        del self.waiting[: len(admitted)]

    @rule(patience=st.integers(0, 3), silent=st.sets(st.sampled_from("abcdef")))
    def tick(self, patience: int, silent: set[str]) -> None:
        admitted = [each for each, _ in self.staging.tick(patience, silent)]
        assert admitted == self.waiting[: len(admitted)]
        del self.waiting[: len(admitted)]

    @rule(peer=st.sampled_from("abcdef"), number=st.integers(0, 5))
    def arrive(self, peer: str, number: int) -> None:
        self.staging.arrived(peer, PushId(number, 1))

    @invariant()
    def no_place_is_wasted(self) -> None:
        self.staging.check()
        assert not self.waiting or len(self.staging.granted) == self.limit


TestCrowd = Crowd.TestCase
