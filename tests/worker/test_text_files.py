"""Every file in a folder of text is read right, or left out and reported; no process waits for a pipe."""

import codecs
import os
import socket
from pathlib import Path

import pytest

from pelago.config.training import DataSection
from pelago.core.errors import ConfigError
from worker.data.corpus import Corpus
from worker.data.encodings import PIECE_BYTES, to_utf8
from worker.data.files import folder_files, held_out
from worker.data.sources import open_corpus

WORDS = "Grüße, это, 文字 and naïve cafés\n"
LATIN = "Grüße und naïve Cafés\n"


def texts(folder: Path) -> Corpus:
    return open_corpus(DataSection(source=f"text:{folder}", sequence_length=16), seed=1)


def account(folder: Path) -> list[str]:
    return list(folder_files(str(folder))[1].lines())


def content(folder: Path) -> dict[str, bytes]:
    return {file.path: file.content for file in folder_files(str(folder))[0]}


@pytest.mark.parametrize(
    ("raw", "text", "said"),
    [
        (WORDS.encode(), WORDS, ""),
        (codecs.BOM_UTF8 + WORDS.encode(), WORDS, "UTF-8 with a byte-order mark"),
        (codecs.BOM_UTF16_LE + WORDS.encode("utf-16-le"), WORDS, "UTF-16, converted"),
        (codecs.BOM_UTF16_BE + WORDS.encode("utf-16-be"), WORDS, "UTF-16, converted"),
        (codecs.BOM_UTF32_LE + WORDS.encode("utf-32-le"), WORDS, "UTF-32, converted"),
        (LATIN.encode("utf-16-le"), LATIN, "UTF-16, converted"),
        (LATIN.encode("utf-16-be"), LATIN, "UTF-16, converted"),
        (LATIN.encode("latin-1"), LATIN, "Latin-1"),
        ("“100 €”\n".encode("cp1252") + b"\x81", "“100 €”\n\x81", "Latin-1"),
    ],
)  # fmt: skip
def test_text_of_a_known_encoding_becomes_utf8(raw: bytes, text: str, said: str) -> None:
    assert to_utf8(raw)[0] == text.encode()
    assert to_utf8(raw)[1].startswith(said)
    assert bool(to_utf8(raw)[1]) == bool(said)


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (WORDS.encode() + b"\xff", "UTF-8 with broken characters"),
        (WORDS.encode()[:-3] + b"\xc3", "UTF-8 with broken characters"),
        (bytes(range(1, 251)), "of no encoding that is known"),
        ("Жил был старый король.\n".encode("cp1251"), "of no encoding that is known"),
        ("Жил был старый король.\n".encode("koi8-r"), "of no encoding that is known"),
        ("Μια φορά ήταν ένας βασιλιάς.\n".encode("cp1253"), "of no encoding that is known"),
        ("从前有一个国王。\n".encode("gbk"), "of no encoding that is known"),
        ("昔々おじいさんがいました。\n".encode("shift-jis"), "of no encoding that is known"),
    ],
)
def test_text_of_a_doubtful_encoding_stays_byte_by_byte(raw: bytes, said: str) -> None:
    assert to_utf8(raw)[0] == raw
    assert to_utf8(raw)[1].startswith(said)


def test_a_character_between_two_pieces_of_a_large_text_stays_whole() -> None:
    start = b"x" * (PIECE_BYTES - 1)
    assert to_utf8(start + "é".encode()) == (start + "é".encode(), "")
    large = codecs.BOM_UTF16_LE + (start.decode()[::2] + "é文").encode("utf-16-le")
    assert to_utf8(large)[0] == (start.decode()[::2] + "é文").encode()


