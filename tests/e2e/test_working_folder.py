"""Nothing that lies in the folder where a command is run is executed, by the command or by its children."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.process_tree import BIN, process_tree
from tests.e2e.topology import run_file
from tests.experiments.studies import QUADRATIC, write

TRAPS = ("torch", "numpy", "queue", "worker", "zmq", "msgpack", "pydantic", "safetensors")
"""Modules of the library, of others and of ours that a command or its children import."""
EARLY = ("selectors", "socket", "signal", "tempfile", "pelago", "gps")
"""Modules that `python -m` would import before any command of ours runs; an installed one does not."""
STUDY = f"""
[study]
base = "base.toml"
seeds = [0, 1]
[study.set]
{QUADRATIC}
"""


def trapped(folder: Path, *names: str) -> Path:
    """A folder of modules that report when they are executed."""
    folder.mkdir()
    for name in names:
        text = f"open({str(folder / 'sprung')!r}, 'a').write({name!r})\nraise SystemExit(77)\n"
        (folder / f"{name}.py").write_text(text, encoding="utf-8")
    (folder / "transformers").mkdir()
    (folder / "transformers" / "__init__.py").write_text("raise SystemExit(77)", encoding="utf-8")
    return folder


def run(folder: Path, *command: str | Path, path: str | None = None) -> str:
    """What a command prints, run in a folder; it must succeed."""
    inherited = os.environ if path is None else os.environ | {"PYTHONPATH": path}
    environment = {key: value for key, value in inherited.items() if key != "PYTHONSAFEPATH"}
    done = subprocess.run(
        [str(word) for word in command],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=55,
        check=False,
    )
    assert not (folder / "sprung").exists(), (folder / "sprung").read_text("utf-8")
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


# An empty entry of PYTHONPATH means the working folder, too; few users know this.
@pytest.mark.parametrize("path", [None, os.pathsep + "/nowhere"])
def test_check_and_its_worker_execute_nothing_of_the_working_folder(
    tmp_path: Path, path: str | None
) -> None:
    folder = trapped(tmp_path / "here", *TRAPS, *(EARLY if path is None else ()))
    said = run(folder, BIN / "pelago", "check", run_file(tmp_path), path=path)
    assert "tokens to train on" in said


def test_the_gps_and_its_worker_execute_nothing_of_the_working_folder(tmp_path: Path) -> None:
    folder = trapped(tmp_path / "here", *TRAPS, *EARLY)
    command = (BIN / "gps", "--run", run_file(tmp_path), "--out", tmp_path / "out")
    with process_tree(command, folder=folder) as gps:
        gps.hears("serving")
    assert not (folder / "sprung").exists()


@pytest.mark.parametrize("engine", ["local", pytest.param("ray", marks=pytest.mark.slow)])
def test_the_processes_of_a_study_execute_nothing_of_the_working_folder(
    tmp_path: Path, engine: str
) -> None:
    folder, study = trapped(tmp_path / "here", *TRAPS), write(tmp_path, STUDY)
    flags = ("--engine", engine, "--jobs", "2", "--out", tmp_path / "out")
    run(folder, sys.executable, "-m", "experiments", "replay", study, *flags)


def test_the_processes_of_the_fuzzer_execute_nothing_of_the_working_folder(tmp_path: Path) -> None:
    folder = trapped(tmp_path / "here", *TRAPS)
    run(folder, sys.executable, "-m", "convergence.fuzz", "--seeds", "2", "--jobs", "2")


@pytest.mark.parametrize(
    "command",
    [
        "pelago check RUN",
        "pelago local RUN",
        "pelago audit .",
        "pelago export .",
        "gps --run RUN",
        "lps --run RUN --region eu",
        "worker --run RUN --evaluate",
        "experiments replay halos_paper",
    ],
)
def test_a_working_folder_that_was_removed_is_reported_in_one_line(
    tmp_path: Path, command: str
) -> None:
    (tmp_path / "gone").mkdir()
    words = command.replace("RUN", str(run_file(tmp_path)))
    done = subprocess.run(
        ["sh", "-c", f"cd gone && rmdir ../gone && exec {BIN}/{words}"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=55,
        check=False,
    )
    said = (
        f"{command.split()[0]}: the working folder was removed; go to one that is there (cd DIR)\n"
    )
    assert (done.returncode, done.stderr) == (2, said)
