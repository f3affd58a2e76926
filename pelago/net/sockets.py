"""The sockets of a node: control and bulk apart, so that no heartbeat waits behind a tensor.

A server binds two ROUTERs, control on port p and bulk on p + 1; a client connects two DEALERs under
one routing identity, its process name, which is what the server calls it. Only the event loop's
thread touches sockets. Nothing that a peer sends raises here: bad input is counted and dropped.

The sockets are drained from their file descriptors with `loop.add_reader`. ZeroMQ signals edges,
not levels: every send and every receive may swallow a signal, so each is followed by one more look.
"""

import asyncio
import errno
import socket as posix
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import zmq
from zmq.utils.monitor import parse_monitor_message

from pelago.core.errors import ConfigError
from pelago.core.names import Peer
from pelago.net.telemetry import Telemetry
from pelago.wire.messages import CHUNK_BYTES_MAX, FRAMES_MAX, HEADER_BYTES_MAX

IDENTITY_BYTES_MAX: Final = 64
CONTROL_QUEUE_MAX: Final = 1024
"""Messages that may wait for one slow peer; more are lost, which machines survive."""
CONTROL_RECEIVE_MAX: Final = 64
BULK_RECEIVE_MAX: Final = 16
"""Messages of one connection that ZeroMQ may hold before TCP pushes back."""
FRAME_SLACK_BYTES: Final = 1 << 10
DRAIN_MAX: Final = 64
"""Messages taken in one turn of the loop before timers and other sockets get theirs."""
RECONNECT_MS: Final = 100
RECONNECT_MAX_MS: Final = 1_000
CONNECT_TIMEOUT_MS: Final = 10_000
HANDSHAKE_MS: Final = 10_000
KEEPALIVE_IDLE_S: Final = 15
KEEPALIVE_INTERVAL_S: Final = 5
KEEPALIVE_COUNT: Final = 4
CLOSING_LINGER_MS: Final = 500
"""How long a last control message (a farewell) may take to leave; bulk gets no time at all."""

_MONITORED: Final = (
    zmq.EVENT_HANDSHAKE_SUCCEEDED
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
    | zmq.EVENT_ACCEPTED
    | zmq.EVENT_DISCONNECTED
)

Part = bytes | memoryview | zmq.Frame
Handler = Callable[[Peer, list[Any]], None]
"""Takes what one peer sent: ``bytes`` parts of control, `zmq.Frame` parts of bulk; never raises."""


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


class Channel:
    """One socket on the event loop.

    ``upstream``: the name of the server behind a DEALER; None for a ROUTER, whose peers are named
    by their routing identities. ``on_link(label, up)`` hears of connections made and lost.
    """

    def __init__(
        self,
        socket: zmq.Socket[bytes],
        label: str,
        upstream: Peer | None,
        handler: Handler,
        telemetry: Telemetry,
        on_link: Callable[[str, bool], None] | None = None,
    ) -> None:
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
        self._descriptor: int = socket.FD
        self._monitor = socket.get_monitor_socket(_MONITORED)
        self._monitor_descriptor: int = self._monitor.FD
        self._loop.add_reader(self._descriptor, self._drain)
        self._loop.add_reader(self._monitor_descriptor, self._drain_monitor)
        self._schedule()
        self._loop.call_soon(self._drain_monitor)

    def send(self, peer: Peer, parts: Sequence[Part]) -> bool:
        """Queue one message, bulk without copying. False, and counted, if it cannot leave."""
        frames = list(parts) if self._upstream is not None else [peer.encode(), *parts]
        try:
            self._socket.send_multipart(frames, zmq.NOBLOCK, copy=self._copy)
        except zmq.ZMQError as error:
            # EAGAIN: not connected, or too slow for its queue; EHOSTUNREACH: gone.
            assert error.errno in (errno.EAGAIN, errno.EHOSTUNREACH), error
            self._telemetry.counters[f"unsent_{self._label}"] += 1
            return False
        finally:
            self._schedule()
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
        peer = self._upstream
        if peer is None:
            peer = _name(bytes(parts.pop(0)))
            if peer is None:
                self._telemetry.drop("identity", "?", f"no valid name on {self._label}")
                return
        if not 1 <= len(parts) < FRAMES_MAX:
            self._telemetry.drop("parts", peer, f"{len(parts)} parts on {self._label}")
            return
        self._handler(peer, parts)

    def _drain_monitor(self) -> None:
        while not self._monitor.closed:
            try:
                event = parse_monitor_message(self._monitor.recv_multipart(zmq.NOBLOCK))["event"]
            except zmq.Again:
                return
            if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                self._telemetry.counters[f"connected_{self._label}"] += 1
            elif event == zmq.EVENT_ACCEPTED:
                self._telemetry.counters[f"accepted_{self._label}"] += 1
                continue
            elif event == zmq.EVENT_DISCONNECTED:
                # Also how ZeroMQ ends a connection that breaks its rules or claims too much.
                self._telemetry.counters[f"disconnected_{self._label}"] += 1
            elif self._upstream is not None:
                # Our server is not up yet, or a proxy stands before it: we are told when it answers.
                self._telemetry.counters[f"unanswered_{self._label}"] += 1
                continue
            else:
                self._telemetry.drop("handshake", "?", f"no ZeroMQ peer on {self._label}")
                continue
            if self._on_link is not None:
                self._on_link(self._label, event == zmq.EVENT_HANDSHAKE_SUCCEEDED)


