"""The output of a command is a closed pipe, as of `| head -1` or of a `tee` that was killed: the command does its
work, and its exit code says how that went."""

import os
import subprocess
from pathlib import Path

from tests.e2e.process_tree import BIN
from tests.e2e.topology import run_file
from tests.experiments.studies import QUADRATIC, write


def unread(program: str, *flags: Path | str, errors: bool = False) -> None:
    """Run a command to its good end; ``errors``: its stderr is a closed pipe too."""
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run(
            [str(word) for word in (BIN / program, *flags)],
            stdin=subprocess.DEVNULL,
            stdout=writing,
            stderr=writing if errors else subprocess.PIPE,
            text=True,
            timeout=55,
            check=False,
        )
    finally:
        os.close(writing)
    assert (done.returncode, done.stderr or "") == (0, "")


def test_a_run_comes_to_its_end_and_is_audited_and_exported(tmp_path: Path) -> None:
    out = tmp_path / "out"
    path = run_file(tmp_path, budget=20, interval=20, step_ms=5.0, regions={"eu": [1.0]})
    unread("pelago", "local", path, "--out", out)
    assert (out / "result.json").exists()
    unread("pelago", "audit", out)
    unread("pelago", "export", out, "--out", tmp_path / "again")
    assert (tmp_path / "again" / "model" / "config.json").exists()


def test_a_run_file_is_checked(tmp_path: Path) -> None:
    unread("pelago", "check", run_file(tmp_path), "--no-step")


def test_a_study_comes_to_its_end(tmp_path: Path) -> None:
    unread("experiments", "list")
    study = write(
        tmp_path, f'[study]\nbase = "base.toml"\nseeds = [0, 1]\n[study.set]\n{QUADRATIC}'
    )
    unread("experiments", "replay", study, "--jobs", "1", "--out", tmp_path / "out", errors=True)
    assert (tmp_path / "out" / "report.html").exists()
