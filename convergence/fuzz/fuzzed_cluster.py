"""The cluster of a scenario in the virtual driver: its processes by slot, their restarts, and faults of whole nodes.

A slot is a place in the run: "gps", "lps/eu", "eu/0", "evaluator". The first process in a slot has the slot's
name, later ones "eu/0#2" and so on. State that is not durable dies with its process.
"""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, replace
from fractions import Fraction
from random import Random
from typing import Final, Literal

import gps.settings
import lps.settings
import worker.settings
from convergence.fuzz.invariant_checker import InvariantChecker
from convergence.fuzz.ledgers import GlobalLedger
from convergence.fuzz.scenario import Scenario
from convergence.problems.problem import Job, Part
from convergence.problems.registry import build
from convergence.rounds import Rounds
from gps.state import Gps
from lps.state import Lps
from pelago.config import run_toml
from pelago.core.machine import PS_PER_MS, PS_PER_S, Machine, Restarted, Started, StopRequested
from pelago.core.names import Lease, Version
from pelago.core.ports import Payload
from pelago.core.prng import derive
from pelago.core.tensor_effects import Loaded
from pelago.durable import image
from pelago.sim.disk import Disk
from pelago.sim.fault_injector import FaultInjector
from pelago.sim.fault_profile import Clock
from pelago.sim.links import Links
from pelago.sim.node import LOST, SimulatedNode
from pelago.sim.planes import DurablePlane, FreshStart, Round, RoundPlan
from pelago.sim.process import DOWN, SimulatedStore
from pelago.sim.simulation import Simulation
from pelago.sim.tensor_executor import TensorExecutor
from pelago.sim.trace import Trace
from pelago.sim.training_executor import TrainingExecutor
from pelago.wire.messages import Message
from worker.evaluator.state import Evaluator
from worker.state import Worker

RESTART_CHECK_PS: Final = 100 * PS_PER_MS
"""How often slots without a process are looked for, in picoseconds."""
INCARNATIONS_APART_S: Final = 1000
"""The time between two successive incarnations of a slot. Incarnations are numbered by seconds."""
CLOCK_BITS: Final = 50
"""Clocks begin anywhere below 2 to this power, in picoseconds, as those of the daemons do."""

NODE: Final = "worker"
"""The name of a worker's only node in its `Rounds`."""

FaultKind = Literal[
    "kill", "cut", "full", "jump", "stop", "lose", "power", "copy", "freeze", "slow"
]


@dataclass(frozen=True, slots=True)
class GpsCopy:
    """A copy of a GPS's state on another host."""

    machine: image.Plain
    plane: object
    now: int
    """The time of its clock."""
    ledger: GlobalLedger
    """The checker's ledger of this state."""


class FakeTrainer:
    """Trains a worker's rounds on the problem. ``index``: of the worker in the run. ``speed``: relative."""

    def __init__(self, cluster: "FuzzedCluster", region: int, index: int, speed: float) -> None:
        worker = cluster.run.worker
        self._cluster = cluster
        self._part = Part(index, region, worker.batch_size)
        self._speed = speed
        self._steps = 0
        self._rounds = Rounds(cluster.problem.train, worker.global_batch_size)

    def begin(self, lease: Lease, start: FreshStart | None) -> RoundPlan:
        """A round begins."""
        settings = self._cluster.run.simulation
        assert settings is not None
        steps = lease.samples // self._part.samples
        parameters = self._rounds.left(NODE) if start is None else start.payload
        index = self._part.worker
        job = Job(index, steps, (self._part,), lease.spans, lease.clock, parameters)
        self._rounds.begin(NODE, [job], fresh=start is not None)
        self._steps = steps
        jitter = self._cluster.random.uniform(0.8, 1.2)
        step_ps = settings.step_ms * PS_PER_MS / self._speed * jitter
        return RoundPlan(steps, max(1, round(steps * step_ps)))

    def finish(self, lease: Lease) -> Round:
        """The result of a round, or one in which no step counted, by the scenario's share of failures."""
        found = self._rounds.finish(NODE)
        return replace(found, skipped=self._steps) if self._cluster.fails() else found

    def cancel(self, lease: Lease) -> None:
        """Drop the round."""
        self._rounds.cancel(NODE)

    def rebase(self, model: Payload, done: int | None) -> None:
        """Rebase the round under way, or what the last one left."""
        share = None if done is None else Fraction(done, self._steps)
        self._rounds.rebase(NODE, model, share)

    def validate(self, payload: Payload) -> tuple[float, int]:
        """A constant loss, of one token."""
        return 0.5, 1


