"""What all faults of a simulation are drawn from, and how many happened."""

from random import Random

from pelago.sim.fault_profile import FaultProfile


class FaultDraws:
    """``profile``: the chances; another one takes its place when the faulty phase is over."""

    def __init__(self, random: Random, profile: FaultProfile) -> None:
        self.random = random
        self.profile = profile
        self.counts: dict[str, int] = {}
        """How many faults of each kind happened."""

    def happens(self, chance: float) -> bool:
        """Whether something of this chance happens. Draws nothing where the chance is 0."""
        return chance > 0.0 and self.random.random() < chance

    def count(self, kind: str) -> None:
        """A fault has happened."""
        self.counts[kind] = self.counts.get(kind, 0) + 1

    def down_ps(self) -> int:
        """Picoseconds until a process is started again, or a transfer to it is tried again."""
        return self.random.randint(1, max(1, self.profile.down_ps))
