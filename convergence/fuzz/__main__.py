"""`python -m convergence.fuzz`: whole clusters in bad weather, one from each seed.

Exit status: 0 nothing was found, 1 something was wrong that must never be, 2 usage, 3 in fair weather
something did not happen that should, 4 a machine or this program itself failed. The last line says how
to run the seed that failed (or the last one) again.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from itertools import count, islice
from multiprocessing import cpu_count
from typing import Final

from convergence.fuzz.pool import outcomes
from convergence.fuzz.trial import Outcome, Verdict

PS_PER_HOUR: Final = 3_600 * 10**12
PROGRESS_S: Final = 0.2
PROGRESS_IN_A_FILE_S: Final = 60.0


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(
        prog="python -m convergence.fuzz",
        description="Runs whole clusters under loss, delay, cuts, crashes and full disks, all drawn "
        "from seeds, and checks what must hold.",
    )
    top.add_argument("--seed", type=int, default=1, metavar="N", help="the first seed (default 1)")
    top.add_argument("--seeds", type=int, metavar="K", help="so many seeds (default 1)")
    top.add_argument("--minutes", type=float, metavar="M", help="seeds from N on, for so long")
    top.add_argument("--jobs", type=int, metavar="J", help="processes (default: one for each core)")
    top.add_argument("--keep-going", action="store_true", help="do not end with the first finding")
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line. Returns the exit status."""
    top = parser()
    options = top.parse_args(arguments)
    if options.minutes is not None and options.seeds is not None:
        top.error("--minutes and --seeds exclude each other")
    for name in ("seeds", "minutes", "jobs"):
        given = getattr(options, name)
        if given is not None and given <= 0:
            top.error(f"--{name} = {given}: must be above 0")
    if options.seed < 0:
        top.error(f"--seed = {options.seed}: must not be negative")
    begin = time.monotonic()
    deadline = None if options.minutes is None else begin + 60 * options.minutes
    seeds: Iterator[int] = count(options.seed)
    if options.minutes is None:
        seeds = islice(seeds, options.seeds or 1)
    tally = Tally(begin)
    for outcome in outcomes(seeds, options.jobs or cpu_count(), deadline):
        tally.add(outcome)
        if outcome.verdict is not Verdict.SOUND and not options.keep_going:
            break
    return tally.conclude()


class Tally:
    """What was found so far."""

    def __init__(self, begin: float) -> None:
        self.seeds = self.events = self.virtual_ps = self.last = 0
        self.found: list[Outcome] = []
        self.counts: dict[str, int] = {}
        self._begin = self._told = begin
        self._is_terminal = sys.stderr.isatty()

    def add(self, outcome: Outcome) -> None:
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


if __name__ == "__main__":
    sys.exit(main())
