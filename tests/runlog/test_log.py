"""Event logs are read as typed events; damaged lines are reported, and unknown kinds are kept as they are."""

from pathlib import Path

from pelago.core.notes.lps import UpdateApplied
from pelago.runlog.events import NodeStarted, OtherEvent, WaitingForServer
from pelago.runlog.log import DamagedLine, LogLine, LogReader, lines_of, parse_line, read_log

HEAD = '{"t_ms": 1.5, "time": "2026-11-30T21:00:00.250+00:00", "node": "gps", "kind": '
TIME_S = 1796072400.25


def line(rest: str) -> bytes:
    return (HEAD + rest + "}").encode()


def test_a_line_is_read_as_what_the_node_logged() -> None:
    assert parse_line(line('"started", "process_s": 0.5')) == LogLine(
        TIME_S, "gps", NodeStarted(0.5)
    )
    assert parse_line(line('"waiting", "for": "lps", "server": "lps at here:1"')) == LogLine(
        TIME_S, "gps", WaitingForServer("lps", "lps at here:1")
    )


def test_an_unknown_kind_keeps_its_fields() -> None:
    assert parse_line(line('"counters", "chunks_sent": 3')) == LogLine(
        TIME_S, "gps", OtherEvent("counters", {"chunks_sent": 3})
    )


def test_a_damaged_line_is_reported_and_not_guessed() -> None:
    for torn in (b"", b'{"kind": "upd', b"[]", b'{"kind": "started"}', line('"started"')):
        found = parse_line(torn)
        assert isinstance(found, DamagedLine), torn
        assert found.text == torn
        assert found.why


def test_a_log_that_grows_is_read_line_by_line(tmp_path: Path) -> None:
    """1. There is no file yet. 2. A line is not ended yet. 3. It is, and another one follows."""
    path = tmp_path / "events.jsonl"
    reader = LogReader(path)
    assert reader.read() == []
    first = line('"started", "process_s": 0.5')
    path.write_bytes(first)
    assert reader.read() == []
    with path.open("ab") as file:
        file.write(b"\n" + line('"update"') + b"\n")
    started, damaged = reader.read()
    assert started == LogLine(TIME_S, "gps", NodeStarted(0.5))
    assert isinstance(damaged, DamagedLine)
    assert reader.read() == []


def test_events_of_a_class_are_found_with_their_time(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    update = '"update", "version": 1, "lease": 2, "spans": [[0, 4]], "steps": 3, "staleness": 0'
    lines = [line('"started", "process_s": 0.5'), line(update + ', "norm": 1.0, "loss": "nan"')]
    path.write_bytes(b"\n".join([*lines, b"torn"]) + b"\n")
    [(time_s, found)] = lines_of(UpdateApplied, read_log(path))
    assert time_s == TIME_S
    assert (found.version, found.spans) == (1, ((0, 4),))
