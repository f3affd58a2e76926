"""Snapshots of a plane: they copy nothing, do not change, and are restored bit for bit."""

import gc
import json
import threading
from concurrent.futures import ThreadPoolExecutor

import msgpack
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pelago.core.errors import CheckpointError
from pelago.tensor.checksum import checksum
from pelago.tensor.manifest import Manifest
from pelago.tensor.optim import DelayedNesterov
from pelago.tensor.plane import Plane
from pelago.tensor.slab import Slab
from pelago.wire.messages import TensorSpec

MANIFEST = Manifest((TensorSpec("a", (7, 9)), TensorSpec("b", ()), TensorSpec("c", (50,))), 64)
OUTER = DelayedNesterov.from_eta(0.2, 0.9, 2)
DEADLINE_S = 30
KINDS = {"bytes": bytes, "bytearray": bytearray, "view": lambda data: memoryview(b"x" + data)[1:]}
"""Buffers that a reader may hand over: read-only, writable, and read-only at an odd address."""


def numbers(seed, dtype=torch.float32, manifest=MANIFEST):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(manifest.numel, generator=generator, dtype=dtype) - 0.5


def fresh(**options):
    options["slab"] = Slab(options.pop("dtype", torch.float32))
    return Plane(options.pop("manifest", MANIFEST), options.pop("outer", OUTER), **options)


def server(**options):
    """A plane whose parameters are ``numbers(0)``."""
    plane = fresh(**options)
    plane.adopt(1, numbers(0, plane.dtype, plane.manifest))
    plane.apply("load", 1)
    plane.release(1)
    return plane


def step(plane, count=1):
    plane.adopt(2, numbers(2, plane.dtype, plane.manifest))
    for _ in range(count):
        plane.apply("step", 2)
    plane.release(2)


def read_all(plane, blob):
    return b"".join(plane.read(blob, i)[0] for i in range(len(plane.manifest.chunks)))


def contents(snapshot):
    """The content of a file: the layout, through msgpack and JSON, and all bytes."""
    layout = msgpack.unpackb(msgpack.packb(snapshot.layout()))
    assert layout == json.loads(json.dumps(snapshot.layout()))
    chunks = [bytes(chunk.buffer()) for chunk in snapshot.chunks]
    assert [checksum(chunk) for chunk in chunks] == [each.checksum() for each in snapshot.chunks]
    return layout, chunks


def copy_of(plane, payloads=(), kind="bytes", **options):
    layout, chunks = contents(plane.snapshot(payloads))
    other = fresh(**options)
    other.restore(layout, [KINDS[kind](chunk) for chunk in chunks])
    return other


# --- any operations, before and after -------------------------------------------------------------

WORDS = (
    *("step", "step", "step", "load", "merge", "merge_carry", "merge_replay"),
    *("pin", "pin_average", "difference", "difference", "release"),
)
operations = st.lists(
    st.tuples(st.sampled_from(WORDS), st.sampled_from([1.0, 0.25, 0.6])), max_size=10
)
settings_of_a_plane = st.fixed_dictionaries(
    {
        "outer": st.builds(
            DelayedNesterov,
            st.just(0.3),
            st.sampled_from([0.0, 0.9]),
            st.integers(1, 3),
            st.sampled_from([0.0, 0.5]),
        ),
        "dtype": st.sampled_from([torch.float32, torch.float64]),
        "average": st.sampled_from([0.0, 0.15, 0.9]),
    }
).flatmap(
    lambda options: st.sampled_from(
        [
            options | {"exchanges": exchanges, "remember": remember}
            for exchanges, remember in ((False, False), (True, False), (True, True))
        ]
    )
)


def play(plane, held, words, first):
    """Perform the operations, with new names from ``first``; returns what could be observed after each of them.

    ``held``: the payloads that exist; each stays until a release takes the oldest.
    """
    seen = []
    for blob, (word, weight) in enumerate(words, start=first):
        match word:
            case "release":
                if held:
                    plane.release(held.pop(0))
            case "pin" | "pin_average":
                plane.pin(blob, average=word == "pin_average")
                held.append(blob)
            case "difference":
                if plane._exchanges:
                    plane.difference(blob)
                    held.append(blob)
            case _:
                data = numbers(blob, plane.dtype)
                if blob % 2:
                    plane.adopt(blob, data)
                else:
                    plane.open(blob)
                    for index, (start, stop) in enumerate(MANIFEST.chunks):
                        chunk = data[start:stop].numpy().tobytes()
                        assert plane.stage(blob, index, chunk, checksum(chunk))
                if word in ("merge_carry", "merge_replay") and not plane._remember:
                    word = "merge"
                plane.apply(word, blob, weight)
                if blob % 3:
                    plane.release(blob)
                else:
                    held.append(blob)
        seen.append((plane.digest(), [read_all(plane, each) for each in held]))
    return seen


