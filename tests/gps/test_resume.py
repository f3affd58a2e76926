"""`gps --resume`: from folders and copies to the state of a later incarnation, and what is refused."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from gps.resume import NODE, facts_of, machine_of, open_state, plane_of
from gps.state import Gps
from pelago.config import run_toml
from pelago.config.run_file import RunFile
from pelago.core.errors import CheckpointError, ConfigError, ForeignState
from pelago.core.machine import Started
from pelago.core.names import Version
from pelago.core.notes.gps import RegionLeft
from pelago.core.tensor_effects import Loaded
from pelago.durable import image, record
from pelago.durable.replay import at
from pelago.net import daemon
from pelago.net.durability import file_header, snapshot_writer
from pelago.net.durability.archive import Archive, name_of
from pelago.net.durability.restore import SnapshotContents, state
from pelago.net.durability.state_folder import StateFolder
from pelago.net.files import lock
from pelago.runlog.history import (
    HISTORY,
    HistoryLine,
    IncarnationBegun,
    RunResumed,
    history_line,
    read_history,
)
from pelago.tensor.manifest import Manifest
from pelago.tensor.plane import Plane
from pelago.wire.messages import TensorSpec
from tests.unprivileged import as_nobody

MANIFEST = Manifest((TensorSpec("weight", (1000,)),), 1024)
TEXT = """
[run]
name = "again"
budget_local_steps = 100
[gps]
average = 0.5
[[region]]
name = "eu"
worker_speeds = [1.0]
"""


def a_run(*changes: tuple[str, str]) -> RunFile:
    text = TEXT
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    return run_toml.parse(text, "run.toml")


def a_gps(run: RunFile, incarnation: int = 5) -> tuple[Gps, Plane]:
    """One that has applied an update of 40 local steps."""
    gps = machine_of(run, incarnation, MANIFEST, "corpus")
    gps.handle(Started(), 1)
    gps.handle(Loaded(Version(incarnation, 0)), 2)
    gps.model.version, gps.model.updates, gps.model.counted_steps = Version(incarnation, 1), 1, 40
    gps.regions["eu"].updates = 1
    plane = plane_of(run, MANIFEST)
    for blob, operation in ((1, "load"), (2, "step")):
        plane.adopt(blob, torch.randn(1000, generator=torch.Generator().manual_seed(blob)))
        plane.apply(operation, blob)  # type: ignore[arg-type]
    return gps, plane


def write(out: Path, run: RunFile) -> str:
    """A state of this GPS in a folder of results; returns the digest of its tensors."""
    gps, plane = a_gps(run)
    store = StateFolder(daemon.state_folder(out, NODE), run.run_id, NODE)
    found = plane.snapshot()
    snapshot_writer.begin_with(
        store,
        file_header.new_header(run.run_id, NODE, "gps@there:1:1", 5),
        7,
        1000,
        state(gps, MANIFEST, -3, facts_of(run, "corpus")),
        record.pack(found.layout()),
        found.chunks,
        history_line(HistoryLine(0, IncarnationBegun(NODE)))
        + history_line(HistoryLine(6, RegionLeft("eu", "drained"))),
    )
    store.close()
    return plane.digest()


def resumed(run: RunFile, out: Path, source: str | None) -> tuple[Gps, Plane, str]:
    """What a GPS goes on with."""
    store, recovered, word = open_state(run, out, source)
    try:
        assert recovered is not None
        assert recovered.snapshot is not None
        assert recovered.snapshot.layout is not None
        kept = SnapshotContents.of(recovered.snapshot)
        assert kept.manifest == MANIFEST
        gps = machine_of(run, recovered.header.incarnation, MANIFEST, kept.facts["corpus"])
        image.restore(gps, kept.image)
        plane = plane_of(run, MANIFEST)
        plane.restore(recovered.snapshot.layout, recovered.snapshot.chunks)
        assert recovered.next_number == 8
        return gps, plane, word
    finally:
        store.close()


MORE = ("budget_local_steps = 100", "budget_local_steps = 200")


def test_a_folder_goes_on_elsewhere_with_another_budget_and_learning_rate(tmp_path: Path) -> None:
    """Tensors, steps and history are those of the source, which stays as it is."""
    digest = write(tmp_path / "a", a_run())
    run = a_run(MORE, ("average = 0.5", "average = 0.5\nlr = 0.3\nmomentum = 0.2"))
    gps, plane, word = resumed(run, tmp_path / "b", str(tmp_path / "a"))
    assert plane.digest() == digest
    assert (gps.model.counted_steps, gps.model.version.counter) == (40, 1)
    assert gps.model.version.incarnation == gps.settings.incarnation > 5
    assert "at version 1, 40 local steps" in word
    lines = read_history(daemon.state_folder(tmp_path / "b", NODE) / HISTORY)
    assert [type(line.entry) for line in lines] == [IncarnationBegun, RegionLeft, RunResumed]
    assert resumed(a_run(), tmp_path / "a", None)[0].model.version.incarnation == 5


def test_a_folder_goes_on_in_its_place(tmp_path: Path) -> None:
    """1. The run file was changed: only with --resume. 2. Started again so, it goes on with that."""
    digest = write(tmp_path, a_run())
    run = a_run(MORE)
    with pytest.raises(ForeignState, match="--resume goes on with the changed one"):
        open_state(run, tmp_path, None)
    first, plane, _ = resumed(run, tmp_path, str(tmp_path))
    assert plane.digest() == digest
    again, _, word = resumed(run, tmp_path, str(tmp_path))
    assert again.model.version == first.model.version
    assert "--resume is for folders without a state" in word
    assert sorted(each.name for each in (tmp_path / NODE).iterdir()) == ["state", "state.lock"]


def test_a_remote_copy_goes_on(tmp_path: Path) -> None:
    """The newest one, or the one that is named."""
    digest = write(tmp_path / "a", a_run())
    archive = Archive(f"file://{tmp_path}/far")
    folder = daemon.state_folder(tmp_path / "a", NODE)
    for number in (1, 2):
        with (folder / "snapshot-00000000").open("rb") as file:
            archive.put(name_of(5, number), file, (folder / HISTORY).read_bytes())
    for place, source in enumerate((archive.url, f"{archive.url}/{name_of(5, 1)}")):
        gps, plane, word = resumed(a_run(MORE), tmp_path / str(place), source)
        assert plane.digest() == digest
        assert gps.model.counted_steps == 40
        assert source in word
    (tmp_path / "far" / name_of(5, 2) / "whole").unlink()
    (tmp_path / "far" / name_of(5, 2) / "snapshot").write_bytes(b"cut")
    assert resumed(a_run(MORE), tmp_path / "c", archive.url)[1].digest() == digest


def test_the_end_of_a_journal_that_may_be_missing_begins_a_later_incarnation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The host was started again, and the last records are damaged: the GPS continues from the state before them."""
    digest = write(tmp_path, a_run())
    path = daemon.state_folder(tmp_path, NODE) / "journal-00000000"
    path.write_bytes(path.read_bytes() + b"\0" * 5000)
    monkeypatch.setattr(daemon, "boot_id", lambda: "another")
    gps, plane, word = resumed(a_run(), tmp_path, None)
    assert plane.digest() == digest
    assert gps.model.version.incarnation > 5
    assert word.startswith("resumed from")


