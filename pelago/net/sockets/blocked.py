"""Detects that one of a server's two ports cannot be reached, and when to report it. Pure."""

from typing import Final

from pelago.core.machine import PS_PER_MS

BLOCKED_MS: Final = 5_000
"""How long it lasts before it is reported: longer than two connections need that are made one after the other."""


class Blocked:
    """Since when things are blocked, by name, and which of them were reported."""

    def __init__(self) -> None:
        self._since: dict[str, int] = {}
        self._reported: set[str] = set()

    def begins(self, what: str, now: int, *, blocked: bool) -> bool:
        """Whether it is time to report it: it has been blocked for `BLOCKED_MS` without a break. Once."""
        if not blocked:
            self._since.pop(what, None)
            return False
        since = self._since.setdefault(what, now)
        if what in self._reported or now - since < BLOCKED_MS * PS_PER_MS:
            return False
        self._reported.add(what)
        return True

    def ends(self, what: str) -> bool:
        """It is not blocked (any more): whether to report that. True once for each report of `begins`."""
        news = what in self._reported
        self._reported.discard(what)
        return news
