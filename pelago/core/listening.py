"""A clock that stands still while its owner does not listen.

A node that did not run for a while (stopped, moved to another host, swapped out, or busy with one thing
for too long) finds its timers due before it has looked at what came in the meantime. By the clock on the
wall everybody was silent for that long; but what nobody listened to is no silence. So a driver looks at
its clock at least every so often, and of a longer gap between two looks only that much counts; and after
such a gap it listens for a moment before its machine hears that time has passed.

Pure: what the time is, is an argument. All are integer picoseconds.
"""


class Listening:
    """Time in which somebody looked at the clock at least every ``gap_ps_max``.

    ``moment_ps``: for how long it listens after a gap before anything is judged.
    """

    def __init__(self, gap_ps_max: int, moment_ps: int) -> None:
        assert gap_ps_max > 0, gap_ps_max
        self.gap_ps_max = gap_ps_max
        self.moment_ps = moment_ps
        self.missed_ps = 0
        """What did not count so far."""
        self._seen_ps: int | None = None
        self._gap_ended_ps: int | None = None

    def read(self, time_ps: int) -> int:
        """What the clock shows at a time that does not go back."""
        if self._seen_ps is not None and time_ps - self._seen_ps > self.gap_ps_max:
            self.missed_ps += time_ps - self._seen_ps - self.gap_ps_max
            self._gap_ended_ps = time_ps
        self._seen_ps = time_ps
        return time_ps - self.missed_ps

    def has_listened(self, time_ps: int) -> bool:
        """Whether what came during the last gap has had its moment to be heard."""
        self.read(time_ps)
        return self._gap_ended_ps is None or time_ps - self._gap_ended_ps >= self.moment_ps
