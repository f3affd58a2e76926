"""The types of the vocabulary are the same with and without the guard that tests have."""

from dataclasses import FrozenInstanceError, replace
from typing import Any

import pytest

from pelago.core import frozen


def made() -> Any:
    @frozen.frozen
    class FrozenPoint:
        """A point in the plane."""

        x: int
        y: int = 2

    return FrozenPoint


def test_in_tests_an_assignment_is_refused() -> None:
    with pytest.raises(FrozenInstanceError):
        made()(1).x = 3


@pytest.mark.parametrize("guarded", [False, True])
def test_objects_of_equal_fields_are_equal_and_one_key(
    guarded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(frozen, "guarded", guarded)
    kind = made()
    point = kind(1)
    assert point == kind(x=1, y=2) == replace(kind(3), x=1)
    assert point != kind(2)
    assert hash(point) == hash(kind(1)) == hash((1, 2))
    assert kind.__match_args__ == ("x", "y")
    assert repr(point).endswith("Point(x=1, y=2)")
    assert not hasattr(point, "__dict__")
