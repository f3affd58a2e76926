"""Payloads on the sockets of a node: which frame belongs to which end of which transfer.

`Begin` and `Chunk` travel on bulk sockets. `Have` and `Abort` are a few bytes that the peer waits
for, so they travel on the control socket, as an envelope followed by an empty part, which
distinguishes them from messages.
"""

from typing import assert_never

import zmq

from pelago.core.errors import WireError
from pelago.core.names import BlobId, Peer
from pelago.net.context import NodeContext
from pelago.net.durability.manager import DurabilityManager
from pelago.net.tensors.tensors import Tensors
from pelago.net.transfer.incoming import Incoming
from pelago.net.transfer.outgoing import Outgoing
from pelago.net.transfer.peer_sockets import PeerSockets
from pelago.net.transfer.tuning import StripeTuner
from pelago.wire.codec import decode_frame
from pelago.wire.messages import Abort, Begin, Chunk, Have


class Transfers:
    """All transfers of a node, both ways. ``durability`` is a durable node's."""

    def __init__(
        self,
        context: NodeContext,
        tensors: Tensors,
        sockets: PeerSockets,
        durability: DurabilityManager | None = None,
    ) -> None:
        self._context = context
        self._tensors = tensors
        self._telemetry = context.telemetry
        tuner = StripeTuner(context, sockets)
        self.outgoing = Outgoing(context, tensors, sockets, tuner)
        self.incoming = Incoming(context, tensors, sockets, tuner, durability)

    def send(self, peer: Peer, envelope: bytes, blob: BlobId) -> None:
        """Send an encoded message with a payload, each chunk as soon as it is there."""
        self._tensors.use(blob)
        self.outgoing.send(peer, envelope, blob)

    def on_frame(self, peer: Peer, envelope: bytes) -> None:
        """A frame came on the control socket. Never raises for what a peer sent."""
        try:
            frame = decode_frame(self._context.run_id, envelope)
        except WireError as error:
            self._telemetry.drop("malformed", peer, str(error))
            return
        match frame:
            case Have():
                self.outgoing.on_have(peer, frame)
            case Abort():
                self.outgoing.on_abort(peer, frame)
                self.incoming.on_abort(peer, frame)
            case Begin() | Chunk():
                self._telemetry.drop("misplaced", peer, f"{type(frame).__name__} on control")
            case _:
                assert_never(frame)

    def on_bulk(self, peer: Peer, parts: list[zmq.Frame]) -> None:
        """Something came on the bulk socket. Never raises for what a peer sent."""
        try:
            frame = decode_frame(self._context.run_id, parts[0].buffer)
        except WireError as error:
            self._telemetry.drop("malformed", peer, str(error))
            return
        match frame:
            case Begin() if len(parts) == 1:
                self.incoming.on_begin(peer, frame)
            case Chunk() if len(parts) == 2:
                self.incoming.on_chunk(peer, frame, parts[1].buffer)
            case Begin() | Chunk() | Have() | Abort():
                detail = f"{type(frame).__name__} of {len(parts)} parts on bulk"
                self._telemetry.drop("misplaced", peer, detail)
            case _:
                assert_never(frame)

    def progress(self, peer: Peer, stripe: int) -> tuple[bool, int]:
        """Whether something is under way on a stripe to a peer or from it, and a number that grows with what is
        heard of it."""
        moving = self.outgoing.is_sending(peer, stripe) or self.incoming.is_receiving(peer, stripe)
        return moving, self.outgoing.answers(peer, stripe)

    def tick(self) -> None:
        """To be called a few times a second."""
        self.outgoing.tick()
