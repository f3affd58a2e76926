"""A durable node's folder: read back whole, cut where a write was torn, refused where it is damaged."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from pelago.core.errors import CheckpointError, ConfigError
from pelago.core.notes.lps import Rejoining
from pelago.durable import record
from pelago.durable.record import FORMAT, HEAD_BYTES, Kind
from pelago.net.durability.state_folder import StateFolder
from pelago.net.files import open_over
from pelago.runlog.history import HistoryLine, IncarnationBegun, history_line, read_history
from tests.net.durability.state_files import (
    NODE,
    RUN,
    a_header,
    a_piece,
    a_store,
    assert_reads,
    event_piece,
    header_piece,
    journal_pieces,
    names,
    recovered_state,
    snapshot_pieces,
)
from tests.unprivileged import as_nobody


@pytest.fixture
def store(tmp_path: Path) -> Iterator[StateFolder]:
    found = a_store(tmp_path / "state")
    yield found
    found.close()


def refused(store: StateFolder, path: Path, words: str = "") -> str:
    """The text of the refusal, which is one line and names the file."""
    with pytest.raises(CheckpointError, match=words) as refusal:
        store.recovered()
    text = str(refusal.value)
    assert str(path) in text
    assert "\n" not in text
    return text


def edges(pieces: list[bytes]) -> list[int]:
    """Where each piece begins, and where the last one ends."""
    found = [0]
    for piece in pieces:
        found.append(found[-1] + len(piece))
    return found


# --- removal -------------------------------------------------------------------------------------


def test_an_interrupted_removal_is_completed_by_the_next_process(
    store: StateFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1. Killed after one of two files. 2. The next process finds an empty folder, and not half of a state."""
    for index in (0, 1):
        store.journal(index).write_bytes(header_piece())
    unlink = Path.unlink
    monkeypatch.setattr(Path, "unlink", _once(unlink))
    with pytest.raises(KeyboardInterrupt):
        store.clear()
    monkeypatch.undo()
    assert "journal-00000001" in names(store.folder)
    store.close()
    again = a_store(store.folder)
    assert again.recovered() is None
    again.close()


def _once(action: Callable[[Path], None]) -> Callable[[Path], None]:
    done: list[Path] = []

    def act(path: Path) -> None:
        if done:
            raise KeyboardInterrupt
        done.append(path)
        action(path)

    return act


# --- complete files ------------------------------------------------------------------------------


def test_an_empty_folder_has_no_recovered_state(store: StateFolder) -> None:
    assert store.recovered() is None


def test_a_journal_is_read_back(store: StateFolder) -> None:
    store.journal(0).write_bytes(b"".join(journal_pieces(1, 5)))
    recovered = recovered_state(store)
    assert_reads(recovered, 5)
    assert (recovered.header.process, recovered.header.incarnation) == ("gps@here:1:abc", 7)
    assert (recovered.next_index, recovered.torn_bytes, recovered.snapshot) == (1, 0, None)
    assert recovered.bytes == store.journal(0).stat().st_size


def test_a_snapshot_and_the_journals_after_it_are_read_back(store: StateFolder) -> None:
    """Older files are not read, so their damage does not matter."""
    store.journal(1).write_bytes(b"damaged")
    store.snapshot(1).write_bytes(b"damaged")
    store.snapshot(2).write_bytes(b"".join(snapshot_pieces(40, chunks=3)))
    store.journal(2).write_bytes(b"".join(journal_pieces(41, 43)))
    store.journal(3).write_bytes(b"".join(journal_pieces(44, 47)))
    recovered = recovered_state(store)
    assert_reads(recovered, 47, first=41)
    assert recovered.snapshot is not None
    assert (recovered.snapshot.number, recovered.snapshot.now) == (40, 1040)
    assert recovered.snapshot.image == ["image", 40]
    assert recovered.snapshot.layout == {"payloads": []}
    assert [bytes(chunk) for chunk in recovered.snapshot.chunks] == [
        bytes([i]) * 8 for i in range(3)
    ]
    assert recovered.next_index == 4


