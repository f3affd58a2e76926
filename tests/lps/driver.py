"""An LPS between its GPS and its workers, and the ways into its phases."""

from dataclasses import replace

from lps.machine_settings import LpsSettings
from lps.state import Lps
from pelago.core.machine import PS_PER_MS, Send, SetTick, Started
from pelago.core.names import Address, BlobId, Lease, Peer, PushId, Spans, Version
from pelago.core.notes.lps import LpsJoined
from pelago.core.tensor_effects import Measured
from pelago.wire.messages import (
    PROTOCOL_VERSION,
    Effect,
    Hello,
    LeaseGrant,
    Leave,
    Model,
    Offer,
    Pull,
    Push,
    Welcome,
    WorkerReport,
)
from tests.machine_driver import MachineDriver

SETTINGS = LpsSettings(
    gps="gps",
    region="eu",
    incarnation=0,
    updates_per_exchange=2,
    merge_weight=0.25,
    in_flight="drop",
    lease_ahead_ps=0,
    round_samples_max=8,
    sample_tokens=64,
    update_norm_max=10.0,
    rejected_max=3,
    max_lr=0.5,
    staged_max=1,
    wan=True,
    tick_ps=500 * PS_PER_MS,
    retry_ps=1000 * PS_PER_MS,
    lost_after_ps=5000 * PS_PER_MS,
)
"""Incarnation 0, so that leases are numbered from 1."""
PAYLOAD_BYTES = 100
"""The bytes of every payload that comes."""
GPS_HELLO = Send("gps", Hello(PROTOCOL_VERSION, "lps", Address("eu"), 0, "", ""))
REJOINING = Send("gps", Leave("rejoining", None, (), (), ()))
"""The messages of a region to a GPS that may still know it, before it says Hello again."""
REPORT = WorkerReport(0, 1, 2, 3, 4, 5, 6.0)


def gps_welcome(fence: int = 1) -> Welcome:
    """What the GPS says to a region."""
    return Welcome(9, fence, -1, (), "model", "corpus")


def hello(group: int = -1, incarnation: int = 1) -> Hello:
    """How a worker introduces itself."""
    return Hello(PROTOCOL_VERSION, "worker", Address("eu", group), incarnation, "model", "corpus")


def welcome(group: int, fence: int = 1) -> Welcome:
    """What the LPS answers."""
    return Welcome(0, fence, group, (), "model", "corpus")


def lease(number: int, spans: Spans, fence: int = 1, clock: int | None = None) -> Lease:
    """A lease as the LPS cuts it, of samples that were never lent before unless ``clock`` says so."""
    return Lease(PushId(number, fence), spans, spans[0][0] if clock is None else clock)


def reply(version: int, work: Lease, answers: PushId | None = None) -> Model:
    """The region's model with work to do; ``answers``: the worker's last update that was decided."""
    return Model(Version(0, version), 0, work, answers, final=False)


def update(work: Lease, base: int = 0, next_samples: int = 0) -> Push:
    """A worker's update: two steps, 64 tokens, loss 1.5."""
    return Push(work.push, Version(0, base), 2, 1, 64, 1.5, work.spans, (), next_samples)


def global_model(counter: int, answers: PushId | None = None) -> Model:
    """The GPS's model, as the answer to an exchange or to a Pull."""
    return Model(Version(9, counter), 0, None, answers, final=False)


class LpsDriver(MachineDriver):
    """Drives an LPS."""

    def __init__(self, **changed: object) -> None:
        self.lps = Lps(replace(SETTINGS, **changed))  # type: ignore[arg-type]
        super().__init__(self.lps, PAYLOAD_BYTES)
        self.served: list[Effect] = []
        """The effects that follow when it begins to serve."""
        self._blob = -100
        tick = [SetTick(self.lps.settings.tick_ps)] if self.lps.settings.tick_ps else []
        hello = replace(GPS_HELLO.message, incarnation=self.lps.settings.incarnation)
        assert self.happens(Started()) == [*tick, Send("gps", hello)]

    def serve(self) -> "LpsDriver":
        """It joins the GPS and loads the global model."""
        joined = LpsJoined(1)
        assert self.hears("gps", gps_welcome()) == [joined, Send("gps", Pull(0, 0))]
        self.served = self.hears("gps", global_model(0), -99)
        return self

    def join(self, peer: Peer, group: int = -1) -> "LpsDriver":
        """A worker joins."""
        self.hears(peer, hello(group))
        return self

    def grant(
        self, request: int, spans: Spans, fence: int = 1, clock: int | None = None
    ) -> list[Effect]:
        """The GPS lends samples, which were never lent before unless ``clock`` says so."""
        begun = spans[0][0] if clock is None else clock
        return self.hears("gps", LeaseGrant(request, fence, spans, begun))

    def work(self, peer: Peer, samples: int = 4) -> Lease:
        """A member asks for work and gets it; the GPS lends what is needed."""
        self.hears(peer, Pull(samples, 0))
        member = self.lps.workers.members.get(peer)
        assert member is not None
        if not member.leases:
            request = self.lps.workers.prefetch.request
            assert request is not None
            start = 4 * request.request - 4
            self.grant(request.request, ((start, start + request.samples),))
        member.replying = None
        return member.leases[-1]

    def push(self, peer: Peer, message: Push, norm: float = 1.0) -> list[Effect]:
        """An update is offered, arrives as blob -100, -101, ... and is measured; returns the effects."""
        blob: BlobId = self._blob
        self._blob -= 1
        self.hears(peer, Offer(message.push))
        self.hears(peer, message, blob)
        return self.happens(Measured(blob, norm, finite=True))

    def updates(self, peer: Peer, count: int) -> list[Effect]:
        """A member works for a number of rounds of 4 samples; returns the effects of the last."""
        effects: list[Effect] = []
        for _ in range(count):
            effects = self.push(peer, update(self.work(peer), base=self.lps.model.version))
        return effects
