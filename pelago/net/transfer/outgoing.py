"""Payloads that leave: read ahead of the socket, as far as their receivers allow.

One payload at a time goes to a peer; a newer one takes the place of an older one. What to send when
is decided by the pure `Sender`; here its wishes are carried out: chunks are read and checksummed in
the reading thread, a few at a time, and handed to ZeroMQ without another copy. What asks the
receiver a question travels in the same queue, behind the chunks that it asks about.
"""

import random
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Any, Final, assert_never

from pelago.core.machine import Delivered, PeerLost
from pelago.core.names import BlobId, Peer
from pelago.net.context import NodeContext
from pelago.net.sockets.connections import Connections
from pelago.net.tensors.lane import Tensors
from pelago.protocol import transfer
from pelago.wire.codec import encode
from pelago.wire.messages import Abort, Begin, Chunk, Have

READ_CHUNKS_MAX: Final = 4
"""Chunks that one turn of the reading thread prepares: payloads of several peers take turns."""

UNKNOWN: Final = "unknown here"
"""Reason of an `Abort`: the receiver has restarted, or made room, and holds no chunk of this."""


@dataclass(slots=True, eq=False)
class _Transfer:
    number: int
    peer: Peer
    blob: BlobId
    message: bytes
    sender: transfer.Sender
    effects: deque[transfer.SendBegin | transfer.SendChunk] = field(default_factory=deque)
    reading: bool = False
    stalled: bool = False
    """The peer has no bulk connection at the moment: try again on the next tick."""
    over: bool = False


