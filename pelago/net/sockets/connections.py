"""All connections of a node: to the servers that it belongs to, and from its own clients.

A node may belong to several servers. Each is known by its peer name, and has its own sockets and its own
`Dialler`. A client with the name of one of these servers is an impostor: what it sends is dropped.
"""

from contextlib import ExitStack
from functools import partial
from typing import Any, Protocol

import zmq

from pelago.core.names import Peer
from pelago.net.context import NodeContext
from pelago.net.sockets.dialler import Dialler
from pelago.net.sockets.listener import Listener
from pelago.net.sockets.pair import (
    Bind,
    ClientSide,
    Connect,
    Handlers,
    ServerSide,
    new_context,
    serve,
)
from pelago.runlog.events import ServerConnected, ServerDisconnected
from pelago.wire.codec import encode
from pelago.wire.messages import Frame


class Recipient(Protocol):
    """Takes what comes from the sockets of a node. No method raises for what a peer sent."""

    def on_server_control(self, peer: Peer, parts: list[bytes]) -> None:
        """One of the node's own servers sent something on control."""
        ...

    def on_client_control(self, peer: Peer, parts: list[bytes]) -> None:
        """A client sent something on control; it is not known which program it is."""
        ...

    def on_bulk(self, peer: Peer, parts: list[zmq.Frame]) -> None:
        """A peer sent something on bulk."""
        ...

    def on_server_connected(self, peer: Peer) -> None:
        """A connection to one of the node's own servers was made anew."""
        ...

    def on_client_connected(self) -> None:
        """Some client made a connection. Which one, only its next message says."""
        ...


class TransferProgress(Protocol):
    """Says how the transfers to and from a peer get on."""

    def progress(self, peer: Peer, stripe: int) -> tuple[bool, int]:
        """Whether a part of a payload is under way on a stripe to a peer or from it, and a number that grows with
        each answer about one."""
        ...


class Connections:
    """The sockets of a node. ``server``: where it listens; ``upstreams``: the servers that it belongs to."""

    def __init__(
        self, context: NodeContext, server: Bind | None, upstreams: tuple[Connect, ...]
    ) -> None:
        self.upstreams = {each.peer: each for each in upstreams}
        assert len(self.upstreams) == len(upstreams), "two servers have the same name"
        self._context = context
        self._bind = server
        self._recipient: Recipient
        self._server: ServerSide | None = None
        self._listener: Listener | None = None
        self._clients: dict[Peer, ClientSide] = {}
        self._diallers: dict[Peer, Dialler] = {}

    def open(self, resources: ExitStack) -> None:
        """Make the sockets, and have ``resources`` close them. Raises `ConfigError` if an address cannot be
        bound or resolved.

        Nothing is received before the event loop gets its turn: call `deliver_to` until then.
        """
        zmq_context = new_context()
        # Waits until the last messages have left, but not longer than a control socket lingers.
        resources.callback(zmq_context.term)
        context = self._context
        if self._bind is not None:
            handlers = Handlers(self._on_client_control, self._on_client_bulk, self._on_client_link)
            self._server = serve(zmq_context, self._bind, handlers, context)
            resources.callback(self._server.close)
            self._listener = Listener(self._bind, self._server, context.telemetry, context.clock)
        for connect in self.upstreams.values():
            self._open_upstream(zmq_context, connect, resources)

    def _open_upstream(
        self,
        zmq_context: "zmq.Context[zmq.Socket[bytes]]",
        connect: Connect,
        resources: ExitStack,
    ) -> None:
        def on_link(label: str, up: bool) -> None:
            self._on_server_link(connect, label, up)

        handlers = Handlers(self._on_server_control, self._on_server_bulk, on_link)
        context = self._context
        side = ClientSide(zmq_context, connect.peer, handlers, context)
        resources.callback(side.close)
        side.widen(context.limits.stripes)
        self._clients[connect.peer] = side
        self._diallers[connect.peer] = Dialler(
            connect, side, context.patience, context.telemetry, context.clock
        )

    def deliver_to(self, recipient: Recipient) -> None:
        """From now on ``recipient`` takes what comes."""
        self._recipient = recipient

    def send_control(self, peer: Peer, parts: list[Any]) -> bool:
        """Put a message on a peer's control socket. False if it cannot leave."""
        return self._side(peer).control.send(peer, parts)

    def send_frame(self, peer: Peer, frame: Frame) -> bool:
        """Put a frame on a peer's control socket; the empty part tells it from a message. False if it cannot
        leave."""
        return self.send_control(peer, [encode(self._context.run_id, frame), b""])

    def send_bulk(self, peer: Peer, stripe: int, parts: list[Any]) -> bool:
        """Put parts on the bulk connection of a stripe to a peer, without copying them; on another one while that
        one is not there. False if they cannot leave."""
        return self._side(peer).send_bulk(peer, stripe, parts)

    def stripes(self, peer: Peer) -> int:
        """Number of bulk connections to a peer that are there."""
        return self._side(peer).stripes(peer)

    def dials(self, peer: Peer) -> bool:
        """Whether it is this node that opens the connections to a peer."""
        return peer in self._diallers

    def widen(self, peer: Peer, stripes: int) -> None:
        """Have so many bulk connections to a server of this node."""
        self._diallers[peer].widen(stripes)

    def throttle(self, on: bool) -> None:
        """Stop reading the bulk sockets of all peers, or go on reading them."""
        servers = [] if self._server is None else [self._server]
        sides: list[ServerSide | ClientSide] = [*servers, *self._clients.values()]
        for side in sides:
            side.throttle(on)

    def tick(self, transfers: TransferProgress) -> None:
        """Look for connections that are dead or blocked; to be called a few times a second."""
        if self._listener is not None:
            self._listener.tick()
        for peer, dialler in self._diallers.items():
            dialler.tick(partial(transfers.progress, peer))

    def _side(self, peer: Peer) -> ServerSide | ClientSide:
        side = self._clients.get(peer, self._server)
        assert side is not None, f"no socket leads to {peer}"
        return side

    # --- what comes from the sockets --------------------------------------------------------------

    def _on_server_control(self, peer: Peer, parts: list[bytes]) -> None:
        self._recipient.on_server_control(peer, parts)

    def _on_server_bulk(self, peer: Peer, parts: list[zmq.Frame]) -> None:
        self._recipient.on_bulk(peer, parts)

    def _on_server_link(self, connect: Connect, label: str, up: bool) -> None:
        if up:
            self._recipient.on_server_connected(connect.peer)
        if label == "control":
            server = str(connect)
            event = ServerConnected(server) if up else ServerDisconnected(server)
            self._context.telemetry.event(event)

    def _on_client_control(self, peer: Peer, parts: list[bytes]) -> None:
        if not self._is_impostor(peer):
            self._recipient.on_client_control(peer, parts)

    def _on_client_bulk(self, peer: Peer, parts: list[zmq.Frame]) -> None:
        if not self._is_impostor(peer):
            self._recipient.on_bulk(peer, parts)

    def _on_client_link(self, _label: str, up: bool) -> None:
        if up:
            self._recipient.on_client_connected()

    def _is_impostor(self, peer: Peer) -> bool:
        """Whether a client has the name of one of our own servers, which never connects to us."""
        if peer not in self.upstreams:
            return False
        self._context.telemetry.drop("identity", peer, "a client has the name of our own server")
        return True
