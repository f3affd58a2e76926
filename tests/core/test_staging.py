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


class Crowd(RuleBasedStateMachine):
    """Whoever comes and goes, the limit holds and no place stays empty while somebody waits."""

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

    @invariant()
    def no_place_is_wasted(self) -> None:
        self.staging.check()
        assert not self.waiting or len(self.staging.granted) == self.limit


TestCrowd = Crowd.TestCase
