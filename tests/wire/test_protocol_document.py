"""docs/PROTOCOL.md names every message, frame and limit with its number; the tags are frozen."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final, get_args

import pytest

from pelago.protocol import transfer
from pelago.wire import messages
from pelago.wire.codec import TAGS
from pelago.wire.messages import Frame, Message

DOCUMENT: Final = Path(__file__).parents[2] / "docs" / "PROTOCOL.md"

FROZEN_TAGS: Final = {
    "Hello": 0,
    "Heartbeat": 1,
    "Pull": 2,
    "LeaseRequest": 3,
    "Offer": 4,
    "Push": 5,
    "Evaluated": 6,
    "Leave": 7,
    "Welcome": 8,
    "Wait": 9,
    "Refuse": 10,
    "Rejoin": 11,
    "LeaseGrant": 12,
    "Grant": 13,
    "Busy": 14,
    "Ack": 15,
    "Model": 16,
    "Stop": 17,
    "Goodbye": 18,
    "Failed": 19,
    "LeaseAhead": 20,
    "Lent": 21,
    "Begin": 64,
    "Chunk": 65,
    "Have": 66,
    "Abort": 67,
}
"""Append only. A tag that was once released is never given to another type."""


def rows(section: str) -> Iterator[list[str]]:
    """Cells of the tables under a heading."""
    text = DOCUMENT.read_text(encoding="utf-8")
    body = text.split(f"\n## {section}\n", 1)[1].split("\n## ", 1)[0]
    for line in body.splitlines():
        if line.startswith("|") and not line.startswith("|-"):
            yield [cell.strip() for cell in line.strip("|").split("|")]


def documented_tags(section: str) -> dict[str, int]:
    return {name.strip("`"): int(tag) for tag, name, *_ in rows(section) if tag.isdigit()}


def test_tags_are_frozen() -> None:
    assert {kind.__name__: tag for kind, tag in TAGS.items()} == FROZEN_TAGS


def test_the_document_names_every_message_with_its_tag_and_no_other() -> None:
    union = {kind.__name__: TAGS[kind] for kind in get_args(Message)}
    assert documented_tags("Messages") == union


def test_the_document_names_every_frame_with_its_tag_and_no_other() -> None:
    union = {kind.__name__: TAGS[kind] for kind in get_args(Frame)}
    assert documented_tags("Frames") == union


@pytest.mark.parametrize("section", ["Messages", "Frames"])
def test_every_row_says_direction_meaning_and_what_a_repeat_does(section: str) -> None:
    for cells in rows(section):
        assert len(cells) == 5, cells
        assert all(cells), cells


def test_the_document_names_every_limit_with_its_value_and_no_other() -> None:
    limits = {
        name: value
        for name, value in vars(messages).items()
        if re.fullmatch(r"[A-Z_]+(_MAX|_VERSION)", name)
    }
    assert len(limits) >= 7
    limits["BEYOND_MAX"] = transfer.BEYOND_MAX
    documented = {
        name.strip("`"): int(value) for name, value, _ in rows("Limits") if value.isdigit()
    }
    assert documented == limits


def test_the_document_names_no_message_that_does_not_exist() -> None:
    """Every Name(...) or `Name` in CamelCase there is a type of the wire."""
    text = DOCUMENT.read_text(encoding="utf-8")
    named = set(re.findall(r"`([A-Z][a-z]+(?:[A-Z][a-z]+)*)`", text))
    named |= set(re.findall(r"\b([A-Z][a-z]+(?:[A-Z][a-z]+)*)\(", text))
    others = {"Literal", "Version", "PushId", "Spans", "WorkerReport", "RegionReport"}
    assert named - others <= set(FROZEN_TAGS), named - others - set(FROZEN_TAGS)
