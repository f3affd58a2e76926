"""Two ports of one server, and one of them cannot be reached: who notices, and when it is told. Pure."""

from typing import Final

from pelago.core.machine import PS_PER_MS

BLOCKED_MS: Final = 5_000
"""How long it lasts before people hear of it: longer than two connections need that are made one after the other."""


class Blocked:
    """What is blocked, by any name, and what people were told."""

    def __init__(self) -> None:
        self._since: dict[str, int] = {}
        self._told: set[str] = set()

    def begins(self, what: str, now: int, *, blocked: bool) -> bool:
        """Whether it is time to tell: it has been blocked for `BLOCKED_MS` without a break. Once."""
        if not blocked:
            self._since.pop(what, None)
            return False
        since = self._since.setdefault(what, now)
        if what in self._told or now - since < BLOCKED_MS * PS_PER_MS:
            return False
        self._told.add(what)
        return True

    def ends(self, what: str) -> bool:
        """It is not blocked: whether that is news. Once."""
        news = what in self._told
        self._told.discard(what)
        return news
