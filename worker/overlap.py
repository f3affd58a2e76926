"""What a worker keeps in mind beside its round, where rounds overlap with the exchange of the one before.

With `worker.overlap` a round begins at once from the parameters that the last one left. They hold an update
to which the server has not answered. When the answer comes, the worker rebases: with M the server's model,
θ_s the parameters at which the running round began and θ those of now, θ <- M + (θ - θ_s) and θ_s <- M, so
that the next update is what was trained since then, and nothing else (docs/decisions/0022-overlap.md).
At most one update is unanswered: a round that ends before the answer comes waits with its update.
"""

from dataclasses import dataclass

from pelago.core.names import BlobId, Lease, PushId
from pelago.wire.messages import Model, Push


@dataclass(slots=True)
class Overlap:
    """Leases ahead of need, and what waits for the server."""

    newest: int = 0
    """Number of the newest lease that was taken."""
    ahead: tuple[Lease, ...] = ()
    """Leases of rounds that have not begun, oldest first."""
    awaited: PushId | None = None
    """An update that the parameters hold, and to which no model has answered."""
    waiting: tuple[Push, BlobId] | None = None
    """The update of a round that ended before the answer to the one before came, and its payload."""

    def take(self, lease: Lease) -> None:
        """A lease came, perhaps again."""
        if lease.push.lease > self.newest:
            self.newest = lease.push.lease
            self.ahead = (*self.ahead, lease)

    def give_again(self, lease: Lease) -> None:
        """The round on a lease was given up; it is trained again before those ahead."""
        self.ahead = (lease, *self.ahead)

    def next(self) -> Lease:
        """The lease of the next round, which begins."""
        lease, *rest = self.ahead
        self.ahead = tuple(rest)
        return lease

    def is_answer(self, message: Model) -> bool:
        """Whether a model answers what is awaited. Without overlap any model does."""
        if self.awaited is None:
            return True
        # A later lease's answer comes from a model that holds the earlier update too.
        return message.answers is not None and message.answers.lease >= self.awaited.lease

    def drop(self) -> None:
        """Forget all leases and what is awaited; no update waits."""
        assert self.waiting is None
        self.newest, self.ahead, self.awaited = 0, (), None
