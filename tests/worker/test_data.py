"""A corpus is the same in every process that opens it; its faults are named in one line."""

import random
import struct
from pathlib import Path

import numpy as np
import pytest

from pelago.config.training import DataSection
from pelago.core.errors import ConfigError
from tests.worker.corpora import write_texts, write_tokens
from worker.data.corpus import Corpus
from worker.data.files import STDLIB_EXCLUDED, SourceFile, held_out, stdlib_files
from worker.data.sources import open_corpus
from worker.data.tokens import sampled_digest


def texts(folder: Path, **keys: object) -> Corpus:
    return open_corpus(
        DataSection(source=f"text:{folder}", **{"sequence_length": 16, **keys}), seed=1
    )


def tokens(file: Path, **keys: object) -> Corpus:
    return open_corpus(
        DataSection(source=f"tokens:{file}", **{"sequence_length": 16, **keys}), seed=1
    )


def test_an_epoch_trains_on_every_token_once(tmp_path: Path) -> None:
    """Windows overlap in one token only: the last target of one is the first input of the next."""
    corpus = texts(write_texts(tmp_path))
    windows = corpus.batch(range(corpus.windows)).numpy()
    assert windows.shape == (corpus.windows, 17)
    inputs = corpus.train[: corpus.windows * 16].reshape(-1, 16)
    assert sorted(map(tuple, windows[:, :-1])) == sorted(map(tuple, inputs))
    assert len(corpus.train) - 1 - corpus.windows * 16 < 16


def test_a_batch_depends_on_its_samples_alone(tmp_path: Path) -> None:
    """Another worker, which read other samples before, reads the same."""
    write_texts(tmp_path)
    wanted = [5, 10**9, 77, 5]
    first = texts(tmp_path)
    first.batch(range(300))
    assert first.batch(wanted).equal(texts(tmp_path).batch(wanted))


def test_another_seed_is_another_order_of_the_same_corpus(tmp_path: Path) -> None:
    data = DataSection(source=f"text:{write_texts(tmp_path)}", sequence_length=16)
    one, two = open_corpus(data, 1), open_corpus(data, 2)
    assert not one.batch(range(50)).equal(two.batch(range(50)))
    assert one.digest == two.digest
    held = [next(corpus.validation_batches(8, 8)) for corpus in (one, two)]
    assert held[0].equal(held[1])


def test_the_held_out_part_is_files_that_are_not_trained_on(tmp_path: Path) -> None:
    corpus = texts(write_texts(tmp_path), validation_fraction=0.2)
    whole = bytes(corpus.train) + bytes(corpus.validation)
    contents = {path.read_bytes() for path in tmp_path.rglob("*.txt")}
    assert set(whole.split(b"\0")) - {b""} == contents
    train, validation = (
        set(bytes(part).split(b"\0")) for part in (corpus.train, corpus.validation)
    )
    assert train & validation == {b""}
    assert len(corpus.validation) == pytest.approx(0.2 * len(whole), rel=0.15)


def test_which_files_are_held_out_depends_on_names_not_on_the_order_of_the_disk() -> None:
    files = [SourceFile(f"{number}.txt", b"x" * 100) for number in range(50)]
    chosen = held_out(files, 0.1)
    assert len(chosen) == 5
    for seed in range(5):
        random.Random(seed).shuffle(files)
        assert held_out(files, 0.1) == chosen


def test_a_single_file_gives_its_tail(tmp_path: Path) -> None:
    (tmp_path / "book.txt").write_bytes(bytes(range(1, 251)) * 4)
    corpus = texts(tmp_path, validation_fraction=0.1)
    assert bytes(corpus.validation) == bytes(range(152, 251)) + b"\0"
    assert len(corpus.train) + len(corpus.validation) == 1001


