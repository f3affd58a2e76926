"""The checksum of a chunk: XXH3-64, fast enough to be on every byte that moves.

It finds damage, not forgery; authentication is the task of the transport.
"""

from typing import TypeAlias

import xxhash

Bytes: TypeAlias = bytes | bytearray | memoryview
"""A contiguous buffer of raw bytes."""


def checksum(buffer: Bytes) -> int:
    """XXH3-64 of a buffer, an unsigned integer below 2**64."""
    return xxhash.xxh3_64_intdigest(buffer)
