"""The sockets of a node: control and bulk apart, so that no heartbeat waits behind a tensor.

A server binds two ROUTERs, control on port p and bulk on p + 1; a client connects two DEALERs under
one routing identity, its process name, which is what the server calls it. Only the event loop's
thread touches sockets. Nothing that a peer sends raises here: bad input is counted and dropped.

A connection that is closed is made anew by ZeroMQ, one that is silent by `pelago.net.sockets.dialler`. What is in
flight and is not acknowledged ends a connection (`TCP_MAXRT`), and heartbeats of ZeroMQ's own see to it that something
is in flight, so that firewalls remember an idle one and a server notices a client that is gone.
"""

import errno
from dataclasses import dataclass
from typing import Final

import zmq

from pelago import address
from pelago.core.errors import ConfigError
from pelago.core.names import Peer
from pelago.net.context import NodeContext
from pelago.net.limits import Patience
from pelago.net.sockets.channel import IDENTITY_BYTES_MAX, Channel, Handler, LinkHandler, name_of
from pelago.net.sockets.lookup import own_addresses
from pelago.wire.messages import CHUNK_BYTES_MAX, HEADER_BYTES_MAX

LABELS: Final = ("control", "bulk")
"""The two sockets of a side, in the order of their ports."""
CONTROL_QUEUE_MAX: Final = 1024
"""Messages that may wait for one slow peer; more are lost, which machines survive."""
CONTROL_RECEIVE_MAX: Final = 64
BULK_RECEIVE_MAX: Final = 16
"""Messages of one connection that ZeroMQ may hold before TCP pushes back."""
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
    """Callbacks of a pair of sockets: for messages, and for connections made and lost."""

    control: Handler
    bulk: Handler
    link: LinkHandler


class SocketPair:
    """Control and bulk of one direction: the server side of a node, or its client side."""

    def __init__(self, control: Channel, bulk: Channel) -> None:
        self.control = control
        self.bulk = bulk

    def close(self) -> None:
        """Close both sockets; a last control message has `CLOSING_LINGER_MS` to leave."""
        self.control.close(CLOSING_LINGER_MS)
        self.bulk.close(0)


def serve(
    zmq_context: "zmq.Context[zmq.Socket[bytes]]",
    bind: Bind,
    handlers: Handlers,
    context: NodeContext,
) -> SocketPair:
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
    return SocketPair(
        Channel(bound[0], "control", None, handlers.control, context.telemetry, handlers.link),
        Channel(bound[1], "bulk", None, handlers.bulk, context.telemetry, handlers.link),
    )


def client(
    zmq_context: "zmq.Context[zmq.Socket[bytes]]",
    peer: Peer,
    handlers: Handlers,
    context: NodeContext,
) -> SocketPair:
    """Two DEALERs to the server ``peer``, which knows them by the node's name; `pelago.net.sockets.dialler`
    connects them.

    Raises `ConfigError` for a name that no server would take.
    """
    name, patience = context.name, context.patience
    if name_of(name.encode()) is None:
        raise ConfigError(f"name {name!r} must be 1 to {IDENTITY_BYTES_MAX} printable characters")
    channels = []
    for label, handler in zip(LABELS, (handlers.control, handlers.bulk), strict=True):
        socket = zmq_context.socket(zmq.DEALER)
        _configure(socket, label, patience)
        socket.setsockopt(zmq.ROUTING_ID, name.encode())
        # Queue for a live connection only: what an absent server missed is stale by then.
        socket.setsockopt(zmq.IMMEDIATE, 1)
        socket.setsockopt(zmq.RECONNECT_IVL, RECONNECT_MS)
        socket.setsockopt(zmq.RECONNECT_IVL_MAX, RECONNECT_MAX_MS)
        socket.setsockopt(zmq.CONNECT_TIMEOUT, patience.connect_ms)
        channels.append(Channel(socket, label, peer, handler, context.telemetry, handlers.link))
    return SocketPair(*channels)


def _configure(socket: "zmq.Socket[bytes]", label: str, patience: Patience) -> None:
    control = label == "control"
    payload_bytes_max = HEADER_BYTES_MAX if control else max(HEADER_BYTES_MAX, CHUNK_BYTES_MAX)
    socket.setsockopt(zmq.MAXMSGSIZE, payload_bytes_max + FRAME_SLACK_BYTES)
    # What this node sends as bulk is limited by the window of each transfer already.
    socket.setsockopt(zmq.SNDHWM, CONTROL_QUEUE_MAX if control else 0)
    socket.setsockopt(zmq.RCVHWM, CONTROL_RECEIVE_MAX if control else BULK_RECEIVE_MAX)
    # The first I/O thread is for control alone.
    socket.setsockopt(zmq.AFFINITY, 1 if control else 2)
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
