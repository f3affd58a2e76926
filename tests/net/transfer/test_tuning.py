"""Connections and windows that follow what payloads measure, between two real nodes."""

import pytest

from pelago.core.machine import Delivered, Started
from pelago.net.limits import WINDOW_BYTES_MIN, Limits
from pelago.protocol.climber import STRIPES_CHOSEN_MAX
from pelago.runlog.events import StripesChosen, WindowChosen
from pelago.runlog.log import lines_of, read_log
from pelago.tensor.manifest import Manifest
from pelago.tensor.plane import Plane
from pelago.wire.messages import TensorSpec
from tests.net.nodes import Nodes, eventually
from tests.net.transfer.test_transfers import give, pushing, welcoming

TUNED = Manifest((TensorSpec("w", (1 << 22,)),))
"""16 MiB, the smallest payload that says something about connections."""
SMALL = Manifest((TensorSpec("w", ((1 << 22) - 1,)),))


async def pushed(
    nodes: Nodes, limits: Limits
) -> tuple[int, list[StripesChosen], list[WindowChosen]]:
    """How many connections a client opened until after a push, and what it logged."""
    server, client = welcoming(), pushing()
    nodes.server(server, plane=Plane(nodes.manifest, None))
    below = nodes.client(client, plane=Plane(nodes.manifest, None), limits=limits)
    await client.hears(Started)
    give(below, nodes.flat(2))
    await client.hears(Delivered)
    opened = len(below._connections._clients["gps"].bulk)
    await eventually(lambda: below._connections.stripes("gps") == opened)
    await nodes.stop("lps-1")
    log = read_log(nodes.folder / "lps-1.jsonl")
    stripes = [event for _, event in lines_of(StripesChosen, log)]
    return opened, stripes, [event for _, event in lines_of(WindowChosen, log)]


@pytest.mark.parametrize(
    ("manifest", "adapts", "opened"), [(TUNED, True, 2), (SMALL, True, 1), (TUNED, False, 1)]
)
async def test_a_large_payload_makes_a_client_try_more_connections(
    nodes: Nodes, manifest: Manifest, adapts: bool, opened: int
) -> None:
    ours = Nodes(nodes.folder, nodes.nodes, nodes.ports, manifest)
    found, chosen, _ = await pushed(ours, Limits(retry_ms=100, stripes_adapt=adapts))
    assert found == opened <= STRIPES_CHOSEN_MAX
    assert [(each.server, each.stripes, each.direction) for each in chosen] == (
        [("gps", 2, "sent")] if opened == 2 else []
    )


@pytest.mark.parametrize("adapts", [True, False])
async def test_the_log_says_which_window_was_measured(nodes: Nodes, adapts: bool) -> None:
    ours = Nodes(nodes.folder, nodes.nodes, nodes.ports, TUNED)
    _, _, chosen = await pushed(ours, Limits(retry_ms=100, window_adapts=adapts))
    assert bool(chosen) == adapts
    for each in chosen:
        assert each.to == "gps"
        assert each.bytes_per_s > 0 < each.round_trip_ms
        assert each.window_bytes >= WINDOW_BYTES_MIN


async def test_all_windows_together_have_a_limit(nodes: Nodes) -> None:
    ours = Nodes(nodes.folder, nodes.nodes, nodes.ports, TUNED)
    limits = Limits(retry_ms=100, window_adapts=True, windows_bytes_max=2 << 20)
    _, _, chosen = await pushed(ours, limits)
    assert {each.window_bytes for each in chosen} == {2 << 20}
