"""The outcome of an update never changes; if it was forgotten, the answer is safe."""

import pytest

from pelago.core.dedupe import OUTCOMES_MAX, Outcomes


def test_an_outcome_is_remembered() -> None:
    outcomes = Outcomes()
    outcomes.record(1, "applied")
    outcomes.record(2, "rejected")
    assert outcomes.get(1) == "applied"
    assert outcomes.get(2) == "rejected"


def test_an_update_whose_outcome_is_forgotten_is_fenced() -> None:
    assert Outcomes().get(7) == "fenced"


def test_the_oldest_is_forgotten_beyond_the_limit() -> None:
    outcomes = Outcomes(limit=2)
    for number in (1, 2, 3):
        outcomes.record(number, "applied")
    assert [outcomes.get(number) for number in (1, 2, 3)] == ["fenced", "applied", "applied"]


def test_memory_is_bounded_by_default() -> None:
    outcomes = Outcomes()
    for number in range(OUTCOMES_MAX + 1):
        outcomes.record(number, "applied")
    assert outcomes.get(0) == "fenced"
    assert outcomes.get(1) == "applied"


def test_an_outcome_never_changes() -> None:
    outcomes = Outcomes()
    outcomes.record(1, "rejected")
    with pytest.raises(AssertionError):
        outcomes.record(1, "applied")
