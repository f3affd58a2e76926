"""How a chunk of a payload is written as bytes for its way between nodes.

Planes hold fp32. A payload travels in an encoding that both ends know by its name: the sender encodes each
chunk that it reads, the receiver checks length and checksum of the received bytes and decodes them before
it keeps the chunk. Journals and snapshots hold what the plane holds, whatever the encoding was.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import torch

from pelago.tensor.checksum import Bytes
from pelago.tensor.manifest import ELEMENT_BYTES, Manifest
from pelago.tensor.payload import bytes_of, tensor_over


@dataclass(frozen=True, slots=True)
class Encoding:
    """One way to write fp32 elements as bytes.

    The size of an encoded chunk follows from its number of elements alone, so a receiver knows every size
    before the first byte comes.
    """

    name: str
    """Its name on the wire."""
    chunk_bytes: Callable[[int], int]
    """The bytes of a chunk, from its number of elements; at most `pelago.wire.messages.CHUNK_BYTES_MAX`."""
    encode: Callable[[torch.Tensor], Bytes]
    """The bytes of a chunk: flat, fp32, on the CPU. They may share its memory, and are not written to."""
    decode: Callable[[Bytes], torch.Tensor]
    """A flat fp32 tensor from the bytes of a chunk. May share their memory. Takes any bytes of the right
    length: they come from a peer."""
    is_memory: bool = False
    """Whether the encoded bytes are those that a plane of fp32 holds, so that one checksum serves for both."""

    def sizes(self, manifest: Manifest) -> tuple[int, ...]:
        """Encoded bytes of each chunk of a model, in the manifest's order."""
        return tuple(self.chunk_bytes(stop - start) for start, stop in manifest.chunks)


FP32: Final = Encoding(
    name="fp32",
    chunk_bytes=lambda elements: ELEMENT_BYTES * elements,
    encode=lambda chunk: bytes_of(chunk).toreadonly(),
    decode=lambda buffer: tensor_over(buffer, torch.float32),
    is_memory=True,
)
"""Little-endian IEEE 754 single precision, the bytes of a plane's memory: nothing is copied or rounded."""
