"""Staging places of a server: how many updates may be under way to it at once.

A place is held until the update that it was given for is decided. But whoever holds one for much longer
than others need, or says nothing at all, must not keep those out who wait: then its place goes to the next.
What it sends may go on beside that and still counts, on a link that carries little anyway; so at most twice
as many updates are under way as there are places.
"""

from collections import deque
from collections.abc import Container
from typing import Final

from pelago.core.image import durable
from pelago.core.names import Peer, PushId

WITHOUT_LIMIT: Final = 1 << 30
"""A limit for a server that has room for everyone, as the paper's have."""
TURNS: Final = 4
"""Whoever holds a place for so many times as long as the fastest of late, while others wait, loses it."""
PACES_MAX: Final = 8
"""So many updates are remembered by how long they took."""


@durable(settings=("_limit",))
class Staging:
    """At most ``limit`` updates hold a place; the others wait in the order in which they asked."""

    def __init__(self, limit: int) -> None:
        assert limit > 0
        self._limit = limit
        self.granted: dict[Peer, PushId] = {}
        self.late: dict[Peer, PushId] = {}
        """Updates that lost their place and may still come; at most ``limit``."""
        self._waiting: deque[tuple[Peer, PushId]] = deque()
        self._since: dict[Peer, int | None] = {}
        """At which tick each place was given; None: before the first one."""
        self._ticked_at: int | None = None
        self._paces: list[int] = []
        """How long the newest that came had held their places."""

    def ask(self, peer: Peer, push: PushId) -> bool:
        """Whether the peer may send now. If not it waits, and `free` or `tick` names it when a place is free.

        A peer has one update under way: asking for another gives its earlier place to the new one.
        """
        self.late.pop(peer, None)
        if peer in self.granted or len(self.granted) < self._limit:
            self._grant(peer, push)
            return True
        for index, (waiting, _) in enumerate(self._waiting):
            if waiting == peer:
                self._waiting[index] = (peer, push)
                return False
        self._waiting.append((peer, push))
        return False

    def expects(self, peer: Peer, push: PushId) -> bool:
        """Whether an update was given a place and may come, be it late."""
        return push in (self.granted.get(peer), self.late.get(peer))

    def arrived(self, peer: Peer, push: PushId) -> None:
        """All of an update is here."""
        since, now = self._since.get(peer), self._ticked_at
        if self.granted.get(peer) == push and since is not None and now is not None:
            self._paces = [*self._paces[1 - PACES_MAX :], now - since]

    def free(self, peer: Peer, push: PushId | None = None) -> list[tuple[Peer, PushId]]:
        """The peer needs no place any more, or none for one update. Returns those that get one now."""
        if push is None or self.granted.get(peer) == push:
            self.granted.pop(peer, None)
            self._since.pop(peer, None)
        if push is None or self.late.get(peer) == push:
            self.late.pop(peer, None)
        if not self._waiting:
            return []
        self._waiting = deque(
            each for each in self._waiting if each[0] != peer or push not in (None, each[1])
        )
        return self._admit()

    def tick(
        self, now: int, patience_ps: int, silent: Container[Peer] = ()
    ) -> list[tuple[Peer, PushId]]:
        """Time passed: take places from those of ``silent``, and from the slow, for those who wait; nobody
        loses one within ``patience_ps`` who is heard. Returns those that get one now."""
        self._ticked_at = now
        held = {peer: now if since is None else since for peer, since in self._since.items()}
        self._since.update(held)
        turn_ps = TURNS * (min(self._paces) if self._paces else patience_ps)
        due = now - max(patience_ps, turn_ps)
        overdue = [peer for peer in held if peer in silent or held[peer] < due]
        for peer in sorted(overdue, key=held.__getitem__)[: len(self._waiting)]:
            push = self.granted.pop(peer)
            del self._since[peer]
            if peer not in silent and len(self.late) < self._limit:
                self.late[peer] = push
        return self._admit()

    def _admit(self) -> list[tuple[Peer, PushId]]:
        admitted: list[tuple[Peer, PushId]] = []
        while self._waiting and len(self.granted) < self._limit:
            peer, push = self._waiting.popleft()
            self._grant(peer, push)
            admitted.append((peer, push))
        return admitted

    def _grant(self, peer: Peer, push: PushId) -> None:
        if self.granted.get(peer) != push:
            self._since[peer] = self._ticked_at
        self.granted[peer] = push

    def check(self) -> None:
        """Assert the limits, and that nobody is in two of the books."""
        assert len(self.granted) <= self._limit
        assert len(self.late) <= self._limit
        waiting = [peer for peer, _ in self._waiting]
        assert len(set(waiting)) == len(waiting)
        assert not set(waiting) & set(self.granted)
        assert not set(self.late) & {*waiting, *self.granted}
        assert set(self._since) == set(self.granted)
