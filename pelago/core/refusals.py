"""Who has nothing accepted any more, and whether that is one of them or everybody.

A model that has gone astray gives updates that are not finite, or too large, or none at all. Each is
rejected, its samples are lent again, and so it would go on for ever. A server counts for each of its
clients how many came to nothing since the last one that was accepted, and gives up at a limit.
"""

from typing import Literal, TypeAlias

from pelago.core.durable import durable
from pelago.core.tensor_effects import Measured

Client: TypeAlias = int | str
"""A group of a region at its LPS, a region at the GPS: a process that comes back counts on."""
Verdict: TypeAlias = Literal["go on", "it", "all"]


@durable(settings=("_limit",))
class Refusals:
    """Counts in a row, by client."""

    def __init__(self, limit: int) -> None:
        self.total = 0
        """Of all clients, so far."""
        self.in_a_row: dict[Client, int] = {}
        """Since the last one of this client that was accepted; clients without any are not here."""
        self._limit = limit

    def accepted(self, client: Client) -> None:
        """Something of a client's was good."""
        self.in_a_row.pop(client, None)

    def refused(self, client: Client, present: list[Client]) -> Verdict:
        """Something of a client's was no good. ``present``: those who might do better, itself included.

        "it": it had enough of them, but there are others, whose last one was good or who have none yet.
        "all": there is nobody else of whom that can be said.
        """
        self.total += 1
        self.in_a_row[client] = self.in_a_row.get(client, 0) + 1
        return self.verdict(client, present)

    def given_up(self, client: Client, present: list[Client]) -> Verdict:
        """A client found out for itself."""
        self.in_a_row[client] = max(self._limit, self.in_a_row.get(client, 0))
        return self.verdict(client, present)

    def verdict(self, client: Client, present: list[Client]) -> Verdict:
        """As `refused` has it."""
        if self.in_a_row.get(client, 0) < self._limit:
            return "go on"
        return "all" if all(each in self.in_a_row for each in present) else "it"

    def clear(self) -> None:
        """What comes now is of other circumstances."""
        self.in_a_row.clear()


def update_fault(event: Measured, norm_max: float, key: str) -> str:
    """Why an update could spoil the model, in words; empty: it could not. ``key``: of ``norm_max``."""
    if not event.finite:
        return "not finite"
    return f"norm {event.norm:.3g} above {key} = {norm_max:g}" if event.norm > norm_max else ""


def hopeless(who: str, in_a_row: int, why: str, max_lr: float, norm_max: float, key: str) -> str:
    """What a user is told when no update comes any more that can be applied."""
    return (
        f"no update of {who} can be applied: the last {in_a_row} in a row came to nothing, the newest one since"
        f" {why}; worker.max_lr = {max_lr:g}, lps.lr or gps.lr may be too high, {key} = {norm_max:g} too low, or"
        " the model overflows in the workers' dtype (bfloat16 on CUDA)"
    )
