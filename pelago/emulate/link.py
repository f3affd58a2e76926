"""One direction of an emulated link between two regions: a rate, a latency, turns for its flows.

What a `Link` does to each byte: queue of its flow -> served at the rate, flows in turn -> on the
line for the latency -> arrived. The line holds about rate times latency; flows bound their queues.
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from time import monotonic
from typing import Final, Protocol, TypeAlias

QUEUE_MS: Final = 20
"""A flow may queue what the link serves in so long, so that a late timer loses no rate."""
QUEUE_BYTES_MIN: Final = 64 << 10
QUEUE_BYTES_MAX: Final = 16 << 20
QUANTUM_MS: Final = 1
"""A flow's turn: short, so that a heartbeat waits a millisecond and not a chunk."""
QUANTUM_BYTES_MIN: Final = 1500
"""One Ethernet frame."""
QUANTUM_BYTES_MAX: Final = 256 << 10
TIMER_S_MIN: Final = 0.001
"""uvloop's timers count in milliseconds and may fire early by half of one."""


class Mark(Enum):
    """The end or the reset of a connection, which travel over a link as bytes do."""

    END = "the sender will send no more"
    RESET = "the sender's connection is gone"


@dataclass(frozen=True, slots=True)
class Acknowledged:
    """What TCP says of bytes that arrived; it travels back over the other link."""

    size_bytes: int


Item: TypeAlias = bytes | memoryview | Mark | Acknowledged


class Flow(Protocol):
    """One direction of one connection, as its link sees it."""

    def wants_service(self) -> bool:
        """Whether something is queued that the receiver would take."""
        ...

    def take(self, bytes_max: int) -> Item:
        """The next item; only called if `wants_service`."""
        ...

    def arrive(self, item: Item) -> None:
        """An item reached the far end of the link."""
        ...


def size_bytes(item: Item) -> int:
    """Bytes that an item takes on the link; marks and acknowledgements take none."""
    return 0 if isinstance(item, Mark | Acknowledged) else len(item)


def _clamp(value: float, low: int, high: int) -> int:
    return int(min(max(value, low), high))


class Link:
    """One direction between two regions: a rate, and a latency that costs no throughput.

    In any stretch of time in which the link has work, it carries at most rate times that time, plus
    one quantum. Several proxies may share a link. Belongs to one event loop. ``flight_bytes_max``: bytes of one
    connection that may have left and not be acknowledged, as TCP's window limits them; None: no limit.
    Raises `ValueError` unless ``rate_bytes_per_second > 0`` and ``latency_ms >= 0``.
    """

    def __init__(
        self,
        rate_bytes_per_second: float,
        latency_ms: float,
        flight_bytes_max: int | None = None,
    ) -> None:
        if not latency_ms >= 0:
            raise ValueError(f"latency_ms = {latency_ms}: must not be negative")
        self.latency_ms = latency_ms
        self.flight_bytes_max = flight_bytes_max
        self.bytes_carried = 0
        """Bytes that have passed the rate limit since the link was made."""
        self._rate = _positive(rate_bytes_per_second)
        self._ready: deque[Flow] = deque()
        self._serving: tuple[Flow, Item] | None = None
        self._free_at_s = 0.0
        self._line: deque[tuple[float, Flow, Item]] = deque()
        self._service: asyncio.TimerHandle | None = None
        self._arrival: asyncio.TimerHandle | None = None

    @property
    def rate_bytes_per_second(self) -> float:
        """The rate as it is now."""
        return self._rate

    @property
    def bytes_on_the_line(self) -> int:
        """Bytes that passed the rate limit and have not arrived; about rate times latency."""
        return sum(size_bytes(item) for _, _, item in self._line)

    @property
    def queue_bytes_max(self) -> int:
        """How much one flow may queue before its socket is read no further."""
        return _clamp(self._rate * QUEUE_MS / 1000, QUEUE_BYTES_MIN, QUEUE_BYTES_MAX)

    def set_rate(self, rate_bytes_per_second: float) -> None:
        """Change the rate from now on, also for what is being served. Raises `ValueError`."""
        rate, now_s = _positive(rate_bytes_per_second), monotonic()
        if self._free_at_s > now_s:
            self._free_at_s = now_s + (self._free_at_s - now_s) * self._rate / rate
        self._rate = rate
        self._serve()

    def request(self, flow: Flow) -> None:
        """A flow may want service now; harmless if it does not, or has asked already."""
        if flow.wants_service() and flow not in self._ready:
            self._ready.append(flow)
            if self._serving is None:
                self._serve()

    def send_past_the_queue(self, flow: Flow, mark: Mark | Acknowledged) -> None:
        """Put a mark or an acknowledgement on the line behind what is there, without waiting for service."""
        self._join_line(monotonic(), flow, mark)
        self._arrive()

    def forget(self, flow: Flow) -> None:
        """Drop everything of a flow that is gone."""
        with contextlib.suppress(ValueError):
            self._ready.remove(flow)
        self._line = deque(entry for entry in self._line if entry[1] is not flow)
        if self._serving is not None and self._serving[0] is flow:
            # The time that its quantum takes is spent all the same: it was on the wire.
            self._serving = None
        self._serve()

    def _serve(self) -> None:
        """Finish and begin quanta up to now, flows in turn; then wait for the one in service."""
        now_s = monotonic()
        if self._serving is None:
            self._free_at_s = max(self._free_at_s, now_s)
        while self._serving is None or self._free_at_s <= now_s:
            if self._serving is not None:
                flow, item = self._serving
                self.bytes_carried += size_bytes(item)
                self._join_line(self._free_at_s, flow, item)
                self._serving = None
            if not self._ready:
                break
            flow = self._ready.popleft()
            if not flow.wants_service():
                continue  # While it stood here, its receiver stopped reading or its sender left.
            quantum = self._rate * QUANTUM_MS / 1000
            item = flow.take(_clamp(quantum, QUANTUM_BYTES_MIN, QUANTUM_BYTES_MAX))
            self._serving = (flow, item)
            # Counted from the end of the last quantum, not from now: a late timer is made good.
            self._free_at_s += size_bytes(item) / self._rate
            if flow.wants_service():
                self._ready.append(flow)
        if self._service is not None:
            self._service.cancel()
            self._service = None
        if self._serving is not None:
            self._service = _call_at(self._free_at_s, self._serve)
        self._arrive()

    def _join_line(self, served_s: float, flow: Flow, item: Item) -> None:
        arrives_s = served_s + self.latency_ms / 1000
        if self._line:
            arrives_s = max(arrives_s, self._line[-1][0])
        self._line.append((arrives_s, flow, item))

    def _arrive(self) -> None:
        now_s = monotonic()
        while self._line and self._line[0][0] <= now_s:
            _, flow, item = self._line.popleft()
            flow.arrive(item)
        if self._arrival is not None:
            self._arrival.cancel()
            self._arrival = None
        if self._line:
            self._arrival = _call_at(self._line[0][0], self._arrive)


def _positive(rate_bytes_per_second: float) -> float:
    if not rate_bytes_per_second > 0:
        raise ValueError(f"rate_bytes_per_second = {rate_bytes_per_second}: must be positive")
    return rate_bytes_per_second


def _call_at(when_s: float, callback: Callable[[], None]) -> asyncio.TimerHandle:
    return asyncio.get_running_loop().call_later(max(when_s - monotonic(), TIMER_S_MIN), callback)