def test_validation_batches_are_spread_and_limited_to_what_there_is(tmp_path: Path) -> None:
    corpus = texts(write_texts(tmp_path))
    everything = list(corpus.validation_batches(10**6, 7))
    windows = (len(corpus.validation) - 1) // 16
    assert [len(batch) for batch in everything][:-1] == [7] * (len(everything) - 1)
    assert sum(len(batch) for batch in everything) == windows
    (few,) = corpus.validation_batches(4, 64)
    starts = [i * windows // 4 * 16 for i in range(4)]
    assert few.numpy().tolist() == [corpus.validation[s : s + 17].tolist() for s in starts]


def test_the_digest_names_content_and_split(tmp_path: Path) -> None:
    folder = write_texts(tmp_path)
    original = texts(folder).digest
    assert texts(folder).digest == original
    assert texts(folder, sequence_length=8).digest == original
    assert texts(folder, validation_fraction=0.3).digest != original
    path = folder / "part0" / "000.txt"
    path.write_text(path.read_text().replace("0 squared 3", "0 squared 4"))
    assert texts(folder).digest != original


def test_files_that_are_no_text_are_left_out(tmp_path: Path) -> None:
    folder = write_texts(tmp_path)
    original = texts(folder).digest
    for name in ("weights.bin", "__pycache__/a.py", ".git/notes.txt", "empty.txt"):
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"" if name == "empty.txt" else b"something")
    assert texts(folder).digest == original


def test_the_standard_library_is_a_corpus_of_megabytes() -> None:
    files = stdlib_files()
    assert [file.path for file in files] == sorted(file.path for file in files)
    assert "argparse.py" in {file.path for file in files}
    assert not any(STDLIB_EXCLUDED & set(file.path.split("/")) for file in files)
    corpus = open_corpus(DataSection(), seed=0)
    total = sum(len(file.content) + 1 for file in files)
    assert total == len(corpus.train) + len(corpus.validation) > 5_000_000
    assert len(corpus.validation) == pytest.approx(0.05 * total, rel=0.15)
    assert corpus.vocabulary == 256
    assert corpus.digest == open_corpus(DataSection(), seed=5).digest


def test_a_hugging_face_tokenizer_makes_the_tokens(tmp_path: Path) -> None:
    """Words become ids, files end with the end-of-text token, and text comes back unchanged."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "a.txt").write_text("red green blue " * 60)
    words = {word: number for number, word in enumerate(["<end>", "?", "red", "green", "blue"])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", unk_token="?")
    fast.save_pretrained(tmp_path / "tokenizer")

    corpus = texts(folder, tokenizer=str(tmp_path / "tokenizer"), validation_fraction=0.2)
    everything = np.concatenate([corpus.train, corpus.validation]).tolist()
    assert corpus.vocabulary == 5
    assert everything == [2, 3, 4] * 60 + [0]


@pytest.mark.parametrize("dtype", ["uint16", "uint32"])
def test_a_raw_token_file_is_read_as_it_is(tmp_path: Path, dtype: str) -> None:
    file = write_tokens(tmp_path / "train.bin", 2000, dtype)
    corpus = tokens(file, token_dtype=dtype, validation_fraction=0.1)
    assert corpus.train.tolist() == [i % 100 for i in range(1800)]
    assert corpus.validation.tolist() == [i % 100 for i in range(1800, 2000)]
    assert isinstance(corpus.train, np.memmap)


@pytest.mark.parametrize(("code", "dtype"), [(8, "uint16"), (4, "int32"), (5, "int64")])
def test_a_megatron_index_says_the_type(tmp_path: Path, code: int, dtype: str) -> None:
    """data.token_dtype stays at its default, which would be wrong."""
    file = write_tokens(tmp_path / "text_document.bin", 1000, dtype)
    header = b"MMIDIDX\x00\x00" + struct.pack("<QB", 1, code) + bytes(64)
    file.with_suffix(".idx").write_bytes(header)
    assert tokens(file).train.tolist() == [i % 100 for i in range(950)]


def test_the_digest_of_a_token_file_sees_its_ends_its_length_and_its_type(tmp_path: Path) -> None:
    count = 30_000
    original = np.arange(count, dtype=np.uint16)
    digests = {sampled_digest(original)}
    for changed in (0, 4095, 4096, count // 2, count - 1):
        other = original.copy()
        other[changed] += 1
        digests.add(sampled_digest(other))
    digests |= {sampled_digest(original[:-1]), sampled_digest(original.astype(np.uint32))}
    assert len(digests) == 8
    file = write_tokens(tmp_path / "a.bin", 1000)
    assert tokens(file).digest == tokens(file).digest
    assert tokens(file).digest != tokens(file, validation_fraction=0.5).digest


def test_token_ids_beyond_the_model_are_refused_at_the_edges_at_once(tmp_path: Path) -> None:
    corpus = tokens(write_tokens(tmp_path / "a.bin", 5000, vocabulary=101))
    corpus.limit_vocabulary(101)
    with pytest.raises(ConfigError, match=r"holds the token id 100, but the model knows ids .* 99"):
        corpus.limit_vocabulary(100)


def test_a_bad_token_id_in_the_middle_is_refused_when_it_is_read(tmp_path: Path) -> None:
    values = np.zeros(400_000, dtype=np.uint16)
    values[200_000] = 60_000
    values.tofile(tmp_path / "a.bin")
    corpus = tokens(tmp_path / "a.bin")
    corpus.limit_vocabulary(256)
    with pytest.raises(ConfigError, match="token id 60000"):
        corpus.batch(range(corpus.windows))


def test_a_tokenizer_whose_ids_the_model_lacks_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"vocabulary is 100: .*vocab_size = 256 in model\.overrides"
    ):
        texts(write_texts(tmp_path)).limit_vocabulary(100)


def tokenizer(
    folder: Path, ids: dict[str, int], eos: str | None, unknown: str | None = "?"
) -> Path:
    """A tokenizer of whole words."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.WordLevel(ids, unk_token=unknown or ""))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=made, eos_token=eos, unk_token=unknown)
    fast.save_pretrained(folder)
    return folder


