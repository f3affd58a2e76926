"""The folder of a local run before the run begins."""

from pathlib import Path

import pytest

from pelago.cli.local import results_folder
from pelago.cli.local.results_folder import EarlierResults
from pelago.core.errors import ConfigError


def test_results_of_an_earlier_run_are_replaced_on_request_only(tmp_path: Path) -> None:
    (tmp_path / "gps").mkdir()
    for name in ("run.toml", "result.json", "gps/events.jsonl", "notes.txt"):
        (tmp_path / name).write_text("x", encoding="utf-8")
    with pytest.raises(ConfigError, match="pass --overwrite"):
        results_folder.prepare(tmp_path, overwrite=False)
    assert (tmp_path / "result.json").exists()
    results_folder.prepare(tmp_path, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_earlier_results_come_back_unless_the_run_went_on(tmp_path: Path) -> None:
    result = tmp_path / "result.json"
    result.write_text("old", encoding="utf-8")
    earlier = EarlierResults(tmp_path)
    results_folder.prepare_again(tmp_path, earlier)
    assert not result.exists()
    earlier.put_back()
    assert result.read_text(encoding="utf-8") == "old"
    results_folder.prepare_again(tmp_path, earlier)
    earlier.remove()
    earlier.put_back()
    assert list(tmp_path.iterdir()) == []
