"""Notes are written as a kind and fields that never change, and read again from JSON and msgpack."""

import json
import math
from collections.abc import Callable
from typing import Any

import msgpack
import pytest

from pelago.core.notes.common import Waiting
from pelago.core.notes.gps import ExchangeArrived, ExchangeRejected, RegionSummary, RunStatus
from pelago.core.notes.lps import GlobalMerged, RoundRejected, UpdateApplied, WorkerLeft
from pelago.core.notes.note import NOTES, VOCABULARY, Note
from pelago.core.notes.worker import RoundTrained, UpdateRejected

SUMMARY = RegionSummary(True, 1, 2, 3, False, 2, 4, 5, None)
ARRIVED = ExchangeArrived(
    "eu", 1, 2, 3, ((0, 4), (8, 12)), ((4, 8),), 5, 6, 7, 0, norm=1.5, loss=2.5
)
WRITTEN: list[tuple[Note, str, dict[str, Any]]] = [
    (Waiting("the GPS"), "waiting", {"for": "the GPS"}),
    (GlobalMerged(3, 9), "merge", {"global": 3, "version": 9}),
    (WorkerLeft(0, "w0", "stuck"), "worker_left", {"group": 0, "peer": "w0", "why": "stuck"}),
    (
        WorkerLeft(0, "w0", "stuck", 7, ((0, 4),)),
        "worker_left",
        {"group": 0, "peer": "w0", "why": "stuck", "lease": 7, "spans": ((0, 4),)},
    ),
    (RoundTrained(2, 1.5, 3.0), "round", {"steps": 2, "loss": 1.5, "busy_ms": 3.0}),
    (
        RoundTrained(2, 1.5, 3.0, 1),
        "round",
        {"steps": 2, "loss": 1.5, "busy_ms": 3.0, "skipped": 1},
    ),
    (
        ExchangeRejected("eu", "too large", 11.0),
        "update_rejected",
        {"region": "eu", "why": "too large", "norm": 11.0},
    ),
    (
        RoundRejected("w0", 0, "too large"),
        "update_rejected",
        {"peer": "w0", "group": 0, "why": "too large"},
    ),
    (UpdateRejected(7), "update_rejected", {"lease": 7}),
    (
        RunStatus("serving", 1, 2, 3, 4, {"eu": SUMMARY}),
        "status",
        {
            "phase": "serving",
            "elapsed_ps": 1,
            "version": 2,
            "counted_steps": 3,
            "tokens": 4,
            "regions": {
                "eu": {
                    "serving": True,
                    "exchanges": 1,
                    "updates": 2,
                    "staleness_max": 3,
                    "exchanging": False,
                    "workers": 2,
                    "steps": 4,
                    "tokens": 5,
                    "loss": None,
                }
            },
        },
    ),
    (
        ARRIVED,
        "arrival",
        {
            "region": "eu",
            "version": 1,
            "exchange": 2,
            "fence": 3,
            "spans": ((0, 4), (8, 12)),
            "dropped": ((4, 8),),
            "steps": 5,
            "cumulative_steps": 6,
            "elapsed_ps": 7,
            "staleness": 0,
            "norm": 1.5,
            "loss": 2.5,
        },
    ),
]
KEPT_BY: dict[str, Callable[[Any], Any]] = {
    "json": lambda fields: json.loads(json.dumps(fields)),
    "msgpack": lambda fields: msgpack.unpackb(msgpack.packb(fields)),
}


@pytest.mark.parametrize(("note", "kind", "fields"), WRITTEN)
@pytest.mark.parametrize("kept", KEPT_BY)
def test_a_note_is_written_as_always_and_read_again(
    note: Note, kind: str, fields: dict[str, Any], kept: str
) -> None:
    written = VOCABULARY.fields(note)
    assert (note.kind, list(written.items())) == (kind, list(fields.items()))
    assert VOCABULARY.read(kind, KEPT_BY[kept](written)) == note


def test_the_kinds_of_notes_are_those_of_logs_and_histories() -> None:
    assert sorted({each.kind for each in NOTES}) == [
        "arrival",
        "draining",
        "evaluator_left",
        "exchange",
        "exchange_answered",
        "export_failed",
        "exported",
        "giving_up",
        "going_on",
        "joined",
        "left_unanswered",
        "merge",
        "refused",
        "region_failed",
        "region_joined",
        "region_left",
        "rejoining",
        "restarted",
        "round",
        "round_failed",
        "serving",
        "settled",
        "status",
        "stuck",
        "unexpected",
        "update",
        "update_fenced",
        "update_rejected",
        "validation",
        "waiting",
        "worker_joined",
        "worker_left",
    ]


def test_a_number_that_is_not_finite_may_have_become_a_text() -> None:
    fields = VOCABULARY.fields(UpdateApplied(1, 2, ((0, 4),), 3, 0, norm=1.0, loss=0.0))
    read = VOCABULARY.read("update", fields | {"norm": "inf", "loss": "nan"})
    assert isinstance(read, UpdateApplied)
    assert read.norm == math.inf
    assert math.isnan(read.loss)


def test_an_unknown_kind_is_none() -> None:
    assert VOCABULARY.read("eclipse", {}) is None


@pytest.mark.parametrize(
    ("kind", "fields", "fault"),
    [
        ("update_fenced", {}, "update_fenced has no such fields"),
        ("update_fenced", {"lease": 1, "peer": "w0"}, "update_fenced has no such fields"),
        ("update_fenced", {"lease": "1"}, "UpdateFenced.lease: '1' is no int"),
        ("update_fenced", {"lease": True}, "UpdateFenced.lease: True is no int"),
        ("draining", {"why": 1}, "Draining.why: 1 is no str"),
        (
            "exchange_answered",
            {"number": 1, "fence": 1, "outcome": "lost"},
            "ExchangeAnswered.outcome: 'lost' is none of",
        ),
        ("serving", {"regions": "eu"}, "Serving.regions: 'eu' is no list"),
        (
            "worker_left",
            {"group": 0, "peer": "w0", "why": "", "lease": 1, "spans": [[1, 2, 3]]},
            r"WorkerLeft.spans: .*has not 2 elements",
        ),
        ("round", {"steps": 1, "loss": "large", "busy_ms": 1.0}, "RoundTrained.loss: 'large'"),
    ],
)
def test_fields_of_other_names_or_types_are_refused(
    kind: str, fields: dict[str, Any], fault: str
) -> None:
    with pytest.raises(ValueError, match=fault):
        VOCABULARY.read(kind, fields)