def colours(folder: Path) -> Path:
    folder.mkdir()
    (folder / "a.txt").write_text("red green blue " * 200)
    return folder


def test_ids_that_the_model_lacks_are_no_fault_if_none_occurs(tmp_path: Path) -> None:
    """For example a tokenizer with a token for padding, which is one larger than its model."""
    words = {word: number for number, word in enumerate(["?", "red", "green", "blue", "<pad>"])}
    place = str(tokenizer(tmp_path / "tokenizer", words, None))
    corpus = texts(colours(tmp_path / "texts"), tokenizer=place)
    corpus.limit_vocabulary(4)
    assert "5 ids, of which the model knows 4; the largest that occurs is 3" in corpus.report[-1]
    with pytest.raises(ConfigError, match=r"uses the token id 3 of a vocabulary of 5 ids.* is 3:"):
        corpus.limit_vocabulary(3)


def test_an_end_of_text_that_is_one_too_large_for_the_model_is_refused(tmp_path: Path) -> None:
    words = {word: number for number, word in enumerate(["?", "red", "green", "blue", "<end>"])}
    place = str(tokenizer(tmp_path / "tokenizer", words, "<end>"))
    with pytest.raises(ConfigError, match=r"uses the token id 4 .* model's vocabulary is 4:"):
        texts(colours(tmp_path / "texts"), tokenizer=place).limit_vocabulary(4)


def test_a_tokenizer_without_an_end_of_text_is_reported(tmp_path: Path) -> None:
    words = {word: number for number, word in enumerate(["?", "red", "green", "blue"])}
    for eos, reported in ((None, True), ("?", False)):
        place = str(tokenizer(tmp_path / f"tokenizer-{eos is None}", words, eos))
        corpus = texts(tmp_path / "texts" if eos else colours(tmp_path / "texts"), tokenizer=place)
        assert any("no end-of-text token" in line for line in corpus.report) == reported


def test_the_largest_id_of_a_tokenizer_counts_not_the_number_of_its_tokens(tmp_path: Path) -> None:
    """Ids may have gaps; 300 in a byte would be another token."""
    words = {"?": 0, "red": 1, "green": 2, "blue": 300}
    place = str(tokenizer(tmp_path / "tokenizer", words, None))
    corpus = texts(colours(tmp_path / "texts"), tokenizer=place)
    assert corpus.vocabulary == 301
    assert set(np.concatenate([corpus.train, corpus.validation]).tolist()) == {1, 2, 300}


def test_a_tokenizer_that_git_lfs_did_not_fetch_is_named(tmp_path: Path) -> None:
    place = tokenizer(tmp_path / "tokenizer", {"?": 0, "red": 1}, None)
    (place / "tokenizer.json").write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
    )
    with pytest.raises(ConfigError, match=r"data\.tokenizer = .*: tokenizer\.json is a git-lfs"):
        texts(colours(tmp_path / "texts"), tokenizer=str(place))


