"""A token file is read as its own format, or refused by the format's name; a bad id is found and located."""

import bz2
import io
import re
import struct
import tarfile
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

from pelago.config.training import DataSection
from pelago.core.errors import ConfigError
from tests.worker.corpora import write_tokens
from worker.data.corpus import SCAN_TOKENS, Corpus
from worker.data.sources import open_corpus

IDS = np.random.default_rng(3).integers(1, 50_000, 6000)
"""Ids like those of a tokenizer, except for their distribution."""


def tokens(file: Path, **keys: object) -> Corpus:
    return open_corpus(
        DataSection(source=f"tokens:{file}", **{"sequence_length": 16, **keys}), seed=1
    )


def everything(corpus: Corpus) -> list[int]:
    return [*corpus.train.tolist(), *corpus.validation.tolist()]


def llm_c(ids: np.ndarray, magic: int, version: int, count: int | None = None) -> bytes:
    header = np.zeros(256, dtype="<i4")
    header[:3] = magic, version, len(ids) if count is None else count
    return header.tobytes() + ids.tobytes()


def megatron(ids: np.ndarray, code: int, lengths: list[int], documents: int = 2) -> bytes:
    """An index as Megatron's IndexedDatasetBuilder writes it; ``documents`` 0: as fairseq does."""
    sizes = np.array(lengths, dtype="<i4")
    pointers = np.concatenate([[0], np.cumsum(sizes)[:-1]]).astype("<i8") * ids.itemsize
    head = b"MMIDIDX\x00\x00" + struct.pack("<QBQ", 1, code, len(sizes))
    if documents:
        head += struct.pack("<Q", documents)
    return head + sizes.tobytes() + pointers.tobytes() + bytes(8 * documents)


def tar(content: bytes) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        entry = tarfile.TarInfo("a.bin")
        entry.size = len(content)
        archive.addfile(entry, io.BytesIO(content))
    return out.getvalue()


@pytest.mark.parametrize("dtype", ["<u2", "<u4", "<i4", "<i8", ">u2", ">i8"])
def test_numpys_own_format_says_its_type(tmp_path: Path, dtype: str) -> None:
    np.save(tmp_path / "a.npy", IDS.astype(dtype))
    corpus = tokens(tmp_path / "a.npy")
    corpus.limit_vocabulary(50_257)
    assert everything(corpus) == IDS.tolist()
    assert isinstance(corpus.train, np.memmap)


@pytest.mark.parametrize(
    ("dtype", "magic", "version"), [("<u2", 20240520, 1), ("<u4", 20240801, 7)]
)
def test_the_header_of_llm_c_is_no_part_of_the_corpus(
    tmp_path: Path, dtype: str, magic: int, version: int
) -> None:
    (tmp_path / "a.bin").write_bytes(llm_c(IDS.astype(dtype), magic, version))
    assert everything(tokens(tmp_path / "a.bin")) == IDS.tolist()


@pytest.mark.parametrize("documents", [0, 2])
@pytest.mark.parametrize(("code", "dtype"), [(8, "<u2"), (4, "<i4")])
def test_an_index_says_type_and_length(
    tmp_path: Path, code: int, dtype: str, documents: int
) -> None:
    ids = IDS.astype(dtype)
    ids.tofile(tmp_path / "a.bin")
    (tmp_path / "a.idx").write_bytes(megatron(ids, code, [1000, 5000], documents))
    assert everything(tokens(tmp_path / "a.bin")) == IDS.tolist()


