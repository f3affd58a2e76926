"""Whether a long computation makes progress or is stuck, judged by how long its parts took so far."""

from typing import Final

from pelago.core.machine import PS_PER_S

FIRST_FACTOR: Final = 6
"""The first part may take this many times the limit, since a model may have to be compiled; so may a part that
is announced as long."""
SLOWEST_FACTOR: Final = 20
"""A part may take this many times as long as the slowest part before it: slow is not stuck."""


class Watchdog:
    """Watches a thread that reports progress after each part of its work.

    ``limit_ps``: the time that any part may take, in picoseconds; 0: no limit.
    """

    def __init__(self, limit_ps: int) -> None:
        self._limit_ps = limit_ps
        self._slowest_ps = 0
        self._is_first = True
        self._is_long = False
        self._since: int | None = None
        """When the last progress was reported; None: no work is under way."""

    def begin(self, now: int, *, is_long: bool = False) -> None:
        """Work begins. ``is_long``: one of its parts takes longer than others do."""
        self._since, self._is_long = now, is_long

    def progress(self, now: int) -> None:
        """A part is done."""
        if self._since is None:
            return
        if not self._is_first:
            self._slowest_ps = max(self._slowest_ps, now - self._since)
        self._since, self._is_first = now, False

    def end(self) -> None:
        """The work is over."""
        self._since = None

    def quiet_ps(self, now: int) -> int:
        """Picoseconds since the last progress; 0 if no work is under way."""
        return 0 if self._since is None else now - self._since

    @property
    def allowed_ps(self) -> int:
        """The time that the current part may take, in picoseconds."""
        factor = FIRST_FACTOR if self._is_first or self._is_long else 1
        return max(self._limit_ps * factor, self._slowest_ps * SLOWEST_FACTOR)

    def is_over(self, now: int) -> bool:
        """Whether the work must be considered stuck."""
        return bool(self._limit_ps) and self.quiet_ps(now) > self.allowed_ps

    def stuck_message(self, what: str, now: int) -> str:
        """For the user: ``what`` is stuck, for how long, and what to do."""
        quiet_s, allowed_s = self.quiet_ps(now) / PS_PER_S, self.allowed_ps / PS_PER_S
        return (
            f"{what} is stuck: no progress for {quiet_s:,.0f} s, where {allowed_s:,.0f} s are allowed"
            " (worker.stuck_minutes, or more for what is slow): look at the disk or share that the corpus"
            " lies on, and at the accelerator"
        )


def longest_ps(limit_ps: int) -> int:
    """The time, in picoseconds, after which others consider a process stuck. It leaves the process time to notice
    by itself."""
    return 2 * FIRST_FACTOR * limit_ps
