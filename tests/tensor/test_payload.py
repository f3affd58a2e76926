"""Payloads that fill chunk by chunk, from any thread, and the memory that their chunks are in."""

import gc
import threading

import pytest
import torch

from pelago.tensor.payload import ChunkBuffer, Payload
from pelago.tensor.slab import Slab


def chunk(value: float) -> ChunkBuffer:
    return ChunkBuffer(torch.full((4,), value))


def test_a_flat_tensor_in_pieces_is_the_same_memory() -> None:
    flat = torch.arange(8.0)
    payload = Payload.of(flat, ((0, 3), (3, 8)))
    assert [each.tensor.tolist() for each in payload.complete_chunks()] == [
        [0, 1, 2],
        [3, 4, 5, 6, 7],
    ]
    assert payload.tensor() is flat
    assert payload.wait(0)


def test_a_payload_is_complete_when_its_last_chunk_is_here() -> None:
    payload = Payload([None, None, None])
    for index in (2, 0):
        payload.fill(index, chunk(index))
        assert not payload.wait(0)
    with pytest.raises(AssertionError, match="1 of 3 chunks are missing"):
        payload.complete_chunks()
    payload.fill(1, chunk(1))
    assert payload.wait(0)
    assert payload.tensor().tolist() == [0.0] * 4 + [1.0] * 4 + [2.0] * 4


def test_a_chunk_that_is_here_stays() -> None:
    payload = Payload([None])
    payload.fill(0, chunk(1))
    payload.fill(0, chunk(2))
    assert payload.missing == 0
    assert payload.tensor().tolist() == [1.0] * 4


def test_who_waits_for_a_chunk_is_called_once_and_at_once_if_it_is_here() -> None:
    payload, called = Payload([None, None]), list[str]()
    payload.when_here(1, lambda: called.append("waited"))
    payload.fill(0, chunk(0))
    assert called == []
    payload.fill(1, chunk(1))
    payload.when_here(1, lambda: called.append("here"))
    assert called == ["waited", "here"]


def test_another_thread_may_fill_it() -> None:
    payload = Payload([None] * 50)
    threads = [
        threading.Thread(target=lambda begin=begin: fill_every_second(payload, begin))
        for begin in (0, 1)
    ]
    for thread in threads:
        thread.start()
    assert payload.wait(10)
    assert [each.tensor[0] for each in payload.complete_chunks()] == list(range(50))


def fill_every_second(payload: Payload, begin: int) -> None:
    for index in range(begin, 50, 2):
        payload.fill(index, chunk(index))


def test_memory_is_used_again_when_its_last_view_is_gone() -> None:
    slab = Slab(torch.float32)
    first = slab.take(16)
    address, view = first.data_ptr(), first[4:]
    del first
    gc.collect()
    assert slab.free_bytes() == 0
    del view
    gc.collect()
    assert slab.free_bytes() == 64
    assert slab.take(16).data_ptr() == address


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_page_locked_memory_is_cut_from_large_extents() -> None:
    slab = Slab(torch.float32, page_locked=True)
    taken = [slab.take(size) for size in (1000, 5, 1 << 20)]
    assert all(each.is_pinned() for each in taken)
    assert [each.data_ptr() % 256 for each in taken] == [0, 0, 0]
    for value, each in enumerate(taken):
        each.fill_(value)
    assert [each.unique().tolist() for each in taken] == [[0.0], [1.0], [2.0]]
