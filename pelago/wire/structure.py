"""Checks how many items a msgpack input claims to hold, before anything is allocated for them.

msgpack allocates a tuple as soon as it reads an array's header, so headers that nest, each claiming
the largest number of items that is allowed, would cost half a gigabyte for five kilobytes of input. Every
item takes at least a byte: an input whose arrays together claim more items than it has bytes is malicious or
truncated.
"""

from typing import Final

from pelago.core.errors import WireError

LARGE_ARRAYS_FREE: Final = 16
"""So many arrays of more than 15 items pass without a check: at most 8 MiB of pointers."""

_ARRAY_16: Final = 0xDC
_ARRAY_32: Final = 0xDD
_FIXED_BYTES: Final = {
    **dict.fromkeys((0xC0, 0xC2, 0xC3), 1),
    **dict.fromkeys((0xCC, 0xD0), 2),
    **dict.fromkeys((0xCD, 0xD1), 3),
    **dict.fromkeys((0xCE, 0xD2, 0xCA), 5),
    **dict.fromkeys((0xCF, 0xD3, 0xCB), 9),
}
"""Whole length of nil, booleans, integers and floats, by first byte."""
_LENGTH_BYTES: Final = {0xC4: 1, 0xC5: 2, 0xC6: 4, 0xD9: 1, 0xDA: 2, 0xDB: 4}
"""Width of the length of bytes and text, by first byte."""


def check(packed: bytes) -> None:
    """Raise `WireError` if the arrays of an input claim more items than could be in it.

    Ordinary messages hold few large arrays and pass on a count of the bytes that could begin one.
    """
    if packed.count(_ARRAY_16) + packed.count(_ARRAY_32) > LARGE_ARRAYS_FREE:
        _walk(packed)


def _walk(packed: bytes) -> None:
    """Visit every header in order; depth does not matter, because claims add up."""
    claimed = position = 0
    size = len(packed)
    while position < size:
        first = packed[position]
        if first < 0x80 or first >= 0xE0:  # a small integer
            position += 1
        elif first in _FIXED_BYTES:
            position += _FIXED_BYTES[first]
        elif 0xA0 <= first < 0xC0:  # a short text
            position += 1 + first - 0xA0
        elif first in _LENGTH_BYTES:
            width = _LENGTH_BYTES[first]
            position += 1 + width + int.from_bytes(packed[position + 1 : position + 1 + width])
        elif 0x90 <= first < 0xA0:  # a short array
            claimed += first - 0x90
            position += 1
        elif first in (_ARRAY_16, _ARRAY_32):
            width = 2 if first == _ARRAY_16 else 4
            claimed += int.from_bytes(packed[position + 1 : position + 1 + width])
            position += 1 + width
        else:
            raise WireError("maps and extension types are no part of this protocol")
        if claimed > size:
            raise WireError("arrays claim more items than there are bytes")
