"""How often what goes wrong in a simulation, and how its clocks go."""

from dataclasses import dataclass


@dataclass(slots=True)
class Weather:
    """Chances of each event or message, and how long things take, in picoseconds. All zero: calm."""

    control_lost: float = 0.0
    control_repeated: float = 0.0
    control_late: float = 0.0
    late_ps: int = 0
    """At most so much later than usual."""
    payload_lost: float = 0.0
    """The sender hears `PeerLost`."""
    payload_unconfirmed: float = 0.0
    """It arrives, but the sender hears `PeerLost`."""
    payload_repeated: float = 0.0
    crash: float = 0.0
    """Of the node that handles an event, at one of its effects."""
    down_ps: int = 0
    """At most so long until somebody starts it again."""
    snapshot: float = 0.0
    """After an event of a durable server."""
    disk_ps: int = 0
    """At most so long until what a durable server wrote is durable; 0: at once."""
    damage: float = 0.0
    """Of a byte of a journal, found when its server starts again."""
    unfit: float = 0.0
    """Of a payload, to be measured as not finite."""


@dataclass(slots=True)
class Clock:
    """A node's own clock: it goes at a rate of its own, jumps, and never goes back."""

    offset_ps: int = 0
    permille: int = 1000
    """How much of it passes in a thousand picoseconds."""
    _since_ps: int = 0
    _newest_ps: int = 0

    def read(self, now: int) -> int:
        """What it shows."""
        shown = self.offset_ps + (now - self._since_ps) * self.permille // 1000
        self._newest_ps = max(self._newest_ps, shown)
        return self._newest_ps

    def jump(self, by_ps: int) -> None:
        """It shows so much more at once."""
        self.offset_ps += by_ps

    def set(self, now: int, shows_ps: int) -> None:
        """A process begins, or goes on, with this on its clock."""
        self.offset_ps, self._since_ps, self._newest_ps = shows_ps, now, shows_ps

    def last(self, interval_ps: int) -> int:
        """How long an interval of this clock really takes."""
        return max(1, interval_ps * 1000 // self.permille)
