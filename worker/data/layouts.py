"""Where the ids lie in a token file, and their type, as its first bytes or its index say.

These layouts are read: ids and nothing else (nanoGPT's files), numpy's ``.npy`` (numpy.lib.format), llm.c's header of
256 little-endian int32 (magic, version, number of tokens; llm.c/dev/data/data_common.py) and Megatron's
``.idx`` beside the file: ``MMIDIDX\\0\\0``, version 1 as uint64, a byte of type code, the number of
sequences as uint64 (Megatron: of documents too), the length of each as int32
(megatron/core/datasets/indexed_dataset.py; fairseq/data/indexed_dataset.py has the same without the
documents). Other known formats are refused by their name.
"""

import codecs
import io
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from pelago.core.errors import ConfigError
from worker.data.encodings import CONTROLS

HEAD_BYTES: Final = 1024
"""How many first bytes of a file are enough to recognise it."""
MEGATRON_MAGIC: Final = b"MMIDIDX\x00\x00"
FAIRSEQ_MAGIC: Final = b"TNTIDX\x00\x00"
"""The magic of the older index of fairseq and Megatron, which is not read."""
MEGATRON_HEADER_BYTES: Final = 34
MEGATRON_TYPES: Final = {
    1: "uint8",
    3: "int16",
    4: "int32",
    5: "int64",
    8: "uint16",
    9: "uint32",
    10: "uint64",
}
"""Type codes of an .idx file that can hold token ids (9 and 10: fairseq's)."""
NPY_MAGIC: Final = b"\x93NUMPY"
LLM_C_HEADER_BYTES: Final = 1024
LLM_C: Final = {(20240520, 1): "uint16", (20240801, 7): "uint32"}
"""Type by magic and version: the second are files for the tokenizer of Llama 3."""
OTHER_FORMATS: Final = {
    b"\x1f\x8b\x08": "compressed (gzip): unpack it first",
    b"\x28\xb5\x2f\xfd": "compressed (zstd): unpack it first",
    b"\xfd7zXZ\x00": "compressed (xz): unpack it first",
    b"BZh": "compressed (bzip2): unpack it first",
    b"\x04\x22\x4d\x18": "compressed (lz4): unpack it first",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive: unpack it first",
    b"PK\x03\x04": "a zip archive (as .npz and .pt are): write the ids with array.tofile('FILE.bin')",
    b"PAR1": "a Parquet file: write its ids with array.tofile('FILE.bin')",
    b"ARROW1": "an Arrow file: write its ids with array.tofile('FILE.bin')",
    b"\x89HDF": "an HDF5 file: write its ids with array.tofile('FILE.bin')",
    b"SQLite format 3": "a database: write its ids with array.tofile('FILE.bin')",
    b"\x80\x02\x8a\x0al\xfc\x9c": "a pickle of PyTorch: write the ids with array.tofile('FILE.bin')",
    b"\x80\x04\x95": "a pickle: write the ids with array.tofile('FILE.bin')",
    b"\x80\x05\x95": "a pickle: write the ids with array.tofile('FILE.bin')",
    b"version https://git-lfs": "a pointer of Git LFS and not the file itself: run git lfs pull",
    MEGATRON_MAGIC: "an index, not the tokens: name the .bin file beside it",
    FAIRSEQ_MAGIC: "an index, not the tokens: name the .bin file beside it",
}
"""By their first bytes: files that hold something other than ids, or ids in another format."""
TAR: Final = slice(257, 262)
"""The offset of a tar archive's magic."""


@dataclass(frozen=True, slots=True)
class CorpusLayout:
    """``tokens`` ids of type ``dtype``, from byte ``offset`` on.

    ``said_by``: the source of the type, for messages. ``raw``: only the run file names the type, so it may be wrong.
    """

    dtype: "np.dtype[Any]"
    offset: int
    tokens: int
    said_by: str
    raw: bool = False


def layout_of(path: Path, key: str, token_dtype: str) -> CorpusLayout:
    """The layout of a token file. ``token_dtype`` counts if neither the file nor an index says its type.

    ``key``: the run file's key and value, for messages. Raises `ConfigError`, `OSError`.
    """
    size = path.stat().st_size
    if size == 0:
        raise ConfigError(f"{key}: the file is empty")
    with path.open("rb") as stream:
        head = stream.read(HEAD_BYTES)
    what = _other_format(head, size)
    if what:
        raise ConfigError(f"{key}: the file is {what}")
    if head.startswith(NPY_MAGIC):
        return _npy(path, key, size)
    if len(head) >= 12:
        magic, version, tokens = struct.unpack("<iii", head[:12])
        swapped = struct.unpack(">i", head[:4])[0]
        known = {each for each, _ in LLM_C}
        if magic in known or swapped in known:
            return _llm_c(key, size, magic, version, tokens)
    index = path.with_suffix(".idx")
    if index.is_file():
        return _megatron(index, key, size)
    if len(head) >= 64 and _is_text(head):
        raise ConfigError(f"{key}: the file is text, not token ids: use data.source = 'text:DIR'")
    dtype = np.dtype(token_dtype).newbyteorder("<")
    said_by = f"data.token_dtype = {token_dtype!r}"
    return CorpusLayout(dtype, 0, _whole(size, dtype, key, said_by), said_by, raw=True)


