"""int8 and int4: small integers, with one scale for each block of elements (Dettmers et al., 2022).

Layout of a chunk of n elements: the scales of its blocks, little-endian, then the integers of all elements, two of
int4 in a byte, the first in the lower half. The last block may be shorter than the others, and a last half byte is 0.

A block's scale is its largest magnitude over the largest integer, rounded up to so few bits of mantissa that the
product of a scale and an integer is exact in fp32. So the largest element of a decoded block is the largest integer
times the scale, exactly, and encoding it again finds the same scale and the same integers.
"""

from typing import Final

import torch

from pelago.tensor.checksum import Bytes
from pelago.tensor.encodings.encoding import Encoding
from pelago.tensor.payload import bytes_of, tensor_over

TINY: Final = 2.0**-100
"""A block whose largest magnitude is less is encoded as zeros, so that no scale is a subnormal number."""


class Blockwise:
    """Integers from -``largest`` to ``largest``, nearest to element / scale, ties to even.

    ``block``: elements of a scale. ``scale_bytes``: 4, fp32 of which 16 bits of mantissa are used; or 2, bf16, which
    has the range of fp32 (fp16 would lose the scales of blocks below 1e-6). The error of an element is at most half
    a scale, so for int8 1 / 252 and for int4 1 / 13.8 of its block's largest magnitude.
    """

    is_memory: Final = False

    def __init__(self, name: str, bits: int, block: int, scale_bytes: int) -> None:
        assert bits in (4, 8), bits
        assert scale_bytes in (2, 4), scale_bytes
        self.name = name
        self.largest = (1 << (bits - 1)) - 1
        self._bits = bits
        self._block = block
        self._scale_bytes = scale_bytes
        self._unused = 0xFF if scale_bytes == 4 else 0xFFFF

    def chunk_bytes(self, elements: int) -> int:
        """The scales and the integers."""
        return self._scale_bytes * self._blocks(elements) + -(-elements * self._bits // 8)

    def encode(self, chunk: torch.Tensor) -> Bytes:
        """Scales and integers, computed on the chunk's device."""
        elements = chunk.numel()
        scales, integers = self._quantised(chunk)
        kept = scales.view(torch.int32)
        if self._scale_bytes == 2:
            kept = (kept >> 16).to(torch.int16)
        codes = integers.view(-1)[:elements].to(torch.int8)
        if self._bits == 4:
            codes = _pairs(codes)
        joined = torch.cat((kept.view(torch.int8), codes))
        return bytes_of(joined.cpu()).toreadonly()

    def decode(self, buffer: Bytes, elements: int) -> torch.Tensor:
        """Each integer times its block's scale."""
        data = tensor_over(buffer, torch.int8)
        blocks = self._blocks(elements)
        head = self._scale_bytes * blocks
        if self._scale_bytes == 2:
            kept = data[:head].clone().view(torch.int16).to(torch.int32) << 16
        else:
            kept = data[:head].clone().view(torch.int32)
        codes = data[head:]
        if self._bits == 4:
            codes = _halves(codes)[:elements]
        padded = torch.zeros(blocks * self._block)
        padded[:elements] = codes
        padded.view(blocks, self._block).mul_(kept.view(torch.float32).unsqueeze(1))
        return padded[:elements]

    def round(self, chunk: torch.Tensor, key: int) -> torch.Tensor:
        """What `decode` makes of `encode`; nothing is random."""
        scales, integers = self._quantised(chunk)
        return integers.mul_(scales.unsqueeze(1)).view(-1)[: chunk.numel()]

    def _quantised(self, chunk: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The scales, fp32, [blocks], and the integers as fp32, [blocks, block]; the caller's to write to."""
        elements = chunk.numel()
        blocks = self._blocks(elements)
        if elements == blocks * self._block:
            values = chunk.view(blocks, self._block)
        else:
            padded = torch.zeros(blocks * self._block, device=chunk.device)
            padded[:elements] = chunk
            values = padded.view(blocks, self._block)
        low, high = torch.aminmax(values, dim=1)
        peaks = torch.maximum(high, low.neg_())
        bits = (peaks / self.largest).view(torch.int32)
        scales = bits.add_(self._unused).bitwise_and_(~self._unused).view(torch.float32)
        finite = torch.isfinite(peaks)
        scales.masked_fill_(peaks < TINY, 0.0).masked_fill_(~finite, torch.inf)
        factors = torch.where(finite & (scales > 0), scales.reciprocal(), 0.0)
        # A block that is not finite gives zeros times an infinite scale, which is NaN everywhere.
        integers = (values * factors.unsqueeze(1)).nan_to_num_(0.0, 0.0, 0.0).round_()
        return scales, integers

    def _blocks(self, elements: int) -> int:
        return -(-elements // self._block)


def _pairs(codes: torch.Tensor) -> torch.Tensor:
    """Two integers of 4 bits in a byte, from int8, [n]; int8, [n / 2] rounded up."""
    if codes.numel() % 2:
        codes = torch.nn.functional.pad(codes, (0, 1))
    pairs = codes.view(-1, 2)
    return (pairs[:, 0] & 0xF) | (pairs[:, 1] << 4)


def _halves(codes: torch.Tensor) -> torch.Tensor:
    """The integers of `_pairs`, int8, [2 n]: shifts of int8 keep the sign."""
    return torch.stack(((codes << 4) >> 4, codes >> 4), dim=1).view(-1)


INT8: Final[Encoding] = Blockwise("int8", bits=8, block=256, scale_bytes=4)
INT4: Final[Encoding] = Blockwise("int4", bits=4, block=128, scale_bytes=2)
