"""The states of a machine and the moves between them, as a table that readers and tests can see.

A machine changes its state in one method only, `_enter`, which asks its table whether the move is in it.
A row names the method in which the move is made, so that a test can hold the table against the code
(tests/test_transitions.py), and docs/ARCHITECTURE.md shows the same rows.
"""

from typing import NamedTuple, TypeVar

S = TypeVar("S", bound=str)


class Transition(NamedTuple):
    """One move: from a state to another one, in which method, and when."""

    source: str
    target: str
    method: str
    when: str
    """In a few words, for readers."""


class TransitionTable:
    """All moves of one machine; ``start`` is its first state, ``name`` what readers call the machine."""

    def __init__(self, name: str, start: str, transitions: tuple[Transition, ...]) -> None:
        self.name = name
        self.start = start
        self.transitions = transitions
        # By source: a pair would have to be made and hashed for every move.
        self._targets = {
            state: frozenset(each.target for each in transitions if each.source == state)
            for state in self.states
        }

    @property
    def states(self) -> tuple[str, ...]:
        """Every state, in the order in which the rows name them."""
        named = (state for each in self.transitions for state in (each.source, each.target))
        return tuple(dict.fromkeys((self.start, *named)))

    def move(self, source: str, target: S) -> S:
        """The new state. Raises `AssertionError` for a move that is not in the table."""
        assert target in self._targets[source], f"{self.name}: {source} -> {target} is no move"
        return target
