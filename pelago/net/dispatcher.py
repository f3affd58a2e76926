"""Decodes and checks messages and frames of peers, and gives them to the machine or to the transfers."""

from collections.abc import Callable

import zmq

from pelago.core.errors import OtherProtocol, OtherRun, WireError
from pelago.core.machine import Received
from pelago.core.names import Peer
from pelago.net.context import NodeContext
from pelago.net.sockets.connections import Connections
from pelago.net.tensors.tensors import Tensors
from pelago.net.transfer.transfers import Transfers
from pelago.tensor.manifest import Manifest
from pelago.tensor.plane import Plane
from pelago.wire.codec import decode_message, encode_refusal, peek_hello
from pelago.wire.messages import PROTOCOL_VERSION, Welcome


class Dispatcher:
    """Takes what comes from a node's sockets. No method raises for what a peer sent.

    ``plane_factory`` makes the tensor plane from the manifest in a server's `Welcome`; None if the node has a
    plane from the start.
    """

    def __init__(
        self,
        context: NodeContext,
        connections: Connections,
        tensors: Tensors,
        transfers: Transfers,
        plane_factory: Callable[[Manifest], Plane] | None,
    ) -> None:
        self._context = context
        self._connections = connections
        self._tensors = tensors
        self._transfers = transfers
        self._plane_factory = plane_factory

    def on_server_control(self, peer: Peer, parts: list[bytes]) -> None:
        """One of the node's own servers sent a message or a frame."""
        try:
            self._on_parts(peer, parts)
        except WireError as error:
            self._context.telemetry.drop("malformed", peer, str(error))

    def on_client_control(self, peer: Peer, parts: list[bytes]) -> None:
        """A client sent a message or a frame. One of another run or protocol gets a refusal that says why."""
        run_id, telemetry = self._context.run_id, self._context.telemetry
        try:
            self._on_parts(peer, parts)
        except (OtherRun, OtherProtocol) as error:
            telemetry.drop("stranger", peer, str(error))
            hello = peek_hello(parts[0])
            if hello is not None:
                protocol, run = hello
                ours = f"run {run_id!r}, protocol {PROTOCOL_VERSION}"
                detail = f"this server serves {ours}, not run {run!r}, protocol {protocol}"
                self._connections.send_control(peer, [encode_refusal(protocol, run, detail)])
        except WireError as error:
            telemetry.drop("malformed", peer, str(error))

    def on_bulk(self, peer: Peer, parts: list[zmq.Frame]) -> None:
        """A peer sent a frame of a payload."""
        self._transfers.on_bulk(peer, parts)

    def on_server_connected(self, peer: Peer) -> None:
        """A connection to one of the node's own servers was made anew."""
        self._transfers.outgoing.reconnected(peer)

    def on_client_connected(self) -> None:
        """Some client made a connection."""
        self._transfers.outgoing.ask_soon()

    def _on_parts(self, peer: Peer, parts: list[bytes]) -> None:
        if len(parts) == 2:
            self._transfers.on_frame(peer, parts[0])
            return
        message = decode_message(self._context.run_id, parts[0])
        if isinstance(message, Welcome) and not self._accepts(peer, message):
            return
        self._context.post(Received(peer, message))

    def _accepts(self, peer: Peer, message: Welcome) -> bool:
        """Learn the model's shape from one of our servers, or see that it has the model that we know."""
        if peer not in self._connections.upstreams or not message.manifest:
            return True
        telemetry, limit = self._context.telemetry, self._context.limits.model_bytes_max
        try:
            manifest = Manifest(message.manifest)
        except ValueError as error:
            telemetry.drop("manifest", peer, str(error))
            return False
        if manifest.bytes > limit:
            telemetry.drop("manifest", peer, f"{manifest.bytes} bytes exceed {limit}")
            return False
        if self._tensors.ready:
            if self._tensors.plane.manifest.fingerprint == manifest.fingerprint:
                return True
            telemetry.drop("manifest", peer, "the server's model is another than ours")
            return False
        assert self._plane_factory is not None, "neither a plane nor a way to make one"
        self._tensors.begin(self._plane_factory(manifest))
        return True
