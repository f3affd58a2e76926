"""How long a payload travels under the virtual clock. A place is the index of a region, or a place
beside the regions that costs nothing to reach (bandwidth infinite).
"""

from collections.abc import Sequence
from heapq import heappop, heappush
from typing import Any

from pelago.core.machine import PS_PER_MS

Matrix = Sequence[Sequence[float]]
"""A row per place it starts from, a column per place where it ends."""


class Links:
    """The network between the places. Every payload is one model.

    Alone on its link a payload takes payload_bytes * 8 / bandwidth, rounded to a picosecond, and then
    the latency. Links are full duplex. Without ``share`` any number of transfers run at full rate
    beside each other, as in the HALoS paper; with it, those that are on a link between two different
    places at the same time get equal shares of it (inside a place every node has a port of its own).
    Control messages cost no bandwidth, and the latency only if ``control_pays``: for machines that ask
    ahead of need, as the daemons do. Machines that ask only when they need something, as in the paper's
    simulator, would wait needlessly. An empty ``bandwidth_gbps`` means no limit, an empty
    ``latency_ms`` none (the paper's case).
    """

    def __init__(
        self,
        payload_bytes: int,
        places: int,
        bandwidth_gbps: Matrix = (),
        latency_ms: Matrix = (),
        share: bool = False,
        control_pays: bool = True,
    ) -> None:
        def work_ps(sender: int, receiver: int) -> int:
            # bits / (Gbit/s) are nanoseconds.
            bandwidth = bandwidth_gbps[sender][receiver] if bandwidth_gbps else float("inf")
            return round(payload_bytes * 8 / bandwidth * 1_000)

        def wait_ps(sender: int, receiver: int) -> int:
            return round(latency_ms[sender][receiver] * PS_PER_MS) if latency_ms else 0

        self.payload_bytes = payload_bytes
        """Bytes of every payload as it travels."""
        self.work_ps = [[work_ps(a, b) for b in range(places)] for a in range(places)]
        """Picoseconds that a payload occupies a link if it is alone there."""
        self.latency_ps = [[wait_ps(a, b) for b in range(places)] for a in range(places)]
        """Picoseconds from the last bit sent to the last bit received."""
        self.control_pays = control_pays
        self.shared: list[list[SharedLink | None]] = [
            [
                SharedLink() if share and a != b and self.work_ps[a][b] else None
                for b in range(places)
            ]
            for a in range(places)
        ]
        """The links whose transfers share them; None: every transfer has the whole link."""


class SharedLink:
    """A link that gives equal shares to all transfers on it (processor sharing), in integers.

    ``served`` is how much work, in picoseconds of the whole link, each transfer that was there all the
    time has been given; a transfer leaves when it has grown by its own work. Time that does not
    divide by the number of transfers is kept for the next calculation, so nothing is lost to rounding.
    """

    def __init__(self) -> None:
        self._served = 0
        self._reckoned_ps = 0
        self._count = 0
        self._waiting: list[tuple[int, int, Any]] = []
        self.generation = 0
        """Grows whenever what is due next may have changed."""

    def add(self, item: Any, work_ps: int, now: int) -> None:
        """A transfer begins."""
        self._reckon(now)
        if not self._waiting:
            self._reckoned_ps = now
        self._count += 1
        heappush(self._waiting, (self._served + work_ps, self._count, item))
        self.generation += 1

    def due_ps(self) -> int | None:
        """When the next transfer ends, if no other begins before; None: nothing is on the link."""
        if not self._waiting:
            return None
        return self._reckoned_ps + (self._waiting[0][0] - self._served) * len(self._waiting)

    def take(self, now: int) -> list[Any]:
        """The transfers that have ended, in the order in which they did."""
        self._reckon(now)
        done = []
        while self._waiting and self._waiting[0][0] <= self._served:
            done.append(heappop(self._waiting)[2])
        self.generation += 1
        return done

    def _reckon(self, now: int) -> None:
        if self._waiting:
            given, rest = divmod(now - self._reckoned_ps, len(self._waiting))
            self._served += given
            self._reckoned_ps = now - rest
