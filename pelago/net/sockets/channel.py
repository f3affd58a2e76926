"""One ZeroMQ socket on the event loop: what comes in, what goes out, and whether it is connected.

The socket is drained from its file descriptor with `loop.add_reader`. ZeroMQ signals edges, not levels: every
send and every receive may swallow a signal, so each is followed by one more look.
"""

import asyncio
import errno
import os
import socket as posix
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from typing import Any, Final

import zmq
from zmq.utils.monitor import parse_monitor_message

from pelago import address
from pelago.core.names import Peer
from pelago.net.sockets.identity import Identity, parse
from pelago.net.telemetry import Telemetry
from pelago.wire.messages import FRAMES_MAX

DRAIN_MAX: Final = 64
"""Messages taken in one turn of the loop before timers and other sockets get theirs."""

_FAILED: Final = (
    zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
)
_MONITORED: Final = (
    _FAILED
    | zmq.EVENT_CONNECTED
    | zmq.EVENT_CONNECT_RETRIED
    | zmq.EVENT_HANDSHAKE_SUCCEEDED
    | zmq.EVENT_ACCEPTED
    | zmq.EVENT_DISCONNECTED
)

Part = bytes | memoryview | zmq.Frame
Handler = Callable[[Peer, list[Any]], None]
"""Takes what one peer sent: ``bytes`` parts of control, `zmq.Frame` parts of bulk; never raises."""
LinkHandler = Callable[[str, bool], None]
"""Called when a connection is made or lost, with ``(label, up)``."""
Known = OrderedDict[Peer, set[int]]
"""The bulk connections that each client of a ROUTER has, by the stripe that each is for."""
KNOWN_MAX: Final = 1024
"""Clients whose connections a ROUTER knows: those that were heard last."""