def damage_the_journal(out: Path) -> None:
    """Two more records, of which the first is damaged."""
    path = daemon.state_folder(out, NODE) / "journal-00000000"
    body = record.pack_event("run", Started())
    first = at(memoryview(path.read_bytes()), 0)
    assert first is not None
    salt = record.unpack_header(first.body).salt
    pieces = [record.head(record.Kind.EVENT, number, body, salt=salt) + body for number in (8, 9)]
    path.write_bytes(path.read_bytes() + pieces[0][:-1] + b"?" + pieces[1])


def test_damage_is_refused_and_resume_goes_on_from_what_is_before_it(tmp_path: Path) -> None:
    digest = write(tmp_path, a_run())
    damage_the_journal(tmp_path)
    with pytest.raises(CheckpointError, match="journal-00000000: damaged at byte") as refused:
        open_state(a_run(), tmp_path, None)
    assert f"--resume {tmp_path} resumes the run" in str(refused.value)
    gps, plane, _ = resumed(a_run(), tmp_path, str(tmp_path))
    assert plane.digest() == digest
    assert gps.model.version.incarnation > 5


def test_damage_by_a_host_that_went_down_is_no_surprise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`process` does not promise to survive that; `host` does, and so the damage is refused."""
    write(tmp_path, a_run())
    damage_the_journal(tmp_path)
    monkeypatch.setattr(daemon, "boot_id", lambda: "another")
    host = a_run(("average = 0.5", 'average = 0.5\ndurability = "host"'))
    with pytest.raises(CheckpointError):
        open_state(host, tmp_path, None)
    assert resumed(a_run(), tmp_path, None)[0].model.version.incarnation > 5


def a_second_generation(out: Path, run: RunFile) -> tuple[Path, str]:
    """After `write`: an empty snapshot 1, as a loss of power may leave it, of event 9, and its journal.
    Returns the snapshot's path, and the digest of the state before."""
    digest = write(out, run)
    store = StateFolder(daemon.state_folder(out, NODE), run.run_id, NODE)
    first = at(memoryview(store.journal(0).read_bytes()), 0)
    assert first is not None
    body = record.pack_event("run", Started())
    salt = record.unpack_header(first.body).salt
    with store.journal(0).open("ab") as file:
        for number in (8, 9):
            file.write(record.head(record.Kind.EVENT, number, body, salt=salt) + body)
    store.journal(1).write_bytes(record.head(record.Kind.HEADER, 9, first.body) + first.body)
    store.snapshot(1).write_bytes(b"")
    store.close()
    return store.snapshot(1), digest


