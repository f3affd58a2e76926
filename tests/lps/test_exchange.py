"""The record of a region's exchanges: which samples and steps are in which."""

import pytest

from lps.exchange import Exchanges, InFlight
from pelago.core.names import PushId, Spans, Version
from pelago.wire.messages import Push

E1 = PushId(1, 1)


def worked(spans: Spans) -> Push:
    return Push(PushId(1, 1), Version(0, 0), 2, 1, 64, 1.5, spans, (), 0)


@pytest.mark.parametrize(("versions", "due"), [(0, False), (1, False), (2, True), (3, True)])
def test_an_exchange_that_was_missed_is_still_due(versions: int, due: bool) -> None:
    assert Exchanges(2, "drop").due(versions) == due


def test_the_loss_of_an_exchange_is_the_mean_of_its_updates() -> None:
    exchanges = Exchanges(2, "drop")
    exchanges.record(((0, 4),), worked(((0, 4),)))
    exchanges.record(((4, 8),), Push(E1, Version(0, 0), 2, 1, 64, 2.5, (), (), 0))
    assert exchanges.begin(1, 2).loss == 2.0


@pytest.mark.parametrize(
    ("in_flight", "outcome", "unexchanged", "dropped"),
    [
        ("drop", None, ((0, 4),), ((4, 8),)),
        ("carry", None, ((0, 8),), ()),
        ("replay", None, ((0, 8),), ()),
        ("drop", "applied", (), ((4, 8),)),
        ("carry", "applied", ((4, 8),), ()),
        ("replay", "applied", ((4, 8),), ()),
        ("drop", "rejected", (), ((4, 8),)),
        ("carry", "rejected", ((4, 8),), ()),
        ("replay", "rejected", ((4, 8),), ()),
    ],
)
def test_an_exchange_without_an_answer_is_settled_by_what_is_known_of_it(
    in_flight: InFlight, outcome: str | None, unexchanged: Spans, dropped: Spans
) -> None:
    """0..4 is in the exchange under way, 4..8 was applied since."""
    exchanges = Exchanges(1, in_flight)
    exchanges.record(((0, 4),), worked(((0, 4),)))
    exchanges.begin(1, 1)
    exchanges.record(((4, 8),), worked(((4, 8),)))
    if outcome is not None:
        exchanges.acknowledge(outcome)  # type: ignore[arg-type]
    exchanges.check(2)
    assert exchanges.settle() == (unexchanged, dropped)
    assert exchanges.settle() == ((), ())


def test_what_was_applied_and_never_sent_is_settled_as_such() -> None:
    exchanges = Exchanges(2, "drop")
    exchanges.record(((0, 4),), worked(((0, 4),)))
    assert exchanges.settle() == (((0, 4),), ())


def test_the_check_sees_a_sample_in_two_exchanges() -> None:
    exchanges = Exchanges(1, "drop")
    exchanges.record(((0, 4),), worked(((0, 4),)))
    exchanges.begin(1, 1)
    exchanges.record(((3, 8),), worked(((3, 8),)))
    with pytest.raises(AssertionError, match="two exchanges"):
        exchanges.check(2)


def test_two_exchanges_cannot_begin() -> None:
    exchanges = Exchanges(1, "drop")
    exchanges.begin(1, 1)
    with pytest.raises(AssertionError):
        exchanges.begin(1, 1)
