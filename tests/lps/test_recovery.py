"""What an LPS does with the state that it finds: it continues from it or begins afresh, and says why."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lps.service import open_state_store
from pelago.config import run_toml
from pelago.config.run_file import RunFile
from pelago.core.errors import CheckpointError, ForeignState
from pelago.core.machine import PeerLost
from pelago.core.notes.lps import ExchangeAnswered
from pelago.durable import record
from pelago.durable.record import Kind
from pelago.net import daemon
from pelago.net.durability import file_header, snapshot_writer
from pelago.net.durability.manager import StateStore
from pelago.net.durability.state_folder import StateFolder
from pelago.net.telemetry import Telemetry
from pelago.runlog.events import StateDiscarded
from pelago.runlog.history import HISTORY, HistoryLine, IncarnationBegun, history_line, read_history
from pelago.runlog.log import LOG_NAME, lines_of, read_log

NAME = "lps-eu"
PAGE = 4096
TEXT = """
[run]
name = "memory"
budget_local_steps = 100
[lps]
durability = "process"
[[region]]
name = "eu"
worker_speeds = [1.0]
"""


def a_run(*changes: tuple[str, str]) -> RunFile:
    text = TEXT
    for old, new in changes:
        text = text.replace(old, new)
    return run_toml.parse(text, "run.toml")


def write(out: Path, run: RunFile, events: int = 200) -> Path:
    """A state with a snapshot, and a journal and a history of several pages; returns its folder."""
    store = StateFolder(daemon.state_folder(out, NAME), run.run_id, NAME)
    header = file_header.new_header(run.run_id, NAME, "lps-eu@here:1:1", 5)
    lines = [
        HistoryLine(0, IncarnationBegun(NAME)),
        *(HistoryLine(7, ExchangeAnswered(each, 1, "applied")) for each in range(events)),
    ]
    history = b"".join(map(history_line, lines))
    image, layout = record.pack(["image", "x" * 3 * PAGE]), record.pack({})
    snapshot_writer.begin_with(store, header, 7, 1000, image, layout, (), history)
    with store.journal(0).open("ab") as file:
        for number in range(8, 8 + events):
            body = record.pack_event(run.run_id, PeerLost("eu/0", "a reason"))
            file.write(record.head(Kind.EVENT, number, body, salt=header.salt) + body)
    store.close()
    return store.folder


Opened = tuple[StateStore, int, list[StateDiscarded]]
"""The store, the incarnation, and the states that were discarded."""


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Callable[..., Opened]]:
    stores: list[StateFolder] = []

    def open_it(run: RunFile, *, resume: bool = False) -> Opened:
        log = Telemetry(NAME, tmp_path / "events.jsonl", console=None)
        try:
            state_store, _, incarnation = open_state_store(run, tmp_path, NAME, log, resume=resume)
        finally:
            log.close()
        assert state_store is not None
        stores.append(state_store.store)
        discarded = [event for _, event in lines_of(StateDiscarded, read_log(tmp_path / LOG_NAME))]
        return state_store, incarnation, discarded

    yield open_it
    for store in stores:
        store.close()


def page_lost(path: Path, page: int = 1) -> None:
    data = bytearray(path.read_bytes())
    assert len(data) > (page + 1) * PAGE
    data[page * PAGE : (page + 1) * PAGE] = bytes(PAGE)
    path.write_bytes(data)


def page_torn(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[PAGE : PAGE + 512] = b"old sector" * 51 + b"12"
    path.write_bytes(data)


DAMAGES: dict[str, tuple[str, Callable[[Path], object]]] = {
    "a page of the journal": ("journal-00000000", page_lost),
    "the first page of the journal": ("journal-00000000", lambda path: page_lost(path, 0)),
    "a torn page of the journal": ("journal-00000000", page_torn),
    "no journal": ("journal-00000000", Path.unlink),
    "a page of the snapshot": ("snapshot-00000000", page_lost),
    "the first page of the snapshot": ("snapshot-00000000", lambda path: page_lost(path, 0)),
    "an empty snapshot": ("snapshot-00000000", lambda path: path.write_bytes(b"")),
    "no snapshot": ("snapshot-00000000", Path.unlink),
    "a page of the history": (HISTORY, page_lost),
}


@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_of_a_host_that_went_down_is_a_fresh_start(
    damage: str,
    resume: bool,
    tmp_path: Path,
    opened: Callable[..., Opened],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The GPS lends to it as to a new region. It is said what was found, and what is discarded."""
    run = a_run()
    folder = write(tmp_path, run)
    name, damaging = DAMAGES[damage]
    damaging(folder / name)
    monkeypatch.setattr(daemon, "boot_id", lambda: "another")
    state_store, incarnation, discarded = opened(run, resume=resume)
    assert state_store.recovered is None
    assert incarnation > 5
    [event] = discarded
    assert str(folder) in event.why
    assert event.removed == str(folder)
    assert not list(folder.glob("journal-*"))
    assert not list(folder.glob("snapshot-*"))
    kept = [each.entry for each in read_history(folder / HISTORY)]
    assert kept[:1] == [IncarnationBegun(NAME)]
    assert (folder / "history-damaged").exists() == (name == HISTORY)
    assert state_store.store.recovered() is None


@pytest.mark.parametrize("damage", ["a page of the journal", "a page of the history"])
def test_damage_while_the_host_was_up_is_refused_and_resume_begins_anew(
    damage: str, tmp_path: Path, opened: Callable[..., Opened]
) -> None:
    run = a_run()
    name, damaging = DAMAGES[damage]
    damaging(write(tmp_path, run) / name)
    with pytest.raises(CheckpointError, match=f"{name}: damaged at byte .*; --resume begins anew"):
        opened(run)


def test_resume_begins_anew_where_damage_was_refused(
    tmp_path: Path, opened: Callable[..., Opened]
) -> None:
    run = a_run()
    page_lost(write(tmp_path, run) / "journal-00000000")
    state_store, incarnation, _ = opened(run, resume=True)
    assert state_store.recovered is None
    assert incarnation > 5


def test_damage_with_durability_host_is_refused_after_a_restart_of_the_host_too(
    tmp_path: Path, opened: Callable[..., Opened], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = a_run(('"process"', '"host"'))
    page_lost(write(tmp_path, run) / "journal-00000000")
    monkeypatch.setattr(daemon, "boot_id", lambda: "another")
    with pytest.raises(CheckpointError, match="--resume begins anew"):
        opened(run)


def test_a_sound_state_goes_on_and_that_of_another_run_only_makes_way(
    tmp_path: Path, opened: Callable[..., Opened]
) -> None:
    run, changed = a_run(), a_run(("= 100", "= 200"))
    write(tmp_path, run)
    state_store, incarnation, _ = opened(run)
    assert state_store.recovered is not None
    assert incarnation == 5
    state_store.store.close()
    with pytest.raises(ForeignState):
        opened(changed)


def test_a_state_that_may_lack_its_end_is_a_fresh_start(
    tmp_path: Path, opened: Callable[..., Opened], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = a_run()
    write(tmp_path, run)
    monkeypatch.setattr(daemon, "boot_id", lambda: "another")
    state_store, _, discarded = opened(run)
    assert state_store.recovered is None
    [event] = discarded
    assert "this machine was started again" in event.why
