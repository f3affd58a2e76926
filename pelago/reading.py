"""Files that people wrote: their text, their TOML tables, and the paths in them."""

import codecs
import os
import tomllib
from pathlib import Path
from typing import Any, Final

from pelago.core.errors import ConfigError

_UTF_16: Final = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def expanded(path: str) -> str:
    """A path, or the URL of one, with ~ and ~NAME at its beginning replaced by that user's folder.

    Who has no folder here may have one on the host that the path is for: see `require_expanded`.
    """
    return os.path.expanduser(path)


def require_expanded(path: str, key: str) -> Path:
    """An expanded path that is about to be written to: a folder called ~NAME is nothing to make by mistake.
    Raises `ConfigError`, naming the key."""
    user = path.partition("/")[0]
    if user.startswith("~") and not os.path.lexists(user):
        raise ConfigError(
            f"{key} = {path!r}: no folder of a user is known here as {user}; write the path out, or ./{user} for a"
            " folder of that name"
        )
    return Path(path)


def require_folder(folder: Path) -> None:
    """A folder of results that is there, or can be made as far as its place tells. Raises `ConfigError`."""
    try:
        standing = next(each for each in (folder, *folder.absolute().parents) if each.exists())
        why = "" if standing.is_dir() else f"{standing} is no folder"
    except OSError as error:
        why = str(error)
    if why:
        raise ConfigError(f"cannot write to the folder of results {folder}: {why}")


def text(path: Path, what: str) -> str:
    """The text of a file in UTF-8, with or without a byte order mark. Raises `ConfigError`."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read {what} {path}: {error}") from None
    if content.startswith(_UTF_16) or b"\0" in content[:4]:
        raise ConfigError(
            f"cannot read {what} {path}: it is UTF-16, and must be UTF-8: save it as UTF-8 in your editor"
            " (PowerShell: Out-File -Encoding utf8)"
        )
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigError(
            f"cannot read {what} {path}: line {line} has the byte 0x{content[error.start]:02x}, which is not"
            " UTF-8: save it as UTF-8 in your editor"
        ) from None


def tables(text: str, source: str) -> dict[str, Any]:
    """TOML as `tomllib` gives it. Raises `ConfigError`; ``source`` names the file in it."""
    try:
        return tomllib.loads(text)
    except ValueError as error:  # Of a number with thousands of digits it is no more than that.
        raise ConfigError(f"{source}: not TOML: {error}") from None
