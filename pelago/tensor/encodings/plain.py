"""Encodings that write each element by itself: fp32 as it is, and bf16."""

from typing import Final

import torch

from pelago.tensor.checksum import Bytes
from pelago.tensor.encodings.counter import random_bits
from pelago.tensor.encodings.encoding import Encoding
from pelago.tensor.manifest import ELEMENT_BYTES
from pelago.tensor.payload import bytes_of, tensor_over

LOW_HALF: Final = 0xFFFF
"""The bits of fp32 that bf16 leaves out."""


class Fp32:
    """Little-endian IEEE 754 single precision, the bytes of a plane's memory: nothing is copied or rounded."""

    name: Final = "fp32"
    is_memory: Final = True

    def chunk_bytes(self, elements: int) -> int:
        """Four bytes an element."""
        return ELEMENT_BYTES * elements

    def encode(self, chunk: torch.Tensor) -> Bytes:
        """The memory of the chunk."""
        return bytes_of(chunk.cpu()).toreadonly()

    def decode(self, buffer: Bytes, elements: int) -> torch.Tensor:
        """A tensor over the bytes."""
        return tensor_over(buffer, torch.float32)

    def round(self, chunk: torch.Tensor, key: int) -> torch.Tensor:
        """The chunk itself."""
        return chunk


class Bf16:
    """Little-endian bfloat16: the upper half of fp32, eight bits of mantissa with the hidden one.

    `round` is stochastic: up with the probability of the part that is cut off, so the mean of many roundings is the
    value itself (Gupta et al., 2015). What is finite stays finite. A number that was rounded is encoded as it is.
    """

    name: Final = "bf16"
    is_memory: Final = False

    def chunk_bytes(self, elements: int) -> int:
        """Two bytes an element."""
        return 2 * elements

    def encode(self, chunk: torch.Tensor) -> Bytes:
        """The nearest bf16 of each element, ties to even."""
        return bytes_of(chunk.to(torch.bfloat16).view(torch.int16).cpu()).toreadonly()

    def decode(self, buffer: Bytes, elements: int) -> torch.Tensor:
        """The same numbers in fp32."""
        halves = tensor_over(buffer, torch.int16)
        return halves.view(torch.bfloat16).to(torch.float32)

    def round(self, chunk: torch.Tensor, key: int) -> torch.Tensor:
        """Each element up or down at random."""
        bits = random_bits(chunk.numel(), key, chunk.device).bitwise_and_(LOW_HALF)
        bits.add_(chunk.view(torch.int32)).bitwise_and_(~LOW_HALF)
        rounded = bits.view(torch.float32)
        # The largest numbers may not become inf; what is not finite stays so (adding could change its kind).
        return torch.where(torch.isfinite(rounded) & torch.isfinite(chunk), rounded, _cut(chunk))


def _cut(chunk: torch.Tensor) -> torch.Tensor:
    """Towards zero; NaN for what is not finite."""
    cut = chunk.view(torch.int32).bitwise_and(~LOW_HALF).view(torch.float32)
    return torch.where(torch.isfinite(chunk), cut, torch.nan)


FP32: Final[Encoding] = Fp32()
BF16: Final[Encoding] = Bf16()
