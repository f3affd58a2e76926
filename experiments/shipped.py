"""The run files that come with Pelago."""

from pathlib import Path

from pelago.core.errors import ConfigError

FOLDER = Path(__file__).parent


def find(name: str) -> Path:
    """A path as it is, or else the shipped run file of that name. Raises `ConfigError`."""
    path = Path(name)
    shipped = FOLDER / f"{name}.toml"
    if not path.exists() and shipped in FOLDER.glob("*.toml"):
        return shipped
    if not path.is_file():
        names = ", ".join(found for found, _ in catalogue())
        raise ConfigError(f"{name}: no such file, and no shipped experiment; there are {names}")
    return path


def catalogue() -> list[tuple[str, str]]:
    """(name, what it says about itself in its first line), sorted by name."""
    found = []
    for path in sorted(FOLDER.glob("*.toml")):
        with path.open(encoding="utf-8") as file:
            found.append((path.stem, file.readline().lstrip("#").strip()))
    return found