@given(
    options=settings_of_a_plane,
    before=operations,
    after=operations,
    kind=st.sampled_from(sorted(KINDS)),
)
def test_a_restored_plane_continues_like_the_original(options, before, after, kind):
    plane, held = server(**options), []
    play(plane, held, before, first=10)
    digest, named = plane.digest(), list(held)
    snapshot = plane.snapshot(held)
    layout, chunks = contents(snapshot)
    seen = play(plane, held, after, first=100)

    # The snapshot has not changed, though the plane has.
    assert contents(snapshot) == (layout, chunks)
    buffers = [KINDS[kind](chunk) for chunk in chunks]
    other = fresh(**options)
    other.restore(layout, buffers)
    assert other.digest() == digest
    assert contents(other.snapshot(named)) == (layout, chunks)
    assert play(other, named, after, first=100) == seen
    assert named == held
    assert contents(other.snapshot(held)) == contents(plane.snapshot(held))
    # Nothing was written to the memory that was handed over.
    assert [bytes(buffer) for buffer in buffers] == chunks


@given(options=settings_of_a_plane, before=operations, after=operations)
def test_a_snapshot_changes_nothing_that_follows(options, before, after):
    watched, alone = server(**options), server(**options)
    one, other = [], []
    play(watched, one, before, first=10), play(alone, other, before, first=10)
    snapshots = [watched.snapshot(one)]
    for turn, word in enumerate(after, start=100):
        assert play(watched, one, [word], turn) == play(alone, other, [word], turn)
        snapshots.append(watched.snapshot(one))
        if turn % 3 == 0:
            snapshots.clear()


def test_two_planes_that_share_a_snapshots_memory_do_not_disturb_each_other():
    plane = server(remember=True, average=0.9)
    step(plane)
    snapshot = plane.snapshot()
    other = fresh(remember=True, average=0.9)
    other.restore(snapshot.layout(), [chunk.buffer() for chunk in snapshot.chunks])
    before = contents(snapshot)
    digests = []
    for _ in range(5):
        step(plane)
        digests.append(plane.digest())
    assert contents(snapshot) == before
    del snapshot
    step(plane, 3)
    for digest in digests:
        step(other)
        assert other.digest() == digest


# --- what it names, and what it shares ------------------------------------------------------------


def test_a_snapshot_names_what_there_is_in_a_fixed_order():
    plane = server(remember=True, average=0.9)
    assert list(plane.snapshot().arenas) == ["model", "snapshot", "average"]
    step(plane)
    plane.difference(10)
    expected = ["model", "snapshot", "sent", "average", "momentum", "accumulator"]
    assert list(plane.snapshot().arenas) == expected
    assert [name for name, _ in plane.snapshot().layout()["arenas"]] == expected
    assert plane.snapshot().counter == 1
    assert list(plane.snapshot([10]).payloads) == [10]
    bare = server(outer=DelayedNesterov(0.3, 0.0, 4), exchanges=False)
    step(bare)
    assert list(bare.snapshot().arenas) == ["model"]


def test_a_shared_chunk_is_in_it_once():
    plane, count = server(remember=True, average=0.9), len(MANIFEST.chunks)
    plane.pin(10)
    assert len(plane.snapshot([10]).chunks) == count  # model, snapshot, mean and pin in one
    step(plane)
    plane.difference(11)
    snapshot = plane.snapshot([10, 11])
    # model and sent; snapshot and the old pin; mean; momentum; accumulator; difference
    assert len(snapshot.chunks) == 6 * count
    arenas, payloads = dict(snapshot.layout()["arenas"]), dict(snapshot.layout()["payloads"])
    assert arenas["model"] == arenas["sent"] == list(range(count))
    assert arenas["snapshot"] == payloads[10] != payloads[11]
    other = copy_of(plane, [10, 11], remember=True, average=0.9)
    plane.release(10), plane.release(11)
    other.release(10), other.release(11)
    assert other.memory_bytes() == 5 * MANIFEST.bytes
    assert len(other.snapshot().chunks) == 5 * count


def test_a_plane_without_parameters_has_a_snapshot_too():
    plane = fresh()
    plane.adopt(10, numbers(10))
    other = copy_of(plane, [10])
    assert read_all(other, 10) == read_all(plane, 10)
    assert other.snapshot().layout()["arenas"] == []
    other.apply("load", 10)
    assert other.digest() == copy_of(other).digest()


def test_only_complete_and_known_payloads_are_taken():
    plane = server()
    plane.open(-1)
    with pytest.raises(AssertionError, match="missing"):
        plane.snapshot([-1])
    with pytest.raises(KeyError):
        plane.snapshot([77])


