"""Raw token files: numbers and nothing else, mapped into memory, never read as a whole.

nanoGPT writes FILE.bin as uint16; Megatron writes FILE.bin with FILE.idx beside it, whose header
names the type: 9 bytes ``MMIDIDX\\0\\0``, version 1 as a little-endian uint64, and one byte of type
code (megatron/core/datasets/indexed_dataset.py).
"""

import hashlib
import struct
from pathlib import Path
from typing import Final

import numpy as np

from pelago.core.errors import ConfigError
from worker.data.corpus import Tokens

MEGATRON_MAGIC: Final = b"MMIDIDX\x00\x00"
MEGATRON_TYPES: Final = {1: "uint8", 3: "int16", 4: "int32", 5: "int64", 8: "uint16"}
"""Type codes of an .idx file that can hold token ids."""

DIGEST_BLOCKS: Final = 1024
DIGEST_BLOCK_TOKENS: Final = 4096


def open_tokens(file: str, token_dtype: str) -> Tokens:
    """Map a token file read-only. ``token_dtype`` counts if no .idx lies beside it. Raises
    `ConfigError`.
    """
    path = Path(file)
    key = f"data.source = 'tokens:{file}'"
    if not file or not path.is_file():
        raise ConfigError(f"{key}: there is no file {file!r} (seen from {Path.cwd()})")
    index = path.with_suffix(".idx")
    name = _megatron_type(index, key) if index.is_file() else token_dtype
    dtype = np.dtype(name).newbyteorder("<")
    size = path.stat().st_size
    if size == 0:
        raise ConfigError(f"{key}: the file is empty")
    if size % dtype.itemsize:
        where = f"{index} says" if index.is_file() else "data.token_dtype ="
        raise ConfigError(
            f"{key}: {size} bytes are not a whole number of {dtype.itemsize}-byte tokens; "
            f"{where} {name!r}: the file is cut short, or has another type"
        )
    try:
        return np.memmap(path, dtype=dtype, mode="r")
    except (OSError, ValueError) as error:
        raise ConfigError(f"{key}: cannot map the file: {error}") from None


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


def _megatron_type(index: Path, key: str) -> str:
    with index.open("rb") as stream:
        header = stream.read(18)
    if len(header) < 18 or header[:9] != MEGATRON_MAGIC:
        raise ConfigError(
            f"{key}: {index} is no Megatron index; remove it, or repair it, to read the .bin file"
        )
    version, code = struct.unpack("<QB", header[9:18])
    if version != 1 or code not in MEGATRON_TYPES:
        raise ConfigError(
            f"{key}: {index} has version {version} and type code {code}; "
            f"known are version 1 and the codes {MEGATRON_TYPES}"
        )
    return MEGATRON_TYPES[code]
