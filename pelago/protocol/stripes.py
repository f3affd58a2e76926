"""The chunks of a payload divided between several ordered connections, called stripes.

Chunk i travels on stripe i mod n. So each stripe has the same share of large and of small chunks, wherever
the small tensors of a model lie, and the stripes advance through the payload side by side. Each stripe has a
`Sender` and a `Receiver` (`pelago.protocol.transfer`) of its own, which count its chunks 0, 1, 2, ... and
know of no other: a stripe that loses frames recovers alone. The payload is complete when every stripe is.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Striping:
    """A division between ``stripes`` >= 1 connections. One stripe is the whole payload."""

    stripes: int

    def stripe_of(self, index: int) -> int:
        """On which stripe a chunk of the payload travels."""
        return index % self.stripes

    def place_of(self, index: int) -> int:
        """The number of a chunk of the payload within its stripe."""
        return index // self.stripes

    def index_of(self, stripe: int, place: int) -> int:
        """The number in the payload of a chunk of a stripe."""
        return place * self.stripes + stripe

    def share(self, stripe: int, chunks: Sequence[T]) -> Sequence[T]:
        """What a stripe has of something that is listed for each chunk of the payload."""
        return chunks[stripe :: self.stripes]

    def places(self, stripe: int, indices: Iterable[int]) -> list[int]:
        """Which of these chunks of the payload are a stripe's, numbered within it."""
        return [self.place_of(each) for each in indices if self.stripe_of(each) == stripe]
