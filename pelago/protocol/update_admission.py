"""The server's end of updates that come in: asked for, given a place, here, measured, answered.

The other end is `pelago.protocol.client_session`. Pure: it returns effects, and the machine that owns it emits them and
decides what an update is worth. Every message may come again: an update that is here is not asked for twice.
"""

from collections.abc import Container

from pelago.core.durable import durable
from pelago.core.machine import PS_PER_MS, Send
from pelago.core.names import BlobId, Peer, PushId
from pelago.core.tensor_effects import Measure, Release
from pelago.protocol.staging import Staging
from pelago.wire.messages import Ack, Busy, Effect, Grant, Outcome, Push


@durable(settings=("_limit", "_busy_ms", "_patience"))
class UpdateAdmission:
    """At most ``limit`` updates are under way at once, and as many late ones; who is turned away may ask again
    after ``retry_ps``. Nobody who is heard loses a place within ``patience_ps``."""

    def __init__(self, limit: int, retry_ps: int, patience_ps: int, tick_ps: int) -> None:
        self._limit = limit
        self.staging = Staging(limit)
        self.measuring: dict[BlobId, tuple[Peer, Push]] = {}
        """What is here and not measured yet."""
        self._busy_ms = retry_ps // PS_PER_MS
        self._patience = patience_ps // max(1, tick_ps)

    def offered(self, peer: Peer, push: PushId) -> list[Effect]:
        """Somebody asks whether it may send an update that is wanted."""
        if self._is_here(peer, push):
            return []  # The Ack follows.
        if self.staging.ask(peer, push):
            return [Send(peer, Grant(push))]
        return [Send(peer, Busy(push, self._busy_ms))]

    def expects(self, peer: Peer, push: PushId) -> bool:
        """Whether a peer was granted to send an update, and it is not here yet."""
        return self.staging.expects(peer, push) and not self._is_here(peer, push)

    def arrived(self, peer: Peer, message: Push, blob: BlobId) -> list[Effect]:
        """All of an update that is wanted is here."""
        if self._is_here(peer, message.push):
            return [Release(blob)]
        self.staging.arrived(peer, message.push)
        self.measuring[blob] = (peer, message)
        return [Measure(blob)]

    def measured(self, blob: BlobId) -> tuple[Peer, Push] | None:
        """Which update it was that was measured, and whose; None: one that is known no more."""
        return self.measuring.pop(blob, None)

    def settled(self, peer: Peer, push: PushId, outcome: Outcome) -> list[Effect]:
        """Tell what became of an update, which needs no place any more."""
        return [*self.free(peer, push), Send(peer, Ack(push, outcome))]

    def free(self, peer: Peer, push: PushId | None = None) -> list[Effect]:
        """A peer needs no place any more, or none for one update: others may send."""
        return [Send(other, Grant(granted)) for other, granted in self.staging.free(peer, push)]

    def tick(self, silent: Container[Peer] = ()) -> list[Effect]:
        """A tick passed: whoever is too slow, or ``silent``, gives its place to one who waits."""
        admitted = self.staging.tick(self._patience, silent)
        return [Send(peer, Grant(push)) for peer, push in admitted]

    def restarted(self) -> list[Effect]:
        """The process before this one was killed while it measured."""
        return [Measure(blob) for blob in self.measuring]

    def clear(self) -> None:
        """Forget all updates and peers: those to come are of another incarnation."""
        self.staging = Staging(self._limit)
        self.measuring.clear()

    def check(self) -> None:
        """Assert that the limit holds."""
        self.staging.check()

    def _is_here(self, peer: Peer, push: PushId) -> bool:
        # Names of updates are their clients' own: two regions may use the same.
        pending = self.measuring.values()
        return bool(pending) and any((who, each.push) == (peer, push) for who, each in pending)
