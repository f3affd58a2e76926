"""Whether something long goes on, or is stuck: by what it took for a part so far."""

from typing import Final

from pelago.core.machine import PS_PER_S

FIRST_FACTOR: Final = 6
"""The first part of all, for which a model may have to be compiled, may take so many times as long, and so
may one that is announced as long."""
SLOWEST_FACTOR: Final = 20
"""What goes on slowly is not stuck: a part may take so many times as long as the slowest one before it."""


class Watchdog:
    """Watches a thread that tells after each part of its work that it is alive.

    ``limit_ps``: what any part may take; 0: for ever.
    """

    def __init__(self, limit_ps: int) -> None:
        self._limit_ps = limit_ps
        self._slowest_ps = 0
        self._is_first = True
        self._is_long = False
        self._since: int | None = None
        """Of when the last sign of life is; None: there is nothing to wait for."""

    def begin(self, now: int, *, is_long: bool = False) -> None:
        """Work begins. ``is_long``: some part of it takes longer than others do."""
        self._since, self._is_long = now, is_long

    def progress(self, now: int) -> None:
        """A part is done."""
        if self._since is None:
            return
        if not self._is_first:
            self._slowest_ps = max(self._slowest_ps, now - self._since)
        self._since, self._is_first = now, False

    def end(self) -> None:
        """Nothing is waited for any more."""
        self._since = None

    def quiet_ps(self, now: int) -> int:
        """How long ago the last sign of life is; 0 if there is nothing to wait for."""
        return 0 if self._since is None else now - self._since

    @property
    def allowed_ps(self) -> int:
        """What the part in hand may take."""
        factor = FIRST_FACTOR if self._is_first or self._is_long else 1
        return max(self._limit_ps * factor, self._slowest_ps * SLOWEST_FACTOR)

    def is_over(self, now: int) -> bool:
        """Whether it must be taken for stuck."""
        return bool(self._limit_ps) and self.quiet_ps(now) > self.allowed_ps

    def stuck_message(self, what: str, now: int) -> str:
        """For the user: ``what`` is stuck, for how long, and what to do."""
        quiet_s, allowed_s = self.quiet_ps(now) / PS_PER_S, self.allowed_ps / PS_PER_S
        return (
            f"{what} is stuck: no sign of life for {quiet_s:,.0f} s, where {allowed_s:,.0f} s are allowed"
            " (worker.stuck_minutes, or more for what is slow): look at the disk or share that the corpus"
            " lies on, and at the accelerator"
        )


def longest_ps(limit_ps: int) -> int:
    """After what a process is taken for stuck by others, which leave it time to notice by itself."""
    return 2 * FIRST_FACTOR * limit_ps
