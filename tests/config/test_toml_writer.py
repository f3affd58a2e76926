"""The TOML writer."""

import math
import tomllib

from pelago.config import toml_writer


def test_tomllib_gives_back_what_was_written() -> None:
    tables = {
        "one": {"a.b": [1, 2.5, True], "text": 'q"\\\x7f\n', "far": math.inf},
        "many": [{"name": "x", "set": {"k": {"l": {"m": 1}}}}, {"name": "y"}],
        "empty": {},
    }
    assert tomllib.loads(toml_writer.text(tables)) == tables


def test_tables_below_the_headers_are_written_in_line() -> None:
    tables = {"model": {"overrides": {"a": 1}}}
    assert toml_writer.text(tables, headers_deep=1) == '[model]\noverrides = {"a" = 1}\n'
    assert toml_writer.text(tables) == "[model]\n\n[model.overrides]\na = 1\n"
