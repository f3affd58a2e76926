"""Payloads that arrive: admitted against the manifest before a byte is kept, staged off the loop.

A payload is announced by `Begin`. It is refused with `Abort`, before anything is allocated or journalled,
unless it is exactly one model large, the machine expects it, and a place is free. Chunks are verified and
kept by the staging thread, in the very frames in which ZeroMQ received them; what came while the thread was
busy makes its next batch. When all of it is here the machine hears `Received`.

A durable node journals how a payload began, and its chunks, and acknowledges a chunk when the journal
holds it. So the process that comes after it goes on where it was.
"""

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final, assert_never

from pelago.core.errors import WireError
from pelago.core.machine import Received
from pelago.core.names import BlobId, Peer, Span
from pelago.durable.record import Begun
from pelago.net.context import NodeContext
from pelago.net.durability.manager import DurabilityManager
from pelago.net.durability.restore import Arriving, Restored
from pelago.net.sockets.connections import Connections
from pelago.net.tensors.lane import Tensors
from pelago.net.transfer.outgoing import UNKNOWN
from pelago.protocol import transfer
from pelago.wire.codec import decode_message
from pelago.wire.messages import Abort, Begin, Chunk, Have, Message, Model, Push

REMEMBERED_MAX: Final = 1024
"""Peers whose last finished transfer is remembered, so that a repeated question gets its answer."""


@dataclass(slots=True, eq=False)
class _Transfer:
    number: int
    peer: Peer
    blob: BlobId
    begun: Begun
    message: Message
    receiver: transfer.Receiver
    heard_ps: int
    waiting: list[Begin | tuple[Chunk, memoryview]] = field(default_factory=list)
    """What came and was not staged yet, in order: a question waits for the chunks before it."""
    staging: bool = False
    over: bool = False


