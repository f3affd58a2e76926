"""Every encoding: its sizes, its error, and that what was rounded once travels without further error."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pelago.tensor.encodings.blockwise import INT4, INT8
from pelago.tensor.encodings.counter import random_bits
from pelago.tensor.encodings.encoding import Encoding
from pelago.tensor.encodings.plain import BF16, FP32
from pelago.tensor.encodings.registry import ENCODINGS

CPU = torch.device("cpu")
every = pytest.mark.parametrize("encoding", ENCODINGS.values(), ids=list(ENCODINGS))
lossy = pytest.mark.parametrize("encoding", [BF16, INT8, INT4], ids=lambda each: each.name)
SIZES = [1, 2, 63, 127, 128, 129, 255, 256, 257, 1000, 4096]


def normal(elements: int, seed: int = 1, scale: float = 1e-3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(elements, generator=generator) * scale


def decoded(encoding: Encoding, chunk: torch.Tensor) -> torch.Tensor:
    return encoding.decode(encoding.encode(chunk), chunk.numel())


@every
@pytest.mark.parametrize("elements", SIZES)
def test_the_size_follows_from_the_number_of_elements(encoding: Encoding, elements: int) -> None:
    encoded = memoryview(encoding.encode(normal(elements)))
    assert encoded.nbytes == encoding.chunk_bytes(elements)
    assert encoding.decode(encoded, elements).shape == (elements,)


def test_a_chunk_of_a_mebibyte_shrinks_as_it_should() -> None:
    elements = 1 << 18
    ratios = [4 * elements / each.chunk_bytes(elements) for each in (FP32, BF16, INT8, INT4)]
    assert ratios == pytest.approx([1, 2, 3.94, 7.76], abs=0.005)


@lossy
@pytest.mark.parametrize("elements", SIZES)
@pytest.mark.parametrize("scale", [1e-40, 1e-30, 1e-8, 1e-3, 1.0, 1e30])
def test_what_was_rounded_is_encoded_without_error(
    encoding: Encoding, elements: int, scale: float
) -> None:
    """So a payload may be sent again, or over several hops, and stays what its sender kept."""
    rounded = encoding.round(normal(elements, scale=scale), key=5)
    assert torch.isfinite(rounded).all()
    assert torch.equal(decoded(encoding, rounded), rounded)
    once = bytes(memoryview(encoding.encode(rounded)))
    assert bytes(memoryview(encoding.encode(decoded(encoding, rounded)))) == once


@pytest.mark.parametrize(
    ("encoding", "block", "largest"), [(INT8, 256, 127), (INT4, 128, 7)], ids=["int8", "int4"]
)
def test_an_element_is_half_a_step_of_its_block_off_at_most(
    encoding: Encoding, block: int, largest: int
) -> None:
    values = normal(1000)
    error = (decoded(encoding, values) - values).abs()
    for first in range(0, 1000, block):
        peak = float(values[first : first + block].abs().max())
        # The scale is rounded up by less than 1 in 128.
        assert float(error[first : first + block].max()) <= peak / largest / 2 * 1.008


def test_blocks_do_not_share_a_scale() -> None:
    """One large element costs only its own block precision."""
    values = normal(512)
    values[0] = 1e6
    error = (decoded(INT8, values) - values).abs()
    assert float(error[256:].max()) < 2e-5
    assert float(error[1:256].max()) > 1e-4


def test_bf16_is_the_nearest_where_a_chunk_is_encoded() -> None:
    values = normal(1000)
    assert torch.equal(decoded(BF16, values), values.bfloat16().float())


def test_bf16_rounds_an_update_without_bias() -> None:
    """1 + 1/1024 lies an eighth of the way from 1 to the next bf16: an eighth of the elements go up."""
    values = torch.full((1 << 16,), 1 + 1 / 1024)
    rounded = BF16.round(values, key=3)
    assert set(rounded.tolist()) == {1.0, 1 + 1 / 128}
    assert float((rounded > 1).float().mean()) == pytest.approx(1 / 8, abs=0.01)
    assert not torch.equal(rounded, BF16.round(values, key=4))
    assert torch.equal(rounded, BF16.round(values, key=3))


def test_bf16_leaves_the_largest_numbers_finite() -> None:
    largest = torch.full((256,), torch.finfo(torch.float32).max)
    assert torch.isfinite(BF16.round(largest, key=1)).all()
    assert torch.isfinite(BF16.round(-largest, key=1)).all()


@every
@pytest.mark.parametrize("poison", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_arrives_so(encoding: Encoding, poison: float) -> None:
    """The receiver's measurement must find it, however it was rounded before."""
    values = normal(1000)
    values[700] = poison
    for chunk in (values, encoding.round(values, key=2)):
        found = torch.isfinite(decoded(encoding, chunk))
        assert not found[700]
        assert found[:512].all()


@every
@given(data=st.data())
def test_any_bytes_of_the_right_length_are_decoded(encoding: Encoding, data: st.DataObject) -> None:
    elements = data.draw(st.sampled_from([1, 5, 129, 300]))
    size = encoding.chunk_bytes(elements)
    buffer = data.draw(st.binary(min_size=size, max_size=size))
    found = encoding.decode(buffer, elements)
    assert (found.dtype, found.shape) == (torch.float32, (elements,))


@every
def test_rounding_does_not_write_to_its_argument(encoding: Encoding) -> None:
    values = normal(300)
    before = values.clone()
    encoding.round(values, key=1)
    encoding.encode(values)
    assert torch.equal(values, before)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@every
def test_a_gpu_encodes_the_same_bytes(encoding: Encoding) -> None:
    values = normal(100_000)
    here, there = encoding.round(values, key=9), encoding.round(values.cuda(), key=9)
    assert torch.equal(here, there.cpu())
    assert bytes(memoryview(encoding.encode(there))) == bytes(memoryview(encoding.encode(here)))


def _bits(key: int) -> list[int]:
    return random_bits(4, key, CPU).tolist()


@pytest.mark.parametrize("wrap", [lambda key: key, lambda key: key + (1 << 32)])
def test_random_bits_follow_from_index_and_key(wrap: Callable[[int], int]) -> None:
    assert _bits(wrap(7)) == _bits(7)
    assert _bits(7) != _bits(8)


def test_random_bits_are_even() -> None:
    """Each of 32 bits is set in half of the elements, for a small key and for one with the highest bit."""
    for key in (1, 1 << 31):
        bits = random_bits(1 << 14, key, CPU)
        shares = [float((bits >> place & 1).float().mean()) for place in range(32)]
        assert shares == pytest.approx([0.5] * 32, abs=0.02)
