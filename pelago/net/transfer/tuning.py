"""Windows and numbers of connections, chosen by what the payloads of a node measure.

The rules are pure: `pelago.protocol.window` and `pelago.protocol.climber`. Here is what they need of a node: who is
measured, a limit for all windows together, connections that are opened, and a line in the log for each change.
"""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from pelago.core.names import Peer
from pelago.net.context import NodeContext
from pelago.net.limits import WINDOW_BYTES_MIN
from pelago.net.transfer.peer_sockets import PeerSockets
from pelago.protocol.climber import StripeClimber
from pelago.protocol.transfer import Sender
from pelago.protocol.window import PS_PER_S, WindowController
from pelago.runlog.events import StripesChosen, WindowChosen

TUNED_BYTES_MIN: Final = 16 << 20
"""Smaller payloads say nothing about how many connections are worth it."""
REMEMBERED_MAX: Final = 1024
"""Stripes to peers whose windows are remembered, and servers whose numbers of connections are."""
TOLD_RATIO: Final = 2.0
"""A window is logged once more when it has changed so much."""

Direction: TypeAlias = Literal["sent", "received"]


@dataclass(slots=True)
class _Measured:
    controller: WindowController
    told_bytes: int = 0


class Windows:
    """The windows of the payloads that leave a node."""

    def __init__(self, context: NodeContext) -> None:
        self._limits = context.limits
        self._telemetry = context.telemetry
        self._measured: OrderedDict[tuple[Peer, int], _Measured] = OrderedDict()

    def begin(self, peer: Peer, stripe: int, stripes: int, transfers: int) -> int:
        """A payload begins on so many stripes, one of so many transfers of the node. Returns the window in bytes of
        this stripe."""
        limits = self._limits
        start = max(1, limits.window_bytes // stripes)
        if not limits.window_adapts:
            return start
        measured = self._measured.get((peer, stripe))
        if measured is None:
            floor = min(start, max(1, WINDOW_BYTES_MIN // stripes))
            measured = self._measured[peer, stripe] = _Measured(WindowController(start, floor))
        self._measured.move_to_end((peer, stripe))
        if len(self._measured) > REMEMBERED_MAX:
            self._measured.popitem(last=False)
        measured.controller.begin()
        return min(measured.controller.window_bytes, self._share(stripes, transfers))

    def observe(
        self, peer: Peer, stripe: int, sender: Sender, stripes: int, transfers: int
    ) -> None:
        """A sender may have measured a round trip: set its window."""
        found = sender.take_round_trip()
        measured = self._measured.get((peer, stripe))
        if found is None or measured is None or not self._limits.window_adapts:
            return
        controller = measured.controller
        window = min(controller.observe(found), self._share(stripes, transfers))
        sender.resize(window)
        if stripe == 0 and not (
            measured.told_bytes / TOLD_RATIO < window < measured.told_bytes * TOLD_RATIO
        ):
            measured.told_bytes = window
            self._telemetry.event(
                WindowChosen(
                    peer,
                    window,
                    round(controller.bytes_per_s),
                    round(1e3 * controller.round_trip_ps / PS_PER_S, 3),
                )
            )

    def _share(self, stripes: int, transfers: int) -> int:
        """The most bytes of one stripe, so that all windows together stay within the node's limit."""
        return max(1, self._limits.windows_bytes_max // (stripes * max(1, transfers)))


class StripeTuner:
    """The numbers of bulk connections to the servers of a node. Its clients choose theirs themselves."""

    def __init__(self, context: NodeContext, sockets: PeerSockets) -> None:
        self._adapts = context.limits.stripes_adapt
        self._telemetry = context.telemetry
        self._sockets = sockets
        self._climbers: dict[Peer, dict[Direction, StripeClimber]] = {}

    def observe(
        self, peer: Peer, direction: Direction, stripes: int, size_bytes: int, took_ps: int
    ) -> None:
        """A payload came through to a peer or from it, on so many stripes and in so long."""
        if not self._adapts or size_bytes < TUNED_BYTES_MIN or not self._sockets.dials(peer):
            return
        climbers = self._climbers.setdefault(
            peer, {"sent": StripeClimber(), "received": StripeClimber()}
        )
        rate = size_bytes * PS_PER_S / max(1, took_ps)
        why = climbers[direction].observe(stripes, rate)
        if not why:
            return
        wanted = max(each.stripes for each in climbers.values())
        self._sockets.widen(peer, wanted)
        self._telemetry.event(StripesChosen(peer, wanted, direction, why))
