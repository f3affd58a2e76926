"""What people write: bytes of a file, paths with ~, values of every wrong kind."""

import argparse
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
from pelago.config import run_toml
from pelago.core.errors import ConfigError
from pelago.net import daemon
from pelago.net.durability.archive import Archive

RUN = '[[region]]\nname = "eu"\nworker_speeds = [1]\n'


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
    """Another host that reads the same file may know the user, so it is refused only where it is written to."""
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
