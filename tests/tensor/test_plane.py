"""The tensor plane: staging, measuring, applying, naming and reading, alone and in many threads."""

import math
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pelago.core.tensor_effects import Apply, Difference, Pin
from pelago.tensor.checksum import checksum
from pelago.tensor.manifest import Manifest
from pelago.tensor.optim import DelayedNesterov
from pelago.tensor.plane import Plane
from pelago.tensor.slab import Slab
from pelago.wire.messages import TensorSpec

MANIFEST = Manifest((TensorSpec("a", (7, 9)), TensorSpec("b", ()), TensorSpec("c", (50,))), 64)
OUTER = DelayedNesterov.from_eta(0.2, 0.9, 2)
DEADLINE_S = 30


def numbers(seed, dtype=torch.float32, manifest=MANIFEST):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(manifest.numel, generator=generator, dtype=dtype) - 0.5


def server(seed=0, **options):
    """A plane whose parameters are ``numbers(seed)``."""
    plane = Plane(options.pop("manifest", MANIFEST), options.pop("outer", OUTER), **options)
    plane.adopt(1, numbers(seed, plane.dtype, plane.manifest))
    plane.apply("load", 1)
    plane.release(1)
    return plane


def chunks_of(flat, manifest=MANIFEST):
    """(bytes, checksum) of every chunk."""
    found = [flat[start:stop].numpy().tobytes() for start, stop in manifest.chunks]
    return [(chunk, checksum(chunk)) for chunk in found]


def read_all(plane, blob):
    """A payload's bytes as its readers get them; every checksum is verified."""
    parts = []
    for index in range(len(plane.manifest.chunks)):
        buffer, sum_ = plane.read(blob, index)
        parts.append(bytes(buffer))
        assert checksum(parts[-1]) == sum_
    return b"".join(parts)


def bits(tensor):
    return tensor.numpy().tobytes()


# --- staging and measuring -----------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_payload_staged_in_any_order_is_the_payload_sent(dtype):
    plane, sent = Plane(MANIFEST, None, slab=Slab(dtype)), numbers(3, dtype)
    plane.open(-1)
    for index, (chunk, sum_) in reversed(list(enumerate(chunks_of(sent)))):
        assert not plane.complete(-1)
        assert plane.stage(-1, index, chunk, sum_)
    assert plane.complete(-1)
    assert bits(plane.lend(-1)) == read_all(plane, -1) == bits(sent)


def test_who_watches_a_plane_sees_each_payload_before_its_first_chunk():
    plane, seen, here = Plane(MANIFEST, None), [], []
    plane.on_open = lambda payload: (
        seen.append(payload.missing),
        payload.when_here(1, lambda: here.append(payload.chunks[1].tensor)),
    )
    plane.open(-1)
    for index, (chunk, sum_) in enumerate(chunks_of(numbers(3))):
        assert plane.stage(-1, index, chunk, sum_)
    plane.adopt(1, numbers(4))
    assert seen == [len(MANIFEST.chunks)]
    start, stop = MANIFEST.chunks[1]
    assert [bits(each) for each in here] == [bits(numbers(3)[start:stop])]


def test_a_wrong_chunk_is_refused_and_the_right_one_still_taken():
    plane = Plane(MANIFEST, None)
    plane.open(-1)
    chunk, sum_ = chunks_of(numbers(3))[0]
    damaged = bytes([chunk[0] ^ 1]) + chunk[1:]
    assert not plane.stage(-1, 0, damaged, sum_)
    assert not plane.stage(-1, 0, chunk, sum_ ^ 1)
    assert not plane.stage(-1, 0, chunk[:-4], checksum(chunk[:-4]))
    assert not plane.stage(-1, 0, chunk + chunk, checksum(chunk + chunk))
    assert not plane.stage(-1, 0, b"", checksum(b""))
    assert not plane.stage(-1, -1, chunk, sum_)
    assert not plane.stage(-1, len(MANIFEST.chunks), chunk, sum_)
    assert plane.stage(-1, 0, chunk, sum_)
    assert not plane.complete(-1)


