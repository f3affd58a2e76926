"""A real file system of a small size, where the user may mount one."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def small_disk(folder: Path, size_bytes: int) -> Iterator[Path]:
    """Mount a tmpfs of so many bytes at a folder that is made; the test is skipped where that is not allowed."""
    folder.mkdir(parents=True)
    options = f"size={size_bytes},mode=0777"
    command = ["mount", "-t", "tmpfs", "-o", options, "pelago-test", str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        said = done.stderr.strip() if done.returncode else ""
    except OSError as error:
        said = str(error)
    if said:
        pytest.skip(f"a small file system can be mounted by root only: {said}")
    try:
        yield folder
    finally:
        # Lazily: what a daemon of the test still has open must not keep it.
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder: Path, leave_bytes: int = 0) -> Path:
    """Write a file that leaves so much room on a small disk. Returns it: removing it makes room again."""
    ballast = folder / "ballast"
    with ballast.open("wb", buffering=0) as file:
        try:
            while file.write(bytes(1 << 16)):
                pass
        except OSError:
            pass
        file.truncate(max(0, file.tell() - leave_bytes))
    return ballast
