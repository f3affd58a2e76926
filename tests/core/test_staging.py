"""At most so many updates are under way to a server; the others wait in turn."""

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from pelago.core.names import PushId
from pelago.core.staging import Staging

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


def test_whoever_asks_again_keeps_its_place_in_the_queue() -> None:
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


def test_who_gives_up_waiting_is_given_nothing() -> None:
    staging = Staging(1)
    staging.ask("a", A1)
    staging.ask("b", B1)
    assert staging.free("b") == []
    assert staging.free("a") == []


def test_an_old_update_does_not_free_the_place_of_a_newer_one() -> None:
    """Nor does it strike a newer one from the queue."""
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


def test_who_holds_a_place_for_long_while_another_waits_loses_it_and_may_still_come() -> None:
    """Nobody has come yet, so that nothing is known of how long it takes: four times the patience."""
    staging = Staging(1)
    staging.ask("a", A1)
    staging.ask("b", B1)
    assert staging.tick(0, 100) == []
    assert staging.tick(400, 100) == []
    assert staging.tick(401, 100) == [("b", B1)]
    assert staging.granted == {"b": B1}
    assert staging.expects("a", A1)
    assert not staging.expects("a", A2)
    assert staging.free("a", A1) == []
    assert not staging.expects("a", A1)


def test_a_place_that_was_given_before_the_first_tick_is_held_since_then() -> None:
    """Clocks begin anywhere."""
    staging = Staging(1)
    staging.ask("a", A1)
    staging.ask("b", B1)
    assert staging.tick(10**15, 100) == []
    assert staging.tick(10**15 + 400, 100) == []
    assert staging.tick(10**15 + 401, 100) == [("b", B1)]


def test_nobody_loses_a_place_for_whom_nobody_waits() -> None:
    staging = Staging(1)
    staging.ask("a", A1)
    for now in (0, 10_000):
        assert staging.tick(now, 100, {"a"}) == []
    assert staging.granted == {"a": A1}


def test_a_turn_is_four_times_what_the_fastest_of_late_needed() -> None:
    """Updates that all take long are sent one after the other, and not all at once."""
    staging = Staging(1)
    staging.ask("a", A1)
    staging.tick(0, 100)
    staging.tick(1000, 100)
    staging.arrived("a", A1)
    staging.free("a", A1)
    staging.ask("b", B1)
    staging.ask("c", C1)
    staging.tick(1000, 100)
    assert staging.tick(5000, 100) == []
    assert staging.tick(5001, 100) == [("c", C1)]


def test_a_turn_is_no_shorter_than_the_patience() -> None:
    staging = Staging(1)
    staging.ask("a", A1)
    staging.tick(0, 100)
    staging.arrived("a", A1)
    staging.free("a")
    staging.ask("b", B1)
    staging.ask("c", C1)
    assert staging.tick(100, 100) == []
    assert staging.tick(101, 100) == [("c", C1)]


def test_who_is_silent_loses_its_place_at_once_and_is_not_expected() -> None:
    staging = Staging(1)
    staging.ask("a", A1)
    staging.ask("b", B1)
    assert staging.tick(0, 100, {"a"}) == [("b", B1)]
    assert not staging.expects("a", A1)


def test_asking_again_makes_no_turn_longer() -> None:
    staging = Staging(1)
    staging.ask("a", A1)
    staging.ask("b", B1)
    staging.tick(0, 100)
    assert staging.ask("a", A1)
    assert staging.tick(401, 100) == [("b", B1)]
    assert not staging.ask("a", A1)
    assert staging.tick(801, 100) == []
    assert staging.tick(802, 100) == [("a", A1)]


def test_only_so_many_are_late_as_there_are_places() -> None:
    staging = Staging(1)
    for peer, push in (("a", A1), ("b", B1), ("c", C1)):
        staging.ask(peer, push)
    now = 0
    for _ in range(4):
        staging.tick(now, 100)
        now += 401
    assert staging.granted == {"c": C1}
    assert staging.late == {"a": A1}


class Crowd(RuleBasedStateMachine):
    """Whoever comes and goes, the limit holds and no place stays empty while somebody waits."""

    @initialize(limit=st.integers(1, 3))
    def open(self, limit: int) -> None:
        self.limit = limit
        self.staging = Staging(limit)
        self.waiting: list[str] = []
        self.now = 0

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

    @rule(by=st.integers(0, 1000), silent=st.sets(st.sampled_from("abcdef")))
    def tick(self, by: int, silent: set[str]) -> None:
        self.now += by
        admitted = [each for each, _ in self.staging.tick(self.now, 100, silent)]
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
