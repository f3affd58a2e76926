"""Names that nodes exchange: addresses, versions, push ids, leases. Integers and short strings only."""

from typing import NamedTuple

from pelago.core.durable import durable
from pelago.core.frozen import frozen

Peer = str
"""The name of a process at the other end of a connection; never used for another process."""

BlobId = int
"""A tensor payload held by the tensor plane. Machines number theirs upwards from 1; a driver
numbers what arrives from the network or the trainer downwards from -1."""


@frozen
class Address:
    """Where a worker process stands: region / group / replica / rank.

    A group is the unit that holds a lease; it has one replica of one rank until FT-HSDP groups land.
    ``group`` is -1 for a node that is no worker, or for a worker that lets its server choose.
    """

    region: str
    group: int = -1
    replica: int = 0
    rank: int = 0


@durable()
class Version(NamedTuple):
    """A state of a server's parameters. Versions only grow, also across restarts of the server."""

    incarnation: int
    counter: int


@durable()
class PushId(NamedTuple):
    """The name of an update: the lease that it was trained on, and the holder's fence.

    A holder that was declared lost gets a higher fence when it comes back, so the update that it was working
    on can no longer be applied. At the GPS the "lease" is the number of the region's exchange.
    """

    lease: int
    fence: int


Span = tuple[int, int]
"""Samples start <= i < stop of the one global order."""

Spans = tuple[Span, ...]


def samples_of(spans: Spans) -> int:
    """The number of samples in some spans."""
    samples = 0
    for start, stop in spans:
        samples += stop - start
    return samples


@frozen
class Lease:
    """The right to train on some samples, once."""

    push: PushId
    spans: Spans
    clock: int
    """The clock of the learning-rate schedule: samples of the whole run that were leased before these. It is
    later than their place in the global order if they are leased again, and may be earlier if the region
    has kept them in hand."""

    @property
    def samples(self) -> int:
        """Number of samples leased."""
        return samples_of(self.spans)
