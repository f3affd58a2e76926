"""Source files below a folder: which they are, in what order, and which are held out."""

import os
import stat
import sysconfig
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pelago.core.errors import ConfigError
from pelago.core.prng import text_hash
from worker import git_lfs
from worker.data.encodings import to_utf8
from worker.data.file_report import FileReport, shown

TEXT_SUFFIXES: Final = frozenset(
    f".{ending}"
    for line in (
        "txt text md rst tex org csv tsv json jsonl html htm xml yaml yml toml",
        "py pyi c h cc cpp hpp cs rs go java kt scala swift js jsx ts tsx rb php pl lua",
        "sh sql r jl hs ml lisp scm el",
    )
    for ending in line.split()
)
"""Endings, in lower case, of the files that text:DIR reads."""

ARCHIVE_SUFFIXES: Final = frozenset(
    (
        ".zip",
        ".gz",
        ".tgz",
        ".bz2",
        ".xz",
        ".zst",
        ".lz4",
        ".tar",
        ".7z",
        ".rar",
        ".parquet",
        ".arrow",
    )
)
"""Endings, in lower case, of files that may hold text, but would have to be unpacked."""

COPIES: Final = 3
"""How many copies of a text are in memory at least while it is tokenised."""

STDLIB_EXCLUDED: Final = frozenset(
    {"site-packages", "dist-packages", "__pycache__", "test", "tests", "idle_test"}
)
"""Folders of the standard library that differ from one installation to the next, or hold no typical
code.
"""


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file, by its path relative to the corpus folder (with forward slashes)."""

    path: str
    content: bytes


def stdlib_files() -> list[SourceFile]:
    """All Python sources of this interpreter's standard library, sorted by relative path.

    Raises `ConfigError` if this interpreter has no such sources on disk.
    """
    folder = Path(sysconfig.get_paths()["stdlib"])
    files, _ = read_files(folder, frozenset({".py"}), STDLIB_EXCLUDED)
    if not files:
        raise ConfigError(
            f"data.source = 'stdlib': there are no .py files below {folder}: this Python keeps its "
            "standard library elsewhere; use 'text:DIR' with a folder of text"
        )
    return files


def folder_files(folder: str) -> tuple[list[SourceFile], FileReport]:
    """All text files below a folder, sorted by relative path, and a report on all files. Raises
    `ConfigError`.
    """
    key = f"data.source = 'text:{folder}'"
    if not folder or not os.path.exists(folder):
        raise ConfigError(f"{key}: there is no folder {folder!r} (seen from {Path.cwd()})")
    if not os.path.isdir(folder):
        raise ConfigError(f"{key}: {folder!r} is a file; name the folder that holds it")
    files, report = read_files(Path(folder), TEXT_SUFFIXES, frozenset({"__pycache__"}))
    if not files:
        left_out = "; ".join(report.lines()[1:])
        raise ConfigError(
            f"{key}: no text files there; read are files that end in .txt, .md, .py and the like"
            + (f"; {left_out}" if left_out else "")
        )
    return files, report


def read_files(
    root: Path, suffixes: frozenset[str], excluded: frozenset[str]
) -> tuple[list[SourceFile], FileReport]:
    """Read the text files below ``root`` as UTF-8, and report which files were left out: those with another
    ending, in hidden or excluded folders or behind links to folders; empty, binary and special files.

    The order follows the names as UTF-8 in Unicode's composed form, so it is the same on every machine.
    Raises `ConfigError` for a file that cannot be read, and for more text than memory holds.
    """
    report = FileReport()
    found = list(_find(os.fsencode(root), suffixes, excluded, report))
    _require_memory(root, sum(size for _, _, size in found))
    files = []
    for path, name, _ in found:
        content = _read(path, name)
        text, done = (b"", "") if content is None else to_utf8(content)
        if content is None:
            report.leave_out("no regular files (pipes, sockets, devices)", name)
        elif content.startswith(git_lfs.POINTER):
            report.leave_out("pointers of git-lfs, not the files; run `git lfs pull`", name)
        elif text is None:
            report.leave_out(f"{done} files with the ending of a text", name)
        elif not text:
            report.leave_out("empty files", name)
        else:
            report.files, report.bytes = report.files + 1, report.bytes + len(content)
            files.append(SourceFile(name, text))
            if done:
                report.convert(done, name)
    return sorted(files, key=lambda file: (file.path, file.content)), report


def _find(
    root: bytes, suffixes: frozenset[str], excluded: frozenset[str], report: FileReport
) -> Iterator[tuple[bytes, str, int]]:
    """Path, name relative to ``root`` and size of each file that is to be read."""

    def refuse(error: OSError) -> None:
        where = shown(_text(error.filename or root))
        raise ConfigError(f"data.source: cannot read {where}: {error.strerror}") from None

    links: list[tuple[bytes, str, int]] = []
    targets: set[bytes] = set()
    for folder, folders, names in os.walk(root, onerror=refuse):
        for each in sorted(folders):
            path = os.path.join(folder, each)
            why = _folder_left_out(path, _text(each), excluded)
            if why:
                folders.remove(each)
                report.leave_out(why, _name(path, root))
        for each in sorted(names):
            path = os.path.join(folder, each)
            name = _name(path, root)
            why = _left_out(_text(each), suffixes)
            if not why:
                try:
                    kind = os.stat(path)
                except OSError as error:
                    if not os.path.islink(path):
                        refuse(error)
                    why = "links that lead nowhere"
                else:
                    if not stat.S_ISREG(kind.st_mode):
                        why = "no regular files (pipes, sockets, devices)"
            if why:
                report.leave_out(why, name)
            elif os.path.islink(path):
                links.append((path, name, kind.st_size))
            else:
                targets.add(os.path.realpath(path))
                yield path, name, kind.st_size
    for path, name, size in sorted(links, key=lambda link: link[1]):
        if os.path.realpath(path) in targets:
            report.leave_out("links to files that are read anyway", name)
        else:
            targets.add(os.path.realpath(path))
            yield path, name, size


def _folder_left_out(path: bytes, name: str, excluded: frozenset[str]) -> str:
    if name.startswith("."):
        return "hidden folders"
    if name in excluded:
        return "folders of no text"
    return "links to folders, which are not followed" if os.path.islink(path) else ""


def _left_out(name: str, suffixes: frozenset[str]) -> str:
    """Why a file of this name is not read; empty: it may be read."""
    suffix = os.path.splitext(name)[1].lower()
    if name.startswith("._") or name == ".DS_Store":
        return "files of macOS itself (._*, .DS_Store)"
    if suffix in suffixes:
        return ""
    if suffix in ARCHIVE_SUFFIXES:
        return "archives or packed files; unpack them to have them read"
    return "with another ending than a text's"


def _read(path: bytes, name: str) -> bytes | None:
    """A file's content; None if it is no regular file (any more): reading a pipe could block without end."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(descriptor, "rb") as stream:
            return stream.read() if stat.S_ISREG(os.fstat(descriptor).st_mode) else None
    except OSError as error:
        raise ConfigError(f"data.source: cannot read {shown(name)}: {error.strerror}") from None


