"""Staging places of a server: how many updates may be under way to it at once.

A peer holds a place until the update that it was granted for is decided. But a peer that holds one for much
longer than a waiting peer would need, or is silent, loses it to the next one that waits. Its update may still
arrive and then counts, so at most twice as many updates are under way as there are places.

Time is counted in ticks of the server, so that no jump of a clock makes a peer seem slow.
"""

from collections import deque
from collections.abc import Container
from typing import Final

from pelago.core.durable import durable
from pelago.core.names import Peer, PushId

WITHOUT_LIMIT: Final = 1 << 30
"""A limit for a server that has a place for every peer, as those of the HALoS paper have."""
TURNS: Final = 4
"""A peer loses its place when it has held it for so many times as long as a waiting peer needs."""
TURN_MAX: Final = 8
"""If a peer's turn was too short, its next one is twice as long, up to so many times the patience."""
PEERS_MAX: Final = 256
"""How many peers' paces are remembered."""


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
        self._since: dict[Peer, int] = {}
        """The tick at which each place was granted, also those that were lost to others since."""
        self._ticks = 0
        self._paces: dict[Peer, int] = {}
        """How many ticks the newest update of each peer was under way."""
        self._losses: dict[Peer, int] = {}
        """How often in a row a peer lost its place so that its update could not come."""

    def ask(self, peer: Peer, push: PushId) -> bool:
        """Whether the peer may send now. If not it waits, and `free` or `tick` returns it when a place is free.

        A peer has one update under way: if it asks for another one, that takes the place of the first.
        """
        if self.late.pop(peer, None):
            del self._since[peer]
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
        """Whether an update was granted a place and may still come, even late."""
        return push in (self.granted.get(peer), self.late.get(peer))

    def arrived(self, peer: Peer, push: PushId) -> None:
        """All of an update is here."""
        if self.expects(peer, push):
            self._losses.pop(peer, None)
            _remember(self._paces, peer, self._ticks - self._since[peer])

    def free(self, peer: Peer, push: PushId | None = None) -> list[tuple[Peer, PushId]]:
        """The peer needs no place any more, or none for one update. Returns those that get one now."""
        for held in (self.granted, self.late):
            if peer in held and push in (None, held[peer]):
                del held[peer], self._since[peer]
        if not self._waiting:
            return []
        self._waiting = deque(
            each for each in self._waiting if each[0] != peer or push not in (None, each[1])
        )
        return self._admit()

    def tick(self, patience: int, silent: Container[Peer] = ()) -> list[tuple[Peer, PushId]]:
        """A tick passed: take places from peers in ``silent`` and from slow ones, if others wait.

        A peer that is heard keeps its place for at least ``patience`` ticks. A waiting peer whose pace is not known
        is taken to need as many. Returns those that get a place now.
        """
        self._ticks += 1
        if not self._waiting:
            return []
        need = min(self._paces.get(peer, patience) for peer, _ in self._waiting)
        turn = max(patience, TURNS * need)
        overdue = [
            peer
            for peer in self.granted
            if peer in silent or self._ticks - self._since[peer] > self._turn(peer, turn, patience)
        ]
        for peer in sorted(overdue, key=self._since.__getitem__)[: len(self._waiting)]:
            push = self.granted.pop(peer)
            if peer not in silent and len(self.late) < self._limit:
                self.late[peer] = push
            else:
                del self._since[peer]
                _remember(self._losses, peer, self._losses.get(peer, 0) + 1)
        return self._admit()

    def _turn(self, peer: Peer, turn: int, patience: int) -> int:
        """How many ticks a peer may hold its place: longer after each turn that was too short for it."""
        longest = max(turn, TURN_MAX * patience)
        return min(turn << min(self._losses.get(peer, 0), TURN_MAX), longest)

    def _admit(self) -> list[tuple[Peer, PushId]]:
        admitted: list[tuple[Peer, PushId]] = []
        while self._waiting and len(self.granted) < self._limit:
            peer, push = self._waiting.popleft()
            self._grant(peer, push)
            admitted.append((peer, push))
        return admitted

    def _grant(self, peer: Peer, push: PushId) -> None:
        if self.granted.get(peer) != push:
            self._since[peer] = self._ticks
        self.granted[peer] = push

    def check(self) -> None:
        """Assert the limits, and that no peer is in two of the tables."""
        assert len(self.granted) <= self._limit
        assert len(self.late) <= self._limit
        waiting = [peer for peer, _ in self._waiting]
        assert len(set(waiting)) == len(waiting)
        assert not set(waiting) & set(self.granted)
        assert not set(self.late) & {*waiting, *self.granted}
        assert set(self._since) == {*self.granted, *self.late}
        assert max(len(self._paces), len(self._losses)) <= PEERS_MAX


def _remember(of: dict[Peer, int], peer: Peer, count: int) -> None:
    """Record a count for a peer, and keep those of the newest `PEERS_MAX` peers only."""
    of.pop(peer, None)
    of[peer] = count
    if len(of) > PEERS_MAX:
        del of[next(iter(of))]
