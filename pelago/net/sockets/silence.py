"""Measures how long the other end has been silent although it owes an answer. Pure.

Two things do not count as silence. Time in which this process did not look, since it was stopped or its event
loop was busy: each look counts for at most a `LOOKS_MIN`th of the patience. And an answer that takes long because
the line is slow: patience is doubled each time that it ends, and stays so for as long as answers need it.
"""

from typing import Final

from pelago.core.machine import PS_PER_MS

LOOKS_MIN: Final = 4
PATIENCE_PS_MAX: Final = 300_000 * PS_PER_MS


class SilenceTimer:
    """Times the silence of one connection. ``patience_ms``: how long it may last at first."""

    def __init__(self, patience_ms: int) -> None:
        self.patience_ps = patience_ms * PS_PER_MS
        self._base_ps = self.patience_ps
        self._silent_ps = 0
        self._signs = 0
        self._looked_at: int | None = None

    def look(self, now: int, *, owed: bool, signs: int) -> bool:
        """Whether the silence has lasted too long, so that a new connection is needed.

        ``owed``: something is awaited from the other end. ``signs``: how many answers there were so far.
        """
        passed = (
            0
            if self._looked_at is None
            else min(now - self._looked_at, self.patience_ps // LOOKS_MIN)
        )
        self._looked_at = now
        if signs != self._signs:
            self._signs = signs
            self.patience_ps = max(self._base_ps, min(2 * self._silent_ps, self.patience_ps))
            self._silent_ps = passed = 0
        if not owed:
            self._silent_ps = 0
            return False
        self._silent_ps += passed
        if self._silent_ps < self.patience_ps:
            return False
        self._silent_ps = 0
        self.patience_ps = min(2 * self.patience_ps, PATIENCE_PS_MAX)
        return True