def test_a_snapshot_before_the_tensors_has_no_layout(store: StateFolder) -> None:
    header, state, *_, end = snapshot_pieces(4)
    store.snapshot(1).write_bytes(header + state + end)
    store.journal(1).write_bytes(header_piece(4))
    recovered = recovered_state(store)
    assert recovered.snapshot is not None
    assert recovered.snapshot.layout is None
    assert recovered.snapshot.chunks == []
    assert recovered.next_number == 5


def test_what_was_read_stays_readable_when_the_files_are_gone(store: StateFolder) -> None:
    store.journal(0).write_bytes(b"".join(journal_pieces(1, 5)))
    recovered = recovered_state(store)
    store.clear()
    assert store.recovered() is None
    assert_reads(recovered, 5)


# --- incomplete files ----------------------------------------------------------------------------


def test_a_record_torn_at_any_byte_is_cut_and_the_next_journal_follows(store: StateFolder) -> None:
    """1. The last record ends after each number of its bytes in turn: what is before it is there.
    2. The torn end is cut, another journal follows, and both are read."""
    *whole, last = journal_pieces(1, 4)
    for taken in range(len(last)):
        store.clear()
        store.journal(0).write_bytes(b"".join(whole) + last[:taken])
        recovered = recovered_state(store)
        assert_reads(recovered, 3)
        assert (recovered.torn_bytes, recovered.next_index) == (taken, 1)
        store.cut(recovered)
        assert store.journal(0).read_bytes() == b"".join(whole)
        store.journal(1).write_bytes(b"".join(journal_pieces(4, 6)))
        assert_reads(recovered_state(store), 6)


def test_a_journal_torn_in_its_header_has_not_begun(store: StateFolder) -> None:
    """1. A second journal ends at each byte of its header, the file that was just made included.
    2. The first one stays as it is, and the second is begun anew."""
    first = b"".join(journal_pieces(1, 3))
    header, *_ = journal_pieces(4, 4)
    for taken in range(len(header)):
        store.journal(0).write_bytes(first)
        store.journal(1).write_bytes(header[:taken])
        recovered = recovered_state(store)
        assert_reads(recovered, 3)
        assert (recovered.torn_bytes, recovered.next_index) == (taken, 1)
        store.cut(recovered)
        assert store.journal(0).read_bytes() == first
        store.journal(1).write_bytes(b"".join(journal_pieces(4, 6)))
        assert_reads(recovered_state(store), 6)


def test_a_journal_torn_in_its_header_after_a_snapshot_has_not_begun(store: StateFolder) -> None:
    """The journal before it, which the snapshot has made needless, may still be there."""
    before = b"".join(journal_pieces(1, 8))
    for taken in (0, 1, 60, len(header_piece()) - 1):
        store.journal(0).write_bytes(before)
        store.snapshot(1).write_bytes(b"".join(snapshot_pieces(8)))
        store.journal(1).write_bytes(header_piece(8)[:taken])
        recovered = recovered_state(store)
        assert (recovered.header, recovered.records, recovered.next_number) == (
            recovered.header,
            [],
            9,
        )
        assert recovered.next_index == 1
        store.cut(recovered)
        assert store.journal(0).read_bytes() == before


def test_the_first_journal_torn_in_its_header_gives_no_recovered_state(store: StateFolder) -> None:
    for taken in range(len(header_piece())):
        store.journal(0).write_bytes(header_piece()[:taken])
        assert store.recovered() is None


