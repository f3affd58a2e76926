"""The manifest: a model's arena, its fingerprint and its chunks."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pelago.tensor.manifest import CHUNK_BYTES, ELEMENT_BYTES, MODEL_BYTES_MAX, Manifest, Piece
from pelago.wire.messages import CHUNK_BYTES_MAX, TensorSpec

SMALL = (TensorSpec("a", (2, 3)), TensorSpec("b", ()), TensorSpec("c", (5,)))
shapes = st.lists(st.integers(1, 7), max_size=3).map(tuple)
models = st.lists(shapes, min_size=1, max_size=6).map(
    lambda found: tuple(TensorSpec(str(index), shape) for index, shape in enumerate(found))
)


def test_offsets_follow_from_the_order_of_the_specs():
    manifest = Manifest(SMALL)
    assert manifest.offsets == (0, 6, 7, 12)
    assert (manifest.numel, manifest.bytes) == (12, 48)


def test_chunks_do_not_cross_tensors():
    assert Manifest(SMALL, chunk_bytes=4 * ELEMENT_BYTES).chunks == (
        Piece(0, 4),
        Piece(4, 6),
        Piece(6, 7),
        Piece(7, 11),
        Piece(11, 12),
    )


@given(specs=models, elements=st.integers(1, 50))
def test_chunks_tile_the_arena_in_order(specs, elements):
    manifest = Manifest(specs, chunk_bytes=elements * ELEMENT_BYTES)
    assert [piece.start for piece in manifest.chunks[1:]] == [
        piece.stop for piece in manifest.chunks[:-1]
    ]
    assert (manifest.chunks[0].start, manifest.chunks[-1].stop) == (0, manifest.numel)
    assert all(0 < stop - start <= elements for start, stop in manifest.chunks)
    assert set(manifest.offsets) <= {0} | {piece.stop for piece in manifest.chunks}


def test_a_chunk_fits_a_frame_by_default_in_float64_too():
    assert 2 * CHUNK_BYTES <= CHUNK_BYTES_MAX


def test_the_fingerprint_is_stable():
    assert Manifest(SMALL).fingerprint == "17e67f89eb0d3e31cf66c9c17917f0f7"


@pytest.mark.parametrize(
    "specs",
    [
        (SMALL[1], SMALL[0], SMALL[2]),
        (TensorSpec("a", (3, 2)), *SMALL[1:]),
        (TensorSpec("A", (2, 3)), *SMALL[1:]),
        SMALL[:2],
        (SMALL[0], TensorSpec("b", (1,)), SMALL[2]),
    ],
)
def test_any_change_of_names_shapes_or_order_changes_the_fingerprint(specs):
    assert Manifest(specs).fingerprint != Manifest(SMALL).fingerprint


def test_views_are_the_arena_itself():
    flat = torch.arange(12.0)
    views = Manifest(SMALL).named_views(flat)
    assert {name: tuple(view.shape) for name, view in views.items()} == {
        "a": (2, 3),
        "b": (),
        "c": (5,),
    }
    views["b"].fill_(-1)
    views["c"][0] = -2
    assert flat.tolist() == [0, 1, 2, 3, 4, 5, -1, -2, 8, 9, 10, 11]


@pytest.mark.parametrize(
    ("specs", "says"),
    [
        ((), "at least one"),
        ((TensorSpec("a", (1,)), TensorSpec("a", (2,))), "'a'"),
        ((TensorSpec("", (1,)),), "not empty"),
        ((TensorSpec("a", (3, 0)),), "positive"),
        ((TensorSpec("a", (-1,)),), "positive"),
        ((TensorSpec("a", (MODEL_BYTES_MAX // ELEMENT_BYTES, 2)),), "more than"),
        ((TensorSpec("a", (2**64 - 1,) * 16),), "more than"),
        ((TensorSpec("a", (1,) * 17),), "dimensions"),
    ],
)
def test_specs_that_are_no_model_are_refused(specs, says):
    with pytest.raises(ValueError, match=says):
        Manifest(specs)


@pytest.mark.parametrize("chunk_bytes", [0, ELEMENT_BYTES - 1, CHUNK_BYTES_MAX + 1])
def test_a_chunk_size_outside_the_limits_is_refused(chunk_bytes):
    with pytest.raises(ValueError, match="chunk_bytes"):
        Manifest(SMALL, chunk_bytes=chunk_bytes)