class Channel:
    """One socket on the event loop.

    ``upstream``: the name of the server behind a DEALER, which is one connection; None for a ROUTER, whose
    connections have the names of `pelago.net.sockets.identity`. ``on_link`` is called when a connection is made or
    lost.
    """

    def __init__(
        self,
        socket: zmq.Socket[bytes],
        label: str,
        upstream: Peer | None,
        handler: Handler,
        telemetry: Telemetry,
        on_link: LinkHandler,
    ) -> None:
        self.up = False
        """For a DEALER: connected, handshake included."""
        self.unanswered = False
        """For a DEALER: the last attempt to connect has failed."""
        self.received = 0
        """Number of messages received."""
        self.owed = False
        """Something was sent after the last message that came."""
        self._socket = socket
        self._label = label
        self._upstream = upstream
        self._handler = handler
        self._telemetry = telemetry
        self._on_link = on_link
        self._copy = label == "control"
        self._loop = asyncio.get_running_loop()
        self._scheduled = False
        self._paused = False
        self._endpoint = ""
        self._known: Known = OrderedDict()
        self._connections: dict[int, float] = {}
        """Descriptors of connections, and when each was made; a DEALER has one at most."""
        self._descriptor: int = socket.FD
        self._monitor = socket.get_monitor_socket(_MONITORED)
        self._monitor_descriptor: int = self._monitor.FD
        self._loop.add_reader(self._descriptor, self._drain)
        self._loop.add_reader(self._monitor_descriptor, self._drain_monitor)
        self._schedule()
        self._loop.call_soon(self._drain_monitor)

    def connect(self, host: str, port: int) -> None:
        """Connect a DEALER to an address (no name), in place of where it was connected to; it keeps trying."""
        self._drain_monitor()
        if self._endpoint:
            with suppress(zmq.ZMQError):  # It gave up by itself.
                self._socket.disconnect(self._endpoint)
        self._connections.clear()
        self._set_up(False)
        self.unanswered, self.owed = False, False
        self._socket.setsockopt(zmq.IPV6, ":" in host)
        self._endpoint = f"tcp://{address.join(host, port)}"
        self._socket.connect(self._endpoint)
        self._schedule()

    def hosts(self, port: int) -> dict[str, float]:
        """From which hosts a ROUTER at this port has connections, and when, by the loop's clock, the newest was
        made."""
        found: dict[str, float] = {}
        for descriptor, made_at in list(self._connections.items()):
            host = _host_of(descriptor, port)
            if host is None:
                # ZeroMQ does not tell of every end, as when a later connection took a client's name.
                del self._connections[descriptor]
            else:
                found[host] = max(made_at, found.get(host, made_at))
        return found

    def connections_of(self, peer: Peer) -> list[int]:
        """Of a ROUTER: for which stripes a client is believed to have connections; the first one always is."""
        return sorted({0} | self._known.get(peer, set()))

    def send_on(self, peer: Peer, stripe: int, parts: Sequence[Part]) -> bool:
        """Of a ROUTER: queue one message on the connection of a stripe, or on another one of this client while
        that one is not there. False if the client has none at all."""
        for line in by_preference(stripe, self.connections_of(peer)):
            if self.send(peer, parts, line):
                return True
            self._known.get(peer, set()).discard(line)
        return False

    def send(self, peer: Peer, parts: Sequence[Part], stripe: int = 0) -> bool:
        """Queue one message, bulk without copying. False, and counted, if it cannot leave. ``stripe``: of a
        ROUTER, which of the client's connections."""
        frames = list(parts)
        if self._upstream is None:
            frames.insert(0, Identity(peer, stripe).pack())
        try:
            self._socket.send_multipart(frames, zmq.NOBLOCK, copy=self._copy)
        except zmq.ZMQError as error:
            # EAGAIN: not connected, or too slow for its queue; EHOSTUNREACH: gone.
            assert error.errno in (errno.EAGAIN, errno.EHOSTUNREACH), error
            self._telemetry.counters[f"unsent_{self._label}"] += 1
            return False
        finally:
            self._schedule()
        self.owed = True
        return True

    def pause(self) -> None:
        """Take nothing from the socket for now: its queue fills and TCP holds the peers back."""
        if not self._paused:
            self._paused = True
            self._loop.remove_reader(self._descriptor)

    def resume(self) -> None:
        """Go on after `pause`."""
        if self._paused:
            self._paused = False
            self._loop.add_reader(self._descriptor, self._drain)
            self._schedule()

    def close(self, linger_ms: int) -> None:
        """Take the socket off the loop and close it. Idempotent."""
        if self._socket.closed:
            return
        self.pause()
        self._loop.remove_reader(self._monitor_descriptor)
        self._socket.disable_monitor()
        self._monitor.close(linger=0)
        self._socket.close(linger=linger_ms)

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._drain)

    def _drain(self) -> None:
        self._scheduled = False
        for _ in range(DRAIN_MAX):
            if self._paused or self._socket.closed:
                return
            try:
                parts: list[Any] = self._socket.recv_multipart(zmq.NOBLOCK, copy=self._copy)
            except zmq.Again:
                return
            self._receive(parts)
        self._schedule()

    def _receive(self, parts: list[Any]) -> None:
        self.received += 1
        self.owed = False
        peer = self._upstream
        if peer is None:
            identity = parse(bytes(parts.pop(0)))
            if identity is None or (self._label == "control" and identity.stripe):
                self._telemetry.drop("identity", "?", f"no valid name on {self._label}")
                return
            peer = identity.peer
            if identity.stripe:
                self._hear(identity)
                if len(parts) == 1 and not len(parts[0]):
                    return  # A greeting: the connection is there.
        if not 1 <= len(parts) < FRAMES_MAX:
            self._telemetry.drop("parts", peer, f"{len(parts)} parts on {self._label}")
            return
        self._handler(peer, parts)

    def _hear(self, identity: Identity) -> None:
        known = self._known.get(identity.peer)
        if known is None:
            known = self._known[identity.peer] = set()
            if len(self._known) > KNOWN_MAX:
                self._known.popitem(last=False)
        known.add(identity.stripe)

    def _drain_monitor(self) -> None:
        while not self._monitor.closed:
            try:
                message = parse_monitor_message(self._monitor.recv_multipart(zmq.NOBLOCK))
            except zmq.Again:
                return
            self._observe(message["event"], message["value"])

    def _observe(self, event: int, value: int) -> None:
        """``value``: the connection's descriptor, where the event has one."""
        counters, label = self._telemetry.counters, self._label
        if event in (zmq.EVENT_CONNECTED, zmq.EVENT_ACCEPTED):
            if event == zmq.EVENT_ACCEPTED:
                counters[f"accepted_{label}"] += 1
            else:
                self._connections.clear()
            self._connections[value] = self._loop.time()
        elif event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
            # Of the connection before this one, if there is none: it was given up in this very moment.
            if self._connections:
                counters[f"connected_{label}"] += 1
                self._set_up(True)
        elif event == zmq.EVENT_DISCONNECTED:
            # Also how ZeroMQ ends a connection that breaks its rules or claims too much.
            counters[f"disconnected_{label}"] += 1
            if value in self._connections:
                del self._connections[value]
                self._set_up(False)
        elif self._upstream is not None:
            # Our server is not up yet, or a proxy stands before it: an event comes when it answers.
            counters[f"unanswered_{label}"] += 1
            self.unanswered = True
        elif event & _FAILED:
            self._telemetry.drop("handshake", "?", f"no ZeroMQ peer on {label}")

    def _set_up(self, up: bool) -> None:
        was, self.up = self.up, up
        if up or was:
            self.unanswered = False
            self._on_link(self._label, up)


def by_preference(stripe: int, open_: Sequence[int]) -> list[int]:
    """On which of these connections to try what is of a stripe, in this order: its own one, and if there is none,
    another one, so that such stripes are spread over those that there are."""
    first = stripe if stripe in open_ else open_[stripe % len(open_)]
    return [first, *(each for each in open_ if each != first)]


def _host_of(descriptor: int, port: int) -> str | None:
    """The host at the other end of a connection to our port; None if the descriptor is no such thing."""
    try:
        duplicate = os.dup(descriptor)
    except OSError:
        return None
    try:
        connection = posix.socket(fileno=duplicate)
    except OSError:  # By now the descriptor is a file's.
        os.close(duplicate)
        return None
    with closing(connection):
        try:
            here, there = connection.getsockname(), connection.getpeername()
        except OSError:
            return None
    if not isinstance(here, tuple) or here[1] != port:
        return None
    return str(there[0]).removeprefix("::ffff:")
