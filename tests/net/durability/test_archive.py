"""Copies of snapshots in an archive: complete or absent, the newest few, and no trouble for the node."""

import asyncio
import io
from collections.abc import Iterator
from pathlib import Path

import pytest

from pelago.core.errors import ConfigError
from pelago.core.notes.gps import RegionLeft
from pelago.net.disk import free_bytes
from pelago.net.durability.archive import Archive, Copier, name_of
from pelago.net.durability.state_folder import StateFolder
from pelago.net.telemetry import Telemetry
from pelago.runlog.events import ArchiveFailed, SnapshotArchived
from pelago.runlog.history import HISTORY, HistoryLine, IncarnationBegun, history_line
from pelago.runlog.log import LOG_NAME, lines_of, read_log
from tests.net.nodes import eventually
from tests.small_disk import small_disk


def test_the_newest_few_stay_and_what_was_never_whole_goes(tmp_path: Path) -> None:
    archive = Archive(str(tmp_path / "far"))
    assert archive.names() == []
    names = [name_of(7, number) for number in (2, 9, 10, 100)]
    for name in names:
        archive.put(name, io.BytesIO(b"all of it"), b"history")
    (tmp_path / "far" / names[1] / "whole").unlink()
    assert archive.names() == [names[0], *names[2:]]
    archive.keep(2)
    assert sorted(each.name for each in (tmp_path / "far").iterdir()) == names[2:]
    archive.fetch(names[-1], tmp_path)
    assert (tmp_path / "snapshot-00000000").read_bytes() == b"all of it"
    assert (tmp_path / HISTORY).read_bytes() == b"history"


def test_names_of_a_later_incarnation_sort_after_those_of_an_earlier_one() -> None:
    assert name_of(8, 1) > name_of(7, 10**9)


def test_whether_it_can_be_written_is_tried_without_a_trace(tmp_path: Path) -> None:
    Archive(str(tmp_path / "far")).require_writable()
    assert not list((tmp_path / "far").iterdir())
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"gps.snapshots = '.*/file': cannot write there: "):
        Archive(str(tmp_path / "file")).require_writable()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[StateFolder]:
    """With snapshot 3 of event 5, and a history that goes on."""
    store = StateFolder(tmp_path / "state", "run", "gps")
    store.snapshot(3).write_bytes(b"snapshot three")
    lines = [
        HistoryLine(0, IncarnationBegun("gps")),
        HistoryLine(5, RegionLeft("eu", "drained")),
        HistoryLine(6, RegionLeft("us", "drained")),
    ]
    store.history.write_bytes(b"".join(map(history_line, lines)))
    yield store
    store.close()


async def test_a_snapshot_is_copied_with_its_history_and_its_bytes_stay(
    tmp_path: Path, store: StateFolder
) -> None:
    """The node writes the next snapshot meanwhile, and may not write over this one."""
    log = Telemetry("gps", tmp_path / "events.jsonl")
    copier = Copier(Archive(str(tmp_path / "far")), minutes=10, kept=2)
    assert copier.due
    copier.copy(store, 3, name_of(7, 5), 5, log)
    assert not copier.due
    store.snapshot(4).write_bytes(b"snapshot four")
    store.drop_old()
    assert not list(store.folder.glob("spare-*"))
    await eventually(lambda: _logged(tmp_path, SnapshotArchived))
    copied = tmp_path / "far" / name_of(7, 5)
    assert (copied / "snapshot").read_bytes() == b"snapshot three"
    assert (copied / HISTORY).read_bytes() == b"".join(
        map(
            history_line,
            [HistoryLine(0, IncarnationBegun("gps")), HistoryLine(5, RegionLeft("eu", "drained"))],
        )
    )
    log.close()


async def test_an_archive_that_takes_nothing_is_reported_and_holds_nothing_up(
    tmp_path: Path, store: StateFolder
) -> None:
    (tmp_path / "far").write_text("a file, where a folder should be")
    log = Telemetry("gps", tmp_path / "events.jsonl")
    copier = Copier(Archive(str(tmp_path / "far")), minutes=1e-9, kept=2)
    copier.copy(store, 3, name_of(7, 5), 5, log)
    await asyncio.to_thread(copier.close)
    await eventually(lambda: _logged(tmp_path, ArchiveFailed))
    assert copier.due
    log.close()


async def test_a_copy_for_which_there_is_no_room_leaves_nothing_behind(
    tmp_path: Path, store: StateFolder
) -> None:
    """Its place is a real small disk, where each attempt would leave less room for the next."""
    store.snapshot(3).write_bytes(bytes(1 << 20))
    log = Telemetry("gps", tmp_path / "events.jsonl")
    with small_disk(tmp_path / "far", 1 << 19) as far:
        free = free_bytes(far)
        copier = Copier(Archive(str(far)), minutes=1e-9, kept=2)
        copier.copy(store, 3, name_of(7, 5), 5, log)
        await asyncio.to_thread(copier.close)
        await eventually(lambda: _logged(tmp_path, ArchiveFailed))
        assert not list(far.iterdir())
        assert free_bytes(far) == free
    log.close()


def _logged(folder: Path, kind: type) -> bool:
    return any(lines_of(kind, read_log(folder / LOG_NAME)))
