"""The golden updates of a GPS: a region that sends them over sockets, and the model that they give."""

import json
import runpy
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import torch

from gps.machine_settings import GpsSettings
from pelago.core.machine import (
    PS_PER_MS,
    Delivered,
    Finish,
    PeerLost,
    Received,
    Send,
    SetTick,
    Started,
    Tick,
)
from pelago.core.names import Address, PushId, Version
from pelago.core.tensor_effects import Release
from pelago.tensor.manifest import Manifest
from pelago.tensor.plane import Plane
from pelago.wire.messages import (
    PROTOCOL_VERSION,
    Ack,
    Effect,
    Event,
    Goodbye,
    Grant,
    Heartbeat,
    Hello,
    LeaseGrant,
    LeaseRequest,
    Leave,
    Model,
    Offer,
    Push,
    Rejoin,
    Welcome,
)

GOLDEN: Final = Path(__file__).parent.parent / "golden"
_REGENERATE: Final[dict[str, Any]] = runpy.run_path(str(GOLDEN / "regenerate.py"))

HELLO: Final = Hello(PROTOCOL_VERSION, "lps", Address("eu"), 1, "", "")
LEASED: Final = 10
START: Final = Version(1, 0)
MANIFEST: Final[Manifest] = _REGENERATE["ARRIVAL_MANIFEST"]


def updates() -> list[torch.Tensor]:
    """The golden ones, in their order."""
    found: list[torch.Tensor] = _REGENERATE["arrivals"]()
    return found


def a_push(number: int, fence: int, first: int = 0) -> Push:
    """What announces an update; ``first``: the first sample that its region was lent."""
    place = first + number - 1
    return Push(PushId(number, fence), START, 1, 1, 1, 0.0, ((place, place + 1),), (), 0)


def global_plane() -> Plane:
    """The plane of the golden GPS, as it is before the arrivals."""
    found: Plane = _REGENERATE["global_plane"]()
    return found


def empty_plane(manifest: Manifest) -> Plane:
    """A plane of the same use, without a model."""
    return Plane(manifest, global_plane()._outer, exchanges=False)


def global_digest(count: int | None = None) -> str:
    """The plane after so many arrivals (None: all), computed in one thread."""
    plane = global_plane()
    for number, update in enumerate(updates()[:count], start=1):
        plane.adopt(number, update)
        plane.apply("step", number)
        plane.release(number)
    return plane.digest()


def golden_digest() -> str | None:
    """The recorded one after all arrivals on this machine's instruction set, if there is one."""
    known = json.loads((GOLDEN / "global_model.json").read_text(encoding="utf-8"))
    assert known["AVX2"]["in_order"] != known["AVX2"]["reversed"]
    entry: dict[str, str] = known.get(torch.backends.cpu.get_cpu_capability(), {})
    return entry.get("in_order")


def gps_settings(tick_ms: int = 100) -> GpsSettings:
    """A GPS with one region that may be silent without a limit."""
    return GpsSettings(
        regions=("eu",),
        incarnation=1,
        manifest=(),
        fingerprint=MANIFEST.fingerprint,
        corpus="",
        budget_local_steps=10**6,
        budget_ps=0,
        sample_tokens=64,
        update_norm_max=1e9,
        rejected_max=4,
        max_lr=0.5,
        staleness_power=0.0,
        staged_max=1,
        tick_ps=tick_ms * PS_PER_MS,
        retry_ps=100 * PS_PER_MS,
        lost_after_ps=2000 * PS_PER_MS,
        region_lost_after_ps=10**6 * PS_PER_MS,
    )


def sender_plane() -> Plane:
    """A region's plane with all updates, payloads 1, 2, ..."""
    plane = Plane(MANIFEST, None, exchanges=False)
    for number, update in enumerate(updates(), start=1):
        plane.adopt(number, update)
    return plane


class GoldenRegion:
    """Exchanges with the GPS one prepared update after the other, and asks again as an LPS would.

    ``leaves``: says goodbye when all are acknowledged, and ends.
    """

    def __init__(
        self, count: int = 7, *, leaves: bool = False, tick_ms: int = 20, region: str = "eu"
    ) -> None:
        self.outcomes: dict[int, set[str]] = {}
        """The outcomes that it received for each update."""
        self.fences: set[int] = set()
        self.rejoins = 0
        self._hello = replace(HELLO, address=Address(region))
        self._count = count
        self._leaves = leaves
        self._tick_ms = tick_ms
        self._number = 0
        self._fence = 0
        self._first = 0
        self._sending = False

    def __call__(self, event: Event) -> list[Effect]:
        match event:
            case Started():
                return [SetTick(self._tick_ms * PS_PER_MS)]
            case Tick():
                gone = self._leaves and self._number > self._count
                beats = [Send("gps", Heartbeat(None))] if self._fence and not gone else []
                return [*beats, *self._ask()]
            case Received(_, Welcome(fence=fence)):
                self.fences.add(fence)
                self._fence = fence
                return self._ask()
            case Received(_, LeaseGrant(spans=spans)) if self._number == 0:
                self._number, self._first = 1, spans[0][0]
                return self._ask()
            case Received(_, Grant(push)) if push.lease == self._number and not self._sending:
                self._sending = True
                message = a_push(self._number, self._fence, self._first)
                return [Send("gps", message, self._number)]
            case Delivered() | PeerLost():
                self._sending = False
                return []
            case Received(_, Ack(push, outcome)):
                self.outcomes.setdefault(push.lease, set()).add(outcome)
                if push.lease != self._number:
                    return []  # A repeat.
                self._number += 1
                self._sending = False
                return self._ask()
            case Received(_, Model(), blob) if blob is not None:
                return [Release(blob)]
            case Received(_, Rejoin()):
                self.rejoins += 1
                return []
            case Received(_, Goodbye()) if self._number > self._count:
                return [Finish("all is acknowledged")]
            case _:
                return []

    def _ask(self) -> list[Effect]:
        if not self._fence:
            return [Send("gps", self._hello)]
        if not self._number:
            return [Send("gps", LeaseRequest(1, LEASED, 0))]
        if self._number <= self._count:
            offer = Offer(PushId(self._number, self._fence))
            return [] if self._sending else [Send("gps", offer)]
        return [Send("gps", Leave("done", None, (), (), ()))] if self._leaves else []
