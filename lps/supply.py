"""Samples ahead of need: what an LPS asks of the GPS, one request at a time."""

from pelago.core.image import durable
from pelago.wire.messages import LeaseGrant, LeaseRequest


@durable(settings=("_block",))
class Supply:
    """Keeps ``block_rounds`` of the largest rounds in hand, so that no worker waits for the WAN.

    With a block of 1 nothing is asked ahead of need: just what is wanted, when it is wanted, which is
    HALoS's learning-rate clock.
    """

    def __init__(self, block_rounds: int, round_samples_max: int) -> None:
        self.request: LeaseRequest | None = None
        """What was asked for and has not come."""
        self._block = block_rounds * round_samples_max if block_rounds > 1 else 0
        self._requests = 0
        self._asked_at = 0

    def ask(self, in_hand: int, wanted: int, now: int) -> LeaseRequest | None:
        """The request to make now, if any; ``wanted``: samples that a worker is waiting for."""
        if self.request is not None:
            return None
        missing = wanted - in_hand
        if in_hand < self._block:
            missing = max(missing, self._block)
        if missing <= 0:
            return None
        self._requests += 1
        self.request, self._asked_at = LeaseRequest(self._requests, missing), now
        return self.request

    def expects(self, message: LeaseGrant) -> bool:
        """Whether a grant answers what was asked for last."""
        return self.request is not None and self.request.request == message.request

    def repeat(self, due: int, now: int) -> LeaseRequest | None:
        """The request once more, if it was last made at ``due`` or before."""
        if self.request is None or self._asked_at > due:
            return None
        self._asked_at = now
        return self.request

    def void(self) -> None:
        """It has come, or is not wanted any more."""
        self.request = None