def test_a_torn_record_may_hold_what_looks_like_records(store: StateFolder) -> None:
    """A peer chose the bytes of a chunk; what is in its body says nothing about the disk."""
    whole = journal_pieces(1, 3)
    body = b"".join(event_piece(number) for number in range(4, 40))
    torn = a_piece(Kind.CHUNK, 4, body, -1, 0)
    for taken in (len(torn) // 2, len(torn) - 1):
        store.journal(0).write_bytes(b"".join(whole) + torn[:taken])
        recovered = recovered_state(store)
        assert_reads(recovered, 3)
        assert recovered.torn_bytes == taken


def test_records_of_another_time_are_not_taken_for_the_next_ones(store: StateFolder) -> None:
    old = event_piece(2) + event_piece(3)
    store.journal(0).write_bytes(b"".join(journal_pieces(1, 3)) + old)
    recovered = recovered_state(store)
    assert_reads(recovered, 3)
    assert recovered.torn_bytes == len(old)
    store.cut(recovered)
    store.journal(1).write_bytes(b"".join(journal_pieces(4, 5)))
    assert_reads(recovered_state(store), 5)


def test_a_snapshot_that_was_being_written_is_ignored_and_removed(store: StateFolder) -> None:
    store.journal(0).write_bytes(b"".join(journal_pieces(1, 3)))
    store.journal(1).write_bytes(b"".join(journal_pieces(4, 5)))
    part = store.folder / (store.snapshot(1).name + ".part")
    part.write_bytes(b"".join(snapshot_pieces(3))[:-1])
    recovered = recovered_state(store)
    assert_reads(recovered, 5)
    assert recovered.snapshot is None
    store.cut(recovered)
    assert names(store.folder) == ["journal-00000000", "journal-00000001", "lock"]


def test_killed_before_the_old_files_were_removed(store: StateFolder) -> None:
    """1. Both snapshots and all journals are there: the newest snapshot counts.
    2. The removal is completed later, and leaves files that are not the store's."""
    for index, number in ((1, 3), (2, 6)):
        store.snapshot(index).write_bytes(b"".join(snapshot_pieces(number)))
    for index in range(3):
        pieces = journal_pieces(1 + 3 * index, 3 + 3 * index)
        store.journal(index).write_bytes(b"".join(pieces))
    (store.folder / "notes.txt").write_text("mine")
    recovered = recovered_state(store)
    assert recovered.snapshot is not None
    assert recovered.snapshot.number == 6
    assert_reads(recovered, 9, first=7)
    store.drop_old()
    left = [name for name in names(store.folder) if not name.startswith("spare-")]
    assert left == ["journal-00000002", "lock", "notes.txt", "snapshot-00000002"]
    assert_reads(recovered_state(store), 9, first=7)
    store.clear()
    assert names(store.folder) == ["lock", "notes.txt"]


def test_an_old_file_is_written_over_and_nothing_of_it_is_taken_for_new(tmp_path: Path) -> None:
    """1. A snapshot makes a journal needless, whose file becomes that of the next one.
    2. The next one is torn at each byte of its header, its record, and what was behind them."""
    old = b"".join(journal_pieces(1, 6))
    new = b"".join(journal_pieces(7, 8))
    last = len(new) - len(event_piece(8))
    for taken in range(len(new) + 1):
        folder = tmp_path / str(taken)
        store = a_store(folder)
        store.journal(0).write_bytes(old)
        store.snapshot(1).write_bytes(b"".join(snapshot_pieces(6)))
        store.drop_old()
        store.spare(store.journal(1))
        assert store.journal(1).read_bytes() == old
        with store.journal(1).open("r+b") as file:
            file.write(new[:taken])
        recovered = recovered_state(store)
        whole = 8 if taken == len(new) else 7 if taken >= last else 6
        assert_reads(recovered, whole, first=7)
        store.cut(recovered)
        assert store.journal(recovered.next_index).exists() == (
            taken < HEAD_BYTES
        )  # All but its number is as it was.
        store.journal(recovered.next_index).write_bytes(b"".join(journal_pieces(whole + 1, 9)))
        assert_reads(recovered_state(store), 9, first=7)
        store.close()


def test_a_file_that_was_read_is_never_written_over(store: StateFolder) -> None:
    """Its bytes are the memory of the plane that was made of it."""
    store.snapshot(1).write_bytes(b"".join(snapshot_pieces(3, chunks=2)))
    store.journal(1).write_bytes(b"".join(journal_pieces(4, 6)))
    recovered = recovered_state(store)
    store.snapshot(2).write_bytes(b"the next one")
    store.drop_old()
    for path in (store.journal(2), store.snapshot(2)):
        store.spare(path)
        path.write_bytes(bytes(4096))
    assert recovered.snapshot is not None
    assert [bytes(chunk) for chunk in recovered.snapshot.chunks] == [
        bytes([i]) * 8 for i in range(2)
    ]
    assert_reads(recovered, 6, first=4)


FORGED = b"".join(
    record.head(Kind.EVENT, number, b"?", salt=salt) + b"?"
    for number in (2, 50, record.NUMBER_MAX)
    for salt in (0, 1)
)
"""What a peer may send as a part of a payload."""


@pytest.mark.parametrize("ahead", range(0, 200, 7))
def test_records_that_a_peer_made_up_are_no_damage_where_an_old_file_is_written_over(
    store: StateFolder, ahead: int
) -> None:
    """The new journal ends anywhere in the old one, also in the middle of the chunk that holds them."""
    old = header_piece() + a_piece(Kind.CHUNK, 1, bytes(ahead) + FORGED * 3 + bytes(400), -1, 0)
    store.snapshot(1).write_bytes(b"".join(snapshot_pieces(3)))
    new = b"".join(journal_pieces(4, 5))
    assert len(new) < len(old)
    for taken in (0, 1, HEAD_BYTES + 1, len(new) - 1, len(new)):
        store.journal(1).write_bytes(new[:taken] + old[taken:])
        recovered = recovered_state(store)
        assert recovered.next_number in (4, 5, 6)
        assert recovered.next_number == (6 if taken == len(new) else recovered.next_number)


# --- damaged files -------------------------------------------------------------------------------


def test_a_flipped_byte_before_a_sound_record_is_refused(store: StateFolder) -> None:
    """At every byte of every record but the last: nothing that was acknowledged is ever dropped."""
    pieces = journal_pieces(1, 3)
    starts, whole, path = edges(pieces), b"".join(pieces), store.journal(0)
    for start, stop in pairwise(starts[:-1]):
        for place in range(start, stop):
            damaged = bytearray(whole)
            damaged[place] ^= 0x10
            path.write_bytes(damaged)
            text = refused(store, path, f"damaged at byte {start}, ")
            assert re.search(r"sound again at byte (\d+)$", text)


def test_a_torn_journal_before_one_that_counts_on_more_is_refused(store: StateFolder) -> None:
    *whole, last = journal_pieces(1, 3)
    for taken in (0, 1, len(last) - 1):
        store.journal(0).write_bytes(b"".join(whole) + last[:taken])
        store.journal(1).write_bytes(b"".join(journal_pieces(4, 5)))
        refused(store, store.journal(1), "begins after record 3, and what is before .* ends with 2")


def test_an_empty_journal_before_another_one_is_refused(store: StateFolder) -> None:
    store.journal(0).write_bytes(b"")
    store.journal(1).write_bytes(b"".join(journal_pieces(1, 2)))
    refused(store, store.journal(0), "has no header")


def test_a_flipped_byte_in_a_snapshot_is_refused(store: StateFolder) -> None:
    pieces = snapshot_pieces(3)
    whole, path = b"".join(pieces), store.snapshot(1)
    store.journal(1).write_bytes(b"".join(journal_pieces(4, 5)))
    for start, stop in pairwise(edges(pieces)):
        for place in range(start, stop):
            damaged = bytearray(whole)
            damaged[place] ^= 0x10
            path.write_bytes(damaged)
            refused(store, path, f"damaged at byte {start}$")


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda _: b"",
    "nothing but zeros": lambda whole: bytes(len(whole)),
    "zeros in the middle": lambda whole: whole[:100] + bytes(100) + whole[200:],
    "cut": lambda whole: whole[:-1],
    "of another time": lambda _: (
        b"".join(snapshot_pieces(3))[:-60] + b"".join(snapshot_pieces(6))[-60:]
    ),
}
"""Damage to a file that a loss of power, or a faulty disk, may cause."""