def test_a_chunk_of_a_released_or_unknown_blob_is_refused():
    plane = Plane(MANIFEST, None)
    chunk, sum_ = chunks_of(numbers(3))[0]
    plane.open(-1)
    plane.release(-1)
    assert not plane.stage(-1, 0, chunk, sum_)
    assert not plane.stage(-2, 0, chunk, sum_)


def test_a_chunk_staged_twice_counts_once():
    plane = Plane(MANIFEST, None)
    plane.open(-1)
    sent = chunks_of(numbers(3))
    for index, (chunk, sum_) in enumerate(sent[:-1]):
        assert plane.stage(-1, index, chunk, sum_)
        assert plane.stage(-1, index, bytearray(chunk), sum_)
    assert not plane.complete(-1)
    assert plane.stage(-1, len(sent) - 1, *sent[-1])
    assert read_all(plane, -1) == bits(numbers(3))


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_a_received_buffer_is_free_as_soon_as_it_is_staged_and_no_warning_is_given(kind):
    plane = Plane(Manifest((TensorSpec("a", (16,)),)), None)
    received = kind(np.arange(16, dtype=np.float32).tobytes())
    plane.open(-1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert plane.stage(-1, 0, received, checksum(received))
    staged, _ = plane.read(-1, 0)
    assert bytes(staged) == bytes(received)
    address = np.frombuffer(received, dtype=np.uint8).ctypes.data
    assert np.frombuffer(staged, dtype=np.uint8).ctypes.data != address


def test_a_buffer_at_an_odd_address_is_staged_all_the_same():
    plane, sent = Plane(MANIFEST, None), numbers(3)
    plane.open(-1)
    for index, (chunk, sum_) in enumerate(chunks_of(sent)):
        assert plane.stage(-1, index, memoryview(b"x" + chunk)[1:], sum_)
    assert bits(plane.lend(-1)) == bits(sent)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_norm_is_that_of_exact_arithmetic_staged_or_adopted(dtype):
    plane, flat = Plane(MANIFEST, None, slab=Slab(dtype)), numbers(4, dtype)
    plane.open(-1)
    for index, (chunk, sum_) in enumerate(chunks_of(flat)):
        plane.stage(-1, index, chunk, sum_)
    plane.adopt(-2, flat)
    norm, finite = plane.measure(-1)
    assert finite
    assert norm == pytest.approx(math.sqrt(math.fsum(x * x for x in flat.tolist())), rel=1e-14)
    assert plane.measure(-1) == plane.measure(-2) == (norm, True)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_one_number_that_is_not_finite_is_found(value, dtype):
    plane, flat = Plane(MANIFEST, None, slab=Slab(dtype)), numbers(4, dtype)
    flat[-1] = value
    plane.adopt(1, flat)
    assert not plane.measure(1)[1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_huge_numbers_are_finite(dtype):
    plane, flat = Plane(MANIFEST, None, slab=Slab(dtype)), numbers(4, dtype)
    flat[3] = flat[-1] = torch.finfo(dtype).max
    plane.adopt(1, flat)
    norm, finite = plane.measure(1)
    assert finite
    assert norm == pytest.approx(math.sqrt(2) * torch.finfo(dtype).max)  # inf in float64


# --- operations against plain numpy --------------------------------------------------------------


@dataclass
class Reference:
    """The definitions of `pelago.core.tensor_effects.Apply`, `Pin` and `Difference` in numpy."""

    outer: DelayedNesterov
    model: np.ndarray
    snapshot: np.ndarray = field(init=False)
    sent: np.ndarray | None = None
    t: int = 0
    decay: float = 0.0

    def __post_init__(self):
        self.snapshot = self.average = self.model
        self.m = np.zeros_like(self.model)
        self.accumulated = np.zeros_like(self.model)

    def apply(self, operation, blob, weight):
        if operation == "step":
            self.step(weight * blob)
        elif operation == "load":
            self.model = self.snapshot = self.average = blob
            self.sent = None
        elif operation == "merge_replay" and self.sent is not None:
            self.snapshot = (1 - weight) * self.sent + weight * blob
            self.model = self.snapshot + (self.model - self.sent)
        else:
            before = self.model
            self.model = self.snapshot = (1 - weight) * before + weight * blob
            if operation == "merge_carry" and self.sent is not None:
                self.snapshot = self.model + (self.sent - before)

    def step(self, g):
        lr, beta, d, c = (
            self.outer.lr,
            self.outer.momentum,
            self.outer.delay,
            self.outer.activation,
        )
        self.accumulated = self.accumulated + g
        if (self.t + 1) % d == 0:
            self.m = beta * self.m + self.accumulated / d
            self.model = self.model - lr * ((1 - c * d + c) * beta * self.m + g / d)
            self.accumulated = np.zeros_like(self.model)
        else:
            self.model = self.model - lr * (c * beta * self.m + g / d)
        self.t += 1
        decay = min(self.decay, (1 + self.t) / (10 + self.t))
        self.average = decay * self.average + (1 - decay) * self.model

    def difference(self):
        self.sent = self.model
        return self.snapshot - self.model


operations = st.lists(
    st.tuples(
        st.sampled_from(
            [
                *("step", "step", "load", "merge", "merge_carry", "merge_replay"),
                *("pin", "pin_average", "difference"),
            ]
        ),
        st.sampled_from([1.0, 0.25, 0.6, 0.0]),
    ),
    max_size=14,
)


@given(
    operations=operations,
    delay=st.integers(1, 3),
    activation=st.sampled_from([0.0, 0.5]),
    decay=st.sampled_from([0.15, 0.9]),
)
def test_any_sequence_of_operations_agrees_with_the_definitions(
    operations, delay, activation, decay
):
    outer = DelayedNesterov(0.3, 0.9, delay, activation)
    plane = server(outer=outer, remember=True, slab=Slab(torch.float64), average=decay)
    reference = Reference(outer, plane.model().numpy(), decay=decay)
    named = {}
    for blob, (operation, weight) in enumerate(operations, start=10):
        match operation:
            case "pin":
                plane.pin(blob)
                named[blob] = reference.model
            case "pin_average":
                plane.pin(blob, average=True)
                named[blob] = reference.average
            case "difference":
                plane.difference(blob)
                named[blob] = reference.difference()
            case _:
                plane.adopt(blob, numbers(blob, torch.float64))
                named[blob] = numbers(blob, torch.float64).numpy()
                plane.apply(operation, blob, weight)
                reference.apply(operation, named[blob], weight)
        np.testing.assert_allclose(plane.model().numpy(), reference.model, rtol=0, atol=1e-13)
        np.testing.assert_allclose(plane.average().numpy(), reference.average, rtol=0, atol=1e-13)
    for blob, expected in named.items():
        np.testing.assert_allclose(plane.lend(blob).numpy(), expected, rtol=0, atol=1e-13)


def test_without_carry_a_difference_starts_again_from_the_merge():
    plane = server(slab=Slab(torch.float64))
    plane.adopt(10, numbers(10, torch.float64))
    plane.apply("step", 10)
    plane.difference(11)
    plane.apply("step", 10)  # moved in flight
    plane.apply("merge", 10, 0.25)
    plane.difference(12)
    assert not plane.lend(12).any()


def test_with_carry_the_next_difference_holds_what_moved_in_flight():
    plane = server(slab=Slab(torch.float64), remember=True)
    plane.adopt(10, numbers(10, torch.float64))
    plane.difference(11)
    sent = plane.model()
    plane.apply("step", 10)
    moved = sent - plane.model()
    plane.apply("merge_carry", 10, 0.25)
    plane.difference(12)
    torch.testing.assert_close(plane.lend(12), moved, rtol=0, atol=1e-15)


# --- replay: the merge is made at the send point --------------------------------------------------


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-15)


@pytest.mark.parametrize("pinned", ["nothing", "before the send", "before the merge", "always"])
@pytest.mark.parametrize("moves", [0, 1, 3])
def test_a_replayed_merge_is_made_where_the_exchange_was_sent(pinned, moves):
    """
    snapshot <- (1 - a) * sent + a * G;  model <- snapshot + (model - sent).

    The numbers are the same whether the model's chunks are written in place or, because they have other
    holders, elsewhere; and earlier payloads keep their numbers.
    """
    plane, weight = server(slab=Slab(torch.float64), remember=True), 0.25
    plane.adopt(10, numbers(10, torch.float64))
    plane.apply("step", 10)
    named = {}
    if pinned in ("before the send", "always"):
        plane.pin(20)
        named[20] = plane.model()
    plane.difference(11)
    sent = plane.model()
    for move in range(moves):
        plane.apply("step", 10)
        if pinned == "always":
            plane.pin(30 + move)
            named[30 + move] = plane.model()
    if pinned == "before the merge":
        plane.pin(21)
        named[21] = plane.model()
    model, answer = plane.model(), numbers(12, torch.float64)
    plane.adopt(12, answer)
    plane.apply("merge_replay", 12, weight)

    snapshot = (1 - weight) * sent + weight * answer
    close(plane.model(), snapshot + (model - sent))
    plane.difference(13)
    close(plane.lend(13), sent - model)
    assert bits(plane.lend(12)) == bits(answer)
    for blob, expected in named.items():
        assert bits(plane.lend(blob)) == bits(expected)


def test_with_nothing_in_flight_a_replayed_merge_is_a_merge_to_the_bit():
    replayed, merged = server(remember=True), server()
    for plane, operation in ((replayed, "merge_replay"), (merged, "merge")):
        plane.adopt(10, numbers(10))
        plane.apply("step", 10)
        plane.difference(11)
        plane.apply(operation, 10, 0.25)
        plane.difference(12)
    assert bits(replayed.model()) == bits(merged.model())
    assert not replayed.lend(12).any()


def test_before_the_first_exchange_a_replayed_merge_keeps_nothing():
    """Nothing was sent yet, or a load made it void: there is no movement to replay."""
    plane = server(slab=Slab(torch.float64), remember=True)
    plane.adopt(10, numbers(10, torch.float64))
    for load in (False, True):
        if load:
            plane.difference(11)
            plane.apply("load", 10)
        plane.apply("step", 10)
        model = plane.model()
        plane.apply("merge_replay", 10, 0.25)
        close(plane.model(), 0.75 * model + 0.25 * numbers(10, torch.float64))


@pytest.mark.parametrize("in_flight", [0, 1, 3])
def test_replayed_movement_is_sent_once_and_whole(in_flight):
    """
    With a = 0 the answers change nothing, so the model is the start minus all movement; and the sum
    of all differences is that movement: nothing is lost, nothing is sent twice.
    """
    plane, alone = (server(slab=Slab(torch.float64), remember=True) for _ in range(2))
    start, total = plane.model(), torch.zeros(MANIFEST.numel, dtype=torch.float64)

    def move(count, seed):
        for each in (plane, alone):
            each.adopt(10, numbers(seed, torch.float64))
            for _ in range(count):
                each.apply("step", 10)
            each.release(10)

    for exchange in range(5):
        move(2, seed=exchange)
        plane.difference(11)
        total += plane.lend(11)
        move(in_flight, seed=50 + exchange)
        plane.adopt(12, numbers(99 + exchange, torch.float64))
        plane.apply("merge_replay", 12, 0.0)
        close(plane.model(), alone.model())
        plane.release(11), plane.release(12)
    plane.difference(11)
    total += plane.lend(11)
    torch.testing.assert_close(total, start - plane.model(), rtol=0, atol=1e-14)


def test_a_plane_that_does_not_remember_what_it_sent_refuses_to_replay():
    plane = server()
    plane.adopt(10, numbers(10))
    with pytest.raises(AssertionError, match="remember"):
        plane.apply("merge_replay", 10, 0.25)


# --- the running mean -----------------------------------------------------------------------------


def test_the_mean_starts_at_the_model_and_forgets_at_its_decay():
    """e = min(d, (1 + t) / (10 + t)): at first it follows the model closely, later at d."""
    decay = 0.6
    plane = server(slab=Slab(torch.float64), average=decay, exchanges=False)
    expected = plane.model()
    close(plane.average(), expected)
    plane.adopt(10, numbers(10, torch.float64))
    used = []
    for t in range(1, 21):
        plane.apply("step", 10, 0.1)
        used.append(min(decay, (1 + t) / (10 + t)))
        expected = used[-1] * expected + (1 - used[-1]) * plane.model()
        close(plane.average(), expected)
    assert used[0] == 2 / 11
    assert used[-1] == decay
    assert not torch.equal(plane.average(), plane.model())


def test_a_mean_changes_no_bit_of_the_model():
    plain, averaged = server(), server(average=0.9)
    for plane in (plain, averaged):
        plane.adopt(10, numbers(10))
        for blob in range(20, 25):
            plane.apply("step", 10)
            plane.pin(blob, average=True)
    assert bits(plain.model()) == bits(averaged.model())
    assert plain.average() is None


def test_without_a_mean_its_pin_is_the_model():
    plane = server()
    plane.pin(10, average=True)
    assert bits(plane.lend(10)) == bits(plane.model())


def test_a_pinned_mean_stays_as_it_was():
    """Pinned before the first step it shares the model's chunks, later only its own."""
    plane = server(average=0.9, exchanges=False)
    plane.adopt(10, numbers(10))
    named = {}
    for blob in range(20, 26):
        plane.pin(blob, average=True)
        named[blob] = plane.average()
        plane.apply("step", 10)
        if blob % 2:
            plane.apply("step", 10)
    for blob, expected in named.items():
        assert read_all(plane, blob) == bits(expected)
    assert bits(named[20]) == bits(numbers(0))


def test_a_load_starts_the_mean_again():
    plane = server(average=0.9)
    plane.adopt(10, numbers(10))
    plane.apply("step", 10)
    plane.apply("load", 10)
    assert bits(plane.average()) == bits(numbers(10))
    plane.apply("step", 10)
    assert bits(plane.lend(10)) == bits(numbers(10))


def test_the_digest_sees_the_mean():
    plain, slow, fast = server(), server(average=0.9), server(average=0.1)
    for plane in (plain, slow, fast):
        plane.adopt(10, numbers(10))
        plane.apply("step", 10)
    # After one step both are below their decay's reach, but for the one of 0.1.
    assert len({plain.digest(), slow.digest(), fast.digest()}) == 3


def test_a_mean_costs_one_model_and_its_pins_nothing():
    manifest = Manifest((TensorSpec("a", (64, 64)),), 1024)
    plane = server(manifest=manifest, exchanges=False, average=0.9)
    plane.adopt(10, numbers(10, manifest=manifest))
    assert plane.memory_bytes() == 2 * manifest.bytes  # model and mean in one, update
    plane.apply("step", 10)
    before = plane.memory_bytes()
    # model, mean, momentum, accumulator, update; and one chunk
    spare = manifest.chunk_bytes
    assert before == 5 * manifest.bytes + spare
    for blob in range(20, 25):
        plane.pin(blob, average=True)
    assert plane.memory_bytes() == before
    plane.apply("step", 10)
    assert (
        before + manifest.bytes <= plane.memory_bytes() <= before + manifest.bytes + 3 * spare
    )  # one old mean for all five pins
    for blob in range(20, 25):
        plane.release(blob)
    for blob in range(30, 40):
        plane.pin(blob, average=True)
        plane.apply("step", 10)
        plane.release(blob)
    assert before + manifest.bytes <= plane.memory_bytes() <= before + manifest.bytes + 3 * spare


def test_a_plane_steps_as_the_optimiser_does_on_the_whole_arena():
    plane, whole = server(), numbers(0)
    state = OUTER.init(MANIFEST.numel, torch.float32)
    for blob in range(10, 15):
        plane.adopt(blob, numbers(blob))
        plane.apply("step", blob, 0.7)
        OUTER.step(whole, numbers(blob), state, 0.7)
        assert bits(plane.model()) == bits(whole)


def test_a_staged_and_an_adopted_payload_give_the_same_bits():
    adopted, staged = server(), server()
    for blob in range(10, 13):
        adopted.adopt(blob, numbers(blob))
        staged.open(blob)
        for index, (chunk, sum_) in enumerate(chunks_of(numbers(blob))):
            staged.stage(blob, index, chunk, sum_)
        staged.pin(100 + blob)
        adopted.apply("step", blob)
        staged.apply("step", blob)
    assert adopted.digest() == staged.digest()


def test_the_digest_sees_parameters_momentum_and_counter():
    idle, stepped, back = server(), server(), server()
    for plane, gradient in ((stepped, numbers(10)), (back, torch.zeros(MANIFEST.numel))):
        plane.adopt(10, gradient)
        plane.apply("step", 10)
    assert bits(back.model()) == bits(idle.model())
    assert len({idle.digest(), stepped.digest(), back.digest()}) == 3
    assert server().digest() == idle.digest()
    assert server(seed=1).digest() != idle.digest()


# --- payloads that outlive changes ---------------------------------------------------------------


def test_a_load_from_the_network_is_never_written_over():
    plane = Plane(MANIFEST, OUTER)
    plane.open(-1)
    received = [(bytearray(chunk), sum_) for chunk, sum_ in chunks_of(numbers(3))]
    for index, (chunk, sum_) in enumerate(received):
        plane.stage(-1, index, chunk, sum_)
    plane.apply("load", -1)
    plane.apply("step", -1)
    assert b"".join(chunk for chunk, _ in received) == bits(numbers(3))


def test_bytes_read_stay_though_the_blob_is_released_and_the_model_moves():
    plane = server()
    plane.adopt(10, numbers(10))
    plane.pin(11)
    held = [plane.read(11, index)[0] for index in range(len(MANIFEST.chunks))]
    plane.release(11)
    for blob in range(20, 26):
        plane.apply("step", 10)
        plane.pin(blob)
        plane.release(blob)
    assert b"".join(held) == bits(numbers(0))
    assert all(view.readonly for view in held)


def test_memory_is_shared_by_pins_and_used_again():
    manifest = Manifest((TensorSpec("a", (64, 64)),), 1024)
    plane = server(manifest=manifest, exchanges=False)
    plane.adopt(10, numbers(10, manifest=manifest))
    plane.apply("step", 10)
    before = plane.memory_bytes()
    # model, momentum, accumulator, update; and one chunk, the old model's
    spare = manifest.chunk_bytes
    assert before == 4 * manifest.bytes + spare
    for blob in range(20, 25):
        plane.pin(blob)
    assert plane.memory_bytes() == before
    plane.apply("step", 10)
    assert (
        before + manifest.bytes <= plane.memory_bytes() <= before + manifest.bytes + 3 * spare
    )  # one old model for all five pins
    for blob in range(20, 25):
        plane.release(blob)
    for blob in range(30, 40):
        plane.pin(blob)
        plane.apply("step", 10)
        plane.release(blob)
    assert before + manifest.bytes <= plane.memory_bytes() <= before + manifest.bytes + 3 * spare


def test_a_worker_plane_holds_only_what_it_loaded():
    plane = Plane(MANIFEST, None, exchanges=False)
    plane.adopt(1, numbers(0))
    plane.apply("load", 1)
    assert plane.memory_bytes() == MANIFEST.bytes


@pytest.mark.parametrize("misuse", ["complete", "measure", "lend"])
def test_an_unknown_blob_is_a_key_error(misuse):
    plane = server()
    with pytest.raises(KeyError):
        getattr(plane, misuse)(77)
    with pytest.raises(KeyError):
        plane.read(77, 0)
    with pytest.raises(KeyError):
        plane.apply("step", 77)


def test_an_incomplete_payload_is_never_applied():
    plane = server()
    plane.open(-1)
    plane.stage(-1, 0, *chunks_of(numbers(3))[0])
    before = plane.digest()
    with pytest.raises(AssertionError, match="missing"):
        plane.apply("step", -1)
    assert plane.digest() == before


# --- threads -------------------------------------------------------------------------------------


def test_a_pin_read_while_updates_are_applied_is_what_was_pinned():
    manifest = Manifest((TensorSpec("a", (300, 300)), TensorSpec("b", (77,))), 4096)
    plane, rounds = server(manifest=manifest), 40
    updates = [chunks_of(numbers(seed, manifest=manifest), manifest) for seed in range(4)]
    staged = [threading.Event() for _ in range(rounds)]

    def stage(first):
        for turn in range(first, rounds, 2):
            for index, (chunk, sum_) in enumerate(updates[turn % 4]):
                assert plane.stage(-1 - turn, index, chunk, sum_)
            assert plane.measure(-1 - turn)[1]
            staged[turn].set()

    def read(blob, expected):
        found = [read_all(plane, blob) for _ in range(2)]
        plane.release(blob)
        return all(each == expected for each in found)

    for turn in range(rounds):
        plane.open(-1 - turn)
    with ThreadPoolExecutor(5) as pool:
        stagers = [pool.submit(stage, first) for first in range(2)]
        readers = []
        for turn in range(rounds):
            assert staged[turn].wait(DEADLINE_S)
            plane.pin(1000 + turn)
            readers.append(pool.submit(read, 1000 + turn, bits(plane.model())))
            plane.apply("step", -1 - turn)
            if turn % 8 == 7:
                plane.difference(2000 + turn)
                plane.apply("merge", 2000 + turn, 0.25)
            plane.release(-1 - turn)
        assert all(reader.result(DEADLINE_S) for reader in readers)
        for stager in stagers:
            stager.result(DEADLINE_S)

    alone = server(manifest=manifest)
    for turn in range(rounds):
        alone.adopt(1, numbers(turn % 4, manifest=manifest))
        alone.apply("step", 1)
        alone.release(1)
        if turn % 8 == 7:
            alone.difference(2)
            alone.apply("merge", 2, 0.25)
            alone.release(2)
    assert plane.digest() == alone.digest()


def test_many_threads_that_stage_the_same_chunks_complete_the_payload_once():
    plane, sent = Plane(MANIFEST, None), numbers(3)
    everything = chunks_of(sent)
    for blob in range(-20, 0):
        plane.open(blob)
        start = threading.Barrier(4)

        def stage(blob=blob, start=start):
            start.wait(DEADLINE_S)
            return [plane.stage(blob, i, *chunk) for i, chunk in enumerate(everything)]

        with ThreadPoolExecutor(4) as pool:
            futures = [pool.submit(stage) for _ in range(4)]
            assert all(all(future.result(DEADLINE_S)) for future in futures)
        assert plane.complete(blob)
        assert bits(plane.lend(blob)) == bits(sent)


def test_reading_and_staging_do_not_wait_for_the_lane():
    plane = server()
    plane.pin(10)
    plane.open(-1)
    chunk, sum_ = chunks_of(numbers(3))[0]
    plane.plan(Apply("step", 10))  # as before a long step
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(plane.read, 10, 0).result(DEADLINE_S)
        assert pool.submit(plane.stage, -1, 0, chunk, sum_).result(DEADLINE_S)
        pool.submit(plane.release, 10).result(DEADLINE_S)


# --- planned work ---------------------------------------------------------------------------------


def test_a_pin_behind_a_step_has_its_first_chunk_after_one_chunk_of_the_step():
    plane, expected = server(), server()
    for each in (plane, expected):
        each.adopt(10, numbers(10))
    expected.apply("step", 10)
    step, pin = plane.plan(Apply("step", 10)), plane.plan(Pin(11))
    payload = plane.payload(11)
    assert payload.missing == len(MANIFEST.chunks)
    for work in (step, pin):
        assert not work.perform(0)
    chunk, sum_ = plane.read(11, 0)
    start, stop = MANIFEST.chunks[0]
    assert bytes(chunk) == bits(expected.model()[start:stop])
    assert checksum(chunk) == sum_
    assert payload.missing == len(MANIFEST.chunks) - 1


def test_operations_performed_chunk_by_chunk_in_many_threads_give_the_same_bits():
    """Each thread has chunks of its own, and performs all operations on one before it goes on to the next."""
    operations = [
        "step",
        "pin",
        "difference",
        "step",
        "merge_replay",
        "step",
        "merge_carry",
        "merge",
    ]
    alone, planned = (server(remember=True, average=0.9) for _ in range(2))
    for plane in (alone, planned):
        for blob in range(10, 10 + len(operations)):
            plane.adopt(blob, numbers(blob))
    effects = []
    for blob, operation in enumerate(operations, 10):
        match operation:
            case "pin":
                effects.append(Pin(blob + 100))
                alone.pin(blob + 100)
            case "difference":
                effects.append(Difference(blob + 100))
                alone.difference(blob + 100)
            case _:
                effects.append(Apply(operation, blob, 0.5))
                alone.apply(operation, blob, 0.5)
    works = [planned.plan(effect) for effect in effects]
    # A name may go as soon as everything is planned.
    for blob in range(10, 10 + len(operations)):
        planned.release(blob)

    def perform(thread):
        for index in range(thread, len(MANIFEST.chunks), 3):
            for work in works:
                work.perform(index)

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(perform, range(3)))
    assert planned.digest() == alone.digest()
    for blob in (111, 112):
        assert read_all(planned, blob) == read_all(alone, blob)


