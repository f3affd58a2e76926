"""How many connections a client has to a server for bulk: more are opened while they add throughput.

Pure. After each payload the client knows at which rate it came through, and on how many stripes. The number is doubled
for a trial. If the rate is `GAIN_MIN` times the one before, the trial is kept, and the next one follows; if it is not,
twice in a row, the number goes back, and the next trial is `RESTING_MIN` payloads away, then twice as many. So a rate
that wavers does not open and close connections all the time, and a path that has changed is found out in the end.
"""

from typing import Final

STRIPES_CHOSEN_MAX: Final = 8
GAIN_MIN: Final = 1.08
TRIES: Final = 2
"""Payloads that a trial gets."""
RESTING_MIN: Final = 16
RESTING_MAX: Final = 256
"""Payloads between trials."""


class StripeClimber:
    """The number of stripes of the payloads in one direction."""

    def __init__(self) -> None:
        self.stripes = 1
        """As many are wanted now, during a trial those of the trial."""
        self._kept = 1
        self._rate = 0.0
        """Bytes a second on ``_kept`` stripes: the newest, or the mean of it and the one before."""
        self._failures = 0
        self._resting = 0
        """Payloads until the next trial."""
        self._rests = RESTING_MIN

    def observe(self, stripes: int, bytes_per_s: float) -> str:
        """A payload came through. Returns why `stripes` is another number now; nothing if it is not.

        ``stripes``: those that it travelled on; more than are wanted here say nothing.
        """
        if stripes > self.stripes:
            return ""
        if self.stripes > self._kept:
            return self._judge(bytes_per_s)
        self._rate = (self._rate + bytes_per_s) / 2 if self._rate else bytes_per_s
        self._resting = max(0, self._resting - 1)
        return self._try() if self._resting == 0 else ""

    def _try(self) -> str:
        if self._kept == STRIPES_CHOSEN_MAX:
            return ""
        self.stripes, self._failures = 2 * self._kept, 0
        return f"trial: {self._kept} carry {_shown(self._rate)}"

    def _judge(self, bytes_per_s: float) -> str:
        tried, before = self.stripes, self._rate
        if bytes_per_s >= GAIN_MIN * before:
            self._kept, self._rate, self._rests = tried, bytes_per_s, RESTING_MIN
            # The next trial follows at once, and says what this one has found.
            return self._try()
        self._failures += 1
        if self._failures < TRIES:
            return ""
        self.stripes = self._kept
        self._resting, self._rests = self._rests, min(2 * self._rests, RESTING_MAX)
        return f"{tried} carry {_shown(bytes_per_s)}, {self._kept} carry {_shown(before)}"


def _shown(bytes_per_s: float) -> str:
    return f"{bytes_per_s / 1e6:.3g} MB/s"
