"""Staging places of a server: how many updates may be under way to it at once."""

from collections import deque
from typing import Final

from pelago.core.image import durable
from pelago.core.names import Peer, PushId

WITHOUT_LIMIT: Final = 1 << 30
"""A limit for a server that has room for everyone, as the paper's have."""


@durable(settings=("_limit",))
class Staging:
    """At most ``limit`` updates hold a place; the others wait in the order in which they asked."""

    def __init__(self, limit: int) -> None:
        assert limit > 0
        self._limit = limit
        self.granted: dict[Peer, PushId] = {}
        self._waiting: deque[tuple[Peer, PushId]] = deque()

    def ask(self, peer: Peer, push: PushId) -> bool:
        """Whether the peer may send now. If not it waits, and `next` names it when a place is free.

        A peer has one update under way: asking for another gives its earlier place to the new one.
        """
        if peer in self.granted or len(self.granted) < self._limit:
            self.granted[peer] = push
            return True
        for index, (waiting, _) in enumerate(self._waiting):
            if waiting == peer:
                self._waiting[index] = (peer, push)
                return False
        self._waiting.append((peer, push))
        return False

    def free(self, peer: Peer, push: PushId | None = None) -> list[tuple[Peer, PushId]]:
        """The peer needs no place any more, or none for one update. Returns those that get one now."""
        if push is None or self.granted.get(peer) == push:
            self.granted.pop(peer, None)
        if not self._waiting:
            return []
        self._waiting = deque(
            each for each in self._waiting if each[0] != peer or push not in (None, each[1])
        )
        admitted: list[tuple[Peer, PushId]] = []
        while self._waiting and len(self.granted) < self._limit:
            next_peer, push = self._waiting.popleft()
            self.granted[next_peer] = push
            admitted.append((next_peer, push))
        return admitted

    def check(self) -> None:
        """Assert the limit, and that nobody both waits and holds a place."""
        assert len(self.granted) <= self._limit
        waiting = [peer for peer, _ in self._waiting]
        assert len(set(waiting)) == len(waiting)
        assert not set(waiting) & set(self.granted)
