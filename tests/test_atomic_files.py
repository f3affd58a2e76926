"""Files and folders that are replaced as a whole, or stay as they were."""

import fcntl
import os
import threading
from pathlib import Path

import pytest

from pelago import atomic_files


def test_a_folder_takes_the_place_of_a_folder_a_file_or_nothing(tmp_path: Path) -> None:
    place = tmp_path / "deep" / "model"
    for number in range(2):
        with atomic_files.replacing(place) as new:
            new.mkdir()
            (new / str(number)).touch()
        assert [each.name for each in place.iterdir()] == [str(number)]
    (tmp_path / "file").touch()
    with atomic_files.replacing(tmp_path / "file") as new:
        new.mkdir()
    assert (tmp_path / "file").is_dir()
    assert not [each for each in tmp_path.rglob("*") if each.name.startswith(".")]


def test_a_reader_always_finds_the_old_folder_or_the_new_one(tmp_path: Path) -> None:
    """Another thread opens it again and again while it is replaced a thousand times."""
    place, stop = tmp_path / "model", threading.Event()
    missed: list[OSError] = []

    def replace() -> None:
        with atomic_files.replacing(place) as new:
            new.mkdir()

    def look() -> None:
        while not stop.is_set():
            try:
                os.stat(place)
            except OSError as error:
                missed.append(error)

    replace()
    reader = threading.Thread(target=look)
    reader.start()
    for _ in range(300):
        replace()
    stop.set()
    reader.join()
    assert not missed


def test_a_block_that_fails_changes_nothing_and_leaves_nothing(tmp_path: Path) -> None:
    atomic_files.write_text(tmp_path / "file", "old")

    def fail() -> None:
        with atomic_files.replacing(tmp_path / "file") as new:
            new.write_text("new")
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert (tmp_path / "file").read_text() == "old"
    assert [each.name for each in tmp_path.iterdir()] == ["file"]


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    """Of this version, and the file of one before."""
    part = tmp_path / ".file.part"
    (part / "folder").mkdir(parents=True)
    (part / "file").write_text("half")
    atomic_files.write_text(tmp_path / "file", "whole")
    part.write_text("half")
    atomic_files.write_text(tmp_path / "file", "more")
    assert [each.name for each in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() == "more"


def test_a_second_writer_waits_for_the_first(tmp_path: Path) -> None:
    """1. One is in the middle. 2. Another one begins, and is seen to wait. 3. Both end: the later one counts."""
    place = tmp_path / "file"
    with atomic_files.replacing(place) as new:
        second = threading.Thread(target=lambda: atomic_files.write_text(place, "second"))
        second.start()
        new.write_text("first")
        descriptor = os.open(tmp_path / ".file.part", os.O_RDONLY)
        with pytest.raises(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.close(descriptor)
        assert not place.exists()
    second.join()
    assert place.read_text() == "second"
    assert [each.name for each in tmp_path.iterdir()] == ["file"]


def test_a_link_to_a_folder_stays_and_its_folder_is_replaced(tmp_path: Path) -> None:
    """Users link the model to a larger disk."""
    (tmp_path / "large" / "model").mkdir(parents=True)
    (tmp_path / "model").symlink_to(tmp_path / "large" / "model")
    with atomic_files.replacing(tmp_path / "model") as new:
        new.mkdir()
        (new / "weights").touch()
    assert (tmp_path / "model").is_symlink()
    assert (tmp_path / "large" / "model" / "weights").exists()


def test_a_block_that_writes_nothing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), atomic_files.replacing(tmp_path / "file"):
        pass
