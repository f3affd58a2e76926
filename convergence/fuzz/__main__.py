"""`python -m convergence.fuzz`: whole clusters under injected faults, one from each seed.

Exit status: 0 nothing was found, 1 an invariant was broken, 2 usage, 3 no progress in the healthy phase, 4 a
machine or this program itself failed. The last line is the command that runs the failing seed (or the last
one) again.
"""

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from itertools import count, islice

from pelago import children


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(
        prog="python -m convergence.fuzz",
        description="Runs whole clusters under loss, delay, cuts, crashes and full disks, all drawn "
        "from seeds, and checks invariants.",
    )
    top.add_argument("--seed", type=int, default=1, metavar="N", help="the first seed (default 1)")
    top.add_argument("--seeds", type=int, metavar="K", help="number of seeds (default 1)")
    top.add_argument("--minutes", type=float, metavar="M", help="run seeds from N on for this time")
    top.add_argument("--jobs", type=int, metavar="J", help="processes (default: one for each core)")
    top.add_argument("--keep-going", action="store_true", help="do not end with the first finding")
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line. Returns the exit status."""
    children.leave_working_folder()
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
    # The rest is imported late, so that usage errors come at once.
    from multiprocessing import cpu_count

    from convergence.fuzz.pool import run_seeds
    from convergence.fuzz.summary import FuzzSummary
    from convergence.fuzz.trial import Verdict

    begin = time.monotonic()
    deadline = None if options.minutes is None else begin + 60 * options.minutes
    seeds: Iterator[int] = count(options.seed)
    if options.minutes is None:
        seeds = islice(seeds, options.seeds or 1)
    summary = FuzzSummary(begin)
    for result in run_seeds(seeds, options.jobs or cpu_count(), deadline):
        summary.add(result)
        if result.verdict is not Verdict.SOUND and not options.keep_going:
            break
    return summary.conclude()


if __name__ == "__main__":
    sys.exit(main())
