"""A GPS with two regions, and the ways into its phases."""

from gps.machine_settings import GpsSettings
from gps.state import Gps
from pelago.core.machine import PS_PER_MS, Send, SetTick, Started
from pelago.core.names import Address, BlobId, PushId, Spans, Version
from pelago.core.notes.gps import Serving
from pelago.core.tensor_effects import Loaded, Measured
from pelago.wire.messages import (
    PROTOCOL_VERSION,
    Effect,
    Evaluated,
    Hello,
    LeaseRequest,
    Model,
    Offer,
    Pull,
    Push,
    RegionReport,
    Role,
    TensorSpec,
    Welcome,
)
from tests.machine_driver import MachineDriver

MANIFEST = (TensorSpec("weight", (4,)),)
SETTINGS = GpsSettings(
    regions=("eu", "us"),
    incarnation=1,
    manifest=MANIFEST,
    fingerprint="model",
    corpus="corpus",
    budget_local_steps=10,
    budget_ps=0,
    sample_tokens=64,
    update_norm_max=10.0,
    rejected_max=3,
    max_lr=0.5,
    staleness_power=0.0,
    staged_max=1,
    tick_ps=500 * PS_PER_MS,
    retry_ps=1000 * PS_PER_MS,
    lost_after_ps=5000 * PS_PER_MS,
    region_lost_after_ps=60_000 * PS_PER_MS,
)
REPORT = RegionReport(3, 1, 0, 2, 0, 0, False, ())


def hello(role: Role, region: str = "", incarnation: int = 1) -> Hello:
    """How a client of the GPS introduces itself."""
    digests = ("model", "corpus") if role == "evaluator" else ("", "")
    return Hello(PROTOCOL_VERSION, role, Address(region), incarnation, *digests)


def welcome(fence: int) -> Welcome:
    """The answer to an LPS; an evaluator gets fence 0 and no manifest."""
    return Welcome(1, fence, -1, MANIFEST if fence else (), "model", "corpus")


def update(push: PushId, spans: Spans, dropped: Spans = (), steps: int = 1, base: int = 0) -> Push:
    """An exchange of three updates."""
    return Push(push, Version(1, base), steps, 3, 64, 1.5, spans, dropped, 0)


def model(counter: int, steps: int, *, final: bool = False) -> Model:
    """What an evaluator is sent."""
    return Model(Version(1, counter), steps, None, None, final)


def found(counter: int, steps: int, loss: float = 2.5) -> Evaluated:
    """What an evaluator reports, of 100 tokens."""
    return Evaluated(Version(1, counter), steps, loss, 100)


class GpsDriver(MachineDriver):
    """A conversation with the GPS."""

    def __init__(self, settings: GpsSettings = SETTINGS) -> None:
        self.gps = Gps(settings)
        super().__init__(self.gps)
        assert self.happens(Started()) == [SetTick(settings.tick_ps)]

    def load(self) -> "GpsDriver":
        """The initial model is in the arena."""
        first = Version(self.gps.settings.incarnation, 0)
        assert self.happens(Loaded(first)) == [Serving(("eu", "us"))]
        return self

    def join(self, peer: str, region: str, samples: int = 0, incarnation: int = 1) -> "GpsDriver":
        """An LPS joins, and borrows samples."""
        self.hears(peer, hello("lps", region, incarnation))
        if samples:
            self.hears(peer, LeaseRequest(1, samples, 0))
        return self

    def evaluate(self, peer: str = "judge", after_steps: int = 0) -> list[Effect]:
        """An evaluator joins and asks for a version."""
        assert self.hears(peer, hello("evaluator")) == [Send(peer, welcome(0))]
        return self.hears(peer, Pull(0, after_steps))

    def push(self, peer: str, message: Push, blob: BlobId, norm: float = 1.0) -> list[Effect]:
        """An update is offered, arrives and is measured; returns what follows from that."""
        self.hears(peer, Offer(message.push))
        self.hears(peer, message, blob)
        return self.happens(Measured(blob, norm, finite=True))
