"""Staging places of a server: how many updates may be under way to it at once.

A place is held until the update that it was given for is decided. But whoever holds one for much longer
than somebody who waits would need, or says nothing at all, must not keep those out who wait: then its place
goes to the next. What it sends may go on beside that and still counts, on a link that carries little anyway;
so at most twice as many updates are under way as there are places.

Time is counted in ticks of the server, so that no leap of a clock makes anybody seem slow.
"""

from collections import deque
from collections.abc import Container
from typing import Final

from pelago.core.durable import durable
from pelago.core.names import Peer, PushId

WITHOUT_LIMIT: Final = 1 << 30
"""A limit for a server that has room for everyone, as the paper's have."""
TURNS: Final = 4
"""Whoever holds a place for so many times as long as somebody who waits needs loses it."""
TURN_MAX: Final = 8
"""A turn that was too short is twice as long the next time, up to so many times the patience."""
PEERS_MAX: Final = 256
"""Of so many peers it is remembered how long they need."""


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
        """At which tick each place was given, also of those who have lost it and may still come."""
        self._ticks = 0
        self._paces: dict[Peer, int] = {}
        """For how many ticks the newest update of each peer was under way."""
        self._losses: dict[Peer, int] = {}
        """How often in a row a peer lost its place so that its update could not come."""

    def ask(self, peer: Peer, push: PushId) -> bool:
        """Whether the peer may send now. If not it waits, and `free` or `tick` names it when a place is free.

        A peer has one update under way: asking for another gives its earlier place to the new one.
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
        """Whether an update was given a place and may come, be it late."""
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
        """A tick passed: take places from those of ``silent``, and from the slow, for those who wait; nobody
        loses one within ``patience`` ticks who is heard, which is also what those are taken to need of whom
        nothing came yet. Returns those that get a place now."""
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
        """Of a peer that needs more than a turn, and found nobody late who would have made room for it."""
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
        """Assert the limits, and that nobody is in two of the books."""
        assert len(self.granted) <= self._limit
        assert len(self.late) <= self._limit
        waiting = [peer for peer, _ in self._waiting]
        assert len(set(waiting)) == len(waiting)
        assert not set(waiting) & set(self.granted)
        assert not set(self.late) & {*waiting, *self.granted}
        assert set(self._since) == {*self.granted, *self.late}
        assert max(len(self._paces), len(self._losses)) <= PEERS_MAX


def _remember(of: dict[Peer, int], peer: Peer, count: int) -> None:
    """Of the newest so many peers."""
    of.pop(peer, None)
    of[peer] = count
    if len(of) > PEERS_MAX:
        del of[next(iter(of))]
