"""Writes TOML; the standard library reads it only."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

_BARE: Final = re.compile(r"[A-Za-z0-9_-]+")


def text(tables: Mapping[str, Any], *, headers_deep: int = 3) -> str:
    """Tables as TOML; `tomllib` gives them back, None left out.

    ``headers_deep``: tables that are nested deeper are written in line, since a header for each of their few
    keys would hide them.
    """
    lines: list[str] = []
    _write((), tables, lines, headers_deep)
    return "\n".join(lines).strip() + "\n"


def value(each: Any) -> str:
    """One value, in line. Keys of tables in line are quoted always."""
    match each:
        case Mapping():
            pairs = (f"{value(name)} = {value(inner)}" for name, inner in each.items())
            return "{" + ", ".join(pairs) + "}"
        case str():
            # A TOML string is a JSON string, but for one control character that JSON does not escape.
            return json.dumps(each, ensure_ascii=False).replace("\x7f", "\\u007f")
        case Sequence():
            return "[" + ", ".join(value(inner) for inner in each) + "]"
        case float() if not math.isfinite(each):
            return str(each)
        case bool() | int() | float():
            return json.dumps(each)
        case _:
            return str(each)


def _key(name: str) -> str:
    """A key, quoted where TOML would split or refuse it."""
    return name if _BARE.fullmatch(name) else value(name)


def _write(
    path: tuple[str, ...], table: Mapping[str, Any], lines: list[str], headers_deep: int
) -> None:
    nested: list[tuple[tuple[str, ...], Any]] = []
    for name, each in table.items():
        if each is None:
            continue
        inner = (*path, name)
        if len(inner) <= headers_deep and (isinstance(each, Mapping) or _is_array(each)):
            nested.append((inner, each))
        else:
            lines.append(f"{_key(name)} = {value(each)}")
    for inner, each in nested:
        header = ".".join(_key(part) for part in inner)
        if isinstance(each, Mapping):
            lines += ["", f"[{header}]"]
            _write(inner, each, lines, headers_deep)
            continue
        for one in each:
            lines += ["", f"[[{header}]]"]
            _write(inner, one, lines, headers_deep)


def _is_array(each: Any) -> bool:
    """An array of tables."""
    return (
        isinstance(each, list | tuple)
        and bool(each)
        and all(isinstance(one, Mapping) for one in each)
    )
