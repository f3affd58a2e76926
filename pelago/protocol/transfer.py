"""The two ends of one transfer of chunks: what to send, what to send again, when to end.

Pure machines, for one ordered connection (see `pelago.protocol.stripes`). A driver feeds them frames and ticks
and carries out their effects; checksums, bytes and sockets are the driver's. Times are integer picoseconds of
the driver's clock.

The rules, and why they suffice on any transport that loses, repeats, reorders, delays or cuts:

1. **Window.** At most ``window_bytes`` are sent and not yet acknowledged; one chunk always may be.
   This bounds the queues on both sides. The driver may set another window while the transfer goes on
   (`pelago.protocol.window`), from the round trips that are measured here, one chunk at a time.
2. **Proof, not time-outs.** `Begin` carries the number of a query, and `Have` answers with the number
   of the newest query that came. On one ordered connection, what was sent before query q comes before
   it. So a chunk that the `Have` to q does not list is lost, and only such chunks are sent again. A slow
   link never causes a second copy, however long it takes. If frames overtake one another after all, this
   conclusion may be wrong; then a chunk arrives twice, which changes nothing.
3. **Asking.** Without a new acknowledgement for an interval the sender asks (`Begin` with the next
   query). The interval doubles with every such query; progress resets it to ``retry_ps`` or twice
   the time that the last answer took, whichever is longer, and it grows to `BACKOFF_MAX` times
   that, and without limit before the first answer: queries must not fill a link that carries them
   slower than they are sent. A hole in the newest answer makes the sender ask at once. The next query
   repairs the loss of a chunk, a query or an answer, and also of a whole connection.
4. **Acknowledging.** The receiver answers every query, every ``acknowledge_chunks`` new chunks, and
   the last chunk. With `acknowledge_chunks_for`, a full window holds at least one acknowledgement's
   worth, so the sender never waits for one that does not come; with larger values it goes on at the
   next query.
5. **The end.** A sender gives up when its driver says so (`abort`), when the receiver breaks these
   rules, or after ``silence_max_ps`` without any `Have`.
6. **Restarts.** What a receiver acknowledged is never sent again. So a receiver that another process
   may continue (``arrived``) acknowledges only chunks that this process will have.

Every event costs O(log holes) plus the work on chunks that change state, and each chunk changes state once
per transfer; nothing walks over all chunks.
"""

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Final, Literal, TypeAlias, Union

from pelago.core.machine import PS_PER_MS
from pelago.core.names import Span, Spans
from pelago.core.spans import SpanSet
from pelago.core.transitions import Transition, TransitionTable
from pelago.protocol.window import RoundTrip

BEYOND_MAX: Final = 64
"""Spans in one `Have`. A full list says nothing about chunks after its end."""
BACKOFF_MAX: Final = 16
"""The longest interval between queries, in multiples of the first one."""
SILENCE_MAX_PS: Final = 600_000 * PS_PER_MS
"""Ten minutes."""


@dataclass(frozen=True, slots=True)
class SendBegin:
    """Effect of a sender: send the frame `Begin` with this query."""

    query: int


@dataclass(frozen=True, slots=True)
class SendChunk:
    """Effect of a sender: send the frame `Chunk` of this index, with its bytes."""

    index: int


@dataclass(frozen=True, slots=True)
class PayloadDelivered:
    """Effect of a sender: the receiver has every chunk. Comes once, as the sender's last effect."""


@dataclass(frozen=True, slots=True)
class TransferFailed:
    """Effect of a sender: it gave up. Comes once, as the sender's last effect."""

    reason: str


@dataclass(frozen=True, slots=True)
class SendHave:
    """Effect of a receiver: send the frame `Have`."""

    query: int
    through: int
    beyond: Spans


@dataclass(frozen=True, slots=True)
class Completed:
    """Effect of a receiver: every chunk is here. Comes once; later queries are still answered."""


SenderEffect: TypeAlias = Union[SendBegin, SendChunk, PayloadDelivered, TransferFailed]
ReceiverEffect: TypeAlias = Union[SendHave, Completed]


