"""The keys that a study sets: dotted keys of the run file, and a few that stand for several of them.

regions                   the first n regions of the base, matrices cut to them
region.worker_speeds      a list of speeds for every region of the base, in its order
region.NAME.KEY           a key of one region
network.bandwidth_scale   a factor on every bandwidth between two regions
"""

import copy
import difflib
from collections.abc import Iterable, Mapping
from typing import Any, Final

from pelago.config.fields import Section
from pelago.config.run_file import RunFile
from pelago.config.simulation import SimulationSection
from pelago.config.topology import RegionSection
from pelago.core.errors import ConfigError

REGIONS: Final = "regions"
WORKER_SPEEDS: Final = "region.worker_speeds"
BANDWIDTH_SCALE: Final = "network.bandwidth_scale"
DERIVED: Final = (REGIONS, WORKER_SPEEDS, BANDWIDTH_SCALE)
RESERVED: Final = {
    "run.seed": "the seeds of a study stand in study.seeds",
    "run.out": "a study gives every run a folder of its own",
}

Tables = dict[str, Any]


def fault(key: str) -> str:
    """What is wrong with a key; empty if it is right. Values are checked when they are applied."""
    if key in RESERVED:
        return f"cannot be set here: {RESERVED[key]}"
    parts = key.split(".")
    table, last = parts[0], parts[-1]
    if key in DERIVED or key == "region":
        return ""
    if table == "region" and len(parts) > 2 and last in RegionSection.model_fields:
        return ""
    known = _sections().get(table, ())
    if len(parts) == 2 and last in known:
        return ""
    if parts[:2] == ["model", "overrides"] and len(parts) == 3:
        return ""
    every = [f"{name}.{field}" for name, fields in _sections().items() for field in fields]
    near = difflib.get_close_matches(key, [*every, *DERIVED], n=1)
    return f"no such key; did you mean {near[0]!r}?" if near else "no such key of the run file"


def merge(layers: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """One setting per key: later layers win, and a whole table wins over keys set in it earlier."""
    merged: dict[str, Any] = {}
    for layer in layers:
        for key, value in layer.items():
            for inside in [each for each in merged if _is_inside(each, key)]:
                del merged[inside]
            merged[key] = value
    return merged


def apply(base: Mapping[str, Any], settings: Mapping[str, Any]) -> Tables:
    """The tables of a run file with settings applied. Raises `ConfigError` for an impossible one.

    Keys of the run file are applied first, short ones before long ones, then those that stand for several
    keys and depend on the result.
    """
    tables: Tables = copy.deepcopy(dict(base))
    plain = [key for key in settings if key not in DERIVED]
    speeds = [key for key in plain if key.startswith("region.")]
    for key in sorted(plain, key=lambda each: each.count(".")):
        if key not in speeds:
            _set(tables, key.split("."), settings[key])
    if WORKER_SPEEDS in settings:
        _set_worker_speeds(tables, settings[WORKER_SPEEDS])
    for key in speeds:
        _set_in_region(tables, key, settings[key])
    if REGIONS in settings:
        _cut_regions(tables, settings[REGIONS])
    if BANDWIDTH_SCALE in settings:
        _scale_bandwidth(tables, settings[BANDWIDTH_SCALE])
    return tables


def _is_inside(key: str, whole: str) -> bool:
    if whole == WORKER_SPEEDS:
        return key.startswith("region.") and key.endswith(".worker_speeds")
    return key.startswith(f"{whole}.")


def _sections() -> dict[str, tuple[str, ...]]:
    """The tables of the run file with their keys."""
    found = {}
    for name, field in RunFile.model_fields.items():
        model = SimulationSection if name == "simulation" else field.annotation
        if isinstance(model, type) and issubclass(model, Section):
            found[name] = tuple(model.model_fields)
    return found


def _set(tables: Tables, path: list[str], value: Any) -> None:
    for part in path[:-1]:
        tables = tables.setdefault(part, {})
    tables[path[-1]] = copy.deepcopy(value)


def _set_worker_speeds(tables: Tables, value: Any) -> None:
    regions = tables["region"]
    if (
        not isinstance(value, list)
        or len(value) != len(regions)
        or not all(isinstance(each, list) for each in value)
    ):
        raise ConfigError(
            f"{WORKER_SPEEDS} = {value!r}: must be {len(regions)} lists of speeds, one per region"
        )
    for region, each in zip(regions, value, strict=True):
        region["worker_speeds"] = list(each)


def _set_in_region(tables: Tables, key: str, value: Any) -> None:
    # The name of a region may hold dots.
    name, _, field = key.removeprefix("region.").rpartition(".")
    for region in tables["region"]:
        if region["name"] == name:
            region[field] = copy.deepcopy(value)
            return
    names = [region["name"] for region in tables["region"]]
    raise ConfigError(f"{key} = {value!r}: {name!r} is no region; there are {names}")


def _cut_regions(tables: Tables, value: Any) -> None:
    most = len(tables["region"])
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
        raise ConfigError(
            f"{REGIONS} = {value!r}: must be an integer from 1 to {most}, the regions of the base"
        )
    tables["region"] = tables["region"][:value]
    for name in ("bandwidth_gbps", "latency_ms"):
        matrix = tables.get("network", {}).get(name, [])
        if matrix:
            tables["network"][name] = [row[:value] for row in matrix[:value]]


def _scale_bandwidth(tables: Tables, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        raise ConfigError(f"{BANDWIDTH_SCALE} = {value!r}: must be a number above 0")
    matrix = tables.get("network", {}).get("bandwidth_gbps", [])
    if not matrix:
        raise ConfigError(
            f"{BANDWIDTH_SCALE} = {value!r}: the base has no network.bandwidth_gbps to scale"
        )
    tables["network"]["bandwidth_gbps"] = [
        [each if row == column else each * value for column, each in enumerate(line)]
        for row, line in enumerate(matrix)
    ]
