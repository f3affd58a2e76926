"""The window of a stripe on virtual links: it finds what the line holds, and no more."""

from dataclasses import dataclass, field
from heapq import heappop, heappush

import pytest

from pelago.core.machine import PS_PER_MS
from pelago.protocol.transfer import PayloadDelivered, Receiver, SendChunk, Sender, SendHave
from pelago.protocol.window import GAIN, REMEMBERED, RoundTrip, WindowController

MIB = 1 << 20
START, FLOOR = 32 * MIB, 8 * MIB
PS_PER_S = 1_000 * PS_PER_MS


@dataclass
class Line:
    """A line that carries one chunk after the other at a rate, and each for a time."""

    bytes_per_s: float
    round_trip_ms: int
    queued_max_bytes: int = 0
    """The most that were on their way at once."""
    _free_at: int = 0
    _events: list[tuple[int, int, object]] = field(default_factory=list)

    def carry(
        self, controller: WindowController, chunks: int, now: int, limit_bytes: int = 1 << 40
    ) -> int:
        """Send a payload. Returns when its last chunk was acknowledged."""
        sender = Sender(
            1, [MIB] * chunks, controller.window_bytes, 10**6 * PS_PER_S, 10**7 * PS_PER_S
        )
        receiver, number = Receiver(1, chunks, 4), 0
        controller.begin()

        def obey(effects: list, at: int) -> None:  # type: ignore[type-arg]
            nonlocal number
            for effect in effects:
                if isinstance(effect, SendChunk):
                    self._free_at = max(self._free_at, at) + int(MIB * PS_PER_S / self.bytes_per_s)
                    number += 1
                    heappush(
                        self._events,
                        (self._free_at + self.round_trip_ms * PS_PER_MS, number, effect),
                    )

        obey(sender.start(now), now)
        while True:
            now, _, effect = heappop(self._events)
            assert isinstance(effect, SendChunk)
            for answer in receiver.chunk(effect.index, True):
                if not isinstance(answer, SendHave):
                    continue
                self.queued_max_bytes = max(self.queued_max_bytes, sender.outstanding_bytes)
                effects = sender.have(answer.query, answer.through, answer.beyond, now)
                measured = sender.take_round_trip()
                if measured is not None:
                    sender.resize(min(controller.observe(measured), limit_bytes))
                sender.check()
                if PayloadDelivered() in effects:
                    return now
                obey(effects, now)


@pytest.mark.parametrize("gbps", [1, 10])
@pytest.mark.parametrize("round_trip_ms", [1, 20, 150, 300])
def test_it_fills_the_line(gbps: int, round_trip_ms: int) -> None:
    """The second of two payloads takes the time that the line itself needs, and a round trip."""
    rate = gbps * 1e9 / 8
    line, controller, chunks = Line(rate, round_trip_ms), WindowController(START, FLOOR), 2000
    begun = line.carry(controller, chunks, 0)
    took = line.carry(controller, chunks, begun) - begun
    floor = chunks * MIB * PS_PER_S / rate + round_trip_ms * PS_PER_MS
    assert floor <= took <= 1.02 * floor


@pytest.mark.parametrize("round_trip_ms", [20, 150, 300])
def test_it_stays_in_proportion_to_what_the_line_holds(round_trip_ms: int) -> None:
    rate = 1e9 / 8
    line, controller = Line(rate, round_trip_ms), WindowController(START, FLOOR)
    now = 0
    for _ in range(10):
        now = line.carry(controller, 500, now)
    # Four chunks until an acknowledgement are a part of the round trip as it is measured.
    holds = rate * (round_trip_ms / 1e3 + 5 * MIB / rate)
    assert controller.window_bytes <= max(GAIN * holds, rate / 10)


def test_a_slow_line_has_the_smallest_window() -> None:
    line, controller = Line(10e6 / 8, 20), WindowController(START, FLOOR)
    line.carry(controller, 100, 0)
    assert FLOOR <= controller.window_bytes < 1.1 * FLOOR


def test_the_window_obeys_the_drivers_limit() -> None:
    line, controller = Line(10e9 / 8, 300), WindowController(START, FLOOR)
    now = line.carry(controller, 2000, 0, 64 * MIB)
    assert controller.window_bytes > 64 * MIB
    assert line.queued_max_bytes <= 64 * MIB
    line.carry(WindowController(START, FLOOR), 2000, now)
    assert line.queued_max_bytes > 256 * MIB


def test_a_longer_path_is_believed_after_some_payloads() -> None:
    controller = WindowController(START, FLOOR)
    for took_ms in (10,) * 2 + (100,) * (REMEMBERED - 1):
        controller.begin()
        controller.observe(RoundTrip(40 * MIB, took_ms * PS_PER_MS))
        assert controller.round_trip_ps == 10 * PS_PER_MS
    controller.begin()
    controller.observe(RoundTrip(40 * MIB, 100 * PS_PER_MS))
    assert controller.round_trip_ps == 100 * PS_PER_MS


def test_the_queue_of_a_payload_is_not_taken_for_its_path() -> None:
    controller = WindowController(START, FLOOR)
    controller.observe(RoundTrip(4 * MIB, 10 * PS_PER_MS))
    for _ in range(20):
        controller.observe(RoundTrip(40 * MIB, 100 * PS_PER_MS))
    assert controller.round_trip_ps == 10 * PS_PER_MS


def test_a_chunk_that_was_sent_twice_is_not_timed() -> None:
    """Karn's rule: the answer may be about either copy."""
    sender = Sender(1, [MIB, MIB], 2 * MIB, PS_PER_S)
    sender.start(0)
    sender.tick(2 * PS_PER_S)
    assert sender.have(2, 0, (), 3 * PS_PER_S) == [SendChunk(0), SendChunk(1)]
    sender.have(2, 2, (), 4 * PS_PER_S)
    assert sender.take_round_trip() is None
