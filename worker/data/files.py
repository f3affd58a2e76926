"""Source files below a folder: which they are, in what order, and which are held out."""

import os
import sysconfig
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pelago.core.errors import ConfigError
from pelago.core.prng import text_hash

TEXT_SUFFIXES: Final = frozenset(
    f".{ending}"
    for line in (
        "txt text md rst tex org csv tsv json jsonl html htm xml yaml yml toml",
        "py pyi c h cc cpp hpp cs rs go java kt scala swift js jsx ts tsx rb php pl lua",
        "sh sql r jl hs ml lisp scm el",
    )
    for ending in line.split()
)
"""Endings, in lower case, of what text:DIR reads."""

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
    files = read_files(folder, frozenset({".py"}), STDLIB_EXCLUDED)
    if not files:
        raise ConfigError(
            f"data.source = 'stdlib': there are no .py files below {folder}: this Python keeps its "
            "standard library elsewhere; use 'text:DIR' with a folder of text"
        )
    return files


def folder_files(folder: str) -> list[SourceFile]:
    """All text files below a folder, sorted by relative path. Raises `ConfigError`."""
    root = Path(folder)
    key = f"data.source = 'text:{folder}'"
    if not folder or not root.exists():
        raise ConfigError(f"{key}: there is no folder {folder!r} (seen from {Path.cwd()})")
    if not root.is_dir():
        raise ConfigError(f"{key}: {folder!r} is a file; name the folder that holds it")
    files = read_files(root, TEXT_SUFFIXES, frozenset({"__pycache__"}))
    if not files:
        raise ConfigError(
            f"{key}: no text files there; read are files that end in .txt, .md, .py and the like"
        )
    return files


def read_files(root: Path, suffixes: frozenset[str], excluded: frozenset[str]) -> list[SourceFile]:
    """Read what is below ``root``, without hidden and excluded folders and empty files; links are
    not followed.
    """
    paths: list[Path] = []
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if name not in excluded and not name.startswith(".")]
        paths += [Path(folder, name) for name in names if Path(name).suffix.lower() in suffixes]
    files = []
    for path in paths:
        try:
            content = path.read_bytes()
        except OSError as error:
            raise ConfigError(f"data.source: cannot read {path}: {error.strerror}") from None
        if content:
            files.append(SourceFile(path.relative_to(root).as_posix(), content))
    return sorted(files, key=lambda file: file.path)


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
