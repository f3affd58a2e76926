"""What many seeds came to, told while it goes on and at its end."""

import json
import sys
import time
from typing import Final

from convergence.fuzz.trial import TrialResult, Verdict

PS_PER_HOUR: Final = 3_600 * 10**12
PROGRESS_S: Final = 0.2
PROGRESS_IN_A_FILE_S: Final = 60.0


class Tally:
    """What was found so far."""

    def __init__(self, begin: float) -> None:
        self.seeds = self.events = self.virtual_ps = self.last = 0
        self.found: list[TrialResult] = []
        self.counts: dict[str, int] = {}
        self._begin = self._told = begin
        self._is_terminal = sys.stderr.isatty()

    def add(self, outcome: TrialResult) -> None:
        """A seed has ended."""
        self.seeds += 1
        self.last = max(self.last, outcome.seed)
        self.events += outcome.events
        self.virtual_ps += outcome.virtual_ps
        for what, many in outcome.counts.items():
            self.counts[what] = self.counts.get(what, 0) + many
        now = time.monotonic()
        if outcome.verdict is not Verdict.SOUND:
            self.found.append(outcome)
            self._clear()
            print(f"{outcome.story.rstrip()}\nseed {outcome.seed}: {outcome.verdict.name.lower()}")
        elif now - self._told >= (PROGRESS_S if self._is_terminal else PROGRESS_IN_A_FILE_S):
            self._told = now
            rate = self.events / (now - self._begin)
            told = f"{self.seeds} seeds, {self.events:,} events, {rate:,.0f} events/s, seed {self.last}"
            begin, end = ("\r", " ") if self._is_terminal else ("", "\n")
            print(begin + told, end=end, file=sys.stderr, flush=True)

    def conclude(self) -> int:
        """Say what came of it. Returns the exit status: that of the first finding."""
        self._clear()
        seconds = time.monotonic() - self._begin
        if self.seeds != 1:
            told = {
                "seeds": self.seeds,
                "found": [each.seed for each in self.found],
                "events": self.events,
                "virtual_hours": round(self.virtual_ps / PS_PER_HOUR, 3),
                "seconds": round(seconds, 1),
                "events_per_second": round(self.events / seconds),
                **dict(sorted(self.counts.items())),
            }
            print(json.dumps(told))
        print(
            f"python -m convergence.fuzz --seed {self.found[0].seed if self.found else self.last}"
        )
        return self.found[0].verdict if self.found else Verdict.SOUND

    def _clear(self) -> None:
        if self._is_terminal:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