# --- memory ---------------------------------------------------------------------------------------

BIG = Manifest((TensorSpec("a", (64, 64)),), 1024)


SPARE = 4 * BIG.chunk_bytes
"""What an operation needs besides: one chunk of each arena that it writes."""


def test_a_held_snapshot_costs_each_chunk_once_when_it_is_written():
    plane = server(manifest=BIG, exchanges=False, average=0.9)
    step(plane, 2)
    before = plane.memory_bytes()
    # model, mean, momentum, accumulator
    assert before == 4 * BIG.bytes + SPARE
    snapshot = plane.snapshot()
    assert plane.memory_bytes() == before
    step(plane)  # absorbs nothing, so the momentum is not written
    momentum = snapshot.arenas["momentum"]
    assert all(
        chunk is state.momentum for chunk, state in zip(momentum, plane._states, strict=True)
    )
    step(plane, 6)
    assert plane.memory_bytes() == before  # and only the snapshot holds the old chunks
    del snapshot, momentum
    assert 2 * before - SPARE <= plane.memory_bytes() <= 2 * before  # they wait in the slab


def test_memory_of_dropped_snapshots_is_used_again():
    plane = server(manifest=BIG, exchanges=False, average=0.9)
    step(plane, 2)
    peak = 2 * plane.memory_bytes()
    for _ in range(10):
        snapshot = plane.snapshot()
        step(plane, 2)
        del snapshot
        assert peak - 2 * SPARE <= plane.memory_bytes() <= peak
        step(plane, 4)


def test_a_dropped_snapshot_needs_no_garbage_collector():
    plane = server(manifest=BIG, exchanges=False)
    gc.disable()
    try:
        step(plane, 2)
        snapshot = plane.snapshot()
        contents(snapshot)
        step(plane, 2)
        before = plane._slab.free_bytes()
        del snapshot
        assert plane._slab.free_bytes() > before
    finally:
        gc.enable()


# --- threads --------------------------------------------------------------------------------------


def test_snapshots_read_while_steps_run_are_what_was_taken():
    manifest = Manifest((TensorSpec("a", (300, 300)), TensorSpec("b", (77,))), 4096)
    options = {"manifest": manifest, "remember": True, "average": 0.9}
    plane, rounds = server(**options), 30
    stepping = threading.Event()

    def write(snapshot, digest):
        assert stepping.wait(DEADLINE_S)
        first = contents(snapshot)
        other = fresh(**options)
        other.restore(*first)
        return contents(snapshot) == first and other.digest() == digest

    with ThreadPoolExecutor(3) as pool:
        writers = []
        for turn in range(rounds):
            plane.pin(100 + turn)
            snapshot = plane.snapshot([100 + turn])
            writers.append(pool.submit(write, snapshot, plane.digest()))
            del snapshot
            stepping.set()
            step(plane, 3)
            if turn % 4 == 3:
                plane.difference(50)
                plane.apply("merge_replay", 50, 0.25)
                plane.release(50)
            plane.release(100 + turn)
        assert all(writer.result(DEADLINE_S) for writer in writers)


# --- what does not fit ----------------------------------------------------------------------------


def changed(layout, **fields):
    return layout | fields


def without(layout, name):
    return layout | {"arenas": [each for each in layout["arenas"] if each[0] != name]}


FIRST = list(range(len(MANIFEST.chunks)))


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda layout: changed(layout, dtype="float64"), "are float64, not float32"),
        (lambda layout: changed(layout, model="ab"), "another model: ab"),
        (lambda layout: changed(layout, counter=-1), "counter = -1"),
        (lambda layout: changed(layout, counter=1.5), "counter = 1.5"),
        (lambda layout: changed(layout, arenas=[["weights", FIRST]]), "unknown tensors: weights"),
        (lambda layout: changed(layout, arenas=[["model", FIRST[1:]]]), "'model' has"),
        (lambda layout: changed(layout, arenas=[["model", FIRST[::-1]]]), "bytes, not 64"),
        (lambda layout: changed(layout, payloads=[[7, [99] * len(FIRST)]]), "chunk 0 of 7: 99 of"),
        (lambda layout: changed(layout, payloads=[[7, [-1] * len(FIRST)]]), "chunk 0 of 7: -1 of"),
        (lambda layout: changed(layout, payloads=[[7, FIRST], [7, FIRST]]), "a name twice"),
        (lambda layout: changed(layout, payloads=[[7, ["0"]]]), "no layout of tensors"),
        (lambda layout: changed(layout, payloads=7), "no layout of tensors"),
        (lambda layout: {}, "no layout of tensors"),
        (lambda layout: without(layout, "momentum"), "chunks belong to nothing"),
        (lambda layout: without(layout, "snapshot"), "belong to nothing"),
    ],
)
def test_a_layout_that_does_not_fit_is_refused_in_one_line(damage, says):
    plane = server()
    step(plane)
    layout, chunks = contents(plane.snapshot())
    other = fresh()
    with pytest.raises(CheckpointError, match=says) as refused:
        other.restore(damage(layout), chunks)
    assert "\n" not in str(refused.value)
    other.restore(layout, chunks)  # Nothing was kept of the refused one.
    assert other.digest() == plane.digest()


