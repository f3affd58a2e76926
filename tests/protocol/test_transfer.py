"""The two ends of a transfer: conversations frame by frame, then whole transfers over bad links."""

import heapq
from dataclasses import dataclass, field
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pelago.core.machine import PS_PER_MS
from pelago.protocol.transfer import (
    BACKOFF_MAX,
    BEYOND_MAX,
    Completed,
    PayloadDelivered,
    Receiver,
    ReceiverEffect,
    SendBegin,
    SendChunk,
    Sender,
    SenderEffect,
    SendHave,
    TransferFailed,
    acknowledge_chunks_for,
)

RETRY_PS = 100 * PS_PER_MS


def sender(chunks: int = 6, window_chunks: int = 3, size: int = 10) -> Sender:
    return Sender(1, [size] * chunks, window_chunks * size, RETRY_PS, 100 * RETRY_PS)


def indices(effects: list[SenderEffect]) -> list[int]:
    return [effect.index for effect in effects if isinstance(effect, SendChunk)]


# --- conversations: the sender -------------------------------------------------------------------


def test_the_first_window_follows_the_first_begin_at_once() -> None:
    assert sender().start(0) == [SendBegin(1), SendChunk(0), SendChunk(1), SendChunk(2)]


def test_an_acknowledgement_opens_the_window_by_as_much_as_arrived() -> None:
    end = sender()
    end.start(0)
    assert end.have(1, 2, (), 1) == [SendChunk(3), SendChunk(4)]
    assert end.outstanding_bytes == 30


def test_a_chunk_larger_than_the_window_travels_alone() -> None:
    end = Sender(1, [100, 100], 10, RETRY_PS)
    assert indices(end.start(0)) == [0]
    assert indices(end.have(1, 1, (), 1)) == [1]
    end.check()


def test_the_last_acknowledgement_delivers_once() -> None:
    end = sender(chunks=2)
    end.start(0)
    assert end.have(1, 2, (), 1) == [PayloadDelivered()]
    assert end.have(1, 2, (), 2) == []
    assert end.tick(10**18) == []
    assert end.start(10**18) == []
    assert end.abort("late") == []


def test_a_payload_of_no_chunks_is_delivered_by_the_first_answer() -> None:
    end = Sender(1, [], 10, RETRY_PS)
    assert end.start(0) == [SendBegin(1)]
    assert end.have(1, 0, (), 1) == [PayloadDelivered()]


def test_silence_is_no_proof_of_loss_so_only_the_query_is_sent_again() -> None:
    end = sender()
    end.start(0)
    assert end.tick(RETRY_PS - 1) == []
    assert end.tick(RETRY_PS) == [SendBegin(2)]