def two_generations(store: StateFolder) -> None:
    """Snapshot 1 of event 3, journal 1 to event 6, snapshot 2, journal 2 to event 9."""
    for index, number in ((1, 3), (2, 6)):
        store.snapshot(index).write_bytes(b"".join(snapshot_pieces(number)))
        store.journal(index).write_bytes(b"".join(journal_pieces(number + 1, number + 3)))


@pytest.mark.parametrize("salvage", [False, True])
@pytest.mark.parametrize("damage", DAMAGES)
def test_in_the_place_of_a_damaged_snapshot_the_one_before_it_is_taken(
    store: StateFolder, damage: str, salvage: bool
) -> None:
    """1. It leads to the same event, and the damaged one is reported. 2. The damaged one is removed."""
    two_generations(store)
    newest = store.snapshot(2)
    newest.write_bytes(DAMAGES[damage](newest.read_bytes()))
    recovered = store.recovered(salvage=salvage)
    assert recovered is not None
    assert recovered.snapshot is not None
    assert (recovered.snapshot.number, recovered.snapshot.name) == (3, "snapshot-00000001")
    assert_reads(recovered, 9, first=4)
    (reason,) = recovered.passed_over
    assert f"{newest}: damaged at byte" in reason
    store.cut(recovered)
    assert not newest.exists()
    assert recovered_state(store).passed_over == ()
    store.drop_old()
    assert_reads(recovered_state(store), 9, first=4)


