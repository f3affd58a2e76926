"""What became of finished updates, remembered for as long as anybody may still ask."""

from collections import OrderedDict
from typing import Final, Literal

from pelago.core.durable import durable

Outcome = Literal["applied", "rejected", "fenced"]

OUTCOMES_MAX: Final = 4096
"""A client has one update under way and asks about no other, so this is generous."""


@durable(settings=("_limit",))
class Outcomes:
    """The last `OUTCOMES_MAX` outcomes by number. Numbers are given out upwards and never reused, so one
    that is neither open nor here was finished long ago: it is answered ``fenced`` (never apply it)."""

    def __init__(self, limit: int = OUTCOMES_MAX) -> None:
        self._limit = limit
        self._outcomes: OrderedDict[int, Outcome] = OrderedDict()

    def record(self, number: int, outcome: Outcome) -> None:
        """Remember an outcome; one number has one outcome for ever."""
        assert number not in self._outcomes, (number, outcome, self._outcomes[number])
        self._outcomes[number] = outcome
        if len(self._outcomes) > self._limit:
            self._outcomes.popitem(last=False)

    def get(self, number: int) -> Outcome:
        """The outcome of a number that is not open."""
        return self._outcomes.get(number, "fenced")