class Side:
    """Control and bulk of one direction: the server side of a node, or its client side."""

    def __init__(self, control: Channel, bulk: Channel) -> None:
        self.control = control
        self.bulk = bulk

    def close(self) -> None:
        """Close both sockets; a last control message has `CLOSING_LINGER_MS` to leave."""
        self.control.close(CLOSING_LINGER_MS)
        self.bulk.close(0)


def serve(
    context: "zmq.Context[zmq.Socket[bytes]]",
    bind: Bind,
    on_control: Handler,
    on_bulk: Handler,
    telemetry: Telemetry,
) -> Side:
    """Bind the two ROUTERs. Raises `ConfigError` if the host or a port cannot be had."""
    host = _resolve(bind.host, bind.port, bind.key, passive=True)
    bound: list[zmq.Socket[bytes]] = []
    for offset, label in enumerate(("control", "bulk")):
        socket = context.socket(zmq.ROUTER)
        _configure(socket, label)
        socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        socket.setsockopt(zmq.ROUTER_HANDOVER, 1)
        # With a domain set, peers older than ZMTP 3 are turned away, so that stray bytes on the
        # port are not taken for the unversioned first ZMTP; nobody is asked to authenticate by it.
        socket.setsockopt(zmq.ZAP_DOMAIN, b"pelago")
        try:
            socket.bind(f"tcp://{host}:{bind.port + offset}")
        except zmq.ZMQError as error:
            for each in (*bound, socket):
                each.close(linger=0)
            which = f" (bulk data, port {bind.port + 1})" if offset else ""
            taken = error.errno == errno.EADDRINUSE
            reason = "address already in use" if taken else error.strerror
            raise ConfigError(f"{bind.key} = {bind.host}:{bind.port}{which}: {reason}") from None
        bound.append(socket)
    return Side(
        Channel(bound[0], "control", None, on_control, telemetry),
        Channel(bound[1], "bulk", None, on_bulk, telemetry),
    )


def dial(
    context: "zmq.Context[zmq.Socket[bytes]]",
    connect: Connect,
    name: Peer,
    on_control: Handler,
    on_bulk: Handler,
    telemetry: Telemetry,
    on_link: Callable[[str, bool], None],
) -> Side:
    """Connect the two DEALERs as ``name``; they keep trying.

    Raises `ConfigError` for an unknown host, or a name that no server would take.
    """
    if _name(name.encode()) is None:
        raise ConfigError(f"name {name!r} must be 1 to {IDENTITY_BYTES_MAX} printable characters")
    host = _resolve(connect.host, connect.port, connect.key, passive=False)
    channels = []
    for offset, label in enumerate(("control", "bulk")):
        socket = context.socket(zmq.DEALER)
        _configure(socket, label)
        socket.setsockopt(zmq.ROUTING_ID, name.encode())
        # Queue for a live connection only: what an absent server missed is stale by then.
        socket.setsockopt(zmq.IMMEDIATE, 1)
        socket.setsockopt(zmq.RECONNECT_IVL, RECONNECT_MS)
        socket.setsockopt(zmq.RECONNECT_IVL_MAX, RECONNECT_MAX_MS)
        socket.setsockopt(zmq.CONNECT_TIMEOUT, CONNECT_TIMEOUT_MS)
        handler = on_bulk if offset else on_control
        # The monitor is attached before connecting, so that it misses no connection.
        channels.append(Channel(socket, label, connect.peer, handler, telemetry, on_link))
        socket.connect(f"tcp://{host}:{connect.port + offset}")
    return Side(*channels)


def _configure(socket: "zmq.Socket[bytes]", label: str) -> None:
    control = label == "control"
    payload_bytes_max = HEADER_BYTES_MAX if control else max(HEADER_BYTES_MAX, CHUNK_BYTES_MAX)
    socket.setsockopt(zmq.MAXMSGSIZE, payload_bytes_max + FRAME_SLACK_BYTES)
    # What this node sends as bulk is limited by the window of each transfer already.
    socket.setsockopt(zmq.SNDHWM, CONTROL_QUEUE_MAX if control else 0)
    socket.setsockopt(zmq.RCVHWM, CONTROL_RECEIVE_MAX if control else BULK_RECEIVE_MAX)
    # The first I/O thread is for control alone.
    socket.setsockopt(zmq.AFFINITY, 1 if control else 2)
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.HANDSHAKE_IVL, HANDSHAKE_MS)
    socket.setsockopt(zmq.TCP_KEEPALIVE, 1)
    socket.setsockopt(zmq.TCP_KEEPALIVE_IDLE, KEEPALIVE_IDLE_S)
    socket.setsockopt(zmq.TCP_KEEPALIVE_INTVL, KEEPALIVE_INTERVAL_S)
    socket.setsockopt(zmq.TCP_KEEPALIVE_CNT, KEEPALIVE_COUNT)


def _name(identity: bytes) -> Peer | None:
    """A routing identity as a peer's name; None if it is none that a node of ours would take."""
    if not 0 < len(identity) <= IDENTITY_BYTES_MAX or not identity.isascii():
        return None
    text = identity.decode()
    return text if text.isprintable() else None


def _resolve(host: str, port: int, key: str, *, passive: bool) -> str:
    if passive and host in ("*", "0.0.0.0"):
        return "*"
    flags = posix.AI_PASSIVE if passive else 0
    try:
        found = posix.getaddrinfo(host, port, posix.AF_INET, posix.SOCK_STREAM, 0, flags)
    except OSError:
        raise ConfigError(f"{key} = {host}:{port}: cannot resolve host {host!r}") from None
    address = str(found[0][4][0])
    # A client keeps the name, because the address behind it may change while it reconnects.
    return address if passive else host
