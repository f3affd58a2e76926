"""How often what goes wrong in a simulation, and how its clocks go."""

from dataclasses import dataclass, field
from typing import Final

from pelago.core.listening import Listening
from pelago.core.machine import PS_PER_MS

LISTENS_PS: Final = 150 * PS_PER_MS
"""A node's own time between two looks at its clock, at most; all have a shorter tick."""
MOMENT_PS: Final = 10 * PS_PER_MS
"""For how long a process that was frozen listens before its next tick."""


@dataclass(slots=True)
class FaultProfile:
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
    jumps: int = 0
    """How often it jumped."""
    freezes: int = 0
    """How often its process was frozen."""
    _since_ps: int = 0
    _newest_ps: int = 0
    _frozen_since_ps: int | None = None
    _frozen_ps: int = 0
    """For how long its process was, in all."""
    _listening: Listening = field(default_factory=lambda: Listening(LISTENS_PS, MOMENT_PS))
    """As the real driver has it."""

    def read(self, now: int) -> int:
        """What it shows to its process."""
        shown = self.offset_ps + self._listening.read(
            (now - self._since_ps) * self.permille // 1000
        )
        self._newest_ps = max(self._newest_ps, shown)
        return self._newest_ps

    def has_listened(self, now: int) -> bool:
        """Whether its process has had a moment to listen since it was frozen."""
        return self._listening.has_listened((now - self._since_ps) * self.permille // 1000)

    @property
    def missed_ps(self) -> int:
        """How much it has left out of pauses that its process noticed."""
        return self._listening.missed_ps

    def ran_ps(self, now: int) -> int:
        """For how long its process really ran, by the rate of this clock: what a checker goes by."""
        until = now if self._frozen_since_ps is None else self._frozen_since_ps
        return (until - self._since_ps - self._frozen_ps) * self.permille // 1000

    def freeze(self, now: int) -> None:
        """Its process is stopped."""
        self._frozen_since_ps = now
        self.freezes += 1

    def thaw(self, now: int) -> None:
        """Its process goes on."""
        assert self._frozen_since_ps is not None
        self._frozen_ps += now - self._frozen_since_ps
        self._frozen_since_ps = None

    def jump(self, by_ps: int) -> None:
        """It shows so much more at once."""
        self.offset_ps += by_ps
        self.jumps += 1

    def set(self, now: int, shows_ps: int) -> None:
        """A process begins, or goes on, with this on its clock."""
        self.offset_ps, self._since_ps, self._newest_ps = shows_ps, now, shows_ps
        self._frozen_since_ps, self._frozen_ps = None, 0
        self._listening = Listening(LISTENS_PS, MOMENT_PS)

    def last(self, interval_ps: int) -> int:
        """How long an interval of this clock really takes."""
        return max(1, interval_ps * 1000 // self.permille)
