"""What the GPS leaves behind: the model itself, and its mean beside it where one is kept."""

import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from gps import files
from pelago.tensor.manifest import Manifest
from pelago.wire.messages import TensorSpec
from tests.small_disk import fill, small_disk

MANIFEST = Manifest((TensorSpec("matrix", (2, 3)), TensorSpec("vector", (2,))))
RESULT: dict[str, Any] = {"validation": [], "counted_steps": 24, "gps": {"version": 3}}


def read(path: Path) -> torch.Tensor:
    """All numbers of a file in the manifest's order."""
    tensors = load_file(path)
    return torch.cat([tensors[spec.name].flatten() for spec in MANIFEST.specs])


def test_a_run_without_a_mean_leaves_the_model_and_no_mean_of_an_earlier_run(
    tmp_path: Path,
) -> None:
    model = torch.arange(8.0)
    (tmp_path / files.AVERAGE).write_bytes(b"an earlier run's")
    assert files.write(tmp_path, RESULT, MANIFEST, model) == []
    assert torch.equal(read(tmp_path / "global.safetensors"), model)
    assert {each.name for each in tmp_path.iterdir()} == {
        "global.safetensors",
        "loss.png",
        "result.json",
    }


def test_a_run_with_a_mean_leaves_both(tmp_path: Path) -> None:
    model, average = torch.arange(8.0), torch.arange(8.0) / 2
    files.write(tmp_path, RESULT, MANIFEST, model, average)
    assert torch.equal(read(tmp_path / "global.safetensors"), model)
    assert torch.equal(read(tmp_path / files.AVERAGE), average)


ALL = (files.MODEL, files.AVERAGE, files.PLOT, files.RESULT)


@pytest.mark.parametrize("taken", ALL)
def test_what_can_be_written_is_and_what_cannot_is_named(tmp_path: Path, taken: str) -> None:
    """A folder is where a file of the results belongs."""
    (tmp_path / taken / "inside").mkdir(parents=True)
    model = torch.arange(8.0)
    (failure,) = files.write(tmp_path, RESULT, MANIFEST, model, model / 2)
    assert failure.startswith(f"cannot write {tmp_path / taken}: ")
    assert "directory" in failure
    left = {each.name for each in tmp_path.iterdir()}
    assert left == set(ALL)
    written = [each for each in ALL if each != taken]
    assert all((tmp_path / each).is_file() for each in written)
    if taken != files.RESULT:
        assert result_in(tmp_path)[files.NOT_WRITTEN] == [failure]


def result_in(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / files.RESULT).read_text(encoding="utf-8"))
    return found


def test_a_result_says_nothing_of_failures_where_there_are_none(tmp_path: Path) -> None:
    files.write(tmp_path, RESULT, MANIFEST, torch.arange(8.0))
    assert result_in(tmp_path) == RESULT


def test_a_disk_that_has_room_for_the_result_only_has_the_result(tmp_path: Path) -> None:
    """A real one. The model of an earlier export stays as it was."""
    manifest = Manifest((TensorSpec("matrix", (1 << 10, 1 << 9)),))
    with small_disk(tmp_path / "disk", 8 << 20) as disk:
        files.write(disk, RESULT, manifest, torch.zeros(manifest.numel))
        fill(disk, leave_bytes=1 << 17)
        failures = files.write(disk, RESULT, manifest, torch.ones(manifest.numel))
        assert [each.partition(": ")[0] for each in failures] == [
            f"cannot write {disk / files.MODEL}"
        ]
        assert "No space left" in failures[0]
        assert result_in(disk)[files.NOT_WRITTEN] == failures
        assert not load_file(disk / files.MODEL)["matrix"].any()
        assert not [each for each in disk.iterdir() if each.name.startswith(".")]


def test_a_folder_that_cannot_be_made_is_named_for_each_file(tmp_path: Path) -> None:
    (tmp_path / "out").touch()
    failures = files.write(tmp_path / "out", RESULT, MANIFEST, torch.arange(8.0))
    named = {each.partition(": ")[0].rpartition("/")[2] for each in failures}
    assert named >= {files.MODEL, files.PLOT, files.RESULT}


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_files_have_the_mode_that_the_umask_gives(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        files.write(tmp_path, RESULT, MANIFEST, torch.arange(8.0), torch.arange(8.0))
    finally:
        os.umask(before)
    modes = {each: stat.S_IMODE((tmp_path / each).stat().st_mode) for each in ALL}
    assert modes == dict.fromkeys(ALL, 0o666 & ~umask)


def test_a_models_file_says_of_which_version_it_is(tmp_path: Path) -> None:
    files.write(tmp_path, RESULT, MANIFEST, torch.arange(8.0))
    with safe_open(tmp_path / files.MODEL, framework="pt") as file:
        facts = file.metadata()
    assert (facts["version"], facts["counted_steps"]) == ("3", "24")
