"""A whole small run in memory, over a network with every kind of fault.

Messages are lost, repeated, reordered and delayed; processes die, are replaced and are cut off. A payload is not
a tensor but the set of samples whose gradients it contains. So the scenario knows, independently of every ledger,
which samples moved the global model; the fuzzer of `convergence.fuzz` reads ledgers instead.
"""

import heapq
from dataclasses import dataclass, field, fields, replace
from random import Random

from gps.machine_settings import GpsSettings
from gps.state import Gps
from lps.exchange import InFlight
from lps.machine_settings import LpsSettings
from lps.state import Lps
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
from pelago.core.names import Address, BlobId, Lease, Peer, Version
from pelago.core.notes.note import Note
from pelago.core.spans import SpanSet
from pelago.core.tensor_effects import Apply, Difference, Loaded, Measure, Measured, Pin, Release
from pelago.core.training_effects import Cancel, Progress, Train, Trained, Validate, Validated
from pelago.wire.codec import decode_message, encode
from pelago.wire.messages import Effect, Event
from worker.client_settings import ClientSettings
from worker.evaluator.state import Evaluator, EvaluatorSettings
from worker.state import Worker, WorkerSettings

TICK = 500 * PS_PER_MS
RETRY, LOST, REGION_LOST = 2 * TICK, 10 * TICK, 24 * TICK
LATE = 12 * TICK
STEPS, BATCH = 2, 4
RUN = "ledgers"


@dataclass(frozen=True)
class LossRates:
    """Probabilities, per message or update or per tick of a node."""

    loss: float = 0.05
    repeat: float = 0.1
    late: float = 0.05
    rejected: float = 0.03
    worker_dies: float = 0.004
    region_dies: float = 0.001
    cut_off: float = 0.003

    @classmethod
    def swarm(cls, random: Random) -> "LossRates":
        """Some kinds of fault are absent, some rare, some frequent, different in each scenario."""
        usual = cls()
        return cls(
            **{
                each.name: getattr(usual, each.name) * random.choice((0, 1, 4))
                for each in fields(cls)
            }
        )


@dataclass
class ScenarioNode:
    """One process."""

    name: Peer
    """The name of its connection at its peers."""
    machine: Gps | Lps | Worker | Evaluator
    blobs: dict[BlobId, SpanSet] = field(default_factory=dict)
    spoilt: set[BlobId] = field(default_factory=set)
    """Payloads whose norm or finiteness forbids to apply them."""
    next_blob: BlobId = -1
    training: Lease | None = None
    cut_off_until: int = 0
    alive: bool = True
    finish: Finish | None = None
    model: SpanSet = field(default_factory=SpanSet)
    """Samples whose movement is in the GPS's model, or in an LPS's snapshot - model."""
    mark: SpanSet = field(default_factory=SpanSet)
    """LPS: what the last `Difference` contained."""

    def adopt(self, content: SpanSet) -> BlobId:
        """Name a payload that came from outside."""
        blob, self.next_blob = self.next_blob, self.next_blob - 1
        self.blobs[blob] = content
        return blob