@pytest.mark.parametrize("source", [None, "itself"])
def test_an_older_snapshot_is_gone_on_from_and_it_is_said_which(
    source: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the host was started again: as a later incarnation."""
    newest, digest = a_second_generation(tmp_path, a_run())
    monkeypatch.setattr(daemon, "boot_id", lambda: "another")
    store, recovered, word = open_state(
        a_run(), tmp_path, None if source is None else str(tmp_path)
    )
    store.close()
    assert recovered is not None
    assert recovered.snapshot is not None
    assert recovered.next_number == 10
    assert recovered.header.incarnation > 5
    assert word.endswith(f"with snapshot-00000000, since {newest}: damaged at byte 0")
    assert recovered.snapshot.layout is not None
    plane = plane_of(a_run(), MANIFEST)
    plane.restore(recovered.snapshot.layout, recovered.snapshot.chunks)
    assert plane.digest() == digest


def test_an_older_snapshot_is_as_good_as_the_newest_while_the_host_is_up(tmp_path: Path) -> None:
    newest, _ = a_second_generation(tmp_path, a_run())
    store, recovered, _ = open_state(a_run(), tmp_path, None)
    store.close()
    assert recovered is not None
    assert recovered.header.incarnation == 5
    assert recovered.next_number == 10
    assert recovered.passed_over == (f"{newest}: damaged at byte 0",)


@pytest.mark.parametrize("damage", ["empty", "cut", "zeros", "no history"])
def test_of_the_copies_the_newest_sound_one_goes_on_and_it_is_said_which(
    damage: str, tmp_path: Path
) -> None:
    digest = write(tmp_path / "a", a_run())
    archive = Archive(f"file://{tmp_path}/far")
    folder = daemon.state_folder(tmp_path / "a", NODE)
    for number in (1, 2):
        with (folder / "snapshot-00000000").open("rb") as file:
            archive.put(name_of(5, number), file, (folder / HISTORY).read_bytes())
    path = tmp_path / "far" / name_of(5, 2) / "snapshot"
    whole = path.read_bytes()
    match damage:
        case "empty":
            path.write_bytes(b"")
        case "cut":
            path.write_bytes(whole[:-1])
        case "zeros":
            path.write_bytes(whole[:500] + bytes(500) + whole[1000:])
        case _:
            (path.parent / HISTORY).unlink()
    _, plane, word = resumed(a_run(MORE), tmp_path / "b", archive.url)
    assert plane.digest() == digest
    assert f"with {name_of(5, 1)}, since {archive.url}/{name_of(5, 2)}: " in word
    with pytest.raises(CheckpointError):
        open_state(a_run(MORE), tmp_path / "c", f"{archive.url}/{name_of(5, 2)}")


def test_damage_before_the_first_snapshot_begins_anew_where_no_more_was_promised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = a_run()
    store = StateFolder(daemon.state_folder(tmp_path, NODE), run.run_id, NODE)
    header = file_header.new_header(run.run_id, NODE, "gps@there:1:1", 5)
    packed, body = record.pack_header(header), record.pack_event("run", Started())
    head = record.head(record.Kind.EVENT, 1, body, salt=header.salt)
    later = record.head(record.Kind.EVENT, 2, body, salt=header.salt) + body
    store.journal(0).write_bytes(
        record.head(record.Kind.HEADER, 0, packed) + packed + head + bytes(len(body)) + later
    )
    store.close()
    with pytest.raises(CheckpointError, match="damaged at byte"):
        open_state(run, tmp_path, None)
    monkeypatch.setattr(daemon, "boot_id", lambda: "another")
    store, recovered, word = open_state(run, tmp_path, None)
    store.close()
    assert recovered is None
    assert word.startswith("beginning anew: ")


def test_a_damaged_history_is_refused_and_resume_goes_on_with_what_is_before_it(
    tmp_path: Path,
) -> None:
    digest = write(tmp_path, a_run())
    path = daemon.state_folder(tmp_path, NODE) / HISTORY
    data = bytearray(path.read_bytes())
    data[10] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="history: damaged at byte 0"):
        open_state(a_run(), tmp_path, None)
    assert resumed(a_run(), tmp_path, str(tmp_path))[1].digest() == digest


REFUSED: dict[str, tuple[tuple[str, str], str]] = {
    "a budget that is used up": (
        ("budget_local_steps = 100", "budget_local_steps = 40"),
        "run.budget_local_steps = 40: .* has done 40 already; give a larger budget",
    ),
    "another seed": (
        ('name = "again"', 'name = "again"\nseed = 3'),
        "run.seed = 3: the run that is resumed began with 0",
    ),
    "another length": (
        ("[gps]", "[data]\nsequence_length = 64\n[gps]"),
        "data.sequence_length = 64: the run that is resumed began with 128",
    ),
    "no mean any more": (("average = 0.5", "average = 0"), "gps.average = 0: the run"),
}


@pytest.mark.parametrize("change", REFUSED)
def test_what_cannot_go_on_is_refused_and_nothing_is_lost(change: str, tmp_path: Path) -> None:
    digest = write(tmp_path, a_run())
    edit, words = REFUSED[change]
    with pytest.raises(ConfigError, match=words):
        open_state(a_run(edit), tmp_path, str(tmp_path))
    assert resumed(a_run(), tmp_path, None)[1].digest() == digest


SOURCES: dict[str, tuple[Callable[[Path], object], type[Exception], str]] = {
    "nothing": (lambda _: None, ConfigError, "no state of a GPS and no snapshot of one"),
    "no snapshot": (
        lambda folder: (
            folder.mkdir(),
            (folder / "journal-00000000").write_bytes(b""),
        ),
        CheckpointError,
        "wrote no snapshot; begin anew",
    ),
    "a damaged snapshot": (
        lambda folder: (folder.mkdir(), (folder / "snapshot-00000000").write_bytes(b"PLGO" * 99)),
        CheckpointError,
        "snapshot-00000000: damaged at byte 0",
    ),
}


@pytest.mark.parametrize("what", SOURCES)
def test_a_source_without_a_state_is_named(what: str, tmp_path: Path) -> None:
    make, kind, words = SOURCES[what]
    make(tmp_path / "source")
    with pytest.raises(kind, match=words):
        open_state(a_run(), tmp_path / "out", str(tmp_path / "source"))


@pytest.mark.parametrize("url", ["s3://bucket/x", "nowhere://x"])
def test_a_url_that_cannot_be_used_is_named(url: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"cannot use {url!r} for snapshots"):
        open_state(a_run(), tmp_path, url)


def test_a_kill_between_the_moves_of_the_folders_loses_neither(tmp_path: Path) -> None:
    """The old folder is moved away, and the new one is not in its place yet."""
    write(tmp_path / "a", a_run())
    digest = write(tmp_path / "b", a_run())
    folder = daemon.state_folder(tmp_path / "a", NODE)
    folder.rename(folder.with_name("state.old"))
    shutil.copytree(daemon.state_folder(tmp_path / "b", NODE), folder.with_name("state.new"))
    assert resumed(a_run(), tmp_path / "a", None)[1].digest() == digest
    assert sorted(each.name for each in folder.parent.iterdir()) == ["state", "state.lock"]


def test_two_that_start_at_once_do_not_see_a_folder_out_of_its_place(tmp_path: Path) -> None:
    digest = write(tmp_path, a_run())
    folder = daemon.state_folder(tmp_path, NODE)
    with lock(folder.with_name("state.lock")):
        folder.rename(folder.with_name("state.old"))
        with pytest.raises(ConfigError, match="another process of gps is starting with this state"):
            open_state(a_run(), tmp_path, None)
        folder.with_name("state.old").rename(folder)
    assert resumed(a_run(), tmp_path, None)[1].digest() == digest


@pytest.mark.parametrize("locked", [False, True])
def test_a_read_only_source_goes_on_elsewhere(tmp_path: Path, locked: bool) -> None:
    """A backup, say, with or without the lock file of the GPS that was there."""
    digest = write(tmp_path / "a", a_run())
    folder = daemon.state_folder(tmp_path / "a", NODE)
    if not locked:
        (folder / "lock").unlink()
    before = sorted(folder.iterdir())
    (tmp_path / "b").mkdir()
    for each, mode in ((tmp_path, 0o755), (tmp_path / "b", 0o777), (folder, 0o555)):
        each.chmod(mode)

    def attempt() -> None:
        assert resumed(a_run(), Path("b"), "a")[1].digest() == digest

    assert as_nobody(tmp_path, attempt) == 0
    assert sorted(folder.iterdir()) == before
