"""Sets of samples as sorted disjoint spans: small even with many samples."""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from itertools import pairwise

from pelago.core.durable import durable
from pelago.core.names import Span, Spans


@durable()
class SpanSet:
    """A set of non-negative integers as spans start <= i < stop that neither overlap nor touch."""

    __slots__ = ("_starts", "_stops", "total")

    def __init__(self, spans: Iterable[Span] = ()) -> None:
        self._starts: list[int] = []
        self._stops: list[int] = []
        self.total = 0
        """Number of integers in the set."""
        if spans:
            self.add(spans)

    def __iter__(self) -> Iterator[Span]:
        return zip(self._starts, self._stops, strict=True)

    def __len__(self) -> int:
        return len(self._starts)

    def __contains__(self, span: Span) -> bool:
        start, stop = span
        index = bisect_right(self._starts, start) - 1
        return index >= 0 and stop <= self._stops[index]

    def spans(self) -> Spans:
        """The set as a tuple of spans, lowest first."""
        return tuple(zip(self._starts, self._stops, strict=True))

    def add(self, spans: Iterable[Span]) -> int:
        """Add spans; returns how many of their integers were in the set already."""
        overlap = 0
        starts, stops = self._starts, self._stops
        for start, stop in spans:
            assert 0 <= start < stop, (start, stop)
            # Most often a set grows at its end, by a span of its own or by more of its last one.
            if not stops or start > stops[-1]:
                starts.append(start)
                stops.append(stop)
                self.total += stop - start
            elif starts[-1] <= start and stops[-1] <= stop:
                overlap += stops[-1] - start
                self.total += stop - stops[-1]
                stops[-1] = stop
            else:
                overlap += self._insert(start, stop)
        return overlap

    def _insert(self, start: int, stop: int) -> int:
        """Merge a span with all that it overlaps or touches. Returns the overlap."""
        starts, stops, given = self._starts, self._stops, stop - start
        first, last = bisect_left(stops, start), bisect_right(starts, stop)
        before = sum(stops[first:last]) - sum(starts[first:last])
        if first < last:
            start, stop = min(start, starts[first]), max(stop, stops[last - 1])
        starts[first:last] = [start]
        stops[first:last] = [stop]
        self.total += stop - start - before
        # The sum of the parts exceeds the whole by the overlap.
        return given + before - (stop - start)

    def remove(self, spans: Iterable[Span]) -> None:
        """Take spans out. Every one of them must be in the set whole."""
        starts, stops = self._starts, self._stops
        for start, stop in spans:
            index = bisect_right(starts, start) - 1
            assert index >= 0, (start, stop)
            left, right = starts[index], stops[index]
            assert start < stop <= right, (start, stop)
            self.total -= stop - start
            if left < start and stop < right:
                stops[index] = start
                starts.insert(index + 1, stop)
                stops.insert(index + 1, right)
            elif left < start:
                stops[index] = start
            elif stop < right:
                starts[index] = stop
            else:
                del starts[index], stops[index]

    def common(self, spans: Iterable[Span]) -> Spans:
        """The parts of some spans that are in the set."""
        parts = SpanSet()
        for start, stop in spans:
            first = bisect_right(self._stops, start)
            last = bisect_left(self._starts, stop)
            for index in range(first, last):
                parts.add(((max(start, self._starts[index]), min(stop, self._stops[index])),))
        return parts.spans()

    def holds(self, spans: Iterable[Span]) -> bool:
        """Whether every one of these spans is in the set, and no two of them overlap."""
        seen = SpanSet()
        return all(span in self and not seen.add((span,)) for span in spans)

    def take(self, samples: int) -> Spans:
        """Remove and return the lowest ``samples`` integers. The set must hold as many."""
        assert 0 < samples <= self.total, (samples, self.total)
        if samples == self.total:
            return self.clear()
        taken: list[Span] = []
        while samples:
            start, stop = self._starts[0], self._stops[0]
            cut = min(stop, start + samples)
            taken.append((start, cut))
            self.remove(((start, cut),))
            samples -= cut - start
        return tuple(taken)

    def clear(self) -> Spans:
        """Empty the set. Returns the spans that were in it."""
        self.total = 0
        if len(self._starts) == 1:  # The usual case of a pool.
            return ((self._starts.pop(), self._stops.pop()),)
        spans = self.spans()
        self._starts.clear()
        self._stops.clear()
        return spans

    def missing_from(self, start: int) -> int:
        """The lowest integer from ``start`` on that is not in the set."""
        index = bisect_right(self._starts, start) - 1
        return max(start, self._stops[index]) if index >= 0 else start

    def gaps(self, start: int, stop: int) -> Spans:
        """The parts of start <= i < stop that are not in the set."""
        first, last = bisect_right(self._stops, start), bisect_left(self._starts, stop)
        edges = [start]
        for index in range(first, last):
            edges += [self._starts[index], self._stops[index]]
        edges.append(stop)
        pairs = zip(edges[::2], edges[1::2], strict=True)
        return tuple((left, right) for left, right in pairs if left < right)

    def check(self) -> None:
        """Assert that the spans are sorted, disjoint, apart, and counted right."""
        edges = [edge for span in self for edge in span]
        assert all(a < b for a, b in pairwise(edges)), edges
        assert self.total == sum(stop - start for start, stop in self)
