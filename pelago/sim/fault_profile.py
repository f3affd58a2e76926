"""How likely each fault of a simulation is, and how fast its clocks run."""

from dataclasses import dataclass, field
from typing import Final

from pelago.core.listening import Listening
from pelago.core.machine import PS_PER_MS

LISTENS_PS: Final = 150 * PS_PER_MS
"""The longest time between two readings of a node's clock while it runs; all ticks are shorter."""
MOMENT_PS: Final = 10 * PS_PER_MS
"""How long a process that was frozen listens before its next tick."""


@dataclass(slots=True)
class FaultProfile:
    """Probabilities for each event or message, and durations in picoseconds. All zero: there are no faults."""

    control_lost: float = 0.0
    control_repeated: float = 0.0
    control_late: float = 0.0
    late_ps: int = 0
    """The longest delay of a late message."""
    payload_lost: float = 0.0
    """The payload does not arrive, and the sender receives `PeerLost`."""
    payload_unconfirmed: float = 0.0
    """The payload arrives, but the sender receives `PeerLost`."""
    payload_repeated: float = 0.0
    crash: float = 0.0
    """The node that handles an event crashes at one of its effects."""
    down_ps: int = 0
    """The longest time until a process is started again."""
    snapshot: float = 0.0
    """A durable server begins a snapshot after an event."""
    disk_ps: int = 0
    """The longest time until the records of a durable server are on its disk; 0: they are at once."""
    damage: float = 0.0
    """A bit of a journal is damaged, which is found when its server restarts."""
    unfit: float = 0.0
    """A payload is measured as not finite."""


@dataclass(slots=True)
class Clock:
    """A node's own clock: it runs at its own rate, may jump, and never goes back."""

    offset_ps: int = 0
    permille: int = 1000
    """How far it advances in a thousand picoseconds."""
    jumps: int = 0
    """How often it jumped."""
    freezes: int = 0
    """How often its process was frozen."""
    _since_ps: int = 0
    _newest_ps: int = 0
    _frozen_since_ps: int | None = None
    _frozen_ps: int = 0
    """How long its process was frozen in all."""
    _listening: Listening = field(default_factory=lambda: Listening(LISTENS_PS, MOMENT_PS))
    """The same object as in the real driver."""

    def read(self, now: int) -> int:
        """The time in picoseconds that its process reads."""
        shown = self.offset_ps + self._listening.read(
            (now - self._since_ps) * self.permille // 1000
        )
        self._newest_ps = max(self._newest_ps, shown)
        return self._newest_ps

    def has_listened(self, now: int) -> bool:
        """Whether its process has listened for `MOMENT_PS` since it was frozen."""
        return self._listening.has_listened((now - self._since_ps) * self.permille // 1000)

    @property
    def missed_ps(self) -> int:
        """How much of the pauses that its process noticed this clock has left out."""
        return self._listening.missed_ps

    def ran_ps(self, now: int) -> int:
        """How long its process really ran, at the rate of this clock; for checkers."""
        until = now if self._frozen_since_ps is None else self._frozen_since_ps
        return (until - self._since_ps - self._frozen_ps) * self.permille // 1000

    def freeze(self, now: int) -> None:
        """Its process is stopped."""
        self._frozen_since_ps = now
        self.freezes += 1

    def thaw(self, now: int) -> None:
        """Its process continues."""
        assert self._frozen_since_ps is not None
        self._frozen_ps += now - self._frozen_since_ps
        self._frozen_since_ps = None

    def jump(self, by_ps: int) -> None:
        """Advance it at once."""
        self.offset_ps += by_ps
        self.jumps += 1

    def set(self, now: int, shows_ps: int) -> None:
        """A process begins, or continues, with this time on its clock."""
        self.offset_ps, self._since_ps, self._newest_ps = shows_ps, now, shows_ps
        self._frozen_since_ps, self._frozen_ps = None, 0
        self._listening = Listening(LISTENS_PS, MOMENT_PS)

    def last(self, interval_ps: int) -> int:
        """How long an interval of this clock really takes."""
        return max(1, interval_ps * 1000 // self.permille)
