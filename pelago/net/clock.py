"""The clock of a node's machine, and the timer that sends it `Tick`."""

import asyncio
import random
import time
from collections.abc import Callable
from typing import Final

from pelago.core.listening import Listening
from pelago.core.machine import PS_PER_S, Tick

HOUSEKEEPING_S: Final = 0.25
"""How often a node looks at its clock at least, and at its connections and transfers."""
LISTEN_FIRST_S: Final = 0.1
"""How long after a pause of the process messages are handled before the machine's next tick."""
LISTENING_TURNS: Final = 2
"""If the event loop comes to its timers later than so many of their intervals, it did not listen in between."""


class NodeClock:
    """Picoseconds in which this process listened (`pelago.core.listening`)."""

    def __init__(self) -> None:
        self._listening = Listening(
            round(LISTENING_TURNS * HOUSEKEEPING_S * PS_PER_S), round(LISTEN_FIRST_S * PS_PER_S)
        )
        # A random origin, so that nothing can take this clock for that of another machine, or for wall-clock
        # time. A small one, and not that of the host's clock, which may have run for a year: a journal has
        # 64 bits for the time.
        self._origin_ps = random.SystemRandom().getrandbits(40) * 1000 - time.monotonic_ns() * 1000
        self._reported_ps = 0
        """How much of the missed time `missed_s` has returned."""

    def read(self) -> int:
        """The time, in picoseconds."""
        return self._listening.read(time.monotonic_ns() * 1000) + self._origin_ps

    def go_on_from(self, now: int) -> None:
        """Show ``now``, in picoseconds: the clock of a recovered machine stood still while it was not running."""
        self._origin_ps = now - (self.read() - self._origin_ps)

    def expect_every(self, interval_ps: int) -> None:
        """Declare that the clock will be read at least so often."""
        gap_ps_max = LISTENING_TURNS * interval_ps
        self._listening.gap_ps_max = min(self._listening.gap_ps_max, gap_ps_max)

    def has_listened(self) -> bool:
        """Whether `LISTEN_FIRST_S` have passed since the last pause of the process."""
        return self._listening.has_listened(time.monotonic_ns() * 1000)

    def missed_s(self) -> float:
        """Seconds that the process missed since the last call."""
        self.read()
        missed_ps = self._listening.missed_ps - self._reported_ps
        self._reported_ps = self._listening.missed_ps
        return missed_ps / PS_PER_S


class TickTimer:
    """The periodic timer of a machine; ``post`` takes its `Tick`."""

    def __init__(self, clock: NodeClock, post: Callable[[Tick], None]) -> None:
        self._clock = clock
        self._post = post
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._stopped = False

    def set(self, interval_ps: int) -> None:
        """Tick every so many picoseconds from now on, in place of the interval before."""
        assert interval_ps > 0
        self._clock.expect_every(interval_ps)
        self._schedule(interval_ps / PS_PER_S)

    def stop(self) -> None:
        """Tick no more."""
        self._stopped = True
        if self._timer is not None:
            self._timer.cancel()

    def _schedule(self, interval_s: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(interval_s, self._on_time, interval_s)

    def _on_time(self, interval_s: float) -> None:
        self._schedule(interval_s)
        if self._clock.has_listened():
            self._post(Tick())
        else:
            # Put off once only: even if the loop is always late, its machine must see that time passes.
            self._loop.call_later(LISTEN_FIRST_S, self._on_late)

    def _on_late(self) -> None:
        if not self._stopped:
            self._post(Tick())
