"""The start of a round and its pseudo-gradient, on the host and on a device."""

import pytest
import torch

from pelago.config.training import ModelSection
from pelago.tensor.payload import BufferPool, Payload
from tests.worker.corpora import TINY
from worker.models.build import build
from worker.models.language import LanguageModel
from worker.round_buffers import CudaBuffers, HostBuffers, round_buffers

DEVICES = [
    "cpu",
    pytest.param(
        "cuda",
        marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    ),
]
PIECES = ((0, 100), (100, 101), (101, 1000))


@pytest.fixture(params=DEVICES)
def model(request: pytest.FixtureRequest) -> LanguageModel:
    return build(ModelSection(overrides=TINY), 256, 0, torch.device(request.param))


def pieces_of(model: LanguageModel) -> list[tuple[int, int]]:
    return [*PIECES, (1000, model.elements)]


def test_a_round_begins_with_what_arrived_and_ends_with_the_difference(
    model: LanguageModel,
) -> None:
    """To the bit, twice in a row, so that memory is used again."""
    cuda = model.device.type == "cuda"
    pool = BufferPool(torch.float32, page_locked=cuda)
    buffers = round_buffers(model, pieces_of(model), pool)
    assert isinstance(buffers, CudaBuffers if cuda else HostBuffers)
    generator = torch.Generator().manual_seed(1)
    for _ in range(2):
        start = torch.rand(model.elements, generator=generator)
        moved = torch.rand(model.elements, generator=generator)
        buffers.load(Payload.of(start, pieces_of(model)))
        assert torch.equal(model.flat.cpu(), start)
        model.flat.copy_(moved)
        delta = buffers.delta()
        buffers.hand_over()
        assert delta.wait(0)
        assert [each.tensor.numel() for each in delta.complete_chunks()] == [
            stop - begin for begin, stop in pieces_of(model)
        ]
        assert torch.equal(delta.tensor(), start - moved)
        assert torch.equal(model.flat.cpu(), moved)


def test_no_memory_is_added_from_round_to_round(model: LanguageModel) -> None:
    pool = BufferPool(torch.float32, page_locked=model.device.type == "cuda")
    buffers = round_buffers(model, pieces_of(model), pool)
    start = Payload.of(torch.zeros(model.elements), pieces_of(model))
    for _ in range(3):
        buffers.load(start)
        delta = buffers.delta()
        buffers.hand_over()
        assert pool.free_bytes() == 0
        del delta
        assert pool.free_bytes() == 4 * model.elements
