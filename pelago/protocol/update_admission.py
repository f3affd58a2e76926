"""The server's end of uploads: an update is offered, granted a place, received, measured and answered.

The other end is `pelago.protocol.client_session`. Pure: it returns effects; the machine that owns it emits them and
decides whether to apply an update. Every message may come again: an update that is here is not asked for twice.
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
    """At most ``limit`` updates are under way at once, and as many late ones. A peer that gets no place may ask
    again after ``retry_ps``. No peer that is heard loses its place within ``patience_ps``."""

    def __init__(self, limit: int, retry_ps: int, patience_ps: int, tick_ps: int) -> None:
        self._limit = limit
        self.staging = Staging(limit)
        self.measuring: dict[BlobId, tuple[Peer, Push, int]] = {}
        """What is here and not measured yet: its sender, the update, and the bytes in which it travelled."""
        self._busy_ms = retry_ps // PS_PER_MS
        self._patience = patience_ps // max(1, tick_ps)

    def offered(self, peer: Peer, push: PushId) -> list[Effect]:
        """A peer asks whether it may send an update that is wanted."""
        if self._is_here(peer, push):
            return []  # The Ack follows.
        if self.staging.ask(peer, push):
            return [Send(peer, Grant(push))]
        return [Send(peer, Busy(push, self._busy_ms))]

    def expects(self, peer: Peer, push: PushId) -> bool:
        """Whether a peer was granted to send an update, and it is not here yet."""
        return self.staging.expects(peer, push) and not self._is_here(peer, push)

    def arrived(
        self, peer: Peer, message: Push, blob: BlobId, payload_bytes: int = 0
    ) -> list[Effect]:
        """All of an update that is wanted is here. ``payload_bytes``: in which it travelled, for an owner that
        counts them."""
        if self._is_here(peer, message.push):
            return [Release(blob)]
        self.staging.arrived(peer, message.push)
        self.measuring[blob] = (peer, message, payload_bytes)
        return [Measure(blob)]

    def measured(self, blob: BlobId) -> tuple[Peer, Push, int] | None:
        """The update that was measured, as in `measuring`; None if it is not known any more."""
        return self.measuring.pop(blob, None)

    def settled(self, peer: Peer, push: PushId, outcome: Outcome) -> list[Effect]:
        """An update is decided: free its place and acknowledge it."""
        return [*self.free(peer, push), Send(peer, Ack(push, outcome))]

    def free(self, peer: Peer, push: PushId | None = None) -> list[Effect]:
        """A peer needs no place any more, or none for one update: grant the place to the next."""
        return [Send(other, Grant(granted)) for other, granted in self.staging.free(peer, push)]

    def tick(self, silent: Container[Peer] = ()) -> list[Effect]:
        """A tick passed: peers that are too slow, or ``silent``, lose their places to those that wait."""
        admitted = self.staging.tick(self._patience, silent)
        return [Send(peer, Grant(push)) for peer, push in admitted]

    def restarted(self) -> list[Effect]:
        """A process that was killed while it measured was started again: measure again."""
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
        return bool(pending) and any((who, each.push) == (peer, push) for who, each, _ in pending)
