"""Counts of rejected updates in a row, by client, and what follows from them.

When training diverges, updates are not finite, or too large, or a round fails altogether. Each is rejected
and its samples are leased again, which could go on without end. So a server counts the rejections of each
client since its last accepted update, and gives up at a limit.
"""

from typing import Literal, TypeAlias

from pelago.core.durable import durable
from pelago.core.tensor_effects import Measured

Client: TypeAlias = int | str
"""A group at its LPS, a region at the GPS. The next process of the same client continues its count."""
Verdict: TypeAlias = Literal["go on", "it", "all"]


@durable(settings=("_limit",))
class Refusals:
    """Rejections in a row, by client; ``limit`` of them are too many."""

    def __init__(self, limit: int) -> None:
        self.total = 0
        """Rejections of all clients so far."""
        self.in_a_row: dict[Client, int] = {}
        """Rejections since the client's last accepted update; clients without any are not in it."""
        self._limit = limit

    def accepted(self, client: Client) -> None:
        """An update of a client was accepted."""
        self.in_a_row.pop(client, None)

    def refused(self, client: Client, present: list[Client]) -> Verdict:
        """An update of a client was rejected. ``present``: all clients that are there, this one included.

        "go on": the client is below the limit. "it": the client has reached it, but another client's last
        update was accepted, or is still to come. "all": every client's last update was rejected.
        """
        self.total += 1
        self.in_a_row[client] = self.in_a_row.get(client, 0) + 1
        return self.verdict(client, present)

    def given_up(self, client: Client, present: list[Client]) -> Verdict:
        """A client gave up by itself. Returns the verdict, as `refused` does."""
        self.in_a_row[client] = max(self._limit, self.in_a_row.get(client, 0))
        return self.verdict(client, present)

    def verdict(self, client: Client, present: list[Client]) -> Verdict:
        """The verdict on a client, see `refused`."""
        if self.in_a_row.get(client, 0) < self._limit:
            return "go on"
        return "all" if all(each in self.in_a_row for each in present) else "it"

    def clear(self) -> None:
        """Forget all counts: training starts from another model."""
        self.in_a_row.clear()


def update_fault(event: Measured, norm_max: float, key: str) -> str:
    """Why an update must be rejected; empty if it need not be. ``key``: the run file's key of ``norm_max``."""
    if not event.finite:
        return "not finite"
    return f"norm {event.norm:.3g} above {key} = {norm_max:g}" if event.norm > norm_max else ""


def hopeless(client: str, in_a_row: int, why: str, max_lr: float, norm_max: float, key: str) -> str:
    """The message to the user when a client has reached the limit."""
    return (
        f"no update of {client} can be applied: the last {in_a_row} in a row failed, the newest one since"
        f" {why}; worker.max_lr = {max_lr:g}, lps.lr or gps.lr may be too high, {key} = {norm_max:g} too low, or"
        " the model overflows in the workers' dtype (bfloat16 on CUDA)"
    )
