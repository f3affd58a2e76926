"""Seeded randomness from integers alone: a hash, and a permutation with random access.

Nothing here has state, so any node computes the same value from the same arguments, on any machine,
in any order. Not for cryptography.

Sources: the mixer is the output function of SplitMix64 (Steele, Lea and Flood, "Fast splittable
pseudorandom number generators", OOPSLA 2014, with the constants of Vigna's public-domain
splitmix64.c). The permutation is the generalised Feistel cipher with cycle walking of Black and
Rogaway, "Ciphers with arbitrary finite domains", CT-RSA 2002, sections 3 and 5, with the mixer in
place of a secure round function.
"""

import hashlib
from math import isqrt
from typing import Final

_MASK: Final = (1 << 64) - 1
_GOLDEN_GAMMA: Final = 0x9E3779B97F4A7C15
ROUNDS: Final = 6
"""Feistel rounds; three already look random to a statistical test, an even number keeps the halves'
roles.
"""


def mix(value: int) -> int:
    """Hash a 64-bit integer to a 64-bit integer; a bijection. One step of SplitMix64 from state
    ``value``.
    """
    value = (value + _GOLDEN_GAMMA) & _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)


def derive(*parts: int | str) -> int:
    """A 64-bit key from integers and names, in order: one seed gives many independent streams."""
    key = 0
    for part in parts:
        number = text_hash(part) if isinstance(part, str) else part
        key = mix(key ^ (number & _MASK))
    return key


def text_hash(text: str) -> int:
    """A 64-bit hash of a text, equal in every process (Python's own is salted). A text with escaped
    bytes, as the name of a file that is no UTF-8 has, is hashed as those bytes."""
    content = text.encode("utf-8", errors="surrogateescape")
    return int.from_bytes(hashlib.sha256(content).digest()[:8], "big")


class Permutation:
    """A pseudo-random bijection of range(size) that is evaluated point by point.

    Nothing is stored beyond the keys, so a corpus of any size can be read in random order from the
    middle.
    """

    __slots__ = ("_columns", "_keys", "_rows", "size")

    def __init__(self, size: int, key: int) -> None:
        """``size`` >= 1; equal keys give equal permutations."""
        if size < 1:
            raise ValueError(f"a permutation needs at least one element, got size {size}")
        self.size = size
        # The cipher works on range(rows * columns), which exceeds size by less than rows, about its
        # root: a walk of more than one step is rare, unlike with a power of two, where half of them
        # would be.
        self._rows = isqrt(size - 1) + 1
        self._columns = -(-size // self._rows)
        self._keys = tuple(derive(key, number) for number in range(ROUNDS))

    def __call__(self, index: int) -> int:
        """The image of ``index``. Raises `IndexError` outside range(size)."""
        if not 0 <= index < self.size:
            raise IndexError(f"index {index} is outside range({self.size})")
        value = self._encipher(index)
        while value >= self.size:
            value = self._encipher(value)
        return value

    def _encipher(self, value: int) -> int:
        columns, rows = self._columns, self._rows
        left, right = divmod(value, columns)
        for number, key in enumerate(self._keys):
            modulus = columns if number & 1 else rows
            left, right = right, (left + mix(key ^ right)) % modulus
        return left * columns + right


class GlobalOrder:
    """The one order in which a run consumes its corpus: sample 0, 1, 2, ... without end.

    Sample i is element i mod size of epoch i div size; every epoch is a new permutation of all
    elements.
    """

    __slots__ = ("_epochs", "_key", "size")

    def __init__(self, size: int, seed: int) -> None:
        """``size``: elements of the corpus, at least 1."""
        self.size = size
        self._key = derive("global order", seed)
        self._epochs: dict[int, Permutation] = {0: Permutation(size, derive(self._key, 0))}

    def __call__(self, sample: int) -> int:
        """The corpus element that a sample is. Raises `IndexError` below 0."""
        if sample < 0:
            raise IndexError(f"sample {sample} is negative")
        epoch, position = divmod(sample, self.size)
        permutation = self._epochs.get(epoch)
        if permutation is None:
            # Leases cross at most one border between epochs, and late ones come from the epoch
            # before: two permutations in the cache are enough, and forgetting one changes no
            # result.
            if len(self._epochs) >= 2:
                self._epochs.pop(min(self._epochs))
            permutation = Permutation(self.size, derive(self._key, epoch))
            self._epochs[epoch] = permutation
        return permutation(position)
