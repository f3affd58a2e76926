"""The run file as text and back: `load` and `parse` read it, `dump` writes it."""

from pathlib import Path

from pelago import reading
from pelago.config import toml_writer
from pelago.config.run_file import RunFile
from pelago.config.validation import validate
from pelago.core.errors import ConfigError


def parse(text: str, source: str = "run file") -> RunFile:
    """Read a run file's text. Raises `ConfigError`, one line for all faults, each with key and value."""
    return validate(RunFile, reading.tables(text, source), source, root="run file")


def load(path: str | Path) -> RunFile:
    """Read a run file. Raises `ConfigError`."""
    return parse(reading.text(Path(path), "the run file"), str(path))


def dump(run: RunFile) -> str:
    """A run file as TOML, every key spelled out; `parse` gives it back unchanged.

    Studies name the folders of their runs by a digest of this text. Raises `ConfigError` for a path of a
    command line that is not UTF-8, which TOML cannot hold.
    """
    tables = run.model_dump(mode="json", exclude_none=True)
    tables["region"] = tables.pop("region")  # at the end
    text = toml_writer.text(tables, headers_deep=1)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        line = text.count("\n", 0, error.start)
        raise ConfigError(
            f"{text.split(chr(10))[line]!a}: is no UTF-8; choose a name that is"
        ) from None
    return text
