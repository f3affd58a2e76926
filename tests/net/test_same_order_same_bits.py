"""The global model depends on the arrivals and their order, not on sockets, threads or chunks."""

import torch

from gps.state import Gps
from pelago.core.machine import Started
from tests.net.golden_updates import (
    START,
    GoldenRegion,
    global_digest,
    global_plane,
    golden_digest,
    gps_settings,
    sender_plane,
)
from tests.net.nodes import Nodes, Script, settled


async def test_arrivals_over_sockets_give_the_golden_bits(nodes: Nodes) -> None:
    """1. A real GPS node serves; a region pushes seven updates of eleven chunks each, in order.
    2. Its parameters and momenta equal those of the same steps in one thread, to the bit.
    3. Those are the golden ones of this instruction set."""
    torch.set_num_threads(1)
    server = nodes.start(
        Gps(gps_settings()), "gps", server=nodes.bind(), plane=global_plane(), loaded=START
    )
    region = GoldenRegion()
    machine = Script(region)
    client = nodes.client(machine, plane=sender_plane())
    await machine.hears(Started)
    for number in range(1, 8):
        client.tensors.created(number)
    await machine.until(lambda: len(region.outcomes) == 7)
    await settled(server)

    digest = server.tensors.plane.digest()
    assert digest == global_digest()
    assert golden_digest() in (None, digest)
    # The GPS would wait for its region to leave.
    await nodes.kill("lps-1")
    await nodes.kill("gps")
