"""Random bits that follow from a key and an element's index, so that a calculation can be repeated bit by bit."""

from typing import Final

import torch

FIRST: Final = 0x7FEB352D
SECOND: Final = 0x846CA68B - (1 << 32)


def random_bits(elements: int, key: int, device: torch.device) -> torch.Tensor:
    """32 random bits for each element, int32, shape [elements]: a hash of its index and the key's low 32 bits.

    The hash is lowbias32 of Wellons' hash-prospector (2018), whose bits are independent of one another to
    within 0.2 %. Every device gives the same bits: all is integer arithmetic modulo 2^32.
    """
    start = _hashed(torch.tensor([_signed(key)], dtype=torch.int32, device=device))
    return _hashed(torch.arange(elements, dtype=torch.int32, device=device).add_(start))


def _hashed(bits: torch.Tensor) -> torch.Tensor:
    """In place. Shifts of int32 keep the sign, so the copies of the sign are masked."""
    bits.bitwise_xor_((bits >> 16).bitwise_and_(0xFFFF)).mul_(FIRST)
    bits.bitwise_xor_((bits >> 15).bitwise_and_(0x1FFFF)).mul_(SECOND)
    return bits.bitwise_xor_((bits >> 16).bitwise_and_(0xFFFF))


def _signed(key: int) -> int:
    low = key & 0xFFFFFFFF
    return low - (1 << 32) if low >> 31 else low
