"""The sockets of a node: control and bulk apart, so that no heartbeat waits behind a tensor.

A server binds two ROUTERs, control on port p and bulk on p + 1. A client connects one DEALER to the first, and one
or more to the second, each for a stripe of its payloads. Their routing identities (`pelago.net.sockets.identity`)
have its process name, which is what the server calls it. On each further bulk connection the client first sends an
empty message, the greeting: so the server knows that it may use it. Only the event loop's thread touches sockets.
Nothing that a peer sends raises here: bad input is counted and dropped.

A connection that is closed is made anew by ZeroMQ, one that is silent by `pelago.net.sockets.dialler`. What is in
flight and is not acknowledged ends a connection (`TCP_MAXRT`), and heartbeats of ZeroMQ's own see to it that something
is in flight, so that firewalls remember an idle one and a server notices a client that is gone.
"""

import errno
import os
from dataclasses import dataclass
from typing import Any, Final

import zmq

from pelago import address
from pelago.core.errors import ConfigError
from pelago.core.names import Peer
from pelago.net.context import NodeContext
from pelago.net.limits import Patience
from pelago.net.sockets.channel import Channel, Handler, LinkHandler, by_preference
from pelago.net.sockets.identity import IDENTITY_BYTES_MAX, Identity, name_of
from pelago.net.sockets.lookup import own_addresses
from pelago.wire.messages import CHUNK_BYTES_MAX, HEADER_BYTES_MAX

LABELS: Final = ("control", "bulk")
"""What the two ports of a server are for, in their order."""
CONTROL_QUEUE_MAX: Final = 1024
"""Messages that may wait for one slow peer; more are lost, which machines survive."""
CONTROL_RECEIVE_MAX: Final = 64
BULK_RECEIVE_MAX: Final = 16
"""Messages of one connection that ZeroMQ may hold before TCP pushes back."""
BULK_THREADS_MAX: Final = 4
"""ZeroMQ's threads for bulk: one carries 4.8 GB/s over the loopback interface of a server, four 12 GB/s."""
FRAME_SLACK_BYTES: Final = 1 << 10
RECONNECT_MS: Final = 100
RECONNECT_MAX_MS: Final = 1_000
BULK_PING_MS: Final = 10_000
"""Between ZeroMQ's heartbeats on an idle bulk connection."""
UNANSWERED_PING_MS: Final = 300_000
"""Silence after which ZeroMQ itself ends a connection. An answer waits behind chunks, and at 1 Mbps those that are
queued in ZeroMQ and the kernels take more than a minute."""
KEEPALIVE_IDLE_S: Final = 15
KEEPALIVE_INTERVAL_S: Final = 5
KEEPALIVE_COUNT: Final = 4
CLOSING_LINGER_MS: Final = 500
"""How long a last control message (such as Goodbye) may take to leave; bulk gets no time at all."""


@dataclass(frozen=True, slots=True)
class Bind:
    """Where a server listens: control on ``port``, bulk on the next. ``key`` is for the user."""

    host: str
    port: int
    key: str = "bind"


@dataclass(frozen=True, slots=True)
class Connect:
    """Where a client finds its server, and what it calls it (fixed, whatever process answers)."""

    host: str
    port: int
    peer: Peer
    key: str = "connect"

    def __str__(self) -> str:
        return f"{self.peer} at {address.join(self.host, self.port)}"


@dataclass(frozen=True, slots=True)
class Handlers:
    """Callbacks of one side's sockets: for messages, and for connections made and lost."""

    control: Handler
    bulk: Handler
    link: LinkHandler


