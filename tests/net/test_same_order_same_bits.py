"""The global model depends on the arrivals and their order, not on sockets, threads or chunks."""

import json
import runpy
from pathlib import Path
from typing import Any

import torch

from gps.state import Gps, GpsSettings
from pelago.core.machine import PS_PER_MS, Received, Send, SetTick, Started, Tick
from pelago.core.names import Address, PushId, Version
from pelago.tensor.plane import Plane
from pelago.wire.messages import (
    PROTOCOL_VERSION,
    Ack,
    Effect,
    Event,
    Grant,
    Hello,
    LeaseGrant,
    LeaseRequest,
    Offer,
    Push,
    Welcome,
)
from tests.net.house import House, Script, settled

GOLDEN = Path(__file__).parent.parent / "golden"
LEASED = 10


class Region:
    """Exchanges with the GPS one prepared update after the other, as an LPS would."""

    def __init__(self, updates: int) -> None:
        self._updates = updates
        self._number = 0
        self._fence = 0

    def __call__(self, event: Event) -> list[Effect]:
        match event:
            case Started():
                return [SetTick(50 * PS_PER_MS)]
            case Tick() if self._fence == 0:
                return [Send("gps", Hello(PROTOCOL_VERSION, "lps", Address("eu"), 1, "", ""))]
            case Received(_, Welcome(fence=fence)):
                self._fence = fence
                return [Send("gps", LeaseRequest(1, LEASED))]
            case Received(_, LeaseGrant()) | Received(_, Ack()):
                if self._number == self._updates:
                    return []
                self._number += 1
                return [Send("gps", Offer(PushId(self._number, self._fence)))]
            case Received(_, Grant(push)):
                spans = ((self._number - 1, self._number),)
                message = Push(push, Version(1, 0), 1, 1, 1, 0.0, spans, (), 0)
                return [Send("gps", message, self._number)]
            case _:
                return []


async def test_arrivals_over_sockets_give_the_golden_bits(house: House) -> None:
    """1. A real GPS node serves; a region pushes seven updates of eleven chunks each, in order.
    2. Its parameters and momenta equal those of the same steps in one thread, to the bit.
    3. Those are the golden ones of this instruction set."""
    golden: dict[str, Any] = runpy.run_path(str(GOLDEN / "regenerate.py"))
    torch.set_num_threads(1)
    manifest, updates = golden["ARRIVAL_MANIFEST"], golden["arrivals"]()
    settings = GpsSettings(
        regions=("eu",),
        incarnation=1,
        manifest=(),
        fingerprint=manifest.fingerprint,
        corpus="",
        budget_local_steps=10**6,
        budget_ps=0,
        update_norm_max=1e9,
        staleness_power=0.0,
        staged_max=1,
        tick_ps=100 * PS_PER_MS,
        retry_ps=100 * PS_PER_MS,
        lost_after_ps=2000 * PS_PER_MS,
        region_lost_after_ps=10**6 * PS_PER_MS,
    )
    server = house.start(
        Gps(settings),  # type: ignore[arg-type]
        "gps",
        server=house.bind(),
        plane=golden["global_plane"](),
        loaded=Version(1, 0),
    )
    sender = Plane(manifest, None, exchanges=False)
    for number, update in enumerate(updates, start=1):
        sender.adopt(number, update)
    region = Script(Region(len(updates)))
    client = house.client(region, plane=sender)
    await region.hears(Started)
    for number in range(1, len(updates) + 1):
        client.tensors.created(number)
    await region.hears(Ack, len(updates))
    await settled(server)

    digest = server.tensors.plane.digest()
    assert digest == golden["global_model"]()["in_order"]
    known = json.loads((GOLDEN / "global_model.json").read_text(encoding="utf-8"))
    capability = torch.backends.cpu.get_cpu_capability()
    assert digest == known.get(capability, {"in_order": digest})["in_order"]
    assert known["AVX2"]["in_order"] != known["AVX2"]["reversed"]