def test_an_older_snapshot_without_all_journals_since_is_only_salvaged(store: StateFolder) -> None:
    two_generations(store)
    store.snapshot(2).write_bytes(b"")
    whole = b"".join(journal_pieces(4, 6))
    store.journal(1).write_bytes(whole[:-1])
    refused(store, store.snapshot(2), "damaged at byte 0")
    recovered = store.recovered(salvage=True)
    assert recovered is not None
    assert_reads(recovered, 5, first=4)


def test_the_first_snapshot_is_damaged_and_the_journal_says_all(store: StateFolder) -> None:
    store.journal(0).write_bytes(b"".join(journal_pieces(1, 3)))
    store.snapshot(1).write_bytes(b"")
    store.journal(1).write_bytes(b"".join(journal_pieces(4, 5)))
    recovered = recovered_state(store)
    assert recovered.snapshot is None
    assert_reads(recovered, 5)
    assert len(recovered.passed_over) == 1


def test_a_snapshot_without_its_end_is_refused(store: StateFolder) -> None:
    whole, path = b"".join(snapshot_pieces(3)), store.snapshot(1)
    store.journal(1).write_bytes(b"".join(journal_pieces(4, 5)))
    for taken in range(len(whole)):
        path.write_bytes(whole[:taken])
        refused(store, path, "damaged at byte")


@pytest.mark.parametrize("there", [[], [0], [1, 3]])
def test_a_missing_journal_is_refused(store: StateFolder, there: list[int]) -> None:
    store.snapshot(1).write_bytes(b"".join(snapshot_pieces(3)))
    for index in there:
        store.journal(index).write_bytes(b"".join(journal_pieces(4, 5)))
    refused(store, store.folder, "journal 1 or one after it is missing")


def test_a_journal_that_begins_without_a_header_is_refused(store: StateFolder) -> None:
    store.journal(0).write_bytes(event_piece(1) + event_piece(2))
    refused(store, store.journal(0), "damaged at byte 0, where record 1 should begin")


@pytest.mark.parametrize("file", ["journal", "snapshot"])
def test_files_of_another_format_are_refused(store: StateFolder, file: str) -> None:
    header = header_piece(0, replace(a_header(), format=FORMAT + 1))
    store.journal(1).write_bytes(b"".join(journal_pieces(4, 5)))
    store.snapshot(1).write_bytes(b"".join(snapshot_pieces(3)))
    path = getattr(store, file)(1)
    pieces = snapshot_pieces(3) if file == "snapshot" else journal_pieces(4, 5)
    path.write_bytes(b"".join([header, *pieces[1:]]))
    refused(store, path, f"format {FORMAT + 1} is not {FORMAT}")


@pytest.mark.parametrize(("run", "node"), [("run-other", NODE), (RUN, "lps-eu")])
@pytest.mark.parametrize("file", ["journal", "snapshot"])
def test_another_runs_folder_is_refused(store: StateFolder, run: str, node: str, file: str) -> None:
    header = header_piece(0, a_header(run, node))
    store.journal(1).write_bytes(b"".join(journal_pieces(4, 5)))
    store.snapshot(1).write_bytes(b"".join(snapshot_pieces(3)))
    path = getattr(store, file)(1)
    pieces = snapshot_pieces(3) if file == "snapshot" else journal_pieces(4, 5)
    path.write_bytes(b"".join([header, *pieces[1:]]))
    refused(store, path, f"is of {node} of run {run}, not of {NODE} of run {RUN}")


