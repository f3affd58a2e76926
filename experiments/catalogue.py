"""The experiments that come with Pelago: run files and studies."""

import tomllib
from dataclasses import dataclass
from pathlib import Path

from experiments.study import study_file
from pelago.core.errors import ConfigError

FOLDER = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class CatalogueEntry:
    """An experiment of this folder."""

    name: str
    kind: str
    """run | study | daemons: a run file for the daemons, which has no [simulation]"""
    line: str
    """Its description: its first line."""


def find(name: str) -> Path:
    """A path as it is, or else the shipped experiment of that name. Raises `ConfigError`."""
    path = Path(name)
    shipped = FOLDER / f"{name}.toml"
    if not path.exists() and shipped in FOLDER.glob("*.toml"):
        return shipped
    if not path.is_file():
        names = ", ".join(each.name for each in catalogue())
        raise ConfigError(f"{name}: no such file, and no shipped experiment; there are {names}")
    return path


def catalogue() -> list[CatalogueEntry]:
    """Every shipped experiment, sorted by name."""
    found = []
    for path in sorted(FOLDER.glob("*.toml")):
        with path.open(encoding="utf-8") as file:
            line = file.readline().lstrip("#").strip()
        found.append(CatalogueEntry(path.stem, _kind(path), line))
    return found


def _kind(path: Path) -> str:
    if study_file.is_study(path):
        return "study"
    tables = tomllib.loads(path.read_text(encoding="utf-8"))
    return "run" if "simulation" in tables else "daemons"
