"""What an encoding is: bytes of a chunk, and the rounding that makes them exact.

Planes hold fp32. A payload travels in an encoding that both ends know by its name: the sender encodes each
chunk that it reads, the receiver checks length and checksum of the received bytes and decodes them before
it keeps the chunk. Journals and snapshots hold what the plane holds, whatever the encoding was.
"""

from typing import Protocol

import torch

from pelago.tensor.checksum import Bytes
from pelago.tensor.manifest import Manifest


class Encoding(Protocol):
    """One way to write fp32 elements as bytes.

    The size of an encoded chunk follows from its number of elements alone, so a receiver knows every size
    before the first byte comes.

    Values that `decode` or `round` returned are encoded without a further error: ``decode(encode(x))`` has the bits
    of x for them. So a sender rounds an update once, with `round`, and keeps what it rounded to; all that is sent of
    it afterwards, however often, is exact.
    """

    @property
    def name(self) -> str:
        """Its name on the wire and in the run file."""
        ...

    @property
    def is_memory(self) -> bool:
        """Whether the encoded bytes are those that a plane of fp32 holds: nothing is copied or rounded, and one
        checksum serves for both."""
        ...

    def chunk_bytes(self, elements: int) -> int:
        """The bytes of a chunk of so many elements; at most `pelago.wire.messages.CHUNK_BYTES_MAX`."""
        ...

    def encode(self, chunk: torch.Tensor) -> Bytes:
        """The bytes of a chunk: flat, fp32, on any device. They may share its memory, and are not written to.
        Elements are rounded to the nearest value that the encoding has."""
        ...

    def decode(self, buffer: Bytes, elements: int) -> torch.Tensor:
        """A flat fp32 tensor on the CPU from the bytes of a chunk of so many elements. May share their memory. Takes
        any bytes of the right length, since they come from a peer; what they give may be not finite."""
        ...

    def round(self, chunk: torch.Tensor, key: int) -> torch.Tensor:
        """A chunk as this encoding can write it: flat, fp32, on the device of ``chunk``, which stays as it is.

        ``key``: chooses the random bits of an encoding that rounds with some. A block with an element that is not
        finite gives no finite element, so that the receiver sees what the sender had.
        """
        ...


def chunk_sizes(encoding: Encoding, manifest: Manifest) -> tuple[int, ...]:
    """Encoded bytes of each chunk of a model, in the manifest's order."""
    return tuple(encoding.chunk_bytes(stop - start) for start, stop in manifest.chunks)
