"""Keeps a client connected to its server: finds its address, and makes new connections where old ones are dead.

ZeroMQ connects again when a connection is closed. But a firewall that forgets, or a line that swallows, closes
nothing; names come to mean other addresses; and of several addresses one may lead nowhere. So:

1. A name is looked up at the start and, while there is no control connection, every `LOOKUP_MS`. Several addresses
   are tried in turn. A name that cannot be resolved is awaited like a server that is not up.
2. All connections are made anew when the server owes an answer on control for `Patience.lost_after_ms`; a bulk
   connection alone when nothing was heard for `Patience.bulk_silent_ms` of its stripe of a payload under way.
3. When one of the two ports answers and the other does not for `BLOCKED_MS`, the console says which.
"""

from collections.abc import Callable
from typing import Final

from pelago import address
from pelago.core.machine import PS_PER_MS
from pelago.net.limits import Patience
from pelago.net.sockets.blocked import Blocked
from pelago.net.sockets.channel import Channel
from pelago.net.sockets.lookup import Lookup
from pelago.net.sockets.pair import LABELS, ClientSide, Connect
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
        side: ClientSide,
        patience: Patience,
        telemetry: Telemetry,
        clock: Callable[[], int],
    ) -> None:
        self._connect = connect
        self._side = side
        self._telemetry = telemetry
        self._clock = clock
        self._control = SilenceTimer(patience.lost_after_ms)
        self._patience = patience
        self._bulk: list[SilenceTimer] = []
        """For each bulk connection."""
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

    def tick(self, progress: Callable[[int], tuple[bool, int]]) -> None:
        """To be called a few times a second.

        ``progress``: whether something is under way on a stripe to the server or from it, and a number that grows
        with what is heard of it.
        """
        now, control = self._clock(), self._side.control
        if self._control.look(now, owed=control.up and control.owed, signs=control.received):
            self._renew("control")
            self._dial_all()
        else:
            self._look_at_bulk(now, progress)
        if not control.up:
            self._seek(now)
        self._tell_blocked(now)

    def widen(self, stripes: int) -> None:
        """Have so many bulk connections, those that are new at the address of the others."""
        had = len(self._side.bulk)
        self._side.widen(stripes)
        if self._addresses:
            for channel in self._side.bulk[had:]:
                self._dial(channel, 1)

    def _look_at_bulk(self, now: int, progress: Callable[[int], tuple[bool, int]]) -> None:
        bulk = self._side.bulk
        del self._bulk[len(bulk) :]
        while len(self._bulk) < len(bulk):
            self._bulk.append(SilenceTimer(self._patience.bulk_silent_ms))
        for stripe, (channel, timer) in enumerate(zip(bulk, self._bulk, strict=True)):
            moving, heard = progress(stripe)
            if timer.look(now, owed=channel.up and moving, signs=channel.received + heard):
                self._renew("bulk")
                self._dial(channel, 1)

    def _ups(self) -> tuple[bool, bool]:
        """Whether control is connected, and bulk, at least once."""
        return self._side.control.up, any(channel.up for channel in self._side.bulk)

    def _seek(self, now: int) -> None:
        if self._lookup is not None and now - self._looked_up_at >= LOOKUP_MS * PS_PER_MS:
            self._looked_up_at = now
            self._lookup.begin()
        # Where bulk answers is our server, and something between keeps its control port from us.
        if len(self._addresses) > 1 and self._side.control.unanswered and not self._ups()[1]:
            self._place = (self._place + 1) % len(self._addresses)
            self._dial_all()

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
        if self._side.control.up or sorted(addresses) == sorted(self._addresses):
            return
        if self._addresses:
            self._telemetry.event(ServerMoved(self._connect.peer, where, tuple(addresses)))
        self._addresses, self._place = addresses, 0
        self._dial_all()

    def _renew(self, label: str) -> None:
        self._telemetry.counters[f"renewed_{label}"] += 1
        self._telemetry.event(ConnectionRenewed(self._connect.peer, label))

    def _dial_all(self) -> None:
        self._dial(self._side.control, 0)
        for channel in self._side.bulk:
            self._dial(channel, 1)

    def _dial(self, channel: Channel, offset: int) -> None:
        channel.connect(self._addresses[self._place], self._connect.port + offset)

    def _tell_blocked(self, now: int) -> None:
        peer, host, port = self._connect.peer, self._connect.host, self._connect.port
        ups = self._ups()
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