@pytest.mark.parametrize(
    ("source", "target", "says"),
    [
        ({"average": 0.9}, {}, "keeps a mean"),
        ({}, {"exchanges": False}, "that exchanges"),
        ({"exchanges": False}, {}, "never exchanges"),
        ({}, {"outer": None}, "takes steps"),
        ({}, {"dtype": torch.float64}, "are float32, not float64"),
        ({}, {"manifest": Manifest(MANIFEST.specs, 32)}, "'model' has 9 chunks, not 16"),
        ({}, {"manifest": Manifest((TensorSpec("a", (114,)),), 64)}, "another model"),
    ],
)
def test_the_snapshot_of_a_plane_of_another_kind_is_refused(source, target, says):
    plane = server(**source)
    step(plane)
    with pytest.raises(CheckpointError, match=says):
        copy_of(plane, **target)


def test_everything_but_a_model_is_refused():
    plane = server(exchanges=False)
    step(plane)
    layout, chunks = contents(plane.snapshot())
    count = len(MANIFEST.chunks)
    arenas = [[name, [n - count for n in numbers]] for name, numbers in layout["arenas"][1:]]
    for rest, of_chunks in ((arenas, chunks[count:]), ([], [])):
        with pytest.raises(CheckpointError, match="everything but a model"):
            fresh(exchanges=False).restore(layout | {"arenas": rest}, of_chunks)


def test_a_truncated_chunk_is_refused():
    layout, chunks = contents(server().snapshot())
    with pytest.raises(CheckpointError, match="chunk 1 of 'model' has 60 bytes, not 64"):
        fresh().restore(layout, [chunks[0], chunks[1][:-4], *chunks[2:]])
    with pytest.raises(CheckpointError, match=r"chunk 8 of 'model': 8 of 8"):
        fresh().restore(layout, chunks[:-1])


def test_a_plane_that_has_parameters_is_not_restored():
    plane = server()
    with pytest.raises(AssertionError, match="fresh"):
        plane.restore(*contents(plane.snapshot()))


# --- settings that changed ------------------------------------------------------------------------


@pytest.mark.parametrize("delay", [1, 2])
def test_a_momentum_switched_on_later_starts_at_zero(delay):
    plane = server(outer=DelayedNesterov(0.3, 0.0, delay), exchanges=False)
    step(plane, 2)
    later = DelayedNesterov(0.3, 0.9, delay)
    other, alone = copy_of(plane, outer=later, exchanges=False), fresh(outer=later, exchanges=False)
    alone.adopt(1, plane.model())
    alone.apply("load", 1)
    step(other, 4), step(alone, 4)
    assert torch.equal(other.model(), alone.model())


def test_a_momentum_switched_off_is_dropped_and_so_is_its_accumulator():
    plane, later = server(exchanges=False), DelayedNesterov(0.3, 0.0, 2)
    step(plane, 3)
    other, alone = copy_of(plane, outer=later, exchanges=False), fresh(outer=later, exchanges=False)
    assert list(other.snapshot().arenas) == ["model"]
    assert other.memory_bytes() == MANIFEST.bytes
    alone.adopt(1, plane.model())
    alone.apply("load", 1)
    step(other), step(alone)
    assert torch.equal(other.model(), alone.model())


def test_a_mean_switched_on_later_starts_as_the_model():
    plane = server()
    step(plane, 3)
    other = copy_of(plane, average=0.9)
    assert torch.equal(other.average(), plane.model())
    step(other), step(plane)
    assert torch.equal(other.model(), plane.model())
    assert not torch.equal(other.average(), plane.model())


def test_the_model_as_sent_is_dropped_if_it_is_not_remembered_any_more_and_missing_if_it_was_not_before():
    plane = server(remember=True)
    plane.difference(10)
    assert list(copy_of(plane).snapshot().arenas) == ["model", "snapshot"]
    forgetful = server()
    forgetful.difference(10)
    other = copy_of(forgetful, remember=True)
    assert list(other.snapshot().arenas) == ["model", "snapshot"]
    step(other)
    other.adopt(11, numbers(11))
    other.apply("merge_carry", 11, 0.25)  # as before the first difference: nothing is kept
    other.difference(12)
    assert not other.lend(12).any()
