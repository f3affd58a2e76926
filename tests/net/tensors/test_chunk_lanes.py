"""The threads that perform planned work: order for each chunk, all work on a chunk at once, the end."""

import asyncio
import threading

import pytest

from pelago.net.tensors.chunk_lanes import ChunkLanes
from pelago.tensor.planned_work import PlannedWork

DEADLINE_S = 20


@pytest.mark.parametrize("threads", [1, 3])
async def test_each_chunk_sees_all_work_in_its_order_and_each_end_is_told_once(
    threads: int,
) -> None:
    chunks, works = 7, 20
    seen: list[list[int]] = [[] for _ in range(chunks)]
    ended: list[int] = []
    over = asyncio.Event()

    def work(number: int) -> PlannedWork:
        return PlannedWork(chunks, lambda at: seen[at].append(number), lambda _: None)

    def then(number: int) -> None:
        ended.append(number)
        if len(ended) == works:
            over.set()

    lanes = ChunkLanes(lambda error: pytest.fail(repr(error)), threads)
    for number in range(works):
        lanes.submit(work(number), lambda number=number: then(number))  # type: ignore[misc]
    async with asyncio.timeout(DEADLINE_S):
        await over.wait()
    lanes.close()
    assert seen == [list(range(works))] * chunks
    assert sorted(ended) == list(range(works))


async def test_all_queued_work_is_done_on_a_chunk_before_the_next_chunk() -> None:
    """The first work waits until two more are queued; those then share their way through the chunks."""
    may_go, calls = threading.Event(), []
    lanes = ChunkLanes(lambda error: pytest.fail(repr(error)), 1)
    lanes.submit(PlannedWork(1, lambda _: may_go.wait(DEADLINE_S) and None, lambda _: None))
    for name in "ab":
        lanes.submit(
            PlannedWork(2, lambda at, name=name: calls.append((name, at)), lambda _: None)  # type: ignore[misc]
        )
    may_go.set()
    lanes.close()
    assert calls == [("a", 0), ("b", 0), ("a", 1), ("b", 1)]


async def test_closing_finishes_what_is_queued() -> None:
    done: list[int] = []
    lanes = ChunkLanes(lambda error: pytest.fail(repr(error)), 2)
    for _ in range(50):
        lanes.submit(PlannedWork(4, done.append, lambda _: None))
    lanes.close()
    assert sorted(done) == sorted([0, 1, 2, 3] * 50)


async def test_work_that_fails_is_told_to_the_event_loop() -> None:
    fault: asyncio.Future[BaseException] = asyncio.get_running_loop().create_future()
    ends: list[BaseException | None] = []

    def fail(index: int) -> None:
        raise OSError(f"chunk {index}")

    lanes = ChunkLanes(fault.set_result, 1)
    lanes.submit(PlannedWork(2, fail, ends.append))
    async with asyncio.timeout(DEADLINE_S):
        assert str(await fault) == "chunk 0"
    lanes.close()
    assert [str(each) for each in ends] == ["chunk 0"]
