"""Files that people wrote: their text, the paths in them, and what is wrong with their values, in words."""

import codecs
import os
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pelago.core.errors import ConfigError

if TYPE_CHECKING:
    from pydantic import ValidationError

_UTF_16: Final = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_KINDS: Final = {
    "int": "a number",
    "float": "a number",
    "bool": "true or false",
    "str": "a text in quotes",
}
"""What pydantic calls the arms of a union, and what a person calls them."""


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


def faults(error: "ValidationError") -> list[Mapping[str, Any]]:
    """What pydantic found, one entry a value: of a value that may be of several kinds it has one for each.

    That a list is too short is left out where it is not: pydantic does not count entries that are wrong.
    """
    found: dict[tuple[Any, ...], dict[str, Any]] = {}
    for detail in error.errors(include_url=False):
        place = detail["loc"]
        if detail["type"] == "too_short" and len(detail["input"]) >= detail["ctx"]["min_length"]:
            continue
        arm = place[-1] if len(place) > 1 and place[-1] in _KINDS else None
        if arm is None:
            found[place] = dict(detail)
            continue
        entry = found.setdefault(
            place[:-1], {**detail, "loc": place[:-1], "type": "union", "arms": []}
        )
        entry.setdefault("arms", []).append(arm)
    return list(found.values())


def said(fault: Mapping[str, Any]) -> str:
    """One fault of a value as a sentence about it, such as "must be a whole number"."""
    context = fault.get("ctx", {})
    match fault["type"]:
        case "value_error":
            return str(context["error"])
        case "missing":
            return "must be given"
        case "int_type" | "int_from_float":
            return "must be a whole number"
        case "float_type":
            return "must be a number"
        case "finite_number":
            return "must be a finite number"
        case "int_parsing_size":
            return "is too large"
        case "bool_type":
            return "must be true or false"
        case "string_type":
            return "must be a text in quotes"
        case "literal_error":
            return f"must be {context['expected']}"
        case "greater_than_equal":
            return f"must be greater than or equal to {_figure(context['ge'])}"
        case "greater_than":
            return f"must be greater than {_figure(context['gt'])}"
        case "less_than_equal":
            return f"must be less than or equal to {_figure(context['le'])}"
        case "less_than":
            return f"must be less than {_figure(context['lt'])}"
        case "too_short":
            return f"must have at least {_counted(context['min_length'])}"
        case "too_long":
            return f"must have at most {_counted(context['max_length'])}"
        case "string_too_short":
            return f"must have at least {context['min_length']} characters"
        case "string_too_long":
            return f"must have at most {context['max_length']} characters"
        case "tuple_type" | "list_type":
            return "must be a list in brackets, [...]"
        case "model_type" | "model_attributes_type" | "dict_type":
            return "must be a table, [...] with keys below it or {key = value}"
        case "union":
            return f"must be {_either(fault['arms'])}"
        case _:
            return str(fault["msg"]).replace("Input should be", "must be")


def _figure(limit: float) -> str:
    return f"{limit:,}" if isinstance(limit, int) else f"{limit:,.15g}"


def _counted(entries: int) -> str:
    return f"{entries} entr{'y' if entries == 1 else 'ies'}"


def _either(arms: Iterable[str]) -> str:
    kinds = list(dict.fromkeys(_KINDS[arm] for arm in arms))
    return " or ".join([", ".join(kinds[:-1]), kinds[-1]] if len(kinds) > 1 else kinds)
