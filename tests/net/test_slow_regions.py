"""Regions with slow links beside one with a fast link, over real sockets."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Final

import pytest
import torch

from gps.state import Gps
from pelago.config.servers import LpsSection
from pelago.core.machine import PS_PER_MS
from pelago.emulate.link import Link
from pelago.emulate.wan import WanProxy
from pelago.net.limits import Limits
from pelago.net.node import Node
from pelago.tensor.plane import Plane
from tests.net.golden_updates import START, GoldenRegion, gps_settings
from tests.net.nodes import Nodes, Script, eventually
from tests.net.transfer.test_cut_push import BIG, WINDOW, big_plane

STAGED_MAX: Final = 2
CRAWL: Final = 4 * BIG.chunk_bytes
"""Bytes a second: a quarter of a minute for an update, which others get across in no time."""
SLOW: Final = ("us", "asia")


@pytest.fixture(autouse=True)
async def all_is_killed_at_the_end(nodes: Nodes) -> AsyncIterator[None]:
    """A GPS would wait for its regions to leave."""
    torch.set_num_threads(1)
    yield
    for name in list(nodes.nodes):
        await nodes.kill(name)


def a_region(nodes: Nodes, name: str, port: int, count: int) -> tuple[Node, GoldenRegion]:
    """It has so many updates to send."""
    region = GoldenRegion(count, region=name)
    plane = Plane(BIG, None, exchanges=False)
    for number in range(1, count + 1):
        plane.adopt(number, torch.full((BIG.numel,), float(number)))
    limits = Limits(retry_ms=500, window_bytes=WINDOW * BIG.chunk_bytes)
    node = nodes.client(Script(region), f"lps-{name}", port=port, plane=plane, limits=limits)
    return node, region


async def test_slow_regions_that_hold_all_places_do_not_keep_another_out(nodes: Nodes) -> None:
    """1. Two regions hold both places, and their updates crawl. 2. A third one with a sound link comes: all of
    its updates are applied meanwhile. 3. Their links are well again: their updates go on at the chunk where
    they were, and are applied."""
    settings = replace(
        gps_settings(tick_ms=50),
        regions=("eu", *SLOW),
        staged_max=STAGED_MAX,
        lost_after_ps=300 * PS_PER_MS,
    )
    machine = Gps(settings)
    arriving_max = LpsSection(staged_max=STAGED_MAX).arriving_max
    limits = Limits(incoming_max=arriving_max, window_bytes=WINDOW * BIG.chunk_bytes)
    server = nodes.server(machine, plane=big_plane(), loaded=START, limits=limits)
    lower, *uppers = nodes.ports
    links = [Link(CRAWL, 0.0) for _ in SLOW]
    fast = Link(1e9, 0.0)
    slow: list[tuple[Node, GoldenRegion]] = []
    async with AsyncExitStack() as stack:
        for name, port, link in zip(SLOW, uppers, links, strict=True):
            for proxy in (
                WanProxy("127.0.0.1", port, "127.0.0.1", lower, fast, fast),
                WanProxy("127.0.0.1", port + 1, "127.0.0.1", lower + 1, link, fast),
            ):
                await stack.enter_async_context(proxy)
            slow.append(await started(nodes, name, port, 1))
        await eventually(lambda: server.transfers.incoming.active == STAGED_MAX)
        assert set(machine.admission.staging.granted) == {f"lps-{name}" for name in SLOW}
        _, sound = await started(nodes, "eu", lower, 5)
        await eventually(lambda: sound.outcomes == {n: {"applied"} for n in range(1, 6)})
        assert not any(region.outcomes for _, region in slow), "the links were not slow"
        for link in links:
            link.set_rate(1e9)
        await eventually(lambda: all(each.outcomes == {1: {"applied"}} for _, each in slow))
    for node, _ in slow:
        assert node.telemetry.counters["chunks_sent"] == len(BIG.chunks)


async def started(nodes: Nodes, name: str, port: int, count: int) -> tuple[Node, GoldenRegion]:
    """A region whose plane the machine may use."""
    node, region = a_region(nodes, name, port, count)
    await eventually(lambda: hasattr(node, "tensors"))
    for number in range(1, count + 1):
        node.tensors.created(number)
    return node, region
