"""Outcomes of finished updates, kept for as long as a client may ask for them again."""

from collections import OrderedDict
from typing import Final, Literal

from pelago.core.durable import durable

Outcome = Literal["applied", "rejected", "fenced"]

OUTCOMES_MAX: Final = 4096
"""Outcomes kept. A client asks only about the one update that it has under way, so few are needed."""


@durable(settings=("_limit",))
class Outcomes:
    """The last `OUTCOMES_MAX` outcomes by number. Numbers only grow and are never used again. So a number
    that is neither open nor kept here was finished long ago, and its outcome is ``fenced`` (do not apply)."""

    def __init__(self, limit: int = OUTCOMES_MAX) -> None:
        self._limit = limit
        self._outcomes: OrderedDict[int, Outcome] = OrderedDict()

    def record(self, number: int, outcome: Outcome) -> None:
        """Keep an outcome. A number has one outcome, which never changes."""
        assert number not in self._outcomes, (number, outcome, self._outcomes[number])
        self._outcomes[number] = outcome
        if len(self._outcomes) > self._limit:
            self._outcomes.popitem(last=False)

    def get(self, number: int) -> Outcome:
        """The outcome of a number that is not open."""
        return self._outcomes.get(number, "fenced")
