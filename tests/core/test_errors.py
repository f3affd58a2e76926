"""How a message describes an exception."""

import pytest

from pelago.core.errors import first_line


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("one\ntwo"), "one"),
        (ValueError(), "ValueError"),
        (ValueError("\ntwo"), "ValueError"),
    ],
)
def test_an_exception_is_shown_by_its_first_line_or_its_type(error: Exception, line: str) -> None:
    assert first_line(error) == line
