"""The start of a round and its pseudo-gradient, on the host and on a device."""

import pytest
import torch

from pelago.config.training import ModelSection
from pelago.tensor.payload import ChunkBuffer, Payload
from pelago.tensor.slab import Slab
from tests.worker.corpora import TINY
from worker.models.build import build
from worker.models.language import LanguageModel
from worker.round_buffers import CudaBuffers, HostBuffers, round_buffers, runs_of

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
    slab = Slab(torch.float32, page_locked=cuda)
    buffers = round_buffers(model, pieces_of(model), slab)
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


@pytest.mark.parametrize("ended", [False, True])
def test_a_rebase_keeps_the_movement_of_the_round(model: LanguageModel, ended: bool) -> None:
    """In the course of a round, or after it; the pseudo-gradient is not changed. Numbers are small integers, so that
    sums are exact."""
    slab = Slab(torch.float32, page_locked=model.device.type == "cuda")
    buffers = round_buffers(model, pieces_of(model), slab, overlap=True)
    generator = torch.Generator().manual_seed(1)
    start, moved, server, later = (
        torch.randint(-9, 9, (model.elements,), generator=generator).float() for _ in range(4)
    )
    buffers.load(Payload.of(start, pieces_of(model)))
    for _ in range(2):
        model.flat.add_(moved.to(model.device))
        if ended:
            delta = buffers.delta()
            buffers.hand_over()
            buffers.rebase(Payload.of(server, pieces_of(model)))
        else:
            buffers.rebase(Payload.of(server, pieces_of(model)))
            model.flat.add_(later.to(model.device))
            delta = buffers.delta()
            buffers.hand_over()
        expected = moved if ended else moved + later
        assert torch.equal(delta.tensor(), -expected)
        assert torch.equal(model.flat.cpu(), server + expected)
        buffers.stay()


def test_no_memory_is_added_from_round_to_round(model: LanguageModel) -> None:
    slab = Slab(torch.float32, page_locked=model.device.type == "cuda")
    buffers = round_buffers(model, pieces_of(model), slab)
    start = Payload.of(torch.zeros(model.elements), pieces_of(model))
    for _ in range(3):
        buffers.load(start)
        delta = buffers.delta()
        buffers.hand_over()
        assert slab.free_bytes() == 0
        del delta
        assert slab.free_bytes() == 4 * model.elements


@pytest.mark.parametrize("late", [0, 2, 4])
def test_what_arrives_between_two_rounds_is_the_start_of_the_next(
    model: LanguageModel, late: int
) -> None:
    """To the bit, however many chunks are not here before another payload has taken its place, or was to."""
    slab = Slab(torch.float32, page_locked=model.device.type == "cuda")
    pieces = pieces_of(model)
    buffers = round_buffers(model, pieces, slab)
    starts = torch.rand(3, model.elements, generator=torch.Generator().manual_seed(2))
    for number, start in enumerate(starts):
        broken_off, coming = (Payload([None] * len(pieces)) for _ in range(2))
        buffers.expect(broken_off)
        fill(broken_off, slab, torch.full_like(start, 7.0), pieces, range(3))
        buffers.expect(coming)
        fill(coming, slab, start, pieces, range(late))
        if number == 1:
            buffers.load(Payload.of(starts[0], pieces))
            buffers.expect(coming)
            assert torch.equal(model.flat.cpu(), starts[0])
            buffers.delta()
            buffers.hand_over()
        fill(broken_off, slab, torch.full_like(start, 8.0), pieces, range(3, 4))
        fill(coming, slab, start, pieces, range(late, 4))
        buffers.load(coming)
        assert torch.equal(model.flat.cpu(), start)
        model.flat.mul_(2.0)
        delta = buffers.delta()
        buffers.hand_over()
        assert torch.equal(delta.tensor(), start - 2.0 * start)


def fill(
    payload: Payload,
    slab: Slab,
    flat: torch.Tensor,
    pieces: list[tuple[int, int]],
    indices: range,
) -> None:
    """Some chunks of ``flat`` arrive."""
    for index in indices:
        first, stop = pieces[index]
        payload.fill(index, ChunkBuffer(slab.take(stop - first).copy_(flat[first:stop])))


def test_neighbouring_chunks_are_copied_at_once_up_to_a_limit() -> None:
    pieces = [(0, 4), (4, 8), (8, 20), (20, 22), (22, 26), (26, 27)]
    assert runs_of(pieces, 8) == [range(0, 2), range(2, 3), range(3, 6)]
    assert runs_of(pieces, 1) == [range(index, index + 1) for index in range(6)]
    assert runs_of(pieces, 1000) == [range(0, 6)]
    assert runs_of([], 8) == []