class ServerSide:
    """The two sockets on which a node listens. Its clients decide how many bulk connections they have."""

    def __init__(self, control: Channel, bulk: Channel) -> None:
        self.control = control
        self.bulk = bulk

    def send_bulk(self, peer: Peer, stripe: int, parts: list[Any]) -> bool:
        """Send on the connection of a stripe, or on another one while that is not there."""
        return self.bulk.send_on(peer, stripe, parts)

    def stripes(self, peer: Peer) -> int:
        """How many bulk connections a client has, as far as this server knows."""
        return len(self.bulk.connections_of(peer))

    def throttle(self, on: bool) -> None:
        """Stop reading bulk, or go on reading it."""
        self.bulk.pause() if on else self.bulk.resume()

    def close(self) -> None:
        """Close both sockets; a last control message has `CLOSING_LINGER_MS` to leave."""
        self.control.close(CLOSING_LINGER_MS)
        self.bulk.close(0)


class ClientSide:
    """The sockets of a node that lead to one server: one for control, and as many for bulk as are wanted."""

    def __init__(
        self,
        zmq_context: "zmq.Context[zmq.Socket[bytes]]",
        peer: Peer,
        handlers: Handlers,
        context: NodeContext,
    ) -> None:
        """Make the DEALERs, `pelago.net.sockets.dialler` connects them.

        Raises `ConfigError` for a name that no server would take.
        """
        name = context.name
        if name_of(name.encode()) is None:
            raise ConfigError(
                f"name {name!r} must be 1 to {IDENTITY_BYTES_MAX} printable characters"
            )
        self._zmq_context = zmq_context
        self._peer = peer
        self._handlers = handlers
        self._context = context
        self._throttled = False
        self.control = self._channel("control", handlers.control, handlers.link)
        self.bulk: list[Channel] = []
        """In the order of the stripes; at least one."""
        self.widen(1)

    def send_bulk(self, peer: Peer, stripe: int, parts: list[Any]) -> bool:
        """Send on the connection of a stripe, or on another one while that is not there."""
        places = by_preference(stripe, range(len(self.bulk)))
        return any(self.bulk[place].send(peer, parts) for place in places)

    def stripes(self, _: Peer) -> int:
        """How many bulk connections to the server there are now."""
        return max(1, sum(each.up for each in self.bulk))

    def widen(self, stripes: int) -> None:
        """Have so many bulk connections. Those that are closed lose what is under way on them."""
        while len(self.bulk) > stripes:
            self.bulk.pop().close(0)
        while len(self.bulk) < stripes:
            self._add()

    def throttle(self, on: bool) -> None:
        """Stop reading bulk, or go on reading it."""
        self._throttled = on
        for each in self.bulk:
            each.pause() if on else each.resume()

    def close(self) -> None:
        """Close all sockets; a last control message has `CLOSING_LINGER_MS` to leave."""
        self.control.close(CLOSING_LINGER_MS)
        for each in self.bulk:
            each.close(0)

    def _add(self) -> None:
        stripe = len(self.bulk)

        def on_link(label: str, up: bool) -> None:
            if up and stripe:
                channel.send(self._peer, [b""])
            self._handlers.link(label, up)

        channel = self._channel("bulk", self._handlers.bulk, on_link, stripe)
        if self._throttled:
            channel.pause()
        self.bulk.append(channel)

    def _channel(
        self, label: str, handler: Handler, on_link: LinkHandler, stripe: int = 0
    ) -> Channel:
        socket, patience = self._zmq_context.socket(zmq.DEALER), self._context.patience
        _configure(socket, label, patience)
        socket.setsockopt(zmq.ROUTING_ID, Identity(self._context.name, stripe).pack())
        # Queue for a live connection only: what an absent server missed is stale by then.
        socket.setsockopt(zmq.IMMEDIATE, 1)
        socket.setsockopt(zmq.RECONNECT_IVL, RECONNECT_MS)
        socket.setsockopt(zmq.RECONNECT_IVL_MAX, RECONNECT_MAX_MS)
        socket.setsockopt(zmq.CONNECT_TIMEOUT, patience.connect_ms)
        return Channel(socket, label, self._peer, handler, self._context.telemetry, on_link)


