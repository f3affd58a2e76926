"""Histories are read as typed entries; unknown kinds stay as they are, and other fields are refused."""

from pathlib import Path

import pytest

from pelago.core.errors import CheckpointError
from pelago.core.notes.gps import RegionLeft
from pelago.core.notes.lps import WorkerLeft
from pelago.durable import record
from pelago.runlog.events import OtherEvent
from pelago.runlog.history import (
    HistoryLine,
    IncarnationBegun,
    RunResumed,
    history_line,
    history_until,
    read_history,
)

LINES = [
    HistoryLine(0, IncarnationBegun("gps@here:1:2")),
    HistoryLine(4, RegionLeft("eu", "drained")),
    HistoryLine(9, RunResumed(1, 2, 3, "s3://far")),
    HistoryLine(12, WorkerLeft(0, "w0", "stuck", 7, ((0, 4),))),
    HistoryLine(13, OtherEvent("eclipse", {"region": "eu"})),
]


def test_what_was_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "history"
    path.write_bytes(b"".join(map(history_line, LINES)))
    assert read_history(path) == LINES
    assert history_until(path, 4) == b"".join(map(history_line, LINES[:2]))


def test_lines_keep_their_kinds_and_fields() -> None:
    kinds = [record.unpack(history_line(line)[record.HEAD_BYTES :]) for line in LINES[:3]]
    assert kinds == [
        ["begun", {"process": "gps@here:1:2"}],
        ["region_left", {"region": "eu", "why": "drained"}],
        ["resumed", {"version": 1, "incarnation": 2, "counted_steps": 3, "from": "s3://far"}],
    ]


def test_a_known_kind_with_other_fields_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "history"
    odd = HistoryLine(5, OtherEvent("region_left", {"region": "eu"}))
    path.write_bytes(history_line(LINES[0]) + history_line(odd))
    with pytest.raises(CheckpointError, match="history: not of this Pelago at byte"):
        read_history(path)