class FuzzedCluster:
    """``trace``: keep a digest of everything."""

    def __init__(self, scenario: Scenario, trace: bool = False) -> None:
        self.scenario = scenario
        self.run = run_toml.parse(scenario.toml)
        self.problem = build(self.run, sum(scenario.workers))
        self.random = Random(derive("world", scenario.seed))
        self._failures = Random(derive("failures", scenario.seed))
        self._newer = Random(derive("newer trouble", scenario.seed))
        """For kinds of faults that were added later, so that seeds that once found bugs still run unchanged."""
        self._power = Random(derive("fuzz-power-loss", scenario.seed))
        self.trace = Trace() if trace else None
        settings, network = self.run.simulation, self.run.network
        assert settings is not None
        links = Links(
            settings.model_bytes, len(scenario.workers), network.bandwidth_gbps, network.latency_ms
        )
        self.simulation = Simulation(
            self.run.run_id, links, (TensorExecutor, TrainingExecutor), trace=self.trace
        )
        self.checker = InvariantChecker(
            lambda name: self.injector.states[name],
            lambda: self.simulation.now,
            self.problem.value,
            scenario,
        )
        self.injector = FaultInjector(
            self.simulation,
            self.run.run_id,
            Random(derive("fate", scenario.seed)),
            scenario.profile,
            self.checker,
            Random(derive("fuzz-decay", scenario.seed)),
        )
        self.slots: dict[str, str] = {}
        """The name of the newest process of each slot."""
        self.healthy = False
        self._copy: GpsCopy | None = None
        self._incarnations: dict[str, int] = {}
        self._speeds = [speed for region in self.run.region for speed in region.worker_speeds]

    def begin(self) -> None:
        """Start all nodes, and schedule the first faults."""
        for slot in self._all_slots():
            self._start_process(slot)
        self.simulation.call(RESTART_CHECK_PS, self._restart_ended)
        if self.scenario.ends_early:
            self.simulation.call(self.scenario.faulty_ps * 3 // 5, self._stop_gps)
        schedule = self.scenario.schedule
        kinds: tuple[tuple[FaultKind, int], ...] = (
            ("kill", schedule.kill_ps),
            ("cut", schedule.cut_ps),
            ("full", schedule.full_ps),
            ("jump", schedule.jump_ps),
            ("stop", schedule.stop_ps),
            ("lose", schedule.lose_ps),
            ("copy", schedule.copy_ps),
        )
        for kind, every_ps in kinds:
            if every_ps:
                self._schedule_fault(kind, every_ps, self.random)
        if schedule.freeze_ps:
            self._schedule_fault("freeze", schedule.freeze_ps, self._newer)
        if schedule.slow_ps:
            self._schedule_fault("slow", schedule.slow_ps, self._newer)
        if schedule.power_ps:
            self._schedule_fault("power", schedule.power_ps, self._power)

    def heal(self) -> None:
        """No more faults happen from now on, except the slow links of the scenario."""
        self.healthy = True
        self.injector.heal()
        for slot in self._all_slots():
            if slot in self.scenario.slow:
                self.injector.network.slow(slot)
            else:
                self.injector.network.quicken(slot)
        # Processes that were frozen handle the events that waited for them.
        self.simulation.run(until_ps=self.simulation.now)

    def quicken(self) -> None:
        """No link is slow any more."""
        for slot in self.scenario.slow:
            self.injector.network.quicken(slot)

    def fails(self) -> bool:
        """Whether no gradient was finite in a round that ends now."""
        if self.healthy:
            return self.scenario.hopeless
        share = self.scenario.failing
        return share > 0 and self._failures.random() < share

    def machine(self, slot: str) -> Machine[Message]:
        """The machine of the newest process of a slot."""
        return self.node(slot).machine

    def node(self, slot: str) -> SimulatedNode:
        """The newest process of a slot."""
        return self.injector.states[self.slots[slot]].node

    @property
    def gps(self) -> Gps:
        """The newest GPS."""
        machine = self.machine("gps")
        assert isinstance(machine, Gps)
        return machine

    @property
    def over(self) -> bool:
        """Whether the GPS has ended for good. One that was killed before it had ended is started again."""
        return self.node("gps").finished not in (None, DOWN, LOST)

    def servers(self) -> list[str]:
        """The slots of the servers."""
        return ["gps", *(f"lps/{region.name}" for region in self.run.region)]

    # --- processes -------------------------------------------------------------------------------

    def _all_slots(self) -> list[str]:
        workers = [
            f"{region.name}/{group}"
            for region, count in zip(self.run.region, self.scenario.workers, strict=True)
            for group in range(count)
        ]
        return [*self.servers(), *workers, *(["evaluator"] if self.scenario.evaluator else [])]

    def _restart_ended(self) -> None:
        """Start processes in slots whose process ended, but not after the run."""
        self.simulation.call(self.simulation.now + RESTART_CHECK_PS, self._restart_ended)
        if self.over:
            return
        patience_ps = 0 if self.healthy else self.injector.draws.profile.down_ps
        for slot in self._all_slots():
            finished = self.node(slot).finished
            if finished is None or finished is DOWN:
                continue
            if self.random.random() < RESTART_CHECK_PS / (RESTART_CHECK_PS + patience_ps):
                self._start_process(slot)

    def _start_process(self, slot: str) -> None:
        """Start a new process in a slot."""
        count = self._incarnations[slot] = self._incarnations.get(slot, 0) + 1
        name = slot if count == 1 else f"{slot}#{count}"
        incarnation = count * INCARNATIONS_APART_S
        self.slots[slot] = name
        role, _, place = slot.partition("/")
        if slot == "gps":
            copy = self._copy
            self._add_server(slot, name, incarnation, 0, lambda: self._gps(incarnation, copy), copy)
        elif role == "lps":
            region = self.run.region_index(place)
            self._add_server(
                slot, name, incarnation, region, lambda: self._lps(region, incarnation)
            )
        else:
            self._add_client(slot, name, incarnation)

    def _add_server(
        self,
        slot: str,
        name: str,
        incarnation: int,
        place: int,
        make: Callable[[], tuple[Machine[Message], DurablePlane]],
        copy: GpsCopy | None = None,
    ) -> None:
        is_gps = slot == "gps"
        machine, plane = make()
        first = (Loaded(Version(incarnation, 0)),) if is_gps and copy is None else ()
        store = None
        if self.scenario.durable_gps if is_gps else self.scenario.durable_lps:
            disk = Disk(self.run.run_id, slot, name, incarnation)
            store = SimulatedStore(disk, plane, make, first)
        serves = "gps" if is_gps else f"{slot.partition('/')[2]}/lps"
        server = "" if is_gps else "gps"
        node = SimulatedNode(name, place, machine, plane, serves=serves, server=server)
        clock = self._clock()
        if copy is not None:
            clock.set(self.simulation.now, copy.now)
        self.injector.add(node, slot, clock, store)
        self.checker.begins(node, make, None if copy is None else copy.ledger)
        for event in (Started() if copy is None else Restarted(), *first):
            self.simulation.give((node, event))

    def _gps(self, incarnation: int, copy: GpsCopy | None) -> tuple[Machine[Message], DurablePlane]:
        settings = gps.settings.settings(
            self.run,
            incarnation=incarnation,
            manifest=self.problem.specs,
            fingerprint=self.problem.fingerprint,
            corpus="",
        )
        machine = Gps(settings)
        plane = self._plane(self.problem.server_plane(self.run.gps, None))
        if copy is not None:
            image.restore(machine, copy.machine)
            plane.restore(copy.plane)
            machine.reopen()
        return machine, plane

    def _lps(self, region: int, incarnation: int) -> tuple[Machine[Message], DurablePlane]:
        settings = lps.settings.settings(self.run, region, incarnation=incarnation)
        plane = self.problem.server_plane(self.run.lps, self.run.lps.in_flight)
        return Lps(settings), self._plane(plane)

    @staticmethod
    def _plane(plane: object) -> DurablePlane:
        assert hasattr(plane, "image")
        return plane  # type: ignore[return-value]

    def _add_client(self, slot: str, name: str, incarnation: int) -> None:
        evaluates = slot == "evaluator"
        region_name, _, group = slot.partition("/")
        region = None if evaluates else self.run.region_index(region_name)
        server = "gps" if evaluates else f"{region_name}/lps"
        fingerprint = self.problem.fingerprint
        machine: Machine[Message]
        if region is None:
            machine = Evaluator(
                worker.settings.evaluator_settings(
                    self.run,
                    incarnation=incarnation,
                    fingerprint=fingerprint,
                    corpus="",
                    server=server,
                )
            )
        else:
            machine = Worker(
                worker.settings.worker_settings(
                    self.run,
                    region,
                    -1 if self.scenario.anonymous else int(group),
                    incarnation=incarnation,
                    fingerprint=fingerprint,
                    corpus="",
                    server=server,
                )
            )
        index = 0 if region is None else sum(self.scenario.workers[:region]) + int(group)
        trainer = FakeTrainer(self, region or 0, index, self._speeds[index])
        plane = self.problem.client_plane()
        node = SimulatedNode(name, region or 0, machine, plane, trainer, server=server)
        self.injector.add(node, slot, self._clock())
        self.simulation.give((node, Started()))

    def _clock(self) -> Clock:
        permille = self.random.randint(700, 1500) if self.scenario.skewed else 1000
        clock = Clock(permille=permille)
        clock.set(self.simulation.now, self.random.getrandbits(CLOCK_BITS))
        return clock

    # --- faults ----------------------------------------------------------------------------------

    def _schedule_fault(self, kind: FaultKind, every_ps: int, random: Random) -> None:
        after_ps = max(1, round(random.expovariate(1.0) * every_ps))

        def inject() -> None:
            if not self.healthy:
                self._inject(kind, random)
                self._schedule_fault(kind, every_ps, random)

        self.simulation.call(self.simulation.now + after_ps, inject)

    def _inject(self, kind: FaultKind, random: Random) -> None:
        schedule = self.scenario.schedule
        until_ps = self.simulation.now + random.randint(1, schedule.lasts_ps)
        slot = random.choice(self._all_slots())
        name = self.slots[slot]
        if kind == "kill":
            self.injector.crash(name)
        elif kind == "freeze":
            frozen_ps = random.randint(1, schedule.frozen_ps)
            self.injector.freeze(name, self.simulation.now + frozen_ps)
        elif kind == "slow":
            self.injector.network.slow(slot)
            self.simulation.call(until_ps, lambda: self._quicken(slot))
        elif kind == "full":
            self.injector.servers.fill_disks(until_ps)
        elif kind == "lose":
            self.injector.lose_host(self.slots["gps"])
        elif kind == "power":
            self._lose_power(random)
        elif kind == "copy":
            self._make_copy()
        elif kind == "jump":
            self.injector.states[name].clock.jump(random.randint(1, 20 * PS_PER_S))
        elif kind == "cut":
            other = self._server_of(slot)
            ways = [(slot, other), (other, slot)]
            random.shuffle(ways)
            for way in ways[: 1 if random.random() < schedule.one_way else 2]:
                self.injector.network.cut(*way, until_ps)
        elif slot != "gps":
            self.checker.asked_to_stop(name)
            self.simulation.give((self.node(slot), StopRequested("asked to")))

    def _quicken(self, slot: str) -> None:
        if not self.healthy:
            self.injector.network.quicken(slot)

    def _make_copy(self) -> None:
        """Copy the state of the GPS, if it runs."""
        state = self.injector.states[self.slots["gps"]]
        node, ledger = state.node, self.checker.servers[self.slots["gps"]].ledger
        if node.finished is not None or state.frozen_until:
            return
        assert isinstance(ledger, GlobalLedger)
        plane = self._plane(node.plane).image(())
        now = state.clock.read(self.simulation.now)
        self._copy = GpsCopy(image.take(node.machine), plane, now, deepcopy(ledger))

    def _lose_power(self, random: Random) -> None:
        """The GPS's machine loses its power; the next GPS continues from what the disk has of this one."""
        name = self.slots["gps"]
        found = self.injector.lose_power(name, random)
        if found is not None:
            ledger = self.checker.salvaged(name, found.number, found.recovered)
            self._copy = GpsCopy(found.machine, found.plane, found.recovered.now, ledger)

    def _stop_gps(self) -> None:
        node = self.node("gps")
        if node.finished is None:
            self.simulation.give((node, StopRequested("asked to")))

    @staticmethod
    def _server_of(slot: str) -> str:
        role, _, _ = slot.partition("/")
        return "gps" if slot == "evaluator" or role in ("lps", "gps") else f"lps/{role}"