def acknowledge_chunks_for(window_bytes: int, chunk_bytes_max: int) -> int:
    """How many new chunks a receiver may collect before it acknowledges, so that no window stalls.

    Half of the chunks that surely fit the window, at most 16, at least 1.
    """
    return max(1, min(16, window_bytes // (2 * max(1, chunk_bytes_max))))


SenderState: TypeAlias = Literal["new", "sending", "delivered", "failed"]

SENDER: Final = TransitionTable(
    "sender of a transfer",
    "new",
    (
        Transition("new", "sending", "start", "the first chunks are sent"),
        Transition("new", "delivered", "have", "the other end has every chunk already"),
        Transition("sending", "delivered", "have", "the other end has every chunk"),
        Transition(
            "new", "failed", "abort", "its driver ends it, or the receiver breaks the rules"
        ),
        Transition(
            "sending",
            "failed",
            "abort",
            "its driver ends it, the receiver is silent or breaks the rules",
        ),
    ),
)

ReceiverState: TypeAlias = Literal["arriving", "completed"]

RECEIVER: Final = TransitionTable(
    "receiver of a transfer",
    "arriving",
    (
        Transition("arriving", "completed", "_answer", "every chunk has arrived"),
        Transition(
            "arriving",
            "completed",
            "recover_completed",
            "the process before this one had every chunk",
        ),
    ),
)


class Sender:
    """The sending end of one transfer.

    ``sizes``: bytes of each chunk. ``window_bytes``: rule 1. ``retry_ps``: first interval of rule
    3. ``silence_max_ps``: rule 5.
    """

    def __init__(
        self,
        transfer: int,
        sizes: Sequence[int],
        window_bytes: int,
        retry_ps: int,
        silence_max_ps: int = SILENCE_MAX_PS,
    ) -> None:
        assert window_bytes > 0, window_bytes
        assert 0 < retry_ps <= silence_max_ps, (retry_ps, silence_max_ps)
        self.transfer = transfer
        self.state: SenderState = "new"
        self.outstanding_bytes = 0
        """Sent and not acknowledged."""
        self._sizes = sizes
        self._window_bytes = window_bytes
        self._retry_ps = retry_ps
        self._silence_max_ps = silence_max_ps
        self._query = 0
        self._asked_at: OrderedDict[int, int] = OrderedDict()
        """When each query went out that is not answered yet."""
        self._arrived = SpanSet()
        # Not a plain dictionary: finding the oldest entry of that one walks over all the dead.
        self._flying: OrderedDict[int, int] = OrderedDict()
        """In the order of sending: each chunk under way and the newest query that preceded it."""
        self._fresh = 0
        """Chunks from here on were never sent."""
        self._delivered_bytes = 0
        """Of chunks that were sent and are acknowledged."""
        self._timed: tuple[int, int, int] | None = None
        """The chunk whose round trip is measured, when it was sent, and `_delivered_bytes` then. One at a time."""
        self._round_trip: RoundTrip | None = None
        self._shrunk_from = 0
        """Bytes that were outstanding when the window last became smaller."""
        self._patience_ps = 0
        """First interval of rule 3 as things stand; 0 before the first answer."""
        self._interval_ps = retry_ps
        self._ask_at = 0
        self._heard_at = 0

    @property
    def done(self) -> bool:
        """Whether the transfer ended, either way."""
        return self.state in ("delivered", "failed")

    def _enter(self, target: SenderState) -> None:
        self.state = SENDER.move(self.state, target)

    def start(self, now: int) -> list[SenderEffect]:
        """Begin; again after the connection was made anew, to ask at once instead of at a tick.

        The first time, the first window follows without waiting for an answer: the other end of a
        new transfer has nothing. After that only what an answer proves missing is sent.
        """
        if self.done:
            return []
        if self.state == "new":
            self._enter("sending")
        self._heard_at = now
        self._patience_ps, self._interval_ps = 0, self._retry_ps
        return [self._ask(now), *self._fill(now)]

    def ask(self, now: int) -> list[SenderEffect]:
        """The receiver may be reachable again after a cut: ask now, unless the last query is less than ``retry_ps``
        old, and begin with short intervals again. This is no answer: the time without one goes on."""
        if (
            self.done
            or self._query == 0
            or now - (self._ask_at - self._interval_ps) < self._retry_ps
        ):
            return []
        self._interval_ps = self._patience_ps or self._retry_ps
        return [self._ask(now)]

    def have(self, query: int, through: int, beyond: Spans, now: int) -> list[SenderEffect]:
        """The receiver says what it has: all chunks below ``through``, and ``beyond``, sorted."""
        if self.done:
            return []
        stop = max(through, beyond[-1][1]) if beyond else through
        if not (0 <= query <= self._query and through >= 0 and stop <= len(self._sizes)):
            return self.abort("the peer acknowledged what was never sent")
        self._heard_at = now
        self._time_answer(query, now)
        if self._acknowledge(through, beyond, now):
            self._interval_ps = self._patience_ps or self._retry_ps
            self._ask_at = now + self._interval_ps
        if self._arrived.total == len(self._sizes):
            self._enter("delivered")
            return [PayloadDelivered()]
        effects: list[SenderEffect] = []
        if beyond and query == self._query == self._flying.get(through):
            effects.append(self._ask(now))
        effects += self._send_lost(query, stop if len(beyond) >= BEYOND_MAX else len(self._sizes))
        return effects + self._fill(now)

    def tick(self, now: int) -> list[SenderEffect]:
        """Time passed: ask or give up if it is time for that; see `next_tick_ps`."""
        if self.done or self._query == 0:
            return []
        if now - self._heard_at >= self._silence_max_ps:
            return self.abort(f"no answer for {self._silence_max_ps // PS_PER_MS} ms")
        if now < self._ask_at:
            return []
        interval_max = BACKOFF_MAX * self._patience_ps or self._silence_max_ps
        self._interval_ps = min(2 * self._interval_ps, interval_max)
        return [self._ask(now)]

    def abort(self, reason: str) -> list[SenderEffect]:
        """Give up. The driver sends the receiver an `Abort`."""
        if self.done:
            return []
        self._enter("failed")
        return [TransferFailed(reason)]

    def resize(self, window_bytes: int) -> None:
        """Set another window, from the next answer on. A smaller one takes back nothing that was sent."""
        assert window_bytes > 0, window_bytes
        if window_bytes < self._window_bytes:
            self._shrunk_from = self.outstanding_bytes
        self._window_bytes = window_bytes

    def take_round_trip(self) -> RoundTrip | None:
        """What was measured since the last call, if anything was."""
        measured, self._round_trip = self._round_trip, None
        return measured

    @property
    def acknowledged(self) -> int:
        """Chunks that the receiver says it has."""
        return self._arrived.total

    @property
    def next_tick_ps(self) -> int:
        """When `tick` will next return an effect; earlier ticks do no harm."""
        return min(self._ask_at, self._heard_at + self._silence_max_ps)

    def check(self) -> None:
        """Assert the invariants; costs O(chunks in flight)."""
        self._arrived.check()
        flying, queries = list(self._flying), list(self._flying.values())
        assert self.outstanding_bytes == sum(self._sizes[index] for index in flying)
        limit_bytes = max(self._window_bytes, self._shrunk_from)
        assert self.outstanding_bytes <= limit_bytes or len(flying) == 1
        assert queries == sorted(queries), "queries grow in the order of sending"
        assert all(0 < query <= self._query for query in queries), queries
        for index in flying:
            assert index < self._fresh <= len(self._sizes), (index, self._fresh)
            assert (index, index + 1) not in self._arrived, index
        assert self._arrived.total <= len(self._sizes)

    def _ask(self, now: int) -> SendBegin:
        self._query += 1
        self._asked_at[self._query] = now
        self._ask_at = now + self._interval_ps
        return SendBegin(self._query)

    def _time_answer(self, query: int, now: int) -> None:
        asked_at = self._asked_at.get(query)
        if asked_at is None:
            return
        self._patience_ps = max(self._retry_ps, 2 * (now - asked_at))
        while self._asked_at and next(iter(self._asked_at)) <= query:
            self._asked_at.popitem(last=False)

    def _acknowledge(self, through: int, beyond: Spans, now: int) -> bool:
        """Record what arrived. Returns whether any of it is new."""
        before = self._arrived.total
        for start, stop in ((0, through), *beyond) if through else beyond:
            for left, right in self._arrived.gaps(start, stop):
                for index in range(left, min(right, self._fresh)):
                    if self._flying.pop(index, None) is not None:
                        self.outstanding_bytes -= self._sizes[index]
                        self._delivered_bytes += self._sizes[index]
            self._arrived.add(((start, stop),))
        if self._timed is not None and self._timed[0] not in self._flying:
            _, sent_at, delivered_bytes = self._timed
            self._timed = None
            self._round_trip = RoundTrip(self._delivered_bytes - delivered_bytes, now - sent_at)
        return self._arrived.total > before

    def _send_lost(self, query: int, known: int) -> list[SenderEffect]:
        """Rule 2: send again what was sent before ``query``, is below ``known`` and has not arrived.

        It keeps its place in the window.
        """
        lost = []
        for index, sent_after in self._flying.items():
            if sent_after >= query:
                break
            if index < known:
                lost.append(index)
        for index in lost:
            self._flying[index] = self._query
            self._flying.move_to_end(index)
            if self._timed is not None and self._timed[0] == index:
                self._timed = (
                    None  # Which of the two copies an answer is about is not known (Karn's rule).
                )
        return [SendChunk(index) for index in lost]

    def _fill(self, now: int) -> list[SenderEffect]:
        """Send as many fresh chunks as the window takes."""
        effects: list[SenderEffect] = []
        while True:
            index = self._arrived.missing_from(self._fresh)
            if index >= len(self._sizes):
                break
            size = self._sizes[index]
            if self._flying and self.outstanding_bytes + size > self._window_bytes:
                break
            self._flying[index] = self._query
            self.outstanding_bytes += size
            self._fresh = index + 1
            if self._timed is None:
                self._timed = (index, now, self._delivered_bytes)
            effects.append(SendChunk(index))
        return effects


class Receiver:
    """The receiving end of one transfer of so many ``chunks``. Knows no time: it only answers.

    ``arrived``: the chunks that an earlier process has received.
    """

    def __init__(
        self, transfer: int, chunks: int, acknowledge_chunks: int = 1, arrived: Iterable[Span] = ()
    ) -> None:
        assert chunks >= 0, chunks
        assert acknowledge_chunks > 0, acknowledge_chunks
        self.transfer = transfer
        self.chunks = chunks
        self.state: ReceiverState = "arriving"
        self._acknowledge_chunks = acknowledge_chunks
        self._unacknowledged = 0
        self._query = 0
        self._arrived = SpanSet(arrived)

    @property
    def completed(self) -> bool:
        """Whether it was said that every chunk has arrived."""
        return self.state == "completed"

    def _enter(self, target: ReceiverState) -> None:
        self.state = RECEIVER.move(self.state, target)

    def recover_completed(self) -> None:
        """The process before this one had every chunk, and said so."""
        self._enter("completed")

    def begin(self, query: int) -> list[ReceiverEffect]:
        """The sender asks what has arrived; also the first frame of a transfer."""
        self._query = max(self._query, query)
        return self._answer()

    def chunk(self, index: int, intact: bool) -> list[ReceiverEffect]:
        """A chunk came. One that is not ``intact``, or does not exist, counts as not arrived.

        The driver stages the bytes of an intact chunk before it calls; a repeated one holds the
        same bytes.
        """
        if not intact or not 0 <= index < self.chunks or self.has(index):
            return []
        self._arrived.add(((index, index + 1),))
        self._unacknowledged += 1
        last = self._arrived.total == self.chunks
        return self._answer() if last or self._unacknowledged >= self._acknowledge_chunks else []

    @property
    def arrived(self) -> int:
        """Chunks that have arrived."""
        return self._arrived.total

    def has(self, index: int) -> bool:
        """Whether a chunk has arrived: a driver need not stage it again."""
        return (index, index + 1) in self._arrived

    def check(self) -> None:
        """Assert the invariants; costs O(holes)."""
        self._arrived.check()
        assert self._arrived.total <= self.chunks
        assert all(stop <= self.chunks for _, stop in self._arrived)
        assert not self.completed or self._arrived.total == self.chunks
        assert 0 <= self._unacknowledged < self._acknowledge_chunks

    def _answer(self) -> list[ReceiverEffect]:
        self._unacknowledged = 0
        through = self._arrived.missing_from(0)
        spans = islice(self._arrived, 1 if through else 0, None)
        have = SendHave(self._query, through, tuple(islice(spans, BEYOND_MAX)))
        if self.completed or self._arrived.total < self.chunks:
            return [have]
        self._enter("completed")
        return [Completed(), have]