# --- the owner of a folder -----------------------------------------------------------------------

HOLDER = f"""
import sys
from pathlib import Path
from pelago.core.errors import ConfigError
from pelago.net.durability.state_folder import StateFolder
try:
    store = StateFolder(Path(sys.argv[1]), "{RUN}", "{NODE}")
except ConfigError as error:
    sys.exit(str(error))
print("held", flush=True)
sys.stdin.read()
"""


def test_a_folder_belongs_to_one_process(tmp_path: Path) -> None:
    """1. A process holds the folder: this one is refused with a message. 2. It is killed: this one may use it."""
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(ConfigError, match=f"another process of {NODE} is running with this"):
            a_store(tmp_path)
        holder.kill()
        holder.wait(timeout=20)
    store = a_store(tmp_path)
    with pytest.raises(ConfigError, match="another process"):
        a_store(tmp_path)  # Of the same process, but no less another.
    store.close()
    a_store(tmp_path).close()


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ConfigError, match=r"^cannot write to the folder of state .*file/state: "):
        a_store(tmp_path / "file" / "state")


@pytest.mark.parametrize("there", [False, True])
def test_a_read_only_folder_is_named(tmp_path: Path, there: bool) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    if there:
        (folder / "state").mkdir(mode=0o555)
    folder.chmod(0o555)

    def attempt() -> None:
        with pytest.raises(ConfigError, match=r"^cannot write to the folder of state state: "):
            a_store(Path("state"))

    assert as_nobody(folder, attempt) == 0


def test_a_folder_that_is_gone_has_nothing_to_give_up(store: StateFolder) -> None:
    shutil.rmtree(store.folder)
    store.drop_old()
    assert not store.give_up_spares()


def test_old_files_that_cannot_be_removed_stay_for_another_time(tmp_path: Path) -> None:
    """The folder becomes read-only, as a disk with errors does, when a journal is begun."""
    folder = tmp_path / "out"
    folder.mkdir(mode=0o777)
    folder.chmod(0o777)

    def attempt() -> None:
        store = a_store(Path("state"))
        for index in range(2):
            store.journal(index).touch()
            store.snapshot(index).touch()
        store.folder.chmod(0o555)
        store.drop_old()
        assert not store.give_up_spares()
        assert store.journal(0).exists()
        store.folder.chmod(0o755)
        store.drop_old()
        assert not store.journal(0).exists()

    assert as_nobody(folder, attempt) == 0


# --- the history ---------------------------------------------------------------------------------


def write_history(store: StateFolder, *lines: HistoryLine) -> list[int]:
    """Returns where the lines end."""
    ends = []
    with store.history.open("wb") as file:
        for line in lines:
            file.write(history_line(line))
            ends.append(file.tell())
    return ends


def history(store: StateFolder) -> list[HistoryLine]:
    return read_history(store.history)


BEGUN = HistoryLine(0, IncarnationBegun("gps"))
INCARNATIONS = [
    BEGUN,
    HistoryLine(4, Rejoining()),
    HistoryLine(9, Rejoining()),
    BEGUN,
    HistoryLine(3, Rejoining()),
    HistoryLine(7, Rejoining()),
]


@pytest.mark.parametrize(("number", "kept"), [(0, 4), (2, 4), (3, 5), (6, 5), (7, 6)])
def test_of_a_history_stays_what_a_snapshot_stands_for(
    store: StateFolder, number: int, kept: int
) -> None:
    """All lines of earlier incarnations stay too; the replay of the journal gives the rest again."""
    write_history(store, *INCARNATIONS)
    store.cut_history(number)
    assert history(store) == INCARNATIONS[:kept]


def test_a_history_without_a_recovered_state_loses_a_torn_line_only(store: StateFolder) -> None:
    ends = write_history(store, *INCARNATIONS)
    os.truncate(store.history, ends[-1] - 1)
    store.cut_history(record.NUMBER_MAX)
    assert history(store) == INCARNATIONS[:-1]
    store.history.unlink()
    store.cut_history(0)
    assert not store.history.exists()


