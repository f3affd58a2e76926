"""Payloads that leave: read ahead of the sockets, as far as their receivers allow.

One payload at a time goes to a peer; a newer one takes the place of an older one. A pure `Sender` for each
stripe decides what to send when. Here its effects are carried out: the reading thread encodes and checksums
chunks, a few at a time, and ZeroMQ takes them without another copy. A query to the receiver is queued behind
the chunks that it asks about, on the stripe's own connection.
"""

import random
from collections import OrderedDict, deque
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias, assert_never

from pelago.core.machine import Delivered, PeerLost
from pelago.core.names import BlobId, Peer
from pelago.net.context import NodeContext
from pelago.net.tensors.tensors import Tensors
from pelago.net.transfer.peer_sockets import PeerSockets
from pelago.net.transfer.tuning import StripeTuner, Windows
from pelago.protocol import transfer
from pelago.protocol.stripes import Striping
from pelago.runlog.events import PayloadAbandoned
from pelago.tensor.encodings.encoding import chunk_sizes
from pelago.tensor.payload import Payload
from pelago.wire.codec import encode
from pelago.wire.messages import STRIPES_MAX, Abort, Begin, Chunk, Have

READ_CHUNKS_MAX: Final = 4
"""Chunks that one turn of the reading thread prepares: payloads of several peers take turns."""

UNKNOWN: Final = "unknown here"
"""Reason of an `Abort`: the receiver has restarted, or made room, and has lost what it acknowledged."""

ANSWERING_MAX: Final = 1024
"""Receivers whose answers are counted."""

BulkEffect: TypeAlias = transfer.SendBegin | transfer.SendChunk


@dataclass(slots=True, eq=False)
class _Stripe:
    number: int
    sender: transfer.Sender
    effects: deque[BulkEffect] = field(default_factory=deque)
    reading: bool = False
    stalled: bool = False
    """The stripe has no connection at the moment: try again on the next tick."""
    waiting: bool = False
    """Its next chunk is not here yet: it comes from a device."""


@dataclass(slots=True, eq=False)
class _Transfer:
    number: int
    peer: Peer
    blob: BlobId
    message: bytes
    striping: Striping
    stripes: list[_Stripe]
    began_ps: int
    over: bool = False

    @property
    def reading(self) -> bool:
        """Whether the reading thread has a part of it in hand."""
        return any(stripe.reading for stripe in self.stripes)


