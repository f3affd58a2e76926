"""The messages about values of every wrong kind, in run files and studies."""

import re
from collections.abc import Iterator
from typing import Any

import pytest

from pelago.config import run_toml, toml_writer
from pelago.config.fields import Section
from pelago.config.run_file import RunFile
from pelago.config.simulation import SimulationSection
from pelago.config.topology import RegionSection
from pelago.core.errors import ConfigError

REGION = {"name": "eu", "worker_speeds": [1]}
RUN = '[[region]]\nname = "eu"\nworker_speeds = [1]\n'
JARGON = re.compile(
    r"Input should|pydantic|pattern|valid (dict|array|object)|\^|\\|type=|for further|Error"
)


AWKWARD: list[Any] = [-1, 0, 1.5, 10**30, "", "x y", True, [], {}, [[]], [-1], {"a": [1]}]


def _tables() -> Iterator[tuple[str, type[Section], str]]:
    models = {name: field.annotation for name, field in RunFile.model_fields.items()}
    models |= {"simulation": SimulationSection}
    for name, model in models.items():
        if isinstance(model, type) and issubclass(model, Section):
            for key in model.model_fields:
                yield name, model, key
    for key in RegionSection.model_fields:
        yield "region", RegionSection, key


@pytest.mark.parametrize(("table", "key"), [(table, key) for table, _, key in _tables()])
def test_what_is_said_of_a_wrong_value_is_plain_english(table: str, key: str) -> None:
    for value in AWKWARD:
        tables: dict[str, Any] = {"region": [REGION]}
        if table == "region":
            tables = {"region": [REGION | {key: value}]}
        else:
            tables[table] = {key: value}
        try:
            run_toml.parse(toml_writer.text(tables))
        except ConfigError as error:
            assert not JARGON.search(str(error)), error
            assert "\n" not in str(error)
            assert key in str(error), error


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("run = 1\n" + RUN, "run = 1: must be a table"),
        ("region = 1\n", "region = 1: must be a list in brackets"),
        ("", "region: there must be a table [[region]] for each region"),
        ("[[region]]\nname = 'eu'\nworker_speeds = []\n", "must have at least 1 entry"),
        ("[[region]]\nname = 'eu'\n", "region.0.worker_speeds: must be given"),
        ("[run]\nseed = 'x'\n" + RUN, "run.seed = 'x': must be a whole number"),
        ("[worker]\nrescale = 1\n" + RUN, "worker.rescale = 1: must be true or false"),
        ("[lps]\nin_flight = 'x'\n" + RUN, "must be 'drop', 'carry' or 'replay'"),
        (
            "[model]\noverrides = {a = [1]}\n" + RUN,
            "model.overrides.a = [1]: must be a number, true or false or a text in quotes",
        ),
    ],
)
def test_the_sentence_about_a_wrong_value(text: str, said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        run_toml.parse(text)
    assert said in str(refused.value)


@pytest.mark.parametrize(
    "region", ["name = 'new york'\nworker_speeds = [1]", "name = 'eu'\nworker_speeds = ['1']"]
)
def test_a_list_with_an_entry_that_is_wrong_is_not_called_too_short(region: str) -> None:
    with pytest.raises(ConfigError) as refused:
        run_toml.parse(f"[[region]]\n{region}\n")
    assert "region.0." in str(refused.value)
    assert "at least 1 entry" not in str(refused.value)


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("são-paulo", "as 'sao-paulo' does"),
        ("new york", "as 'new-york' does"),
        ("_eu", "as 'eu' does"),
        ("東京", "of them"),
        ("", "of them"),
        ("x" * 65, "as 'xxx"),
    ],
)
def test_a_name_that_cannot_be_taken_is_refused_with_the_letters_that_can(
    name: str, near: str
) -> None:
    for text in (RUN.replace("eu", name), f'[run]\nname = "{name}"\n' + RUN):
        with pytest.raises(ConfigError) as refused:
            run_toml.parse(text)
        said = str(refused.value)
        assert (
            f"name = {name!r}: a name has letters from a to z and A to Z, digits, '.', '_' and '-'"
            in said
        )
        assert near in said


@pytest.mark.parametrize("key", ["bind", "connect"])
def test_an_address_that_is_none_is_refused_under_its_key(key: str) -> None:
    for text, where in (
        (f'[gps]\n{key} = "x"\n' + RUN, "gps"),
        (RUN + f'{key} = "x"\n', "region.0"),
    ):
        with pytest.raises(ConfigError, match=rf"{where}\.{key} = 'x': must be HOST:PORT"):
            run_toml.parse(text)