class Outgoing:
    """All payloads on their way out of a node."""

    def __init__(self, context: NodeContext, tensors: Tensors, connections: Connections) -> None:
        self._context = context
        self._tensors = tensors
        self._limits = context.limits
        self._telemetry = context.telemetry
        self._connections = connections
        self._answers: Counter[Peer] = Counter()
        """How often each receiver has answered so far."""
        self._transfers: dict[Peer, _Transfer] = {}
        self._ask = False
        self._sizes: tuple[int, ...] = ()
        # A receiver remembers transfers by number, also those of a sender that has restarted since.
        self._last_number = random.SystemRandom().getrandbits(62)

    @property
    def active(self) -> int:
        """Payloads under way."""
        return len(self._transfers)

    def send(self, peer: Peer, message: bytes, blob: BlobId) -> None:
        """Send the payload ``blob`` with an encoded message, instead of any that is under way.

        The caller has counted this use of the payload; it is given back here.
        """
        older = self._transfers.get(peer)
        if older is not None:
            self._telemetry.counters["superseded"] += 1
            self._end(older)
            self._connections.send_frame(peer, Abort(older.number, "superseded"))
        self._begin(peer, message, blob)

    def on_have(self, peer: Peer, frame: Have) -> None:
        """A receiver says what has arrived."""
        one = self._find(peer, frame.transfer)
        if one is not None:
            self._answers[peer] += 1
            now = self._context.clock()
            self._obey(one, one.sender.have(frame.query, frame.through, frame.beyond, now))

    def on_abort(self, peer: Peer, frame: Abort) -> None:
        """A receiver does not want it, or has lost what it had of it: then it begins anew."""
        one = self._find(peer, frame.transfer)
        if one is None:
            return
        if frame.reason == UNKNOWN:
            self._telemetry.counters["transfers_begun_anew"] += 1
            self._tensors.use(one.blob)
            self._end(one)
            self._begin(peer, one.message, one.blob)
        else:
            self._obey(one, one.sender.abort(frame.reason))

    def tick(self) -> None:
        """Ask again where nothing was heard; give up where nothing was heard for too long."""
        now = self._context.clock()
        ask, self._ask = self._ask, False
        for one in list(self._transfers.values()):
            one.stalled = False
            self._obey(one, one.sender.ask(now) if ask else one.sender.tick(now))

    def ask_soon(self) -> None:
        """Some peer is connected anew: on the next tick ask all of them what has arrived. By then it is known by its
        name, and a line that was silent for long has made the pauses between questions as long."""
        self._ask = True

    def is_sending(self, peer: Peer) -> bool:
        """Whether a payload is under way to a peer."""
        return peer in self._transfers

    def answers(self, peer: Peer) -> int:
        """How often a peer has said what of a payload has arrived."""
        return self._answers[peer]

    def reconnected(self, peer: Peer) -> None:
        """The connection to a peer was made anew: ask at once what arrived over the old one."""
        one = self._transfers.get(peer)
        if one is not None:
            one.stalled = False
            self._obey(one, one.sender.start(self._context.clock()))

    def _begin(self, peer: Peer, message: bytes, blob: BlobId) -> None:
        manifest = self._tensors.plane.manifest
        if not self._sizes:
            self._sizes = tuple(4 * (piece.stop - piece.start) for piece in manifest.chunks)
        self._last_number += 1
        limits = self._limits
        sender = transfer.Sender(
            self._last_number,
            self._sizes,
            limits.window_bytes,
            limits.retry_ps,
            limits.give_up_ps,
        )
        one = _Transfer(self._last_number, peer, blob, message, sender)
        self._transfers[peer] = one
        self._obey(one, sender.start(self._context.clock()))

    def _find(self, peer: Peer, number: int) -> _Transfer | None:
        one = self._transfers.get(peer)
        if one is None or one.number != number:
            # Quite normal: an answer that crossed the end of its transfer.
            self._telemetry.counters["late_answers"] += 1
            return None
        return one

    def _obey(self, one: _Transfer, effects: list[transfer.SenderEffect]) -> None:
        for effect in effects:
            match effect:
                case transfer.SendBegin() | transfer.SendChunk():
                    one.effects.append(effect)
                case transfer.PayloadDelivered():
                    self._end(one)
                    self._context.post(Delivered(one.peer, one.blob))
                case transfer.TransferFailed(reason):
                    self._fail(one, reason)
                case _:
                    assert_never(effect)
        self._read(one)

    def _read(self, one: _Transfer) -> None:
        if one.reading or one.stalled or one.over or not one.effects:
            return
        batch = [one.effects.popleft() for _ in range(min(READ_CHUNKS_MAX, len(one.effects)))]
        one.reading = True
        self._tensors.reading.submit(
            lambda: [self._prepare(one, effect) for effect in batch],
            lambda prepared: self._leave(one, batch, prepared),
        )

    def _prepare(
        self, one: _Transfer, effect: transfer.SendBegin | transfer.SendChunk
    ) -> list[Any]:
        """In the reading thread: the parts of one ZeroMQ message."""
        if isinstance(effect, transfer.SendBegin):
            payload_bytes = self._tensors.plane.manifest.bytes
            begin = Begin(one.number, effect.query, one.message, len(self._sizes), payload_bytes)
            return [encode(self._context.run_id, begin)]
        buffer, checksum = self._tensors.plane.read(one.blob, effect.index)
        return [encode(self._context.run_id, Chunk(one.number, effect.index, checksum)), buffer]

    def _leave(
        self,
        one: _Transfer,
        batch: list[transfer.SendBegin | transfer.SendChunk],
        prepared: list[list[Any]],
    ) -> None:
        one.reading = False
        if one.over:
            self._tensors.drop(one.blob)
            return
        counters = self._telemetry.counters
        for place, parts in enumerate(prepared):
            if not self._connections.send_bulk(one.peer, parts):
                one.stalled = True
                one.effects.extendleft(reversed(batch[place:]))
                break
            if len(parts) == 2:
                counters["chunks_sent"] += 1
                counters["bulk_bytes_sent"] += parts[1].nbytes
        self._read(one)

    def _end(self, one: _Transfer) -> None:
        del self._transfers[one.peer]
        one.over = True
        if not one.reading:
            self._tensors.drop(one.blob)

    def _fail(self, one: _Transfer, reason: str) -> None:
        self._telemetry.event("transfer_failed", peer=one.peer, reason=reason)
        self._end(one)
        self._connections.send_frame(one.peer, Abort(one.number, "given up"))
        self._context.post(PeerLost(one.peer, reason))
