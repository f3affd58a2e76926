"""Payloads that arrive: checked against the model before a byte is kept, staged off the event loop.

A payload is announced by `Begin`. It is refused with `Abort`, before anything is allocated or journalled,
unless it is exactly one model large in the encoding that is expected here, the machine expects it, and a place
is free. Staging threads verify the chunks and decode them into the plane's memory, so the frames in which ZeroMQ
received them are free at once. Frames that come while the threads are busy make the next batches. A pure `Receiver`
for each stripe says what has arrived of it. When all stripes are complete, the machine gets `Received`.

A durable node journals how a payload began, and its chunks, and acknowledges a chunk when the journal
holds it. So after a kill the next process continues where the killed one was.
"""

from collections import OrderedDict, deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Final, TypeAlias, assert_never

from pelago.core.errors import WireError
from pelago.core.machine import Received
from pelago.core.names import BlobId, Peer
from pelago.durable.record import Begun
from pelago.net.context import NodeContext
from pelago.net.durability.manager import DurabilityManager
from pelago.net.durability.restore import Arriving, Restored
from pelago.net.tensors.tensors import Tensors
from pelago.net.transfer.outgoing import UNKNOWN
from pelago.net.transfer.peer_sockets import PeerSockets
from pelago.net.transfer.tuning import StripeTuner
from pelago.protocol import transfer
from pelago.protocol.stripes import Striping
from pelago.runlog.events import TransferEvicted
from pelago.tensor.encodings.encoding import chunk_sizes
from pelago.wire.codec import decode_message
from pelago.wire.messages import STRIPES_MAX, Abort, Begin, Chunk, Have, Message, Model, Push

REMEMBERED_MAX: Final = 1024
"""Peers whose last finished transfer is remembered, so that a repeated query gets its answer."""
NAME_SHOWN_MAX: Final = 32
"""Characters of an unknown encoding's name that a refusal repeats."""

StripeEffect: TypeAlias = tuple[int, transfer.ReceiverEffect]
"""A stripe, and an effect of its receiver."""


@dataclass(slots=True, eq=False)
class _Batch:
    """Chunks that a staging thread has in hand. ``intact``: whether each of them is, once that is known."""

    chunks: list[tuple[Chunk, memoryview]]
    intact: list[bool] | None = None


@dataclass(slots=True, eq=False)
class _Transfer:
    blob: BlobId
    begun: Begun
    message: Message
    striping: Striping
    receivers: list[transfer.Receiver]
    """One for each stripe."""
    began_ps: int
    heard_ps: int
    waiting: deque[Begin | tuple[Chunk, memoryview]] = field(default_factory=deque)
    """Frames that are not staged yet, in order: a query waits for the chunks before it."""
    staging: deque[_Batch] = field(default_factory=deque)
    """In the order of their frames, in which they count."""
    over: bool = False

    @property
    def number(self) -> int:
        return self.begun.transfer

    @property
    def peer(self) -> Peer:
        return self.begun.peer

    @property
    def is_complete(self) -> bool:
        """Whether every chunk has arrived."""
        return all(each.completed for each in self.receivers)

    def begin(self, frame: Begin) -> list[StripeEffect]:
        """A query about one stripe."""
        return [(frame.stripe, each) for each in self.receivers[frame.stripe].begin(frame.query)]

    def chunk(self, index: int, intact: bool) -> list[StripeEffect]:
        """A chunk of the payload was verified."""
        stripe, place = self.striping.stripe_of(index), self.striping.place_of(index)
        return [(stripe, each) for each in self.receivers[stripe].chunk(place, intact)]