@pytest.mark.parametrize("in_wrapper", [True, False])
def test_the_share_of_unknown_tokens_is_reported_and_more_than_a_hundredth_doubted(
    tmp_path: Path, in_wrapper: bool
) -> None:
    place = tokenizer(tmp_path / "tokenizer", {"?": 0, "red": 1, "green": 2, "<end>": 3}, "<end>")
    if not in_wrapper:
        config = place / "tokenizer_config.json"
        config.write_text(config.read_text().replace('"unk_token": "?"', '"unk_token": null'))
    corpus = texts(colours(tmp_path / "texts"), tokenizer=str(place))
    share = "33.3 % of the tokens are '?', which stands for what it does not know"
    assert f"tokenizer: {share}" in corpus.report
    assert [share in doubt and "data.tokenizer = " in doubt for doubt in corpus.warnings] == [True]

    (tmp_path / "texts" / "a.txt").write_text("red green " * 200 + "blue ")
    corpus = texts(tmp_path / "texts", tokenizer=str(place))
    assert any(line.startswith("tokenizer: 0.249 % of the tokens") for line in corpus.report)
    assert corpus.warnings == ()

    (tmp_path / "texts" / "a.txt").write_text("red green " * 200)
    corpus = texts(tmp_path / "texts", tokenizer=str(place))
    assert not any("does not know" in line for line in corpus.report)


def test_bytes_that_a_tokenizer_replaces_are_reported(tmp_path: Path) -> None:
    """The text itself keeps them, byte by byte; a tokenizer of characters cannot."""
    words = {word: number for number, word in enumerate(["?", "red", "green", "blue"])}
    place = str(tokenizer(tmp_path / "tokenizer", words, None))
    folder = colours(tmp_path / "texts")
    (folder / "b.txt").write_bytes("король ".encode("cp1251") * 20)
    replaced = "encoding: 1 with bytes that are no UTF-8, which a tokenizer reads as U+FFFD (b.txt)"
    assert replaced in texts(folder, tokenizer=place).report
    assert not any("U+FFFD" in line for line in texts(folder).report)


def test_a_text_that_the_tokenizer_cannot_encode_is_named(tmp_path: Path) -> None:
    place = str(tokenizer(tmp_path / "tokenizer", {"red": 0, "green": 1}, None, unknown=None))
    with pytest.raises(ConfigError, match=r"data\.tokenizer = .*: cannot encode a\.txt: "):
        texts(colours(tmp_path / "texts"), tokenizer=place)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"source": "text:nowhere"}, r"data\.source = 'text:nowhere'.*no folder 'nowhere'"),
        ({"source": "text:"}, r"data\.source = 'text:'.*no folder"),
        ({"source": "text:file.txt"}, r"'file\.txt' is a file"),
        ({"source": "text:empty"}, r"no text files there"),
        ({"source": "text:short"}, r"part has 4 tokens; data\.sequence_length = 128 needs .* 129"),
        ({"source": "text:short", "tokenizer": "gone"}, r"data\.tokenizer = 'gone'.*no folder"),
        ({"source": "text:short", "tokenizer": "short"}, r"data\.tokenizer = 'short'.*no readable"),
        ({"source": "stdlib", "tokenizer": "short"}, r"only read with data\.source = 'text:DIR'"),
        ({"source": "tokens:gone.bin"}, r"there is no file 'gone\.bin'"),
        ({"source": "tokens:short"}, r"there is no file 'short'"),
        ({"source": "tokens:zero.bin"}, r"the file is empty"),
        ({"source": "tokens:odd.bin"}, r"1001 bytes are not a whole number of 2-byte.*'uint16'"),
        ({"source": "tokens:few.bin"}, r"held-out part has 10 tokens; .* needs at least 129"),
        ({"source": "tokens:torn.bin"}, r"torn\.idx is no Megatron index"),
        ({"source": "tokens:float.bin"}, r"float\.idx has version 1 and type code 7"),
    ],
)
def test_what_is_wrong_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: dict[str, str], said: str
) -> None:
    """Key, value, and what would be right, in one line."""
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    Path("short").mkdir()
    Path("short/a.txt").write_text("abc")
    Path("file.txt").write_text("abc")
    Path("zero.bin").touch()
    Path("odd.bin").write_bytes(bytes(1001))
    for name in ("few", "torn", "float"):
        write_tokens(Path(f"{name}.bin"), 200)
    Path("torn.idx").write_bytes(b"MMIDIDX")
    Path("float.idx").write_bytes(b"MMIDIDX\x00\x00" + struct.pack("<QB", 1, 7))
    with pytest.raises(ConfigError, match=said) as caught:
        open_corpus(DataSection(**data), seed=0)
    assert "\n" not in str(caught.value)