def serve(
    zmq_context: "zmq.Context[zmq.Socket[bytes]]",
    bind: Bind,
    handlers: Handlers,
    context: NodeContext,
) -> ServerSide:
    """Bind the two ROUTERs. Raises `ConfigError` if the host or a port cannot be had."""
    hosts = own_addresses(bind.host, bind.key, address.join(bind.host, bind.port))
    bound: list[zmq.Socket[bytes]] = []
    for offset, label in enumerate(LABELS):
        socket = zmq_context.socket(zmq.ROUTER)
        bound.append(socket)
        _configure(socket, label, context.patience)
        socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        socket.setsockopt(zmq.ROUTER_HANDOVER, 1)
        # With a domain set, peers older than ZMTP 3 are turned away, so that stray bytes on the
        # port are not taken for the unversioned first ZMTP; no peer is asked to authenticate by it.
        socket.setsockopt(zmq.ZAP_DOMAIN, b"pelago")
        try:
            for host in hosts:
                socket.setsockopt(zmq.IPV6, host == "*" or ":" in host)
                socket.bind(f"tcp://{address.join(host, bind.port + offset)}")
        except zmq.ZMQError as error:
            for each in bound:
                each.close(linger=0)
            where = f"{bind.key} = {address.join(bind.host, bind.port)}"
            which = f" (bulk data, port {bind.port + 1})" if offset else ""
            taken = error.errno == errno.EADDRINUSE
            reason = "address already in use" if taken else error.strerror
            raise ConfigError(f"{where}{which}: {reason}") from None
    return ServerSide(
        Channel(bound[0], "control", None, handlers.control, context.telemetry, handlers.link),
        Channel(bound[1], "bulk", None, handlers.bulk, context.telemetry, handlers.link),
    )


def new_context() -> "zmq.Context[zmq.Socket[bytes]]":
    """A ZeroMQ context with one I/O thread for control and as many for bulk as there are cores to use."""
    return zmq.Context(io_threads=1 + _bulk_threads())


def _bulk_threads() -> int:
    return min(BULK_THREADS_MAX, len(os.sched_getaffinity(0)))


def _configure(socket: "zmq.Socket[bytes]", label: str, patience: Patience) -> None:
    control = label == "control"
    payload_bytes_max = HEADER_BYTES_MAX if control else max(HEADER_BYTES_MAX, CHUNK_BYTES_MAX)
    socket.setsockopt(zmq.MAXMSGSIZE, payload_bytes_max + FRAME_SLACK_BYTES)
    # What this node sends as bulk is limited by the window of each transfer already.
    socket.setsockopt(zmq.SNDHWM, CONTROL_QUEUE_MAX if control else 0)
    socket.setsockopt(zmq.RCVHWM, CONTROL_RECEIVE_MAX if control else BULK_RECEIVE_MAX)
    # The first I/O thread is for control alone. Connections are spread over the others.
    socket.setsockopt(zmq.AFFINITY, 1 if control else (1 << (1 + _bulk_threads())) - 2)
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.HANDSHAKE_IVL, patience.connect_ms)
    ping_ms = patience.lost_after_ms if control else BULK_PING_MS
    socket.setsockopt(zmq.HEARTBEAT_IVL, ping_ms)
    socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, UNANSWERED_PING_MS)
    socket.setsockopt(zmq.HEARTBEAT_TTL, UNANSWERED_PING_MS)
    unacknowledged_ms = patience.control_unacknowledged_ms if control else patience.bulk_silent_ms
    socket.setsockopt(zmq.TCP_MAXRT, unacknowledged_ms)
    socket.setsockopt(zmq.TCP_KEEPALIVE, 1)
    socket.setsockopt(zmq.TCP_KEEPALIVE_IDLE, KEEPALIVE_IDLE_S)
    socket.setsockopt(zmq.TCP_KEEPALIVE_INTVL, KEEPALIVE_INTERVAL_S)
    socket.setsockopt(zmq.TCP_KEEPALIVE_CNT, KEEPALIVE_COUNT)