IDS_16 = IDS.astype("<u2")


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"a.bin": llm_c(IDS_16, 20240520, 2)}, r"llm\.c with magic 20240520, version 2"),
        ({"a.bin": struct.pack(">i", 20240520) + bytes(2000)}, r"header of llm\.c"),
        ({"a.bin": llm_c(IDS_16, 20240520, 1, 7000)}, r"2,000 shorter than its llm\.c header says"),
        ({"a.bin": llm_c(IDS_16, 20240520, 1, 10)}, r"longer than its llm\.c header says"),
        ({"a.bin": IDS_16[:-5].tobytes(), "a.idx": megatron(IDS_16, 8, [1000, 5000])},
         r"10 shorter than .*a\.idx .*cut short"),
        ({"a.bin": IDS_16.tobytes(), "a.idx": megatron(IDS_16, 8, [1000, 4000])},
         r"2,000 longer than .*a\.idx .*another file"),
        ({"a.bin": IDS_16.tobytes(), "a.idx": megatron(IDS_16, 8, [1000, 5000])[:49]},
         r"a\.idx has 49 bytes, too few for its 2 sequences"),
        ({"a.bin": IDS_16.tobytes(), "a.idx": b"TNTIDX\x00\x00" + bytes(40)}, r"TNTIDX.* not read"),
        ({"a.bin": megatron(IDS_16, 8, [6000])}, r"an index, not the tokens: name the \.bin"),
        ({"a.bin": b"\x1f\x8b\x08\x00" + IDS_16.tobytes()}, r"gzip\): unpack it"),
        ({"a.bin": b"\x28\xb5\x2f\xfd" + IDS_16.tobytes()}, r"zstd\): unpack it"),
        ({"a.bin": b"PK\x03\x04" + IDS_16.tobytes()}, r"zip archive"),
        ({"a.bin": b"version https://git-lfs.github.com/spec/v1\n"}, r"git lfs pull"),
        ({"a.bin": b"Once upon a time there was a king.\n" * 9}, r"is text.*'text:DIR'"),
        ({"a.bin": "Ältere Könige aßen früher “Grütze”.\n".encode() * 9}, r"is text.*'text:DIR'"),
        ({"a.bin": "Ältere Könige aßen früher “Grütze”.\n".encode("cp1252") * 9}, r"is text"),
        ({"a.bin": ("Once upon a time there was a king.\n" * 9).encode("utf-16")}, r"is text"),
        ({"a.bin": bz2.compress(IDS_16.tobytes())}, r"bzip2\): unpack it"),
        ({"a.bin": b"\x04\x22\x4d\x18" + IDS_16.tobytes()}, r"lz4\): unpack it"),
        ({"a.bin": tar(IDS_16.tobytes())}, r"a tar archive: unpack it"),
        ({"a.bin": save({"ids": IDS_16})}, r"a safetensors file: write"),
        ({"a.bin": b"\x80\x05\x95" + IDS_16.tobytes() + b"."}, r"a pickle: write"),
        ({"a.bin": b"\x80\x02\x8a\x0al\xfc\x9cF" + IDS_16.tobytes()}, r"a pickle of PyTorch: write"),
        ({"a.bin": b"SQLite format 3\x00" + bytes(4080)}, r"a database: write"),
        ({"a.bin": b"\x93NUMPY\x01\x00\x10"}, r"broken header.*numpy\.save"),
    ],
)  # fmt: skip
def test_other_formats_are_refused_by_name(
    tmp_path: Path, files: dict[str, bytes], said: str
) -> None:
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=said) as caught:
        tokens(tmp_path / "a.bin")
    assert str(caught.value).startswith(f"data.source = 'tokens:{tmp_path}/a.bin'")


@pytest.mark.parametrize("array", [IDS.reshape(2, -1), IDS * 0.5, np.array(["a", "b"])])
def test_an_array_that_holds_no_row_of_ids_is_refused(tmp_path: Path, array: np.ndarray) -> None:
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(ConfigError, match=r"of shape .*numpy\.save\('FILE\.npy', ids\)"):
        tokens(tmp_path / "a.npy")


@pytest.mark.parametrize(
    ("written", "read", "vocabulary", "said"),
    [
        ("<u4", "uint16", 50_257, "looks like uint32: set data.token_dtype = 'uint32'"),
        ("<u4", "uint16", 65_536, "looks like uint32: set data.token_dtype = 'uint32'"),
        ("<u4", "uint16", 128_256, "looks like uint32: set data.token_dtype = 'uint32'"),
        ("<i8", "uint16", 50_257, "looks like uint64: set data.token_dtype = 'uint64'"),
        ("<i8", "uint32", 128_256, "looks like uint64: set data.token_dtype = 'uint64'"),
        ("<u2", "uint32", 50_257, "looks like uint16: set data.token_dtype = 'uint16'"),
        (">u2", "uint16", 50_257, "looks like big-endian uint16: write it with array.astype('<u2')"),
        (">u4", "uint16", 65_536, "looks like big-endian uint32: write it with array.astype('<u4')"),
        (">u4", "uint32", 128_256, "looks like big-endian uint32"),
    ],
)  # fmt: skip
def test_ids_of_another_type_are_seen_before_training(
    tmp_path: Path, written: str, read: str, vocabulary: int, said: str
) -> None:
    IDS.astype(written).tofile(tmp_path / "a.bin")
    with pytest.raises(ConfigError, match=re.escape(said)):
        tokens(tmp_path / "a.bin", token_dtype=read).limit_vocabulary(vocabulary)
    if written[0] == "<":
        right = f"uint{8 * int(written[2])}"
        tokens(tmp_path / "a.bin", token_dtype=right).limit_vocabulary(50_257)


