"""Files of token ids, mapped into memory and never read as a whole; and how a wrong type is noticed."""

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np

from pelago.core.errors import ConfigError
from worker.data.layouts import CorpusLayout, layout_of

Tokens: TypeAlias = np.ndarray[Any, np.dtype[Any]]
"""One-dimensional, of an integer type; may be a memory map of a file larger than memory."""

DIGEST_BLOCKS: Final = 1024
DIGEST_BLOCK_TOKENS: Final = 4096
SAMPLE_BYTES: Final = 1 << 16
"""How many bytes from the beginning, the middle and the end of a raw file are checked for its type."""
SAMPLE_TOKENS_MIN: Final = 16
"""The fewest ids from which a type is concluded."""
TYPES: Final = ("<u8", "<u4", ">u8", ">u4", "<u2", ">u2")
"""Types of a raw file, in the order of trial: wide ids that are read as narrow ones are known too, at least every
other one."""


@dataclass(frozen=True, slots=True)
class TokenFile:
    """A token file that was opened."""

    path: Path
    layout: CorpusLayout
    tokens: Tokens

    def place(self, index: int) -> str:
        """The place of a token, for messages."""
        offset = self.layout.offset + index * self.layout.dtype.itemsize
        return f"{self.path}: token {index:,}, at byte {offset:,}"

    def misreading(self, vocabulary: int) -> str:
        """What shows that the ids are of another type than the layout says, in words; empty: nothing does.

        ``vocabulary``: number of ids that the model knows. Only a raw file can be misread.
        """
        if not self.layout.raw:
            return ""
        samples = list(self._samples())
        width = self.layout.dtype.itemsize
        for name in TYPES:
            # Padding may be most of it. Zeros where the wide type has its high bytes, and only there, are none.
            if np.dtype(name).itemsize > width and _fits(samples, name, vocabulary, padded=True):
                return _words(name)
        if not _fits(samples, self.layout.dtype.str, vocabulary):
            fitting = [name for name in TYPES if _fits(samples, name, vocabulary)]
            return _words(fitting[0]) if fitting else ""
        swapped = self.layout.dtype.newbyteorder(">").str
        if _low_bytes_zero(samples, self.layout.dtype) and _fits(samples, swapped, vocabulary):
            return _words(swapped)
        return ""

    def _samples(self) -> Iterator[bytes]:
        size, width = len(self.tokens), self.layout.dtype.itemsize
        count = min(size, SAMPLE_BYTES // width)
        for start in (0, (size - count) // 2, size - count):
            # A wider id begins at a multiple of its own size.
            first = start // 8 * 8
            chunk = self.tokens[first : first + count]
            yield chunk[: len(chunk) // 8 * 8].tobytes() if len(chunk) >= 8 else b""


def open_tokens(file: str, token_dtype: str) -> TokenFile:
    """Map a token file read-only. ``token_dtype`` counts if nothing in the file or beside it says the
    type. Raises `ConfigError`.
    """
    path = Path(file)
    key = f"data.source = 'tokens:{file}'"
    if not file or not os.path.exists(file):
        raise ConfigError(f"{key}: there is no file {file!r} (seen from {Path.cwd()})")
    if not os.path.isfile(file):
        raise ConfigError(f"{key}: there is no file {file!r}, but a folder or a device")
    try:
        layout = layout_of(path, key, token_dtype)
        if not layout.tokens:
            return TokenFile(path, layout, np.empty(0, layout.dtype))
        shape = (layout.tokens,)
        mapped = np.memmap(path, dtype=layout.dtype, mode="r", offset=layout.offset, shape=shape)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{key}: cannot map the file: {error}") from None
    return TokenFile(path, layout, mapped)


def split_tail(tokens: Tokens, fraction: float) -> tuple[Tokens, Tokens]:
    """Training part and held-out tail; views, nothing is copied."""
    cut = len(tokens) - round(len(tokens) * fraction)
    return tokens[:cut], tokens[cut:]


def sampled_digest(tokens: Tokens) -> bytes:
    """SHA-256 over the type, the length and 1,024 evenly spaced blocks of 4,096 tokens, ends
    included.

    Whole files of up to 4 million tokens are covered; of a larger one 16 MB at most are read, so
    that terabytes take as long as gigabytes. A change between the blocks goes unseen: the digest
    tells corpora apart, it does not protect against tampering.
    """
    state = hashlib.sha256(f"{tokens.dtype.str} {len(tokens)}".encode())
    last = max(0, len(tokens) - DIGEST_BLOCK_TOKENS)
    blocks = min(DIGEST_BLOCKS, -(-len(tokens) // DIGEST_BLOCK_TOKENS))
    for number in range(blocks):
        start = number * last // max(1, blocks - 1)
        state.update(tokens[start : start + DIGEST_BLOCK_TOKENS].tobytes())
    return state.digest()


def _fits(samples: list[bytes], name: str, vocabulary: int, *, padded: bool = False) -> bool:
    """Whether all ids of the samples would be known if they were of this type, and most are not 0; if
    ``padded``, some.
    """
    read = np.concatenate([np.frombuffer(sample, dtype=name) for sample in samples])
    if len(read) < SAMPLE_TOKENS_MIN or int(read.max()) >= vocabulary:
        return False
    count = np.count_nonzero(read)
    return bool(count >= SAMPLE_TOKENS_MIN if padded else 2 * count >= len(read))


def _low_bytes_zero(samples: list[bytes], dtype: "np.dtype[Any]") -> bool:
    """Whether every id is a multiple of 256, as small ids are whose bytes are read the wrong way round."""
    return not any(bool((np.frombuffer(each, dtype=dtype) & 0xFF).any()) for each in samples)


def _words(name: str) -> str:
    """The type that a file seems to have, and how to have it read."""
    dtype = np.dtype(name)
    word = f"uint{8 * dtype.itemsize}"
    if name.startswith(">"):
        write = f"array.astype('<u{dtype.itemsize}').tofile('FILE.bin')"
        return f"the file looks like big-endian {word}: write it with {write}"
    return f"the file looks like {word}: set data.token_dtype = {word!r}"