def test_looking_at_the_whole_waits_for_what_is_planned():
    plane, expected = server(), server()
    for each in (plane, expected):
        each.adopt(10, numbers(10))
    expected.apply("step", 10)
    work = plane.plan(Apply("step", 10))
    with ThreadPoolExecutor(1) as pool:
        model = pool.submit(plane.model)
        for index in range(work.chunks):
            assert not model.done()
            work.perform(index)
        assert bits(model.result(DEADLINE_S)) == bits(expected.model())


def test_a_snapshot_is_of_the_moment_at_which_it_was_planned():
    plane, expected = server(), server()
    for each in (plane, expected):
        each.adopt(10, numbers(10))
    work, made = plane.plan_snapshot()
    step = plane.plan(Apply("step", 10))
    for index in reversed(range(work.chunks)):
        work.perform(index)
        step.perform(index)
    found = Plane(MANIFEST, OUTER)
    snapshot = made()
    found.restore(snapshot.layout(), [chunk.buffer() for chunk in snapshot.chunks])
    assert found.digest() == expected.digest()


def test_an_operation_that_fails_is_told_to_who_waits_for_the_whole():
    plane = server()
    plane.adopt(10, numbers(10))
    work = plane.plan(Apply("step", 10))
    work.perform(0)
    with pytest.raises(AssertionError):
        work.perform(0)
    with pytest.raises(AssertionError, match="an operation failed"):
        plane.digest()