@pytest.mark.parametrize(
    ("written", "read"), [("<u4", "uint16"), ("<i8", "uint16"), ("<i8", "uint32")]
)
def test_wide_ids_that_are_mostly_padding_are_seen(tmp_path: Path, written: str, read: str) -> None:
    """Documents of 30 ids, each filled up with zeros to 200; of the right type they are no fault."""
    rows = np.zeros((100, 200), dtype=written)
    rows[:, :30] = IDS[:3000].reshape(100, 30)
    rows.tofile(tmp_path / "a.bin")
    with pytest.raises(ConfigError, match=f"looks like uint{8 * int(written[2])}: set"):
        tokens(tmp_path / "a.bin", token_dtype=read).limit_vocabulary(50_257)
    rows.astype("<u2").tofile(tmp_path / "b.bin")
    tokens(tmp_path / "b.bin").limit_vocabulary(50_257)


def test_small_ids_the_wrong_way_round_are_seen_in_any_vocabulary(tmp_path: Path) -> None:
    write_tokens(tmp_path / "a.bin", 6000, ">u2")
    with pytest.raises(ConfigError, match="looks like big-endian uint16"):
        tokens(tmp_path / "a.bin").limit_vocabulary(65_536)


@pytest.mark.parametrize("ids", [np.zeros(4000), np.arange(4000) % 2, np.full(4000, 7)])
def test_a_dull_corpus_is_not_taken_for_another_type(tmp_path: Path, ids: np.ndarray) -> None:
    ids.astype("<u2").tofile(tmp_path / "a.bin")
    tokens(tmp_path / "a.bin").limit_vocabulary(256)


def test_sixteen_bits_are_too_few_for_a_larger_vocabulary(tmp_path: Path) -> None:
    IDS.astype("<u2").tofile(tmp_path / "a.bin")
    tokens(tmp_path / "a.bin").limit_vocabulary(65_536)
    with pytest.raises(ConfigError, match=r"below 65,536.*vocabulary is 65,537: larger ids were"):
        tokens(tmp_path / "a.bin").limit_vocabulary(65_537)


@pytest.mark.parametrize("position", [200_000, 399_000])
def test_a_bad_id_is_reported_with_file_place_and_value(tmp_path: Path, position: int) -> None:
    """By a scan, and when it is read for training; position 399,000 lies in the held-out part."""
    values = np.resize(IDS, 400_000).astype("<u4")
    values[position] = 60_000
    np.save(tmp_path / "a.npy", values)
    corpus = tokens(tmp_path / "a.npy")
    limit = 50_257
    corpus._id_limit = limit
    place = (
        rf"token id 60000.*0 to 50256 .*a\.npy: token {position:,}, at byte {128 + 4 * position:,}"
    )
    with pytest.raises(ConfigError, match=place):
        corpus.scan(lambda part: None)
    with pytest.raises(ConfigError, match=place):
        _read_all(corpus)


def _read_all(corpus: Corpus) -> None:
    for _ in corpus.validation_batches(10**6, 64):
        pass
    corpus.batch(range(corpus.windows))


def test_a_scan_reads_all_in_bounded_memory_and_says_how_far_it_is(tmp_path: Path) -> None:
    count = 5 * SCAN_TOKENS
    write_tokens(tmp_path / "a.bin", count)
    corpus = tokens(tmp_path / "a.bin")
    corpus.limit_vocabulary(256)
    heard: list[float] = []
    tracemalloc.start()
    try:
        assert corpus.scan(heard.append) == 99
        assert tracemalloc.get_traced_memory()[1] < 3 * SCAN_TOKENS
    finally:
        tracemalloc.stop()
    assert heard == sorted(heard)
    assert len(heard) >= 5
    assert heard[-1] == 1.0