def _whole(size: int, dtype: "np.dtype[Any]", key: str, said_by: str) -> int:
    if size % dtype.itemsize:
        raise ConfigError(
            f"{key}: {size} bytes are not a whole number of {dtype.itemsize}-byte tokens; "
            f"{said_by}: the file is cut short, or has another type"
        )
    return size // dtype.itemsize


def _exact(size: int, wanted: int, key: str, said_by: str) -> None:
    if size == wanted:
        return
    if size < wanted:
        fault = f"{wanted - size:,} shorter than {said_by} says: the file is cut short"
    else:
        fault = f"{size - wanted:,} longer than {said_by} says: that belongs to another file"
    raise ConfigError(f"{key}: its {size:,} bytes are {fault}; copy or write it again")


def _npy(path: Path, key: str, size: int) -> CorpusLayout:
    fix = "write it with numpy.save('FILE.npy', ids), ids of one dimension and an integer type"
    try:
        with path.open("rb") as stream:
            version = np.lib.format.read_magic(stream)
            read: Any = (
                np.lib.format.read_array_header_1_0
                if version == (1, 0)
                else np.lib.format.read_array_header_2_0
            )
            shape, _, dtype = read(stream)
            offset = stream.tell()
    except (ValueError, EOFError, io.UnsupportedOperation) as error:
        raise ConfigError(f"{key}: a .npy file with a broken header ({error}): {fix}") from None
    if len(shape) != 1 or dtype.kind not in "iu":
        raise ConfigError(f"{key}: a .npy file of shape {shape} and type {dtype}: {fix}")
    _exact(size, offset + shape[0] * dtype.itemsize, key, "its header")
    return CorpusLayout(dtype, offset, shape[0], "its .npy header")


def _llm_c(key: str, size: int, magic: int, version: int, tokens: int) -> CorpusLayout:
    name = LLM_C.get((magic, version))
    if name is None or tokens < 0:
        raise ConfigError(
            f"{key}: a header of llm.c with magic {magic}, version {version} and {tokens} tokens; known"
            f" are magic and version {', '.join(f'{m} and {v}' for m, v in LLM_C)}: write it with"
            " llm.c's data scripts, or without a header"
        )
    dtype = np.dtype(name).newbyteorder("<")
    _exact(size, LLM_C_HEADER_BYTES + tokens * dtype.itemsize, key, "its llm.c header")
    return CorpusLayout(dtype, LLM_C_HEADER_BYTES, tokens, "its llm.c header")


def _megatron(index: Path, key: str, size: int) -> CorpusLayout:
    with index.open("rb") as stream:
        header = stream.read(MEGATRON_HEADER_BYTES)
    if header.startswith(FAIRSEQ_MAGIC):
        raise ConfigError(
            f"{key}: {index} is an index of the older format of fairseq (TNTIDX), which is not read;"
            " tokenise with --dataset-impl mmap, or move the index away to read the .bin alone"
        )
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
    name, said_by = MEGATRON_TYPES[code], str(index)
    dtype = np.dtype(name).newbyteorder("<")
    tokens = _megatron_tokens(index, header, key)
    if tokens is not None:
        _exact(size, tokens * dtype.itemsize, key, f"{index} ({tokens:,} tokens of {name})")
    return CorpusLayout(dtype, 0, _whole(size, dtype, key, f"{said_by} says {name!r}"), said_by)


def _megatron_tokens(index: Path, header: bytes, key: str) -> int | None:
    """How many tokens an index names; None: it names no sequence, so it gives the type alone."""
    size = index.stat().st_size
    sequences, documents = struct.unpack("<QQ", header[18:34]) if len(header) == 34 else (0, 0)
    if not sequences:
        return None
    if size == 26 + 12 * sequences:
        start = 26  # fairseq's: a length and a pointer for each sequence, and nothing else.
    elif size >= 34 + 12 * sequences + 8 * documents:
        start = 34  # Megatron's: the documents, and perhaps modes, lie behind those.
    else:
        raise ConfigError(
            f"{key}: {index} has {size:,} bytes, too few for its {sequences:,} sequences: it is cut"
            " short; copy or write it again"
        )
    lengths = np.memmap(index, dtype="<i4", mode="r", offset=start, shape=(sequences,))
    return int(lengths.sum(dtype=np.int64))


def _other_format(head: bytes, size: int) -> str:
    """The format of a file with this beginning that holds no plain ids; empty: no such format is known."""
    for magic, what in OTHER_FORMATS.items():
        if head.startswith(magic):
            return what
    if head[TAR] == b"ustar":
        return "a tar archive: unpack it first"
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < size:
        return "a safetensors file: write the ids with array.tofile('FILE.bin')"
    return ""


def _is_text(head: bytes) -> bool:
    """Whether every byte may occur in a text in UTF-8, Latin-1 or the like; among ids others occur soon."""
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        text = head.decode("utf-16", errors="replace")
        return all(each.isprintable() or each.isspace() for each in text)
    return not any(byte in CONTROLS for byte in head)
