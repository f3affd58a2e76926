"""Samples ahead of need: what an LPS asks of the GPS, one request at a time."""

from typing import Final

from pelago.core.durable import durable
from pelago.wire.messages import SAMPLES_MAX, LeaseGrant, LeaseRequest

REFILL_DIVISOR: Final = 16
"""A request asks for a sixteenth of what must be in hand more than that, so that not every round asks. In
between a region does not know how far the others are: its learning rate's clock stands still for them."""


@durable()
class LeasePrefetch:
    """Keeps so much in hand that no worker waits for the WAN, nor for a GPS that is away for a while.

    Where nothing has to be in hand nothing is asked ahead of need: just what is wanted, when it is
    wanted, which is HALoS's learning-rate clock.
    """

    def __init__(self) -> None:
        self.request: LeaseRequest | None = None
        """What was asked for and has not come."""
        self._requests = 0
        self._asked_at = 0

    def ask(self, in_hand: int, wanted: int, needed: int, now: int) -> LeaseRequest | None:
        """The request to make now, if any. ``wanted``: samples that a worker is waiting for; ``needed``:
        those that must be in hand beside them."""
        if self.request is not None:
            return None
        spare = in_hand - wanted
        if spare >= needed:
            return None
        samples = min(needed + needed // REFILL_DIVISOR - spare, SAMPLES_MAX)
        self._requests += 1
        self.request = LeaseRequest(self._requests, samples, max(0, spare + samples))
        self._asked_at = now
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
