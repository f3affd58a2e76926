"""Payloads on the sockets of a node: which frame belongs to which end of which transfer.

`Begin` and `Chunk` travel on the bulk socket. `Have` and `Abort` are a few bytes that the other
side waits for, so they travel on the control socket, as an envelope followed by an empty part,
which is how they are told from messages there.
"""

from collections.abc import Callable
from typing import Any, assert_never

import zmq

from pelago.core.errors import WireError
from pelago.core.machine import Delivered, PeerLost, Received
from pelago.core.names import BlobId, Peer
from pelago.net.durability.manager import DurabilityManager
from pelago.net.limits import Limits
from pelago.net.telemetry import Telemetry
from pelago.net.tensors.lane import Tensors
from pelago.net.transfer.incoming import Incoming
from pelago.net.transfer.outgoing import Outgoing
from pelago.wire.codec import decode_frame, encode
from pelago.wire.messages import Abort, Begin, Chunk, Frame, Have, Message


class Transfers:
    """All transfers of a node, both ways.

    ``send_control`` and ``send_bulk`` put parts on a peer's sockets, ``post`` takes facts for the
    machine, ``throttle(on)`` stops and restarts reading bulk, ``clock`` gives picoseconds; ``expects``
    says which payloads the machine wants; ``durability`` is a durable node's.
    """

    def __init__(
        self,
        run_id: str,
        tensors: Tensors,
        limits: Limits,
        send_control: Callable[[Peer, list[Any]], bool],
        send_bulk: Callable[[Peer, list[Any]], bool],
        post: Callable[[Received[Message] | Delivered | PeerLost], None],
        throttle: Callable[[bool], None],
        telemetry: Telemetry,
        clock: Callable[[], int],
        expects: Callable[[Peer, Message], bool],
        durability: DurabilityManager | None = None,
    ) -> None:
        self._run_id = run_id
        self._tensors = tensors
        self._telemetry = telemetry

        def send_frame(peer: Peer, frame: Frame) -> bool:
            return send_control(peer, [encode(run_id, frame), b""])

        self.outgoing = Outgoing(
            run_id, tensors, limits, send_bulk, send_frame, post, telemetry, clock
        )
        self.incoming = Incoming(
            run_id,
            tensors,
            limits,
            send_frame,
            post,
            throttle,
            telemetry,
            clock,
            durability,
            expects,
        )

    def send(self, peer: Peer, envelope: bytes, blob: BlobId) -> None:
        """Send an encoded message with a payload, after every tensor effect that was wished before."""
        self._tensors.use(blob)
        self._tensors.after(lambda: self.outgoing.send(peer, envelope, blob))

    def on_frame(self, peer: Peer, envelope: bytes) -> None:
        """A frame came on the control socket. Never raises for what a peer sent."""
        try:
            frame = decode_frame(self._run_id, envelope)
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
            frame = decode_frame(self._run_id, parts[0].buffer)
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

    def progress(self, peer: Peer) -> tuple[bool, int]:
        """Whether a payload is under way to a peer or from it, and a number that grows with what is heard of it."""
        moving = self.outgoing.is_sending(peer) or self.incoming.is_receiving(peer)
        return moving, self.outgoing.answers

    def tick(self) -> None:
        """To be called a few times a second."""
        self.outgoing.tick()
