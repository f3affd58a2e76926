"""How long a payload travels under the virtual clock. A place is the index of a region."""

from collections.abc import Sequence
from typing import Protocol

from pelago.core.machine import PS_PER_MS

Matrix = Sequence[Sequence[float]]
"""A row per place it starts from, a column per place where it ends."""


class Links(Protocol):
    """The network between the places."""

    def transfer_ps(self, sender: int, receiver: int) -> int:
        """Picoseconds from the send of a payload until all of it has arrived."""
        ...


class PaperLinks:
    """The links of the HALoS paper: every payload is one model and pays for its bytes alone.

    Time = latency + payload_bytes * 8 / bandwidth, rounded to a picosecond. Links are full duplex
    and nobody shares one: any number of transfers run at full rate beside each other. Control
    messages cost nothing, not even the latency. An empty ``bandwidth_gbps`` means no limit, an
    empty ``latency_ms`` none (the paper's case).
    """

    def __init__(
        self, payload_bytes: int, places: int, bandwidth_gbps: Matrix = (), latency_ms: Matrix = ()
    ) -> None:
        def time_ps(sender: int, receiver: int) -> int:
            latency = latency_ms[sender][receiver] * PS_PER_MS if latency_ms else 0.0
            # bits / (Gbit/s) are nanoseconds.
            nanoseconds = (
                payload_bytes * 8 / bandwidth_gbps[sender][receiver] if bandwidth_gbps else 0.0
            )
            return round(latency + nanoseconds * 1_000)

        self._transfer_ps = [[time_ps(a, b) for b in range(places)] for a in range(places)]

    def transfer_ps(self, sender: int, receiver: int) -> int:
        """Picoseconds from the send of a payload until all of it has arrived."""
        return self._transfer_ps[sender][receiver]