class LpsScenario:
    """The run and its faults, all drawn from one seed."""

    def __init__(self, seed: int, *, in_flight: InFlight, ahead_ticks: int, budget: int) -> None:
        self.random = Random(seed)
        self.faults: LossRates | None = LossRates.swarm(self.random)
        """None: no faults."""
        self.now = self.random.randrange(10**18)
        self._in_flight, self._ahead_ticks = in_flight, ahead_ticks
        self._heap: list[tuple[int, int, ScenarioNode, Event]] = []
        self._order = 0
        self._incarnation = 10
        self.nodes: dict[Peer, ScenarioNode] = {}
        self.deaths: list[Peer] = []
        self.rejected = SpanSet()
        """Samples in updates that did not pass the gates."""
        self.gps = Gps(
            GpsSettings(
                regions=("eu", "us"),
                incarnation=10,
                manifest=(),
                fingerprint="model",
                corpus="corpus",
                budget_local_steps=budget,
                budget_ps=0,
                sample_tokens=64,
                update_norm_max=10.0,
                rejected_max=1000,
                max_lr=0.5,
                staleness_power=0.5,
                staged_max=1,
                tick_ps=TICK,
                retry_ps=RETRY,
                lost_after_ps=LOST,
                region_lost_after_ps=REGION_LOST,
            )
        )
        self._start("gps", self.gps)
        self._post(self.nodes["gps"], Loaded(Version(10, 0)), 0)
        for region in ("eu", "us"):
            self.start_region(region)
        for region, group in (("eu", -1), ("eu", -1), ("us", 0)):
            self.start_worker(region, group)
        self._start(
            "evaluator", Evaluator(EvaluatorSettings(self._client("gps", "", -1), 6 * STEPS))
        )

    # --- processes ----------------------------------------------------------------------------

    def _start(self, name: Peer, machine: Gps | Lps | Worker | Evaluator) -> None:
        self.nodes[name] = ScenarioNode(name, machine)
        self._post(self.nodes[name], Started(), self.random.randrange(TICK))

    def start_region(self, region: str) -> None:
        """A new process serves a region; its workers find it under the same address."""
        self._incarnation += 1
        settings = LpsSettings(
            gps="gps",
            region=region,
            incarnation=self._incarnation,
            updates_per_exchange=3,
            merge_weight=0.5,
            in_flight=self._in_flight,
            lease_ahead_ps=self._ahead_ticks * TICK,
            round_samples_max=STEPS * BATCH,
            sample_tokens=64,
            update_norm_max=10.0,
            rejected_max=1000,
            max_lr=0.5,
            staged_max=1,
            wan=True,
            tick_ps=TICK,
            retry_ps=RETRY,
            lost_after_ps=LOST,
        )
        self._start(f"{region}#{self._incarnation}", Lps(settings))

    def start_worker(self, region: str, group: int) -> None:
        """A worker joins."""
        self._incarnation += 1
        name = f"worker#{self._incarnation}"
        self._start(
            name, Worker(WorkerSettings(self._client(region, region, group), STEPS * BATCH))
        )

    def _client(self, server: Peer, region: str, group: int) -> ClientSettings:
        return ClientSettings(
            server=server,
            address=Address(region, group),
            incarnation=self._incarnation,
            fingerprint="model",
            corpus="corpus",
            tick_ps=TICK,
            retry_ps=RETRY,
            lost_after_ps=LOST,
        )

    def _find(self, name: Peer) -> ScenarioNode | None:
        """The process that is reached under a name: its own, or that of the region that it serves now."""
        node = self.nodes.get(name)
        if node is None:
            node = next(
                (n for n in reversed(self.nodes.values()) if n.name.startswith(f"{name}#")), None
            )
        return node if node is not None and node.alive and node.finish is None else None

    def end_faults(self) -> None:
        """No faults from now on, and every region has a server and a worker."""
        self.faults = None
        for node in self.nodes.values():
            node.cut_off_until = 0
        machines = [n.machine for n in self.nodes.values() if n.alive and n.finish is None]
        served = {each.settings.region for each in machines if isinstance(each, Lps)}
        worked = {each.settings.client.server for each in machines if isinstance(each, Worker)}
        for region in ("eu", "us"):
            if region not in served:
                self.start_region(region)
            if region not in worked:
                self.start_worker(region, -1)

    def reaches_the_gps(self, node: ScenarioNode) -> bool:
        """Whether the servers above a node still run, up to the GPS."""
        if isinstance(node.machine, Gps):
            return True
        server = self._find(node.machine.session.server)
        return server is not None and self.reaches_the_gps(server)

    # --- time ---------------------------------------------------------------------------------

    def _post(self, node: ScenarioNode, event: Event, delay: int) -> None:
        self._order += 1
        heapq.heappush(self._heap, (self.now + delay, self._order, node, event))

    def run(self, ticks: int) -> None:
        """Let a number of ticks pass, or fewer if all nodes finish."""
        until = self.now + ticks * TICK
        while self._heap and self._heap[0][0] <= until:
            self.now, _, node, event = heapq.heappop(self._heap)
            if not node.alive or node.finish is not None:
                continue
            if isinstance(event, Tick):
                self._post(node, Tick(), TICK)
                if self.faults is not None and self._dies(node):
                    continue
            if isinstance(event, Trained):
                if node.training is None or node.training.push != event.push:
                    continue  # It was cancelled.
                event = replace(event, blob=node.adopt(SpanSet(node.training.spans)))
                node.training = None
            self._perform(node, node.machine.handle(event, self.now))
            node.machine.check()
        self.now = max(self.now, until) if self._heap else self.now

    def _chance(self, probability: float) -> bool:
        return self.faults is not None and self.random.random() < probability

    def _dies(self, node: ScenarioNode) -> bool:
        """Whether a drawn fault ends a process on this tick; it may cut it off instead."""
        assert self.faults is not None
        if self._chance(self.faults.cut_off):
            node.cut_off_until = self.now + self.random.randrange(2 * REGION_LOST)
        if isinstance(node.machine, Worker) and self._chance(self.faults.worker_dies):
            node.alive = False
            address = node.machine.settings.client.address
            group = self.random.choice((-1, address.group))
            self.start_worker(address.region, group)
        elif isinstance(node.machine, Lps) and self._chance(self.faults.region_dies):
            node.alive = False
            self.start_region(node.machine.settings.region)
        if not node.alive:
            self.deaths.append(node.name)
        return not node.alive

    # --- effects ------------------------------------------------------------------------------

    def _perform(self, node: ScenarioNode, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case Send(_, message, _):
                    message = decode_message(RUN, encode(RUN, message))
                    self._send(node, replace(effect, message=message))
                case SetTick(interval):
                    self._post(node, Tick(), interval)
                case Measure(blob):
                    rejected = self._chance(self.faults.rejected if self.faults else 0)
                    if rejected:
                        node.spoilt.add(blob)
                        self.rejected.add(node.blobs[blob])
                    norm = self.random.choice((11.0, 1.0)) if rejected else 1.0
                    event = Measured(blob, norm, finite=not rejected or norm > 10)
                    self._post(node, event, self.random.randrange(TICK // 4))
                case Pin(blob, _):
                    assert blob not in node.blobs
                    node.blobs[blob] = SpanSet(node.model)
                case Difference(blob):
                    assert blob not in node.blobs
                    node.blobs[blob], node.mark = SpanSet(node.model), SpanSet(node.model)
                case Apply(operation, blob, _):
                    assert blob not in node.spoilt
                    self._apply(node, operation, node.blobs[blob])
                case Release(blob):
                    del node.blobs[blob]
                case Train(lease, _, blob, _):
                    assert blob in node.blobs
                    assert node.training is None
                    node.training = lease
                    self._train(node, lease)
                case Cancel(push):
                    assert node.training is not None
                    assert node.training.push == push
                    node.training = None
                case Validate(version, blob, _):
                    assert blob in node.blobs
                    self._post(node, Validated(version, 1.0, 1), self.random.randrange(4 * TICK))
                case Finish():
                    node.finish = effect
                case _:
                    assert isinstance(effect, Note)

    def _apply(self, node: ScenarioNode, operation: str, content: SpanSet) -> None:
        if operation == "step":
            # A region may be lent again what the GPS just rejected from it, before the answer comes
            # that replaces its model. At the GPS it never happens.
            excused = self.rejected if isinstance(node.machine, Lps) else SpanSet()
            twice = node.model.common(content)
            assert all(span in excused for span in twice), "an update was applied twice"
            node.model.add(content)
        elif operation in ("merge_carry", "merge_replay"):
            node.model.remove(node.mark)
        else:
            node.model.clear()

    def _train(self, node: ScenarioNode, lease: Lease) -> None:
        duration = self.random.randrange(TICK // 2, 4 * TICK)
        for step in range(STEPS):
            self._post(node, Progress(lease.push, step + 1), duration * (step + 1) // STEPS)
        self._post(node, Trained(lease.push, 0, STEPS, STEPS * BATCH, 1.0), duration)

    def _send(self, node: ScenarioNode, send: Send) -> None:  # type: ignore[type-arg]
        content = None if send.blob is None else SpanSet(node.blobs[send.blob])
        target = self._find(send.peer)
        cut = target is None or max(node.cut_off_until, target.cut_off_until) > self.now
        if target is None or cut or self._chance(self.faults.loss if self.faults else 0):
            if send.blob is not None:
                self._post(node, PeerLost(send.peer, "lost"), self.random.randrange(LOST))
            return
        sender = node.name
        for copy in range(2 if self._chance(self.faults.repeat if self.faults else 0) else 1):
            delay = self.random.randrange(TICK // 2)
            if self._chance(self.faults.late if self.faults else 0):
                delay = self.random.randrange(LATE)
            blob = None if content is None else target.adopt(SpanSet(content))
            received = Received(self._as_seen_by(target, sender), send.message, blob)
            self._post(target, received, delay)
            if send.blob is not None and copy == 0:
                lost = self._chance(0.05)
                event = PeerLost(send.peer, "cut") if lost else Delivered(send.peer, send.blob)
                self._post(node, event, delay)

    def _as_seen_by(self, target: ScenarioNode, sender: Peer) -> Peer:
        """Workers know their region's server by its address, the GPS knows it by its process."""
        region_server = isinstance(target.machine, Worker) and "#" in sender
        return sender.split("#")[0] if region_server else sender