def test_questions_come_ever_more_rarely_and_progress_resets_them() -> None:
    end = sender(chunks=100)
    end.start(0)
    end.have(1, 0, (), 0)
    gaps, now = [], 0
    for _ in range(8):
        gaps.append((end.next_tick_ps - now) // RETRY_PS)
        now = end.next_tick_ps
        assert [type(effect) for effect in end.tick(now)] == [SendBegin]
        end.have(0, 0, (), now)
    assert gaps == [1, 2, 4, 8, 16, 16, 16, 16]
    assert max(gaps) == BACKOFF_MAX
    end.have(0, 1, (), now)
    assert end.next_tick_ps == now + RETRY_PS


def test_a_link_that_answers_slowly_is_asked_as_slowly() -> None:
    end = sender()
    end.start(0)
    end.have(1, 1, (), 10 * RETRY_PS)
    assert end.next_tick_ps == 30 * RETRY_PS


def test_before_the_first_answer_the_questions_thin_out_without_an_end() -> None:
    end = sender()
    end.start(0)
    asked = [0]
    while end.next_tick_ps < 64 * RETRY_PS:
        asked.append(end.next_tick_ps // RETRY_PS)
        end.tick(end.next_tick_ps)
    assert asked == [0, 1, 3, 7, 15, 31, 63]


def test_an_answer_to_a_query_proves_lost_what_was_sent_before_it_and_is_not_listed() -> None:
    """1. Chunks 0, 1, 2 are under way. 2. Query 2. 3. Its answer lists only 1: 0 and 2 are sent again, 3 is new."""
    end = sender()
    end.start(0)
    end.tick(RETRY_PS)
    assert indices(end.have(2, 0, ((1, 2),), RETRY_PS + 1)) == [0, 2, 3]
    end.check()


def test_an_answer_proves_nothing_about_what_was_sent_after_its_query() -> None:
    end = sender()
    end.start(0)
    end.have(1, 0, ((1, 3),), 1)  # a hole at 0: asks query 2, sends 3 and 4
    assert end.have(2, 0, ((1, 3),), 2) == [SendChunk(0)]


def test_a_late_copy_of_an_answer_proves_nothing_about_what_was_sent_again_since() -> None:
    end = sender()
    end.start(0)
    end.tick(RETRY_PS)
    assert indices(end.have(2, 0, (), RETRY_PS + 1)) == [0, 1, 2]
    assert indices(end.have(2, 0, (), RETRY_PS + 2)) == []


def test_a_hole_makes_the_sender_ask_at_once_and_only_once() -> None:
    end = sender(chunks=9)
    end.start(0)
    assert end.have(1, 0, ((1, 2),), 1) == [SendBegin(2), SendChunk(3)]
    assert end.have(1, 0, ((1, 3),), 2) == [SendChunk(4)]


def test_an_old_answer_that_comes_late_asks_nothing() -> None:
    """1. A hole at 0, query 2. 2. Chunk 0 is lost and sent again. 3. An older answer arrives."""
    end = sender(chunks=3)
    end.start(0)
    assert end.have(1, 0, ((2, 3),), 1) == [SendBegin(2)]
    assert end.have(2, 0, ((2, 3),), 2) == [SendChunk(0), SendChunk(1)]
    assert end.have(1, 0, ((1, 2),), 3) == []


def test_a_full_list_says_nothing_about_chunks_behind_its_end() -> None:
    chunks = 4 * BEYOND_MAX
    end = sender(chunks=chunks, window_chunks=chunks)
    end.start(0)
    end.tick(RETRY_PS)
    odd = tuple((2 * i + 1, 2 * i + 2) for i in range(BEYOND_MAX))
    again = indices(end.have(2, 0, odd, RETRY_PS + 1))
    assert again == list(range(0, 2 * BEYOND_MAX, 2))
    end.check()
    again = indices(end.have(2, 2 * BEYOND_MAX, (), RETRY_PS + 2))
    assert again == list(range(2 * BEYOND_MAX, chunks))


def test_after_a_reconnect_only_what_an_answer_proves_missing_is_sent() -> None:
    end = sender()
    end.start(0)
    assert end.start(5) == [SendBegin(2)]
    assert indices(end.have(2, 1, ((2, 3),), 6)) == [1, 3, 4]


def test_a_peer_that_may_be_back_is_asked_at_once_but_not_twice_and_its_silence_goes_on() -> None:
    end = sender()
    assert end.ask(0) == []  # Nothing was begun.
    end.start(0)
    for _ in range(4):
        end.tick(end.next_tick_ps)
    now = end.next_tick_ps - 2 * RETRY_PS
    (asked,) = end.ask(now)
    assert isinstance(asked, SendBegin)
    assert end.ask(now + RETRY_PS // 2) == []
    assert end.next_tick_ps == now + RETRY_PS
    assert any(isinstance(effect, TransferFailed) for effect in end.tick(100 * RETRY_PS))


def test_chunks_that_the_other_end_has_already_are_never_sent() -> None:
    end = sender(chunks=8, window_chunks=2)
    end.start(0)
    assert indices(end.have(1, 2, ((3, 7),), 1)) == [2, 7]


def test_the_sender_gives_up_after_the_longest_silence_and_says_so_once() -> None:
    end = sender()
    end.start(0)
    end.have(1, 0, (), 50)
    assert not any(isinstance(effect, TransferFailed) for effect in end.tick(100 * RETRY_PS))
    assert end.tick(100 * RETRY_PS + 50) == [TransferFailed("no answer for 10000 ms")]
    assert end.tick(200 * RETRY_PS) == []


def test_an_aborted_sender_stays_silent() -> None:
    end = sender()
    end.start(0)
    assert end.abort("superseded") == [TransferFailed("superseded")]
    assert end.abort("again") == []
    assert end.have(1, 6, (), 1) == []


@pytest.mark.parametrize(
    ("query", "through", "beyond"),
    [(2, 0, ()), (-1, 0, ()), (1, 7, ()), (1, -1, ()), (1, 0, ((5, 7),)), (1, 7, ((1, 2),))],
)
def test_a_peer_that_acknowledges_what_cannot_be_ends_the_transfer(
    query: int, through: int, beyond: tuple[tuple[int, int], ...]
) -> None:
    end = sender()
    end.start(0)
    (effect,) = end.have(query, through, beyond, 1)
    assert isinstance(effect, TransferFailed)
    assert end.done


# --- conversations: the receiver -----------------------------------------------------------------


def test_every_query_is_answered_with_the_newest_one_seen() -> None:
    end = Receiver(1, 4, acknowledge_chunks=4)
    assert end.begin(1) == [SendHave(1, 0, ())]
    end.chunk(1, True)
    assert end.begin(3) == [SendHave(3, 0, ((1, 2),))]
    assert end.begin(2) == [SendHave(3, 0, ((1, 2),))]


def test_acknowledgements_are_gathered_but_the_last_one_never_waits() -> None:
    end = Receiver(1, 3, acknowledge_chunks=2)
    end.begin(1)
    assert end.chunk(0, True) == []
    assert end.chunk(1, True) == [SendHave(1, 2, ())]
    assert end.chunk(2, True) == [Completed(), SendHave(1, 3, ())]


def test_completion_is_reported_once_and_every_query_is_answered() -> None:
    end = Receiver(1, 1)
    end.begin(1)
    assert end.chunk(0, True) == [Completed(), SendHave(1, 1, ())]
    assert end.chunk(0, True) == []
    assert end.begin(2) == [SendHave(2, 1, ())]


def test_a_payload_of_no_chunks_completes_at_begin() -> None:
    end = Receiver(1, 0)
    assert end.begin(1) == [Completed(), SendHave(1, 0, ())]
    assert end.begin(2) == [SendHave(2, 0, ())]


def test_a_corrupted_chunk_has_not_arrived() -> None:
    end = Receiver(1, 2)
    end.begin(1)
    assert end.chunk(0, False) == []
    assert not end.has(0)
    assert end.begin(2) == [SendHave(2, 0, ())]
    assert end.chunk(0, True) == [SendHave(2, 1, ())]


def test_a_receiver_that_restarts_goes_on_with_what_the_one_before_it_had() -> None:
    """1. Three of six chunks have arrived, two of them are acknowledged. 2. The next receiver answers a query with
    all three: the sender sends the other three, each once."""
    end, first = sender(window_chunks=6), Receiver(1, 6, acknowledge_chunks=2)
    end.start(0)
    first.begin(1)
    assert first.chunk(0, True) == []
    assert end.have(1, 2, (), 1) == []
    second = Receiver(1, 6, acknowledge_chunks=2, arrived=[(1, 2), (0, 1), (4, 5)])
    second.check()
    assert end.start(2) == [SendBegin(2)]
    assert second.begin(2) == [SendHave(2, 2, ((4, 5),))]
    assert end.have(2, 2, ((4, 5),), 3) == [SendChunk(2), SendChunk(3), SendChunk(5)]
    assert not second.chunk(2, True)
    assert second.chunk(3, True) == [SendHave(2, 5, ())]
    assert second.chunk(5, True) == [Completed(), SendHave(2, 6, ())]


def test_a_receiver_of_which_all_had_arrived_completes_when_it_is_asked() -> None:
    end = Receiver(1, 2, arrived=[(0, 2)])
    assert end.begin(0) == [Completed(), SendHave(0, 2, ())]
    assert end.begin(4) == [SendHave(4, 2, ())]


@pytest.mark.parametrize("index", [-1, 2, 2**64 - 1])
def test_a_chunk_that_does_not_exist_is_ignored(index: int) -> None:
    end = Receiver(1, 2)
    end.begin(1)
    assert end.chunk(index, True) == []
    end.check()


def test_an_answer_lists_a_bounded_number_of_spans() -> None:
    end = Receiver(1, 10 * BEYOND_MAX, acknowledge_chunks=10 * BEYOND_MAX)
    for index in range(1, 10 * BEYOND_MAX, 2):
        end.chunk(index, True)
    (answer,) = end.begin(1)
    assert isinstance(answer, SendHave)
    assert len(answer.beyond) == BEYOND_MAX
    assert answer.beyond[0] == (1, 2)


@given(window=st.integers(1, 10**9), size=st.integers(0, 10**8))
def test_a_full_window_always_holds_an_acknowledgement(window: int, size: int) -> None:
    fits = max(1, window // max(1, size))
    assert 1 <= acknowledge_chunks_for(window, size) <= fits


# --- whole transfers -----------------------------------------------------------------------------


@dataclass(frozen=True)
class FrameFaults:
    """Probabilities per frame, in percent."""

    loss: int = 0
    duplication: int = 0
    reordering: int = 0
    corruption: int = 0
    cut: int = 0


@dataclass
class Journey:
    """A sender, a receiver, and a link of finite rate both ways between them."""

    sizes: list[int]
    window_bytes: int
    faults: FrameFaults = FrameFaults()
    seed: int = 0
    ps_per_byte: int = PS_PER_MS
    latency_ps: int = 20 * PS_PER_MS
    retry_ps: int = RETRY_PS
    acknowledge_chunks: int = 1
    now: int = 0
    queue: list[tuple[int, int, bool, SenderEffect | ReceiverEffect]] = field(default_factory=list)
    sent: list[int] = field(default_factory=list)
    ends: list[SenderEffect | ReceiverEffect] = field(default_factory=list)
    queries: int = 0

    def __post_init__(self) -> None:
        self.random = Random(self.seed)
        self.sender = Sender(1, self.sizes, self.window_bytes, self.retry_ps, 10**30)
        self.receiver = Receiver(1, len(self.sizes), self.acknowledge_chunks)
        self.staged: set[int] = set()
        self.free_at = {True: 0, False: 0}
        self.count = 0

    def chance(self, percent: int) -> bool:
        return self.random.randrange(100) < percent

    def submit(self, effects: list[SenderEffect] | list[ReceiverEffect], to_receiver: bool) -> None:
        for effect in effects:
            if isinstance(effect, PayloadDelivered | TransferFailed | Completed):
                self.ends.append(effect)
                continue
            size = 1
            self.queries += isinstance(effect, SendBegin)
            if isinstance(effect, SendChunk):
                self.sent.append(effect.index)
                size = self.sizes[effect.index]
            leaves = max(self.now, self.free_at[to_receiver]) + size * self.ps_per_byte
            self.free_at[to_receiver] = leaves
            for _ in range(1 + self.chance(self.faults.duplication)):
                late = self.random.randrange(10**12) if self.chance(self.faults.reordering) else 0
                self.count += 1
                entry = (leaves + self.latency_ps + late, self.count, to_receiver, effect)
                heapq.heappush(self.queue, entry)

    def cut(self) -> None:
        """All frames under way are gone; sometimes the driver notices the new connection."""
        self.queue.clear()
        self.free_at = {True: self.now, False: self.now}
        if self.chance(50):
            self.submit(self.sender.start(self.now), True)

    def arrive(self, effect: SenderEffect | ReceiverEffect) -> None:
        match effect:
            case SendBegin(query):
                self.submit(self.receiver.begin(query), False)
            case SendChunk(index):
                intact = not self.chance(self.faults.corruption)
                if intact:
                    self.staged.add(index)
                self.submit(self.receiver.chunk(index, intact), False)
            case SendHave(query, through, beyond):
                self.submit(self.sender.have(query, through, beyond, self.now), True)
            case _:
                raise AssertionError(effect)

    def step(self) -> None:
        """The next thing that happens: a frame arrives, or the sender's tick is due."""
        if not self.queue or self.queue[0][0] > self.sender.next_tick_ps:
            self.now = max(self.now, self.sender.next_tick_ps)
            self.submit(self.sender.tick(self.now), True)
        else:
            self.now, _, _, effect = heapq.heappop(self.queue)
            if self.chance(self.faults.cut):
                self.cut()
            elif not self.chance(self.faults.loss):
                self.arrive(effect)
        self.sender.check()
        self.receiver.check()

    def run(self, steps_max: int = 20_000) -> "Journey":
        self.submit(self.sender.start(self.now), True)
        for _ in range(steps_max):
            if self.sender.done:
                return self
            self.step()
        raise AssertionError(f"no end after {steps_max} events")


sizes_and_window = st.tuples(
    st.lists(st.integers(0, 40), max_size=60), st.integers(1, 400), st.integers(1, 8)
)
faults = st.builds(
    FrameFaults,
    loss=st.integers(0, 40),
    duplication=st.integers(0, 40),
    reordering=st.integers(0, 40),
    corruption=st.integers(0, 30),
    cut=st.integers(0, 5),
)


@given(shape=sizes_and_window, faults=faults, seed=st.integers(0, 2**32))
def test_every_transfer_completes_exactly_once_whatever_the_link_does(
    shape: tuple[list[int], int, int], faults: FrameFaults, seed: int
) -> None:
    """`check` holds after every event, so the window is never exceeded on the way."""
    sizes, window, acknowledge = shape
    journey = Journey(sizes, window, faults, seed, acknowledge_chunks=acknowledge).run()
    assert journey.ends == [Completed(), PayloadDelivered()]
    assert journey.staged == set(range(len(sizes)))


@given(
    shape=sizes_and_window,
    ps_per_byte=st.sampled_from([1, PS_PER_MS, 10**12, 10**14]),
    latency_ps=st.sampled_from([0, PS_PER_MS, 10**13]),
)
def test_on_an_ordered_lossless_link_no_chunk_is_ever_sent_twice_however_slow_it_is(
    shape: tuple[list[int], int, int], ps_per_byte: int, latency_ps: int
) -> None:
    sizes, window, acknowledge = shape
    journey = Journey(
        sizes,
        window,
        ps_per_byte=ps_per_byte,
        latency_ps=latency_ps,
        acknowledge_chunks=acknowledge,
    ).run()
    assert journey.sent == list(range(len(sizes)))
    assert journey.queries <= 20 * (1 + len(sizes)), "queries must not fill the link"


@given(shape=sizes_and_window, seed=st.integers(0, 2**32), loss=st.integers(1, 40))
def test_on_an_ordered_link_only_copies_that_were_lost_are_sent_again(
    shape: tuple[list[int], int, int], seed: int, loss: int
) -> None:
    """Loss, corruption and cuts, but no reordering: no chunk that arrived is sent again."""
    sizes, window, acknowledge = shape
    journey = Journey(
        sizes,
        window,
        FrameFaults(loss=loss, corruption=10, cut=2),
        seed,
        acknowledge_chunks=acknowledge,
    )
    arrived: list[int] = []
    inner = journey.receiver.chunk

    def chunk(index: int, intact: bool) -> list[ReceiverEffect]:
        arrived.extend([index] if intact else [])
        return inner(index, intact)

    journey.receiver.chunk = chunk  # type: ignore[method-assign]
    journey.run()
    assert sorted(arrived) == list(range(len(sizes)))


@given(window_chunks=st.integers(1, 64), size=st.integers(1, 30))
def test_a_full_window_never_waits_for_a_query(window_chunks: int, size: int) -> None:
    """With the rule for gathering acknowledgements, a transfer without losses needs only one query."""
    window = window_chunks * size
    journey = Journey(
        [size] * 100,
        window,
        ps_per_byte=1,
        latency_ps=PS_PER_MS,
        acknowledge_chunks=acknowledge_chunks_for(window, size),
    ).run()
    assert journey.queries == 1


def test_a_cut_in_the_middle_costs_at_most_one_window() -> None:
    journey = Journey([10] * 200, 100)
    journey.submit(journey.sender.start(0), True)
    while len(journey.staged) < 100:
        journey.step()
    journey.queue.clear()
    staged, before = len(journey.staged), len(journey.sent)
    journey.submit(journey.sender.start(journey.now), True)
    while not journey.sender.done:
        journey.step()
    assert len(journey.sent) - before == 200 - staged
    assert len(journey.sent) - 200 <= 10


def test_a_transfer_of_very_many_chunks_costs_a_few_operations_each() -> None:
    """A walk over all chunks at each event would take hours here and meet the time limit.

    The second half of everything is lost and sent again on proof.
    """
    chunks = 200_000
    end, other = Sender(1, range(chunks), 10**15, RETRY_PS), Receiver(1, chunks, 16)
    wave = indices(end.start(0))
    assert len(wave) == chunks
    for index in wave[: chunks // 2]:
        for effect in other.chunk(index, True):
            assert isinstance(effect, SendHave)
            end.have(effect.query, effect.through, effect.beyond, 1)
    assert end.outstanding_bytes == sum(range(chunks // 2, chunks))
    end.start(2)
    (answer,) = other.begin(2)
    assert isinstance(answer, SendHave)
    assert indices(end.have(2, answer.through, answer.beyond, 3)) == wave[chunks // 2 :]