def test_damage_to_a_history_is_refused_where_no_replay_gives_it_again(store: StateFolder) -> None:
    ends = write_history(store, *INCARNATIONS)
    data = bytearray(store.history.read_bytes())
    data[ends[3] + 5] ^= 1
    store.history.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"history: damaged at byte"):
        store.cut_history(7)
    store.cut_history(2)
    assert history(store) == INCARNATIONS[:4]


def test_a_torn_line_may_hold_what_looks_like_lines(store: StateFolder) -> None:
    """A peer chose the text in it."""
    write_history(store, *INCARNATIONS)
    body = record.pack(["worker_left", {"why": record.head(Kind.HISTORY, 1, b"?") + b"?"}])
    with store.history.open("ab") as file:
        file.write(record.head(Kind.HISTORY, 8, body) + body[:-1])
    assert history(store) == INCARNATIONS
    store.cut_history(7)
    assert history(store) == INCARNATIONS


def test_of_a_damaged_history_the_beginning_stays_when_the_state_is_removed(
    store: StateFolder,
) -> None:
    """And all of it is kept aside."""
    ends = write_history(store, *INCARNATIONS)
    damaged = bytearray(store.history.read_bytes())
    damaged[ends[1] + 3] ^= 1
    store.history.write_bytes(damaged)
    two_generations(store)
    refused(store, store.history, f"damaged at byte {ends[1]}, and sound again")
    store.clear()
    assert history(store) == INCARNATIONS[:2]
    assert (store.folder / "history-damaged").read_bytes() == damaged
    assert store.recovered() is None


# --- read while another process writes -----------------------------------------------------------


def test_the_newest_sound_snapshot_is_read_beside_the_process_that_writes(
    store: StateFolder,
) -> None:
    """1. The newest is damaged: the one before it is taken, and the damage reported. 2. While it is read its file
    is not written over, however often the other one makes snapshots."""
    store.snapshot(1).write_bytes(b"".join(snapshot_pieces(3, chunks=2)))
    store.journal(1).write_bytes(b"".join(journal_pieces(4, 6)))
    store.snapshot(2).write_bytes(b"".join(snapshot_pieces(6, chunks=2))[:-10])
    store.journal(2).write_bytes(b"".join(journal_pieces(7, 8)))
    reader = StateFolder(store.folder, None, NODE, read=True, beside=True)
    recovered = reader.newest()
    assert reader.is_running
    assert recovered is not None
    assert recovered.snapshot is not None
    assert (recovered.snapshot.number, recovered.records) == (3, [])
    assert "snapshot-00000002: damaged" in recovered.passed_over[0]
    store.drop_old()
    part = store.snapshot(3)
    store.spare(part)
    descriptor = open_over(part)
    os.write(descriptor, bytes(1 << 14))
    os.close(descriptor)
    assert [bytes(chunk) for chunk in recovered.snapshot.chunks] == [
        bytes([i]) * 8 for i in range(2)
    ]
    reader.close()


def test_a_snapshot_that_is_being_written_over_is_not_read(store: StateFolder) -> None:
    store.snapshot(1).write_bytes(b"".join(snapshot_pieces(3)))
    descriptor = open_over(store.snapshot(1))
    reader = StateFolder(store.folder, None, NODE, read=True, beside=True)
    assert reader.newest() is None
    os.close(descriptor)
    assert reader.newest() is not None
    reader.close()


def test_a_reader_beside_it_keeps_no_process_from_starting(tmp_path: Path) -> None:
    a_store(tmp_path).close()
    reader = StateFolder(tmp_path, None, NODE, read=True, beside=True)
    assert not reader.is_running
    a_store(tmp_path).close()
    reader.close()


def test_damage_of_all_snapshots_is_reported_to_a_reader_beside(store: StateFolder) -> None:
    store.snapshot(1).write_bytes(b"".join(snapshot_pieces(3))[:-10])
    reader = StateFolder(store.folder, None, NODE, read=True, beside=True)
    with pytest.raises(CheckpointError, match="snapshot-00000001: damaged"):
        reader.newest()
    reader.close()
