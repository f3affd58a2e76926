"""Keeps a client connected to its server: finds its address, and makes new connections where old ones are dead.

ZeroMQ connects again when a connection is closed. But a firewall that forgets, or a line that swallows, closes
nothing; names come to mean other addresses; and of several addresses one may lead nowhere. So:

1. A name is looked up at the start and, while there is no control connection, every `LOOKUP_MS`. Several addresses
   are tried in turn. A name that cannot be resolved is awaited like a server that is not up.
2. Both connections are made anew when the server owes an answer on control for `Patience.lost_after_ms`; bulk
   when nothing was heard of a payload under way for `Patience.bulk_silent_ms`.
3. When one of the two ports answers and the other does not for `BLOCKED_MS`, the console says which.
"""

from collections.abc import Callable
from typing import Final

from pelago import address
from pelago.core.machine import PS_PER_MS
from pelago.net.limits import Patience
from pelago.net.sockets.blocked import Blocked
from pelago.net.sockets.lookup import Lookup
from pelago.net.sockets.pair import LABELS, Connect, SocketPair
from pelago.net.sockets.silence import SilenceTimer
from pelago.net.telemetry import Telemetry
from pelago.runlog.events import (
    ConnectionRenewed,
    ServerMoved,
    ServerPortReachable,
    ServerPortUnreachable,
    ServerUnresolved,
)

LOOKUP_MS: Final = 2_000


class Dialler:
    """Connects the sockets of one client side. ``clock``: picoseconds."""

    def __init__(
        self,
        connect: Connect,
        side: SocketPair,
        patience: Patience,
        telemetry: Telemetry,
        clock: Callable[[], int],
    ) -> None:
        self._connect = connect
        self._channels = (side.control, side.bulk)
        self._telemetry = telemetry
        self._clock = clock
        self._control = SilenceTimer(patience.lost_after_ms)
        self._bulk = SilenceTimer(patience.bulk_silent_ms)
        self._blocked = Blocked()
        self._addresses: list[str] = []
        self._place = 0
        self._unknown = ""
        """Why the name has no address, as it was reported."""
        self._lookup: Lookup | None = None
        self._looked_up_at = clock()
        if address.is_number(connect.host):
            self._found([connect.host], "")
        else:
            self._lookup = Lookup(connect.host, self._found)
            self._lookup.begin()

    def tick(self, *, moving: bool, progress: int) -> None:
        """To be called a few times a second.

        ``moving``: a payload is under way to the server or from it; ``progress``: grows with what is heard of it.
        """
        now = self._clock()
        control, bulk = self._channels
        if self._control.look(now, owed=control.up and control.owed, signs=control.received):
            self._renew("control", (0, 1))
        elif self._bulk.look(now, owed=bulk.up and moving, signs=bulk.received + progress):
            self._renew("bulk", (1,))
        if not control.up:
            self._seek(now)
        self._tell_blocked(now)

    def _seek(self, now: int) -> None:
        if self._lookup is not None and now - self._looked_up_at >= LOOKUP_MS * PS_PER_MS:
            self._looked_up_at = now
            self._lookup.begin()
        control, bulk = self._channels
        # Where bulk answers is our server, and something between keeps its control port from us.
        if len(self._addresses) > 1 and control.unanswered and not bulk.up:
            self._place = (self._place + 1) % len(self._addresses)
            self._dial((0, 1))

    def _found(self, addresses: list[str], why: str) -> None:
        """An answer to the question for the name's addresses came."""
        where = address.join(self._connect.host, self._connect.port)
        if not addresses:
            if why != self._unknown and not self._addresses:
                self._telemetry.event(ServerUnresolved(self._connect.peer, where, why))
                self._telemetry.line(
                    f"waiting for {self._connect.peer} at {where}: the name {self._connect.host!r} is not known"
                    f" ({why}); it is looked up again and again, as if the server were not up"
                )
            self._unknown = why
            return
        self._unknown = ""
        if self._channels[0].up or sorted(addresses) == sorted(self._addresses):
            return
        if self._addresses:
            self._telemetry.event(ServerMoved(self._connect.peer, where, tuple(addresses)))
        self._addresses, self._place = addresses, 0
        self._dial((0, 1))

    def _renew(self, label: str, places: tuple[int, ...]) -> None:
        self._telemetry.counters[f"renewed_{label}"] += 1
        self._telemetry.event(ConnectionRenewed(self._connect.peer, label))
        self._dial(places)

    def _dial(self, places: tuple[int, ...]) -> None:
        for place in places:
            self._channels[place].connect(self._addresses[self._place], self._connect.port + place)

    def _tell_blocked(self, now: int) -> None:
        peer, host, port = self._connect.peer, self._connect.host, self._connect.port
        ups = [channel.up for channel in self._channels]
        for place, label in enumerate(LABELS):
            blocked = not ups[place] and ups[1 - place]
            where = address.join(host, port + place)
            if self._blocked.begins(label, now, blocked=blocked):
                self._telemetry.event(ServerPortUnreachable(peer, label, where))
                # A port that answers is a listening server's, whichever of its two it is.
                slip = f", or is {port} the bulk port? `connect` names the control port"
                self._telemetry.line(
                    f"cannot reach {where}, the {label} port of {peer}, though its {LABELS[1 - place]} port"
                    f" {port + 1 - place} answers, and nothing is trained without both: let TCP port {port + place}"
                    f" through the firewalls between{slip if place else ''}; trying on"
                )
            elif ups[place] and self._blocked.ends(label):
                self._telemetry.event(ServerPortReachable(peer, label, where))
                self._telemetry.line(f"reached {where}, the {label} port of {peer}")
