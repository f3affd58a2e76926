"""How many bytes of a stripe may be on their way: what its connection carries in a round trip, and room to grow.

Pure. The model is that of BBR (Cardwell et al., "BBR: Congestion-Based Congestion Control", ACM Queue 14(5), 2016): a
path is described by the highest rate at which it delivered and the shortest round trip that it showed. Their product
is what it holds; more only waits in queues. Congestion itself is TCP's business.

The window is `GAIN` times that product. So while the window is what limits the rate, each round trip doubles it; and
once the line is full it stays. A round trip is shortest when a payload begins, since nothing is queued then.
"""

from collections import deque
from dataclasses import dataclass
from typing import Final

from pelago.core.machine import PS_PER_MS

GAIN: Final = 2
REMEMBERED: Final = 8
"""Rates, and payloads whose shortest round trip counts: a path that has changed is forgotten after so many."""
PAUSE_PS: Final = 100 * PS_PER_MS
"""Both processes may be busy with other things for so long; the window covers it, up to where it started."""
PS_PER_S: Final = 1_000 * PS_PER_MS


@dataclass(frozen=True, slots=True)
class RoundTrip:
    """What was measured between the sending of a chunk and its acknowledgement."""

    delivered_bytes: int
    """Acknowledged in this time, the chunk included."""
    took_ps: int

    @property
    def bytes_per_s(self) -> float:
        """The rate of delivery."""
        return self.delivered_bytes * PS_PER_S / max(1, self.took_ps)


class WindowController:
    """The window of one stripe to one peer, remembered from payload to payload.

    ``start_bytes``: the window before anything was measured. ``floor_bytes``: it is never smaller. Not yet limited
    by the memory of the node: that is for the driver, which knows all transfers.
    """

    def __init__(self, start_bytes: int, floor_bytes: int) -> None:
        assert 0 < floor_bytes <= start_bytes, (floor_bytes, start_bytes)
        self.window_bytes = start_bytes
        self._start_bytes = start_bytes
        self._floor_bytes = floor_bytes
        self._rates: deque[float] = deque(maxlen=REMEMBERED)
        self._shortest_ps: deque[int] = deque(maxlen=REMEMBERED)
        """Of each payload."""
        self._is_new = True

    @property
    def bytes_per_s(self) -> float:
        """The highest rate that is remembered; 0 before the first."""
        return max(self._rates, default=0.0)

    @property
    def round_trip_ps(self) -> int:
        """The shortest round trip that is remembered; 0 before the first."""
        return min(self._shortest_ps, default=0)

    def begin(self) -> None:
        """A payload begins: nothing is on its way."""
        self._is_new = True

    def observe(self, measured: RoundTrip) -> int:
        """Take a measurement. Returns the window in bytes."""
        if self._is_new:
            self._is_new = False
            self._shortest_ps.append(measured.took_ps)
        else:
            self._shortest_ps[-1] = min(self._shortest_ps[-1], measured.took_ps)
        self._rates.append(measured.bytes_per_s)
        rate = self.bytes_per_s / PS_PER_S
        pause = min(self._start_bytes, int(rate * PAUSE_PS))
        self.window_bytes = max(self._floor_bytes, pause, int(GAIN * rate * self.round_trip_ps))
        return self.window_bytes
