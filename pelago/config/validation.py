"""Validates the tables of a TOML file against a model, and describes the faults.

The only place where errors of pydantic become messages for people: one entry a value, with its key, the value
and what would be right.
"""

import difflib
import json
from collections.abc import Iterable, Mapping
from typing import Any, Final, TypeVar, get_args

from pydantic import ValidationError

from pelago.config.fields import Section
from pelago.core.errors import ConfigError

_Section = TypeVar("_Section", bound=Section)

_KINDS: Final = {
    "int": "a number",
    "float": "a number",
    "bool": "true or false",
    "str": "a text in quotes",
}
"""Pydantic's names of the arms of a union, and plain names for them."""


def validate(model: type[_Section], tables: Mapping[str, Any], source: str, root: str) -> _Section:
    """An instance of ``model`` from parsed TOML.

    ``source`` names the file in errors, ``root`` the whole file where a fault belongs to no key. Raises
    `ConfigError`: one line, with all faults.
    """
    try:
        # Strict, so that "8" is no number; JSON, since there a list may stand for a tuple, 1 for 1.0.
        return model.model_validate_json(json.dumps(tables, default=str), strict=True)
    except ValidationError as error:
        faults = "; ".join(_describe(fault, model, root) for fault in _faults(error))
        raise ConfigError(f"{source}: {faults}") from None


def _faults(error: ValidationError) -> list[Mapping[str, Any]]:
    """Pydantic's errors, one entry a value: for a value that may be of several kinds pydantic has one for each.

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


def _describe(fault: Mapping[str, Any], model: type[Section], root: str) -> str:
    """One fault with its key and, where that helps, its value."""
    place = fault["loc"]
    key = ".".join(str(part) for part in place) or root
    table = _table(model, place[:-1])
    if fault["type"] == "extra_forbidden":
        shown = key if isinstance(fault["input"], dict) else f"{key} = {fault['input']!r}"
        return f"{shown}: no such key; {_near(str(place[-1]), table)}"
    if fault["type"] == "missing" and (needed := table.model_fields[place[-1]].description):
        return f"{key}: {needed}"
    if fault["type"] in ("missing", "value_error") and not isinstance(fault["input"], str):
        return f"{key}: {_requirement(fault)}"
    return f"{key} = {fault['input']!r}: {_requirement(fault)}"


def _table(model: type[Section], path: Iterable[str | int]) -> type[Section]:
    """The model of the innermost table on a path that begins at ``model``."""
    for part in path:
        if isinstance(part, str) and part in model.model_fields:
            model = _section_in(model.model_fields[part].annotation) or model
    return model


def _section_in(annotation: Any) -> type[Section] | None:
    """The table that a field's type is or contains: `X`, `X | None`, `tuple[X, ...]`, `dict[str, X]`."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    found = (_section_in(each) for each in get_args(annotation))
    return next((each for each in found if each is not None), None)


def _near(key: str, table: type[Section]) -> str:
    near = difflib.get_close_matches(key, list(table.model_fields), n=1)
    return f"did you mean {near[0]!r}?" if near else f"there are {sorted(table.model_fields)}"


def _requirement(fault: Mapping[str, Any]) -> str:
    """The requirement that a value misses, such as "must be a whole number"."""
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