def test_files_that_are_no_text_are_left_out_with_the_reason_and_change_nothing(
    tmp_path: Path,
) -> None:
    for number in range(30):
        (tmp_path / f"{number}.txt").write_text(f"text number {number}\n" * 20)
    before = texts(tmp_path).digest
    (tmp_path / "._1.txt").write_bytes(b"\x00\x05\x16\x07")
    (tmp_path / ".DS_Store").write_bytes(b"x")
    for name in ("a.zip", "b.jsonl.gz", "c.zst", "d.tar", "e.PARQUET"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "picture.png").write_bytes(b"x")
    (tmp_path / "image.txt").write_bytes(b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR")
    (tmp_path / "note.jsonl").write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:4d\n"
    )
    (tmp_path / "empty.md").touch()
    os.mkfifo(tmp_path / "pipe.txt")
    (tmp_path / "again.txt").symlink_to("7.txt")
    (tmp_path / "nowhere.txt").symlink_to("gone")
    (tmp_path / "itself.txt").symlink_to("itself.txt")
    (tmp_path / "loop").symlink_to(".")
    (tmp_path / "zero.txt").symlink_to("/dev/zero")
    (tmp_path / ".git").mkdir()
    with socket.socket(socket.AF_UNIX) as door:
        door.bind(str(tmp_path / "door.txt"))
        corpus = texts(tmp_path)
    assert corpus.digest == before
    said = "\n".join(corpus.report)
    assert "read: 30 files," in said
    for line in (
        "left out: 5 archives or packed files; unpack them to have them read (a.zip, b.jsonl.gz, c.zst and 2 more)",
        "left out: 2 files of macOS itself (._*, .DS_Store) (.DS_Store, ._1.txt)",
        "left out: 1 with another ending than a text's (picture.png)",
        "left out: 1 binary files with the ending of a text (image.txt)",
        "left out: 1 empty files (empty.md)",
        "left out: 1 pointers of git-lfs, not the files; run `git lfs pull` (note.jsonl)",
        "left out: 3 no regular files (pipes, sockets, devices) (door.txt, pipe.txt, zero.txt)",
        "left out: 1 links to files that are read anyway (again.txt)",
        "left out: 2 links that lead nowhere (itself.txt, nowhere.txt)",
        "left out: 1 links to folders, which are not followed (loop)",
        "left out: 1 hidden folders (.git)",
    ):
        assert line in said, line


def test_a_link_to_a_file_elsewhere_is_read_once(tmp_path: Path) -> None:
    """The caches of huggingface_hub are laid out like this."""
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs" / "0a1b").write_text("content\n" * 9)
    (tmp_path / "texts").mkdir()
    for name in ("one.txt", "two.txt"):
        (tmp_path / "texts" / name).symlink_to(tmp_path / "blobs" / "0a1b")
    assert content(tmp_path / "texts") == {"one.txt": b"content\n" * 9}


def test_names_that_are_no_utf8_are_read_and_can_be_printed(tmp_path: Path) -> None:
    """The order is that of the names, on every machine; a line break in a name breaks no line."""
    for name in (
        b"na\xefve.txt",
        "naïve.txt".encode(),
        "cafe\u0301.txt".encode(),
        b"two\nlines.txt",
    ):
        Path(os.fsdecode(os.path.join(os.fsencode(tmp_path), name))).write_bytes(
            LATIN.encode("latin-1")
        )
    names = ["café.txt", "naïve.txt", "na\udcefve.txt", "two\nlines.txt"]
    assert list(content(tmp_path)) == sorted(names)
    said = "\n".join(account(tmp_path))
    assert said.encode()
    assert (
        "encoding: 4 Latin-1 (Windows-1252), converted (café.txt, naïve.txt, na\\xefve.txt and 1"
        in said
    )
    assert len(held_out(folder_files(str(tmp_path))[0], 0.25)) == 1


def test_a_folder_without_text_says_what_is_there_instead(tmp_path: Path) -> None:
    (tmp_path / "all.tar.gz").write_bytes(b"x")
    with pytest.raises(
        ConfigError, match=r"no text files there.*left out: 1 archives.*all\.tar\.gz"
    ):
        texts(tmp_path)


def test_more_text_than_memory_is_refused_with_the_figures(tmp_path: Path) -> None:
    """It is not read: the file has no blocks on the disk."""
    with (tmp_path / "huge.txt").open("wb") as stream:
        stream.truncate(8 << 40)
    with pytest.raises(
        ConfigError, match=r"GB of text below .* too much for .* 'tokens:FILE\.bin'"
    ):
        texts(tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_file_that_may_not_be_read_is_an_error(tmp_path: Path) -> None:
    """Without it the corpus would differ from that of the other hosts."""
    (tmp_path / "a.txt").write_text(WORDS)
    (tmp_path / "a.txt").chmod(0)
    with pytest.raises(ConfigError, match=r"cannot read a\.txt: Permission denied"):
        texts(tmp_path)