class Incoming:
    """All payloads on their way into a node. ``durability`` is a durable node's.

    When staging falls behind, the bulk sockets are not read until it has caught up.
    """

    def __init__(
        self,
        context: NodeContext,
        tensors: Tensors,
        connections: Connections,
        durability: DurabilityManager | None,
    ) -> None:
        self._context = context
        self._tensors = tensors
        self._limits = context.limits
        self._telemetry = context.telemetry
        self._connections = connections
        self._durability = durability
        self._transfers: dict[Peer, _Transfer] = {}
        self._finished: OrderedDict[Peer, _Transfer] = OrderedDict()
        self._waiting_bytes = 0
        self._throttled = False

    @property
    def active(self) -> int:
        """Payloads under way."""
        return len(self._transfers)

    def is_receiving(self, peer: Peer) -> bool:
        """Whether a payload is under way from a peer."""
        return peer in self._transfers

    def arriving(self) -> list[tuple[BlobId, Begun]]:
        """Payloads of which some chunks are here, and how they began."""
        return [(one.blob, one.begun) for one in self._transfers.values()]

    def resume(self, restored: Restored) -> None:
        """Know what the process before this one knew; of payloads under way the newest, as many as have
        a place. Nobody is told anything yet."""
        arriving = list(restored.arriving.values())
        too_many = max(0, len(arriving) - self._limits.incoming_max)
        for each in arriving[:too_many]:
            self._tensors.plane.release(each.blob)
            self._journal_end(each.blob)
        for each in arriving[too_many:]:
            self._tensors.created(each.blob)
            here = self._tensors.plane.arrived(each.blob)
            one = self._know(each, [(place, place + 1) for place, _ in here])
            self._transfers[one.peer] = one
        for each in restored.finished.values():
            one = self._know(each, [(0, len(self._tensors.plane.manifest.chunks))])
            one.over = one.receiver.completed = True
            self._finished[one.peer] = one

    def go_on(self) -> None:
        """After `resume`: the machine hears of what was whole before its predecessor could."""
        for one in list(self._transfers.values()):
            if self._tensors.plane.complete(one.blob):
                self._obey(one, one.receiver.begin(0))

    def on_begin(self, peer: Peer, frame: Begin) -> None:
        """A payload is announced, or its sender asks what of it has arrived."""
        one = self._transfers.get(peer)
        if one is None or one.number != frame.transfer:
            finished = self._finished.get(peer)
            if finished is not None and finished.number == frame.transfer:
                self._obey(finished, finished.receiver.begin(frame.query))
                return
            if frame.query > 1:
                # Its sender counts on chunks that arrived before this process knew of it.
                self._connections.send_frame(peer, Abort(frame.transfer, UNKNOWN))
                return
            reason, message = self._judge(peer, frame)
            if message is None:
                self._telemetry.drop("transfer", peer, reason)
                self._connections.send_frame(peer, Abort(frame.transfer, reason))
                return
            one = self._admit(peer, frame, message)
        one.heard_ps = self._context.clock()
        one.waiting.append(frame)
        self._stage(one)

    def on_chunk(self, peer: Peer, frame: Chunk, payload: memoryview) -> None:
        """A chunk came, in a buffer that is ours to keep."""
        one = self._transfers.get(peer)
        if one is None or one.number != frame.transfer:
            # Of a payload that is over, or that this process never heard of since it started: its
            # sender will ask, and be told what is missing.
            self._telemetry.counters["late_chunks"] += 1
            return
        pieces = self._tensors.plane.manifest.chunks
        if not 0 <= frame.index < len(pieces):
            self._telemetry.drop("chunk", peer, f"index {frame.index} of {len(pieces)}")
            return
        piece = pieces[frame.index]
        if payload.nbytes != 4 * (piece.stop - piece.start):
            self._telemetry.drop("chunk", peer, f"{payload.nbytes} bytes for chunk {frame.index}")
            return
        one.heard_ps = self._context.clock()
        one.waiting.append((frame, payload))
        self._waiting_bytes += payload.nbytes
        if self._waiting_bytes > self._limits.staging_bytes_max and not self._throttled:
            self._throttled = True
            self._connections.throttle(True)
        self._stage(one)

    def on_abort(self, peer: Peer, frame: Abort) -> None:
        """The sender thought better of it."""
        one = self._transfers.get(peer)
        if one is not None and one.number == frame.transfer:
            self._end(one)

    def _judge(self, peer: Peer, frame: Begin) -> tuple[str, Message | None]:
        """The message that announces an admissible payload, or why there is none."""
        if not self._tensors.ready:
            return "the model is not known here yet", None
        manifest = self._tensors.plane.manifest
        if (frame.payload_bytes, frame.chunks) != (manifest.bytes, len(manifest.chunks)):
            claim = f"{frame.payload_bytes} bytes in {frame.chunks} chunks"
            return f"{claim}; a model has {manifest.bytes} in {len(manifest.chunks)}", None
        try:
            message = decode_message(self._context.run_id, frame.message)
        except WireError as error:
            return str(error), None
        if not isinstance(message, Push | Model):
            return f"{type(message).__name__} has no payload", None
        if not self._context.machine.expects(peer, message):
            return "nobody asked for it", None
        full = len(self._transfers) >= self._limits.incoming_max
        if full and peer not in self._transfers and not self._evict():
            return "too many payloads under way", None
        return "", message

    def _evict(self) -> bool:
        """Drop a payload that the machine expects no more, or else the one that has been silent longest, if
        that is long enough."""
        here = self._transfers.values()
        unexpected = [
            each for each in here if not self._context.machine.expects(each.peer, each.message)
        ]
        one = min(unexpected or here, key=lambda each: each.heard_ps)
        if not unexpected and self._context.clock() - one.heard_ps < self._limits.idle_ps:
            return False
        self._telemetry.event("transfer_evicted", peer=one.peer)
        self._end(one)
        return True

    def _admit(self, peer: Peer, frame: Begin, message: Message) -> _Transfer:
        older = self._transfers.get(peer)
        if older is not None:
            self._end(older)
        blob = self._tensors.new_blob()
        self._tensors.created(blob)
        self._tensors.plane.open(blob)
        begun = Begun(peer, frame.transfer, frame.message)
        if self._durability is not None:
            self._durability.begin(blob, begun)
        one = self._know(Arriving(blob, begun, message))
        self._transfers[peer] = one
        return one

    def _know(self, arriving: Arriving, here: Iterable[Span] = ()) -> _Transfer:
        """A payload of which these chunks are here."""
        begun, manifest = arriving.begun, self._tensors.plane.manifest
        acknowledge_chunks = transfer.acknowledge_chunks_for(
            self._limits.window_bytes, manifest.chunk_bytes
        )
        receiver = transfer.Receiver(begun.transfer, len(manifest.chunks), acknowledge_chunks, here)
        return _Transfer(
            begun.transfer,
            begun.peer,
            arriving.blob,
            begun,
            arriving.message,
            receiver,
            self._context.clock(),
        )

    def _stage(self, one: _Transfer) -> None:
        if one.staging or one.over or not one.waiting:
            return
        batch, one.waiting = one.waiting, []
        one.staging = True
        plane, blob, keep = self._tensors.plane, one.blob, self._tensors.keep

        def stage(each: Begin | tuple[Chunk, memoryview]) -> bool:
            if isinstance(each, Begin):
                return True
            chunk, payload = each
            sound = plane.stage(blob, chunk.index, payload, chunk.checksum)
            if sound and keep is not None:
                keep(blob, chunk.index)
            return sound

        def job() -> list[bool]:
            return [stage(each) for each in batch]

        self._tensors.staging.submit(job, lambda intact: self._staged(one, batch, intact))

    def _staged(
        self,
        one: _Transfer,
        batch: list[Begin | tuple[Chunk, memoryview]],
        intact: list[bool],
    ) -> None:
        one.staging = False
        effects: list[transfer.ReceiverEffect] = []
        for each, sound in zip(batch, intact, strict=True):
            if isinstance(each, Begin):
                effects += one.receiver.begin(each.query)
                continue
            chunk, payload = each
            self._stored(payload.nbytes)
            self._telemetry.counters["chunks_received"] += 1
            self._telemetry.counters["bulk_bytes_received"] += payload.nbytes
            if not sound:
                self._telemetry.drop("checksum", one.peer, f"chunk {chunk.index} is damaged")
            effects += one.receiver.chunk(chunk.index, sound)
        if one.over:
            self._tensors.drop(one.blob)
            return
        self._obey(one, effects)
        self._stage(one)

    def _obey(self, one: _Transfer, effects: list[transfer.ReceiverEffect]) -> None:
        have: transfer.SendHave | None = None
        completed = False
        for effect in effects:
            match effect:
                case transfer.SendHave():
                    # The last one of a batch says all that the ones before it said.
                    have = effect
                case transfer.Completed():
                    completed = True
                case _:
                    assert_never(effect)
        if have is not None:
            frame = Have(one.number, have.query, have.through, have.beyond)
            if self._durability is None:
                self._connections.send_frame(one.peer, frame)
            else:
                self._durability.acknowledge(lambda: self._connections.send_frame(one.peer, frame))
        if completed:
            self._complete(one)

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
        self._context.post(Received(one.peer, one.message, one.blob))

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
        waiting, one.waiting = one.waiting, []
        for each in waiting:
            if not isinstance(each, Begin):
                self._stored(each[1].nbytes)

    def _stored(self, size_bytes: int) -> None:
        self._waiting_bytes -= size_bytes
        if self._throttled and self._waiting_bytes <= self._limits.staging_bytes_max // 2:
            self._throttled = False
            self._connections.throttle(False)
