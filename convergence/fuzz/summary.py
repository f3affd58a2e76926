"""The results of many seeds: progress while they run, and figures at the end."""

import json
import sys
import time
from typing import Final

from convergence.fuzz.trial import TrialResult, Verdict

PS_PER_HOUR: Final = 3_600 * 10**12
PROGRESS_S: Final = 0.2
PROGRESS_IN_A_FILE_S: Final = 60.0


class FuzzSummary:
    """Adds results up. ``begin``: of the monotonic clock, in seconds."""

    def __init__(self, begin: float) -> None:
        self.seeds = self.events = self.virtual_ps = self.last = 0
        self.found: list[TrialResult] = []
        self.counts: dict[str, int] = {}
        self._begin = self._printed = begin
        self._is_terminal = sys.stderr.isatty()

    def add(self, result: TrialResult) -> None:
        """Add the result of a seed, print what it found, and show progress now and then."""
        self.seeds += 1
        self.last = max(self.last, result.seed)
        self.events += result.events
        self.virtual_ps += result.virtual_ps
        for what, many in result.counts.items():
            self.counts[what] = self.counts.get(what, 0) + many
        now = time.monotonic()
        if result.verdict is not Verdict.SOUND:
            self.found.append(result)
            self._clear()
            print(f"{result.story.rstrip()}\nseed {result.seed}: {result.verdict.name.lower()}")
        elif now - self._printed >= (PROGRESS_S if self._is_terminal else PROGRESS_IN_A_FILE_S):
            self._printed = now
            rate = self.events / (now - self._begin)
            line = f"{self.seeds} seeds, {self.events:,} events, {rate:,.0f} events/s, seed {self.last}"
            begin, end = ("\r", " ") if self._is_terminal else ("", "\n")
            print(begin + line, end=end, file=sys.stderr, flush=True)

    def conclude(self) -> int:
        """Print the figures, and the command that runs the failing or the last seed again. Returns the exit status:
        that of the first finding."""
        self._clear()
        seconds = time.monotonic() - self._begin
        if self.seeds != 1:
            figures = {
                "seeds": self.seeds,
                "found": [each.seed for each in self.found],
                "events": self.events,
                "virtual_hours": round(self.virtual_ps / PS_PER_HOUR, 3),
                "seconds": round(seconds, 1),
                "events_per_second": round(self.events / seconds),
                **dict(sorted(self.counts.items())),
            }
            print(json.dumps(figures))
        print(
            f"python -m convergence.fuzz --seed {self.found[0].seed if self.found else self.last}"
        )
        return self.found[0].verdict if self.found else Verdict.SOUND

    def _clear(self) -> None:
        if self._is_terminal:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