def _require_memory(root: Path, size: int) -> None:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if COPIES * size > memory:
        raise ConfigError(
            f"data.source: {size / 1e9:,.1f} GB of text below {root} are too much for this machine's"
            f" {memory / 1e9:,.1f} GB of memory: tokenise them once and use 'tokens:FILE.bin'"
        )


def _text(name: bytes) -> str:
    """A name in UTF-8, whatever this machine's locale is; bytes that are not UTF-8 are escaped."""
    return name.decode("utf-8", errors="surrogateescape")


def _name(path: bytes, root: bytes) -> str:
    """The path relative to the corpus folder, with forward slashes, in Unicode's composed form: macOS may have
    decomposed it."""
    return unicodedata.normalize("NFC", _text(os.path.relpath(path, root)))


def held_out(files: list[SourceFile], fraction: float) -> frozenset[str]:
    """Paths of the files to hold out: about ``fraction`` of all bytes, chosen by a hash of the
    path.

    Files are taken in the order of their hash, except those that would overshoot, until nearly
    enough bytes are held out; so names decide, not contents or the run's seed. Empty if every file
    is too large: then a tail has to be held out instead.
    """
    wanted = fraction * sum(len(file.content) for file in files)
    chosen: set[str] = set()
    total = 0
    for file in sorted(files, key=lambda file: (text_hash(file.path), file.path)):
        if total >= 0.9 * wanted:
            break
        if total + len(file.content) <= 1.1 * wanted:
            chosen.add(file.path)
            total += len(file.content)
    return frozenset(chosen) if total >= 0.5 * wanted else frozenset()
