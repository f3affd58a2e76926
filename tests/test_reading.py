"""What people write: bytes of a file, paths with ~, values of every wrong kind."""

import argparse
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import gps.__main__
import lps.__main__
import worker.__main__
from experiments import __main__ as experiments
from experiments.study import study_file
from pelago import reading
from pelago.cli import main as cli
from pelago.config import run_toml, toml_writer
from pelago.config.fields import Section
from pelago.config.run_file import RunFile
from pelago.config.simulation import SimulationSection
from pelago.config.topology import RegionSection
from pelago.core.errors import ConfigError
from pelago.net import daemon
from pelago.net.durability.archive import Archive

REGION = {"name": "eu", "worker_speeds": [1]}
RUN = '[[region]]\nname = "eu"\nworker_speeds = [1]\n'
JARGON = re.compile(
    r"Input should|pydantic|pattern|valid (dict|array|object)|\^|\\|type=|for further|Error"
)


# --- the bytes -----------------------------------------------------------------------------------


def test_a_byte_order_mark_is_no_part_of_a_run_file(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text(RUN, encoding="utf-8-sig")
    assert run_toml.load(path) == run_toml.parse(RUN)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
def test_a_run_file_in_utf_16_is_called_so(encoding: str, tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text(RUN, encoding=encoding)
    with pytest.raises(ConfigError, match=r"run\.toml: it is UTF-16, and must be UTF-8"):
        run_toml.load(path)


def test_a_byte_that_is_not_utf_8_is_named_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text("# one\n# São Paulo\n" + RUN, encoding="latin-1")
    with pytest.raises(ConfigError, match=r"line 2 has the byte 0xe3, which is not UTF-8"):
        run_toml.load(path)


def test_a_study_with_a_byte_order_mark_is_a_study(tmp_path: Path) -> None:
    path = tmp_path / "study.toml"
    path.write_text('[study]\nbase = "~/base.toml"\n', encoding="utf-8-sig")
    assert study_file.is_study(path)
    assert study_file.load(path).name == "study"


# --- ~ -------------------------------------------------------------------------------------------


def test_the_users_folder_is_found_in_every_path_of_a_run_file(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HOME", "/home/ada")
    run = run_toml.parse(
        '[run]\nout = "~/runs"\n[model]\npreset = "~/llama"\n'
        '[data]\nsource = "text:~/corpus"\ntokenizer = "~/llama"\n[gps]\nsnapshots = "~/far"\n'
        + RUN
    )
    assert run.out == Path("/home/ada/runs")
    assert run.model.preset == run.data.tokenizer == "/home/ada/llama"
    assert run.data.source == "text:/home/ada/corpus"
    assert run.gps.snapshots == "/home/ada/far"
    tokens = run_toml.parse('[data]\nsource = "tokens:~/a.bin"\n' + RUN)
    assert tokens.data.source == "tokens:/home/ada/a.bin"
    assert run_toml.parse('[gps]\nsnapshots = "s3://~b/x"\n' + RUN).gps.snapshots == "s3://~b/x"


@pytest.mark.parametrize("path", ["~no-such-user", "~no-such-user/runs"])
def test_the_folder_of_a_user_who_is_not_known_is_not_made_here(
    path: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Another host that reads the same file may know him, so it is refused where it would be written to."""
    monkeypatch.chdir(tmp_path)
    run = run_toml.parse(f'[run]\nout = "{path}"\n[gps]\nsnapshots = "{path}"\n' + RUN)
    said = "= '~no-such-user.*': no folder of a user is known here as ~no-such-user"
    with pytest.raises(ConfigError, match=f"^run.out {said}"):
        daemon.out_folder(run, None)
    with pytest.raises(ConfigError, match=f"^--out {said}"):
        daemon.out_folder(run, path)
    with pytest.raises(ConfigError, match=f"^gps.snapshots {said}"):
        Archive(run.gps.snapshots).require_writable()
    assert daemon.out_folder(run, "runs") == Path("runs")
    assert not list(tmp_path.iterdir())
    (tmp_path / "~no-such-user").mkdir()
    assert run.out == Path(path)


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for each in action.choices.values():
                yield from _actions(each)


PATHS = {"DIR", "FILE", "RUN.toml", "SOURCE", "NAME|FILE", "RUN"}


@pytest.mark.parametrize(
    "parser",
    [
        gps.__main__.parser,
        lps.__main__.parser,
        worker.__main__.parser,
        cli.parser,
        experiments.parser,
    ],
)
def test_the_users_folder_is_found_in_every_flag_that_takes_a_path(parser: Any) -> None:
    paths = [each for each in _actions(parser()) if each.metavar in PATHS]
    assert paths
    assert [each.dest for each in paths if each.type is not reading.expanded] == []


# --- values --------------------------------------------------------------------------------------

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


def test_addresses_of_every_kind_stand_in_a_run_file() -> None:
    run = run_toml.parse(
        '[gps]\nbind = "[::1]:7700"\n[[region]]\nname = "eu"\nworker_speeds = [1]\n'
        'bind = "*:7710"\nconnect = "bücher.example:7711"\n'
    )
    assert run.gps_bind() == run.gps_connect() == ("::1", 7700)
    assert run.lps_bind(0) == ("*", 7710)
    assert run.lps_connect(0) == ("xn--bcher-kva.example", 7711)
    assert run_toml.parse(run_toml.dump(run)) == run


@pytest.mark.parametrize("key", ["bind", "connect"])
def test_an_address_that_is_none_is_refused_under_its_key(key: str) -> None:
    for text, where in (
        (f'[gps]\n{key} = "x"\n' + RUN, "gps"),
        (RUN + f'{key} = "x"\n', "region.0"),
    ):
        with pytest.raises(ConfigError, match=rf"{where}\.{key} = 'x': must be HOST:PORT"):
            run_toml.parse(text)