class Incoming:
    """All payloads on their way into a node. ``durability`` is a durable node's.

    When staging falls behind, the bulk sockets are not read until it has caught up.
    """

    def __init__(
        self,
        context: NodeContext,
        tensors: Tensors,
        sockets: PeerSockets,
        tuner: StripeTuner,
        durability: DurabilityManager | None,
    ) -> None:
        self._context = context
        self._tensors = tensors
        self._limits = context.limits
        self._telemetry = context.telemetry
        self._sockets = sockets
        self._tuner = tuner
        self._durability = durability
        self._transfers: dict[Peer, _Transfer] = {}
        self._finished: OrderedDict[Peer, _Transfer] = OrderedDict()
        self._waiting_bytes = 0
        self._throttled = False

    @property
    def active(self) -> int:
        """Payloads under way."""
        return len(self._transfers)

    def is_receiving(self, peer: Peer, stripe: int) -> bool:
        """Whether a part of a payload is under way from a peer on a stripe."""
        one = self._transfers.get(peer)
        receivers = [] if one is None else one.receivers[stripe : stripe + 1]
        return any(not each.completed for each in receivers)

    def arriving(self) -> list[tuple[BlobId, Begun]]:
        """Payloads of which some chunks are here, and how they began."""
        return [(one.blob, one.begun) for one in self._transfers.values()]

    def resume(self, restored: Restored) -> None:
        """Take over the transfers of the process before this one: the newest ones, as many as have a place.
        Nothing is sent yet."""
        ours = self._context.encoding.name
        known = [each for each in restored.arriving.values() if each.begun.encoding == ours]
        keep = {each.blob for each in known[max(0, len(known) - self._limits.incoming_max) :]}
        for each in restored.arriving.values():
            if each.blob in keep:
                self._tensors.created(each.blob)
                here = (index for index, _ in self._tensors.plane.arrived(each.blob))
                one = self._start(each, here)
                self._transfers[one.peer] = one
            else:
                self._tensors.plane.release(each.blob)
                self._journal_end(each.blob)
        for each in restored.finished.values():
            one = self._start(each, range(len(self._sizes)))
            one.over = True
            for receiver in one.receivers:
                receiver.recover_completed()
            self._finished[one.peer] = one

    def go_on(self) -> None:
        """After `resume`: the machine gets the payloads that were whole when the process before this one ended."""
        for one in list(self._transfers.values()):
            if self._tensors.plane.complete(one.blob):
                answers = [receiver.begin(0) for receiver in one.receivers]
                self._obey(
                    one, [(stripe, each) for stripe, those in enumerate(answers) for each in those]
                )

    def on_begin(self, peer: Peer, frame: Begin) -> None:
        """A payload is announced, or its sender asks what of a stripe has arrived."""
        one = self._find(peer, frame.transfer)
        if one is None:
            if frame.query > 1 or frame.acknowledged:
                # Its sender counts on chunks that came before this process knew of the payload.
                self._sockets.send_frame(peer, Abort(frame.transfer, UNKNOWN))
                return
            reason, message = self._judge(peer, frame)
            if message is None:
                self._telemetry.drop("transfer", peer, reason)
                self._sockets.send_frame(peer, Abort(frame.transfer, reason))
                return
            one = self._admit(peer, frame, message)
        elif not _agrees(frame, one):
            detail = (
                f"stripe {frame.stripe} of {frame.stripes} in {frame.encoding[:NAME_SHOWN_MAX]!r}"
            )
            self._telemetry.drop("transfer", peer, detail)
            return
        if one.over:
            self._obey(one, one.begin(frame))
            return
        if frame.acknowledged > one.receivers[frame.stripe].arrived:
            # The process before this one had more of this stripe.
            self._end(one)
            self._sockets.send_frame(peer, Abort(frame.transfer, UNKNOWN))
            return
        one.heard_ps = self._context.clock()
        one.waiting.append(frame)
        self._stage(one)

    def on_chunk(self, peer: Peer, frame: Chunk, payload: memoryview) -> None:
        """A chunk came, in a buffer that is ours to keep."""
        one = self._transfers.get(peer)
        if one is None or one.number != frame.transfer:
            # Of a payload that is over, or that this process never heard of since it started: its
            # sender will ask, and learn what is missing.
            self._telemetry.counters["late_chunks"] += 1
            return
        if not 0 <= frame.index < len(self._sizes):
            self._telemetry.drop("chunk", peer, f"index {frame.index} of {len(self._sizes)}")
            return
        if payload.nbytes != self._sizes[frame.index]:
            self._telemetry.drop("chunk", peer, f"{payload.nbytes} bytes for chunk {frame.index}")
            return
        one.heard_ps = self._context.clock()
        one.waiting.append((frame, payload))
        self._waiting_bytes += payload.nbytes
        if self._waiting_bytes > self._limits.staging_bytes_max and not self._throttled:
            self._throttled = True
            self._sockets.throttle(True)
        self._stage(one)

    def on_abort(self, peer: Peer, frame: Abort) -> None:
        """The sender sends no more of a payload."""
        one = self._transfers.get(peer)
        if one is not None and one.number == frame.transfer:
            self._end(one)

    @cached_property
    def _sizes(self) -> tuple[int, ...]:
        """Encoded bytes of each chunk of the model, which is known."""
        return chunk_sizes(self._context.encoding, self._tensors.plane.manifest)

    def _find(self, peer: Peer, number: int) -> _Transfer | None:
        """A transfer that is under way, or the last one of its sender, if that is complete."""
        found = (self._transfers.get(peer), self._finished.get(peer))
        return next((one for one in found if one is not None and one.number == number), None)

    def _judge(self, peer: Peer, frame: Begin) -> tuple[str, Message | None]:
        """The message that announces an admissible payload, or why there is none."""
        if not self._tensors.ready:
            return "the model is not known here yet", None
        encoding = self._context.encoding.name
        if frame.encoding != encoding:
            return f"encoding {frame.encoding[:NAME_SHOWN_MAX]!r}; here it is {encoding!r}", None
        size, chunks = sum(self._sizes), len(self._sizes)
        if (frame.payload_bytes, frame.chunks) != (size, chunks):
            claim = f"{frame.payload_bytes} bytes in {frame.chunks} chunks"
            return f"{claim}; a model has {size} in {chunks}", None
        if not frame.stripe < frame.stripes <= min(STRIPES_MAX, chunks):
            return f"stripe {frame.stripe} of {frame.stripes}", None
        try:
            message = decode_message(self._context.run_id, frame.message)
        except WireError as error:
            return str(error), None
        if not isinstance(message, Push | Model):
            return f"{type(message).__name__} has no payload", None
        if not self._context.machine.expects(peer, message):
            return "it is not expected here", None
        full = len(self._transfers) >= self._limits.incoming_max
        if full and peer not in self._transfers and not self._evict():
            return "too many payloads under way", None
        return "", message

    def _evict(self) -> bool:
        """Drop a payload that the machine expects no more, or else the one that has been silent longest, if
        that is long enough."""
        here, expects = self._transfers.values(), self._context.machine.expects
        unexpected = [each for each in here if not expects(each.peer, each.message)]
        one = min(unexpected or here, key=lambda each: each.heard_ps)
        if not unexpected and self._context.clock() - one.heard_ps < self._limits.idle_ps:
            return False
        self._telemetry.event(TransferEvicted(one.peer))
        self._end(one)
        return True

    def _admit(self, peer: Peer, frame: Begin, message: Message) -> _Transfer:
        older = self._transfers.get(peer)
        if older is not None:
            self._end(older)
        blob = self._tensors.new_blob()
        self._tensors.created(blob)
        self._tensors.plane.open(blob)
        begun = Begun(peer, frame.transfer, frame.message, frame.encoding, frame.stripes)
        if self._durability is not None:
            self._durability.begin(blob, begun)
        one = self._start(Arriving(blob, begun, message))
        self._transfers[peer] = one
        return one

    def _start(self, arriving: Arriving, here: Iterable[int] = ()) -> _Transfer:
        """The transfer of a payload of which these chunks are here."""
        begun, here = arriving.begun, list(here)
        striping = Striping(begun.stripes)
        acknowledge_chunks = transfer.acknowledge_chunks_for(
            self._limits.acknowledged_window_bytes // begun.stripes, max(self._sizes)
        )
        receivers = [
            transfer.Receiver(
                begun.transfer,
                len(striping.share(stripe, self._sizes)),
                acknowledge_chunks,
                [(place, place + 1) for place in striping.places(stripe, here)],
            )
            for stripe in range(begun.stripes)
        ]
        now = self._context.clock()
        return _Transfer(arriving.blob, begun, arriving.message, striping, receivers, now, now)

    def _stage(self, one: _Transfer) -> None:
        """Begin with the frames that wait, as far as there are threads."""
        threads = self._tensors.staging.threads
        while one.waiting and not one.over:
            first = one.waiting[0]
            if isinstance(first, Begin):
                if one.staging:
                    return
                one.waiting.popleft()
                self._obey(one, one.begin(first))
                continue
            if len(one.staging) == threads:
                return
            # The next thread that is free shall find some chunks too.
            share = -(-len(one.waiting) // (threads - len(one.staging)))
            self._submit(one, _Batch(_chunks(one.waiting, share)))

    def _submit(self, one: _Transfer, batch: _Batch) -> None:
        one.staging.append(batch)
        plane, blob, keep = self._tensors.plane, one.blob, self._tensors.keep
        encoding = self._context.encoding

        def stage(chunk: Chunk, payload: memoryview) -> bool:
            intact = plane.stage(blob, chunk.index, payload, chunk.checksum, encoding)
            if intact and keep is not None:
                keep(blob, chunk.index)
            return intact

        def staged(intact: list[bool]) -> None:
            batch.intact = intact
            self._staged(one)

        self._tensors.staging.submit(lambda: [stage(*each) for each in batch.chunks], staged)

    def _staged(self, one: _Transfer) -> None:
        has_ended = one.over
        while one.staging and (intact := one.staging[0].intact) is not None:
            self._count(one, one.staging.popleft().chunks, intact)
        if not one.over:
            self._stage(one)
        elif has_ended and not one.staging:
            self._tensors.drop(one.blob)

    def _count(
        self, one: _Transfer, chunks: list[tuple[Chunk, memoryview]], intact: list[bool]
    ) -> None:
        effects: list[StripeEffect] = []
        for (chunk, payload), sound in zip(chunks, intact, strict=True):
            self._stored(payload.nbytes)
            self._telemetry.counters["chunks_received"] += 1
            self._telemetry.counters["bulk_bytes_received"] += payload.nbytes
            if not sound:
                self._telemetry.drop("checksum", one.peer, f"chunk {chunk.index} is damaged")
            effects += one.chunk(chunk.index, sound)
        if not one.over:
            self._obey(one, effects)

    def _obey(self, one: _Transfer, effects: list[StripeEffect]) -> None:
        answers: dict[int, transfer.SendHave] = {}
        for stripe, effect in effects:
            match effect:
                case transfer.SendHave():
                    # The last one of a batch says all that the ones before it said.
                    answers[stripe] = effect
                case transfer.Completed():
                    pass  # Seen below.
                case _:
                    assert_never(effect)
        for stripe, have in answers.items():
            self._answer(one, Have(one.number, have.query, have.through, have.beyond, stripe))
        # A thread may still have a chunk in hand that came twice.
        if one.is_complete and not one.over and not one.staging:
            self._complete(one)

    def _answer(self, one: _Transfer, frame: Have) -> None:
        if self._durability is None:
            self._sockets.send_frame(one.peer, frame)
        else:
            self._durability.acknowledge(lambda: self._sockets.send_frame(one.peer, frame))

    def _complete(self, one: _Transfer) -> None:
        assert self._tensors.plane.complete(one.blob), "a chunk is counted that is not there"
        del self._transfers[one.peer]
        self._discard(one)
        # From here on the machine holds the payload.
        one.over = True
        self._finished[one.peer] = one
        self._finished.move_to_end(one.peer)
        while len(self._finished) > REMEMBERED_MAX:
            self._finished.popitem(last=False)
        self._telemetry.counters["payloads_received"] += 1
        took_ps, stripes = self._context.clock() - one.began_ps, one.striping.stripes
        self._tuner.observe(one.peer, "received", stripes, sum(self._sizes), took_ps)
        self._context.post(Received(one.peer, one.message, one.blob, sum(self._sizes)))

    def _end(self, one: _Transfer) -> None:
        del self._transfers[one.peer]
        one.over = True
        self._discard(one)
        self._journal_end(one.blob)
        if not one.staging:
            self._tensors.drop(one.blob)

    def _journal_end(self, blob: BlobId) -> None:
        if self._durability is not None:
            self._durability.abort(blob)

    def _discard(self, one: _Transfer) -> None:
        waiting, one.waiting = one.waiting, deque()
        for each in waiting:
            if not isinstance(each, Begin):
                self._stored(each[1].nbytes)

    def _stored(self, size_bytes: int) -> None:
        self._waiting_bytes -= size_bytes
        if self._throttled and self._waiting_bytes <= self._limits.staging_bytes_max // 2:
            self._throttled = False
            self._sockets.throttle(False)


def _chunks(
    frames: deque[Begin | tuple[Chunk, memoryview]], count: int
) -> list[tuple[Chunk, memoryview]]:
    """Take chunks from the front of frames, at most so many, and none from behind a query."""
    taken: list[tuple[Chunk, memoryview]] = []
    while frames and len(taken) < count and not isinstance(frames[0], Begin):
        taken.append(frames.popleft())  # type: ignore[arg-type]
    return taken


def _agrees(frame: Begin, one: _Transfer) -> bool:
    """Whether a later `Begin` is of a stripe of the payload that the first one announced."""
    begun = one.begun
    announced = (begun.encoding, begun.stripes)
    return (frame.encoding, frame.stripes) == announced and frame.stripe < begun.stripes
