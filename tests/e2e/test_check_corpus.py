"""`pelago check` reads the whole corpus, says what it found, and names what is wrong in it."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from tests.e2e.topology import DEADLINE_S


def check(folder: Path, source: str) -> "subprocess.CompletedProcess[str]":
    (folder / "run.toml").write_text(
        f'[data]\nsource = "{source}"\nsequence_length = 16\n[worker]\ndevice = "cpu"\n'
        # The servers are elsewhere, so no port has to be free here.
        '[[region]]\nname = "eu"\nworker_speeds = [1.0]\nbind = "127.0.0.2:7710"\n'
        'connect = "lps.example:7710"\n[gps]\nconnect = "gps.example:7700"\n',
        encoding="utf-8",
    )
    return subprocess.run(
        [sys.executable, "-m", "pelago.cli.main", "check", str(folder / "run.toml")],
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
        cwd=folder,
        env=os.environ | {"PYTHONUTF8": "0", "LC_ALL": "C", "PYTHONIOENCODING": "ascii"},
    )


def test_a_bad_id_in_the_middle_of_a_file_is_found(tmp_path: Path) -> None:
    ids = np.resize(np.arange(256), 1_000_000).astype("<u2")
    ids[600_000] = 300
    ids.tofile(tmp_path / "a.bin")
    done = check(tmp_path, f"tokens:{tmp_path}/a.bin")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith(
        f"pelago: data.source = 'tokens:{tmp_path}/a.bin' holds the token id 300,"
    )
    assert f"({tmp_path}/a.bin: token 600,000, at byte 1,200,000)" in line


def test_a_folder_with_everything_in_it_is_reported(tmp_path: Path) -> None:
    """A pipe does not block the check, and a name that is no UTF-8 can be printed on an ASCII terminal."""
    texts = tmp_path / "texts"
    texts.mkdir()
    for number in range(60):
        (texts / f"{number}.txt").write_text(f"text number {number}\n" * 20)
    os.mkfifo(texts / "pipe.txt")
    with open(os.fsencode(texts) + b"/na\xefve.txt", "wb") as stream:
        stream.write("déjà vu\n".encode("latin-1"))
    done = check(tmp_path, f"text:{texts}")
    assert done.returncode == 0, done.stderr
    assert "read: 61 files," in done.stdout
    assert "left out: 1 no regular files (pipes, sockets, devices) (pipe.txt)" in done.stdout
    assert "encoding: 1 Latin-1 (Windows-1252), converted (na\\xefve.txt)" in done.stdout
