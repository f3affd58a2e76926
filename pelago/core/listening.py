"""A clock that stops while its process does not run.

When a process was paused (stopped, moved to another host, swapped out, or busy for too long), its timers are
due before it has read the messages that arrived in the meantime. By the wall clock all its peers were silent
for that time, although their heartbeats are waiting in the sockets. So the driver reads this clock at least
every ``gap_ps_max``, and a longer gap between two readings counts as that much only. After such a gap the
driver first reads its sockets for a moment, and then tells its machine that time has passed.

Pure: the time is an argument. All times are integer picoseconds.
"""


class Listening:
    """Time in which the process ran: the clock was read at least every ``gap_ps_max``.

    ``moment_ps``: how long sockets are read after a gap before silence counts again.
    """

    def __init__(self, gap_ps_max: int, moment_ps: int) -> None:
        assert gap_ps_max > 0, gap_ps_max
        self.gap_ps_max = gap_ps_max
        self.moment_ps = moment_ps
        self.missed_ps = 0
        """Time that did not count so far."""
        self._seen_ps: int | None = None
        self._gap_ended_ps: int | None = None

    def read(self, time_ps: int) -> int:
        """The clock at a time, which may not go back."""
        if self._seen_ps is not None and time_ps - self._seen_ps > self.gap_ps_max:
            self.missed_ps += time_ps - self._seen_ps - self.gap_ps_max
            self._gap_ended_ps = time_ps
        self._seen_ps = time_ps
        return time_ps - self.missed_ps

    def has_listened(self, time_ps: int) -> bool:
        """Whether the sockets have been read for ``moment_ps`` since the last gap."""
        self.read(time_ps)
        return self._gap_ended_ps is None or time_ps - self._gap_ended_ps >= self.moment_ps
