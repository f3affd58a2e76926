"""Names of connections: of which client, and for which stripe."""

import pytest

from pelago.net.sockets.identity import IDENTITY_BYTES_MAX, Identity, parse
from pelago.wire.messages import STRIPES_MAX


@pytest.mark.parametrize("stripe", [0, 1, 9, 10, STRIPES_MAX - 1])
@pytest.mark.parametrize("name", ["lps-1", "a b", "7", "x" * IDENTITY_BYTES_MAX])
def test_a_connection_is_found_by_its_name(name: str, stripe: int) -> None:
    assert parse(Identity(name, stripe).pack()) == Identity(name, stripe)


def test_the_first_connection_has_the_plain_name() -> None:
    assert Identity("lps-1").pack() == b"lps-1"


@pytest.mark.parametrize(
    "number",
    [b"", b"0", b"01", b"-1", b"+1", b" 1", b"1 ", b"64", b"100", b"x", b"1\x1f1", b"\xb2"],
)
def test_a_stripe_that_is_none_is_refused(number: bytes) -> None:
    assert parse(b"lps-1\x1f" + number) is None


@pytest.mark.parametrize("name", [b"", b"tab\there", b"n\xc3\xa4me", b"x" * 65])
def test_no_stripe_makes_a_name_valid(name: bytes) -> None:
    assert parse(name) is None
    assert parse(name + b"\x1f1") is None
