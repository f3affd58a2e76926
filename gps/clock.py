"""The time of a run as its GPS counts it: from the first lease, and only while there is a GPS."""

from pelago.core.durable import durable


@durable()
class RunClock:
    """All times are integer picoseconds of the driver's clock, which stands still while there is no GPS."""

    def __init__(self) -> None:
        self.now = 0
        """Time of the event that is being handled."""
        self.started_at: int | None = None
        """When the first samples were lent: the origin of all times in the result."""
        self.reached_at = 0
        """When the newest version of the global model was reached."""
        self.ended_at: int | None = None

    def lend(self) -> None:
        """Samples are lent; the first time, the run starts."""
        if self.started_at is None:
            self.started_at = self.reached_at = self.now

    def reopen(self) -> None:
        """A run that ended goes on: the time since its end does not count."""
        if self.started_at is not None and self.ended_at is not None:
            self.started_at += self.now - self.ended_at
        self.ended_at = None

    def elapsed_ps(self) -> int:
        """Time since the first lease, until the end of the run once that came; 0 before the first lease."""
        if self.started_at is None:
            return 0
        return (self.now if self.ended_at is None else self.ended_at) - self.started_at
