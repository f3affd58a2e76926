"""A SpanSet is a set of integers and answers like a Python set."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from pelago.core.names import Span, Spans
from pelago.core.spans import SpanSet

span = st.tuples(st.integers(0, 60), st.integers(1, 20)).map(lambda pair: (pair[0], sum(pair)))


def numbers(spans: Spans) -> set[int]:
    return {number for start, stop in spans for number in range(start, stop)}


class SpansAgainstASet(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.spans = SpanSet()
        self.numbers: set[int] = set()

    @rule(added=st.lists(span, max_size=4))
    def add(self, added: list[Span]) -> None:
        """`add` returns how many integers were in it already, also those added just before."""
        overlap = 0
        for each in added:
            overlap += len(self.numbers & numbers((each,)))
            self.numbers |= numbers((each,))
        assert self.spans.add(added) == overlap

    @precondition(lambda self: self.numbers)
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        start, stop = data.draw(st.sampled_from(self.spans.spans()))
        first = data.draw(st.integers(start, stop - 1))
        last = data.draw(st.integers(first + 1, stop))
        self.spans.remove(((first, last),))
        self.numbers -= numbers(((first, last),))

    @precondition(lambda self: self.numbers)
    @rule(data=st.data())
    def take(self, data: st.DataObject) -> None:
        """`take` gives the lowest integers."""
        count = data.draw(st.integers(1, len(self.numbers)))
        lowest = set(sorted(self.numbers)[:count])
        assert numbers(self.spans.take(count)) == lowest
        self.numbers -= lowest

    @rule()
    def clear(self) -> None:
        assert numbers(self.spans.clear()) == self.numbers
        self.numbers.clear()

    @rule(asked=st.lists(span, max_size=4))
    def ask(self, asked: list[Span]) -> None:
        assert numbers(self.spans.common(asked)) == self.numbers & numbers(tuple(asked))
        disjoint = len(numbers(tuple(asked))) == sum(stop - start for start, stop in asked)
        assert self.spans.holds(asked) == (disjoint and numbers(tuple(asked)) <= self.numbers)

    @rule(asked=span)
    def contains(self, asked: Span) -> None:
        assert (asked in self.spans) == (numbers((asked,)) <= self.numbers)

    @invariant()
    def the_same_integers(self) -> None:
        self.spans.check()
        assert numbers(self.spans.spans()) == self.numbers
        assert self.spans.total == len(self.numbers)
        assert len(self.spans) == sum(1 for i in self.numbers if i - 1 not in self.numbers)


TestSpansAgainstASet = SpansAgainstASet.TestCase


def test_spans_that_touch_become_one() -> None:
    spans = SpanSet([(0, 4), (8, 12)])
    assert spans.add([(4, 8)]) == 0
    assert spans.spans() == ((0, 12),)


def test_a_copy_is_a_set_of_its_own() -> None:
    original = SpanSet([(0, 4)])
    copy = SpanSet(original)
    copy.remove([(1, 2)])
    assert original.spans() == ((0, 4),)
    assert copy.spans() == ((0, 1), (2, 4))


@pytest.mark.parametrize("missing", [(4, 6), (0, 5), (9, 10)])
def test_what_is_not_in_the_set_whole_cannot_be_removed(missing: Span) -> None:
    with pytest.raises(AssertionError):
        SpanSet([(1, 5)]).remove([missing])


@pytest.mark.parametrize("samples", [0, 5])
def test_no_more_can_be_taken_than_there_is(samples: int) -> None:
    with pytest.raises(AssertionError):
        SpanSet([(1, 5)]).take(samples)


@given(st.integers(-5, 5), st.integers(-5, 0))
def test_an_empty_or_negative_span_is_refused(start: int, length: int) -> None:
    with pytest.raises(AssertionError):
        SpanSet([(start, start + length)])


@pytest.mark.parametrize(
    ("starts", "stops", "total"), [([0, 2], [3, 4], 5), ([0, 2], [2, 4], 4), ([0], [2], 3)]
)
def test_the_check_sees_overlaps_and_miscounts(
    starts: list[int], stops: list[int], total: int
) -> None:
    spans = SpanSet()
    spans._starts, spans._stops, spans.total = starts, stops, total
    with pytest.raises(AssertionError):
        spans.check()