class Outgoing:
    """All payloads on their way out of a node."""

    def __init__(
        self, context: NodeContext, tensors: Tensors, sockets: PeerSockets, tuner: StripeTuner
    ) -> None:
        self._context = context
        self._tensors = tensors
        self._sockets = sockets
        self._tuner = tuner
        self._windows = Windows(context)
        self._telemetry = context.telemetry
        self._answers: OrderedDict[tuple[Peer, int], int] = OrderedDict()
        """How often each receiver has answered about a stripe; the `ANSWERING_MAX` that answered last."""
        self._transfers: dict[Peer, _Transfer] = {}
        self._ask = False
        self._sizes: tuple[int, ...] = ()
        """Encoded bytes of each chunk of the model, once it is known."""
        # A receiver remembers transfers by number, also those of a sender that has restarted since.
        self._last_number = random.SystemRandom().getrandbits(62)

    @property
    def active(self) -> int:
        """Payloads under way."""
        return len(self._transfers)

    def send(self, peer: Peer, message: bytes, blob: BlobId) -> None:
        """Send the payload ``blob`` with an encoded message, instead of any that is under way to this peer.

        The caller has counted this use of the payload; it is given back here.
        """
        older = self._transfers.get(peer)
        if older is not None:
            self._telemetry.counters["superseded"] += 1
            self._end(older)
            self._sockets.send_frame(peer, Abort(older.number, "superseded"))
        self._begin(peer, message, blob)

    def on_have(self, peer: Peer, frame: Have) -> None:
        """A receiver says what of a stripe has arrived."""
        one = self._find(peer, frame.transfer)
        if one is None:
            return
        if frame.stripe >= len(one.stripes):
            self._telemetry.drop("stripe", peer, f"{frame.stripe} of {len(one.stripes)}")
            return
        self._count_answer(peer, frame.stripe)
        stripe, now = one.stripes[frame.stripe], self._context.clock()
        effects = stripe.sender.have(frame.query, frame.through, frame.beyond, now)
        self._windows.observe(
            peer, stripe.number, stripe.sender, len(one.stripes), len(self._transfers)
        )
        self._obey(one, stripe, effects)

    def on_abort(self, peer: Peer, frame: Abort) -> None:
        """A receiver refuses a payload. If it has lost the chunks that it had, the payload is sent anew."""
        one = self._find(peer, frame.transfer)
        if one is None:
            return
        if frame.reason == UNKNOWN:
            self._telemetry.counters["transfers_begun_anew"] += 1
            self._tensors.use(one.blob)
            self._end(one)
            self._begin(peer, one.message, one.blob)
        else:
            self._fail(one, frame.reason)

    def tick(self) -> None:
        """Ask again where nothing was heard; give up where nothing was heard for too long."""
        now = self._context.clock()
        ask, self._ask = self._ask, False
        for one in list(self._transfers.values()):
            for stripe in one.stripes:
                stripe.stalled = False
                if not one.over:
                    sender = stripe.sender
                    self._obey(one, stripe, sender.ask(now) if ask else sender.tick(now))

    def ask_soon(self) -> None:
        """Some peer has a new connection: on the next tick ask all peers what has arrived. By then the peer is known by
        its name. After a long silence the intervals between queries would be as long."""
        self._ask = True

    def is_sending(self, peer: Peer, stripe: int) -> bool:
        """Whether a part of a payload is under way to a peer on a stripe."""
        one = self._transfers.get(peer)
        stripes = [] if one is None else one.stripes[stripe : stripe + 1]
        return any(not each.sender.done for each in stripes)

    def answers(self, peer: Peer, stripe: int) -> int:
        """How often a peer has said what of a stripe has arrived; 0 again for a peer that was forgotten."""
        return self._answers.get((peer, stripe), 0)

    def _count_answer(self, peer: Peer, stripe: int) -> None:
        self._answers[peer, stripe] = self.answers(peer, stripe) + 1
        self._answers.move_to_end((peer, stripe))
        if len(self._answers) > ANSWERING_MAX:
            self._answers.popitem(last=False)

    def reconnected(self, peer: Peer) -> None:
        """A connection to a peer was made anew: ask at once what arrived over the old one."""
        one = self._transfers.get(peer)
        if one is None:
            return
        for stripe in one.stripes:
            stripe.stalled = False
            self._obey(one, stripe, stripe.sender.start(self._context.clock()))

    def _begin(self, peer: Peer, message: bytes, blob: BlobId) -> None:
        if not self._sizes:
            self._sizes = chunk_sizes(self._context.encoding, self._tensors.plane.manifest)
        self._last_number += 1
        limits, now = self._context.limits, self._context.clock()
        striping = Striping(min(self._sockets.stripes(peer), STRIPES_MAX, max(1, len(self._sizes))))
        stripes = [
            _Stripe(
                number,
                transfer.Sender(
                    self._last_number,
                    striping.share(number, self._sizes),
                    self._windows.begin(peer, number, striping.stripes, 1 + len(self._transfers)),
                    limits.retry_ps,
                    limits.give_up_ps,
                ),
            )
            for number in range(striping.stripes)
        ]
        one = _Transfer(self._last_number, peer, blob, message, striping, stripes, now)
        self._transfers[peer] = one
        for stripe in stripes:
            self._obey(one, stripe, stripe.sender.start(now))

    def _find(self, peer: Peer, number: int) -> _Transfer | None:
        one = self._transfers.get(peer)
        if one is None or one.number != number:
            # Quite normal: an answer that crossed the end of its transfer.
            self._telemetry.counters["late_answers"] += 1
            return None
        return one

    def _obey(self, one: _Transfer, stripe: _Stripe, effects: list[transfer.SenderEffect]) -> None:
        for effect in effects:
            match effect:
                case transfer.SendBegin() | transfer.SendChunk():
                    stripe.effects.append(effect)
                case transfer.PayloadDelivered():
                    if all(each.sender.done for each in one.stripes):
                        self._end(one)
                        self._measure(one)
                        self._context.post(Delivered(one.peer, one.blob, sum(self._sizes)))
                case transfer.TransferFailed(reason):
                    self._fail(one, reason)
                case _:
                    assert_never(effect)
        self._read(one, stripe)

    def _measure(self, one: _Transfer) -> None:
        took_ps = self._context.clock() - one.began_ps
        self._tuner.observe(one.peer, "sent", len(one.stripes), sum(self._sizes), took_ps)

    def _read(self, one: _Transfer, stripe: _Stripe) -> None:
        if stripe.reading or stripe.stalled or stripe.waiting or one.over:
            return
        batch: list[BulkEffect] = []
        payload = self._tensors.plane.payload(one.blob)
        while stripe.effects and len(batch) < READ_CHUNKS_MAX:
            missing = self._missing(one, stripe, payload)
            if missing is not None:
                if not batch:
                    self._wait(one, stripe, payload, missing)
                break
            batch.append(stripe.effects.popleft())
        if not batch:
            return
        acknowledged = stripe.sender.acknowledged
        stripe.reading = True
        self._tensors.reading.submit(
            lambda: [self._prepare(one, stripe, effect, acknowledged) for effect in batch],
            lambda prepared: self._leave(one, stripe, batch, prepared),
        )

    def _missing(self, one: _Transfer, stripe: _Stripe, payload: Payload) -> int | None:
        """The chunk that comes next on a stripe, if it is not here yet."""
        effect = stripe.effects[0]
        if not payload.missing or isinstance(effect, transfer.SendBegin):
            return None
        index = one.striping.index_of(stripe.number, effect.index)
        return index if payload.chunks[index] is None else None

    def _wait(self, one: _Transfer, stripe: _Stripe, payload: Payload, index: int) -> None:
        """Go on with a stripe when its next chunk is here."""
        stripe.waiting = True

        def go_on(_: None) -> None:
            stripe.waiting = False
            self._read(one, stripe)

        reading = self._tensors.reading
        payload.when_here(index, lambda: reading.post(go_on, None))

    def _prepare(
        self, one: _Transfer, stripe: _Stripe, effect: BulkEffect, acknowledged: int
    ) -> list[Any]:
        """In the reading thread: the parts of one ZeroMQ message."""
        run_id, encoding = self._context.run_id, self._context.encoding
        if isinstance(effect, transfer.SendBegin):
            begin = Begin(
                transfer=one.number,
                query=effect.query,
                message=one.message,
                chunks=len(self._sizes),
                payload_bytes=sum(self._sizes),
                encoding=encoding.name,
                stripe=stripe.number,
                stripes=one.striping.stripes,
                acknowledged=acknowledged,
            )
            return [encode(run_id, begin)]
        index = one.striping.index_of(stripe.number, effect.index)
        buffer, checksum = self._tensors.plane.read(one.blob, index, encoding)
        return [encode(run_id, Chunk(one.number, index, checksum)), buffer]

    def _leave(
        self,
        one: _Transfer,
        stripe: _Stripe,
        batch: list[BulkEffect],
        prepared: list[list[Any]],
    ) -> None:
        stripe.reading = False
        if one.over:
            if not one.reading:
                self._tensors.drop(one.blob)
            return
        counters = self._telemetry.counters
        for place, parts in enumerate(prepared):
            if not self._sockets.send_bulk(one.peer, stripe.number, parts):
                stripe.stalled = True
                stripe.effects.extendleft(reversed(batch[place:]))
                break
            if len(parts) == 2:
                counters["chunks_sent"] += 1
                counters["bulk_bytes_sent"] += parts[1].nbytes
        self._read(one, stripe)

    def _end(self, one: _Transfer) -> None:
        del self._transfers[one.peer]
        one.over = True
        if not one.reading:
            self._tensors.drop(one.blob)

    def _fail(self, one: _Transfer, reason: str) -> None:
        self._telemetry.event(PayloadAbandoned(one.peer, reason))
        self._end(one)
        self._sockets.send_frame(one.peer, Abort(one.number, "given up"))
        self._context.post(PeerLost(one.peer, reason))
