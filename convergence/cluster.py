"""A run file as a cluster inside the virtual driver: the machines of the daemons, unchanged.

One GPS, the LPSs and workers of the method's layout (`convergence.methods`), and an evaluator where
the problem measures something. All start at t = 0 with the initial model, so no first transfer is
charged, and one after the other, so that the first leases are handed out in the workers' order. With
``simulation.daemons`` the regions fetch the model first, as the daemons do.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from math import prod
from random import Random
from typing import Any, Final

import gps.settings
import lps.settings
import worker.settings
from convergence.batch_trainer import BatchTrainer
from convergence.methods import SimulatedWorker, WorkerUnit, layout
from convergence.problems.problem import Job, Part, Problem
from convergence.problems.registry import build
from convergence.rounds import Rounds
from gps.result import result
from gps.state import Gps
from lps.state import Lps
from pelago.config.run_file import RunFile
from pelago.config.simulation import SimulatedEvent
from pelago.core.errors import ConfigError
from pelago.core.machine import PS_PER_MS, Started, StopRequested
from pelago.core.names import Lease, Version
from pelago.core.notes.gps import ExchangeArrived
from pelago.core.notes.lps import UpdateApplied
from pelago.core.notes.note import Note
from pelago.core.ports import Payload, TensorPort
from pelago.core.prng import derive
from pelago.core.spans import SpanSet
from pelago.core.tensor_effects import Loaded
from pelago.sim.node import SimulatedNode
from pelago.sim.planes import FreshStart, Round, RoundPlan
from pelago.sim.simulation import Simulation
from pelago.sim.tensor_executor import TensorExecutor
from pelago.sim.trace import Trace
from pelago.sim.training_executor import TrainingExecutor
from worker.evaluator.state import Evaluator
from worker.state import Worker

INCARNATION: Final = 1
GPS: Final = "gps"
EVALUATOR: Final = "evaluator"


@dataclass(frozen=True, slots=True)
class Arrival:
    """An update of a region applied by the GPS. ``counted_steps``: of the update; ``cumulative_steps``: of the run."""

    time_ps: int
    region: str
    counted_steps: int
    cumulative_steps: int


@dataclass(frozen=True, slots=True)
class HandedOut:
    """A lease that a worker got; of a group, its first worker. ``time_ps``: of the virtual clock."""

    time_ps: int
    worker: int
    lease: Lease


class SimulatedTrainer:
    """Trains the rounds of one unit on the cluster's problem, at the speed of its members."""

    def __init__(self, cluster: "Cluster", unit: WorkerUnit, replica: int) -> None:
        self._cluster = cluster
        self._unit = unit
        self._replica = replica
        settings = cluster.settings
        self._jitter = settings.step_jitter
        seed = cluster.run.run.seed
        self._random = [Random(derive("jitter", seed, member.worker)) for member in unit.members]
        self._step_ms = settings.step_ms
        self._batch_size = cluster.run.worker.batch_size
        # What is the same in every round is computed once: there may be millions of rounds.
        self._samples = unit.samples
        self.steps = self._samples // self._batch_size
        """Local steps that a round counts, of ``worker.batch_size`` samples each."""
        self._parts = tuple(_part(member) for member in unit.members)
        self._wan_bytes = unit.all_reduces * unit.all_reduce_wan_bytes
        self._steady = None if self._jitter else self._plan([1.0] * len(unit.members))
        """The plan of every round, if all are equally long."""

    def begin(self, lease: Lease, start: FreshStart | None) -> RoundPlan:
        """Start a round; its time is that of its slowest member, see `WorkerUnit.duration_ps`."""
        cluster, unit = self._cluster, self._unit
        assert lease.samples == self._samples, (lease, unit)
        if cluster.on_lease is not None:
            first = unit.members[0].worker
            cluster.on_lease(HandedOut(cluster.simulation.now, first, lease))
        payload = cluster.rounds.left(unit.name) if start is None else start.payload
        cluster.rounds.begin(unit.name, self._jobs(lease, payload), fresh=start is not None)
        if self._steady is not None:
            return self._steady
        sigma = self._jitter
        # A mean of one: jitter makes times uneven, not longer.
        return self._plan([each.lognormvariate(-sigma * sigma / 2, sigma) for each in self._random])

    def _plan(self, slowness: Sequence[float]) -> RoundPlan:
        duration_ps = self._unit.duration_ps(self._step_ms, self._batch_size, slowness)
        return RoundPlan(max(1, self.steps), duration_ps)

    def _jobs(self, lease: Lease, payload: Payload) -> list[Job]:
        unit = self._unit
        if unit.averages == "gradients" or len(unit.members) == 1:
            steps = unit.members[0].steps
            return [Job(self._replica, steps, self._parts, lease.spans, lease.clock, payload)]
        samples = SpanSet(lease.spans)
        sizes = [member.steps * member.batch for member in unit.members]
        return [
            Job(
                self._replica + index,
                member.steps,
                (part,),
                samples.take(sizes[index]),
                # As if each had a lease of its own, one after the other.
                lease.clock + sum(sizes[:index]),
                payload,
            )
            for index, (member, part) in enumerate(zip(unit.members, self._parts, strict=True))
        ]

    def finish(self, lease: Lease) -> Round:
        """The result of a round."""
        self._cluster.collectives_wan_bytes += self._wan_bytes
        return self._cluster.rounds.finish(self._unit.name)

    def cancel(self, lease: Lease) -> None:
        """Drop a round."""
        self._cluster.rounds.cancel(self._unit.name)

    def rebase(self, model: Payload, done: int | None) -> None:
        """Rebase the round under way, or what the last one left."""
        share = None if done is None else Fraction(done, max(1, self.steps))
        self._cluster.rounds.rebase(self._unit.name, model, share)

    def validate(self, payload: Payload) -> tuple[float, int]:
        """Held-out loss of parameters in nats a token, and the number of tokens."""
        return self._cluster.problem.validate(payload)


def _part(member: SimulatedWorker) -> Part:
    return Part(member.worker, member.region, member.batch)


class Cluster:
    """The nodes of a run file that has a [simulation]. Raises `ConfigError` where it has none.

    ``check``: assert every invariant after every event. ``trace``: keep a digest of everything.
    ``on_arrival``: called for every update of a region that the GPS applies. ``problem``: replaces the problem that
    the run file names. ``batch_trainer``: trains the rounds together with those of other clusters.
    """

    def __init__(
        self,
        run: RunFile,
        check: bool = False,
        trace: bool = False,
        on_arrival: Callable[[Arrival], None] | None = None,
        problem: Problem | None = None,
        batch_trainer: BatchTrainer | None = None,
    ) -> None:
        if run.simulation is None:
            raise ConfigError("simulation: this table is missing, so the run file is no experiment")
        self.run = run
        self.settings = run.simulation
        self.on_lease: Callable[[HandedOut], None] | None = None
        """Called for every lease that a worker gets."""
        self.layout = layout(run)
        chosen = problem or build(run, self.layout.replicas)
        self.problem: Problem = chosen
        self.rounds = Rounds(
            chosen.train
            if batch_trainer is None
            else lambda jobs: batch_trainer.train(chosen, jobs),
            run.worker.global_batch_size,
        )
        self.trace = Trace() if trace else None
        self.arrivals: list[Arrival] = []
        self.staleness: dict[str, Counter[int]] = {"gps": Counter(), "lps": Counter()}
        """The number of applied updates of each staleness in versions, at each level."""
        self.collectives_wan_bytes = 0
        self._on_arrival = on_arrival
        self._lossless = not self.settings.daemons
        self._processes: Counter[str] = Counter()
        """How many processes each node has had so far."""
        self._absent = self._arrange_events()
        self.simulation = Simulation(
            self.layout.run.run_id,
            self.layout.links,
            (TensorExecutor, TrainingExecutor),
            check,
            self.trace,
            self._on_note,
        )
        self.gps = self._gps()
        self.lps: dict[str, Lps] = {}
        self.workers: dict[str, Worker] = {}
        self._trainers = self._make_trainers()
        for region in self.layout.run.region:
            if f"lps/{region.name}" not in self._absent:
                self._add_lps(region.name)
        for unit in self.layout.units:
            if unit.name not in self._absent:
                self._add_worker(unit)
        if self.problem.validates:
            self._add_evaluator()

    # --- the run -------------------------------------------------------------------------------------

    def replay(self) -> dict[str, Any]:
        """Run to the budget and return the content of `result.json`."""
        simulation = self.simulation
        version = Version(INCARNATION, 0)
        simulation.start(GPS, Started(), Loaded(version))
        for name in self.lps:
            loaded = [Loaded(version)] if self._lossless else []
            simulation.start(f"lps/{name}", *loaded, Started())
        for name in self.workers:
            simulation.start(name, Started())
        if self.problem.validates:
            simulation.start(EVALUATOR, Started())
        for event in self.settings.event:
            simulation.call(round(event.at_ms * PS_PER_MS), self._action(event))
        # Without ticks the GPS's machine does not see time pass, so its budget of minutes is enforced here.
        if self.gps.settings.budget_ps and self._lossless:
            stop = StopRequested("budget of minutes reached")
            simulation.at(self.gps.settings.budget_ps, GPS, stop)
        # A node that lost its server for good waits without end, but the run ends with the GPS.
        simulation.run(last=GPS)
        return self.result()

    def result(self) -> dict[str, Any]:
        """The content of `result.json`; with ``final`` where the parameters are one number."""
        parameters = sum(prod(spec.shape) for spec in self.problem.specs)
        found = result(self.gps, self.layout.run, clock="virtual", model_parameters=parameters)
        found["bytes"] = self._bytes()
        final = self.problem.value(self.plane(GPS))
        if final is not None:
            regions = {name: self.problem.value(self.plane(f"lps/{name}")) for name in self.lps}
            found["final"] = {"gps": final, "lps": regions}
        return found

    def plane(self, node: str) -> TensorPort:
        """The plane of a node: "gps", "lps/REGION" or "REGION/GROUP"."""
        return self.simulation.nodes[node].plane

    def _bytes(self) -> dict[str, int]:
        """Payload bytes that arrived: between regions, and inside them (all-reduces: between only)."""
        payload, free = self.settings.model_bytes, self.layout.free_place
        wan = lan = 0
        for (start, end), count in self.simulation.network.arrived.items():
            if free in (start, end):
                continue
            wan += count * payload * (start != end)
            lan += count * payload * (start == end)
        return {"wan": wan + self.collectives_wan_bytes, "lan": lan}

    # --- nodes ---------------------------------------------------------------------------------------

    def _gps(self) -> Gps:
        run = self.layout.run
        machine = Gps(
            gps.settings.settings(
                run,
                incarnation=INCARNATION,
                manifest=self.problem.specs,
                fingerprint=self.problem.fingerprint,
                corpus="",
                lossless=self._lossless,
            )
        )
        plane = self.problem.server_plane(run.gps, None)
        self.simulation.add(SimulatedNode(GPS, self.layout.gps_place, machine, plane))
        return machine

    def _add_lps(self, region: str) -> str:
        run, place = self.layout.run, self.layout.run.region_index(region)
        settings = lps.settings.settings(
            run,
            place,
            incarnation=self._incarnation(f"lps/{region}"),
            gps=GPS,
            lossless=self._lossless,
        )
        # Rounds are those of the method's units, which may be whole regions, and not the run file's.
        largest = max(unit.samples for unit in self.layout.units)
        machine = Lps(replace(settings, round_samples_max=largest))
        name = self._process(f"lps/{region}")
        plane = self.problem.server_plane(run.lps, run.lps.in_flight)
        at = self.layout.server_places[place]
        serves = f"{region}/lps"
        self.simulation.add(SimulatedNode(name, at, machine, plane, serves=serves, server=GPS))
        self.lps[region] = machine
        return name

    def _add_worker(self, unit: WorkerUnit) -> str:
        server = f"{self.layout.run.region[unit.region].name}/lps"
        settings = worker.settings.worker_settings(
            self.layout.run,
            unit.region,
            unit.group,
            incarnation=self._incarnation(unit.name),
            fingerprint=self.problem.fingerprint,
            corpus="",
            server=server,
            lossless=self._lossless,
        )
        machine = Worker(replace(settings, round_samples=unit.samples))
        name = self._process(unit.name)
        trainer, plane = self._trainers[unit.name], self.problem.client_plane()
        self.simulation.add(SimulatedNode(name, unit.place, machine, plane, trainer, server=server))
        self.workers[unit.name] = machine
        return name

    def _add_evaluator(self) -> None:
        settings = worker.settings.evaluator_settings(
            self.layout.run,
            incarnation=INCARNATION,
            fingerprint=self.problem.fingerprint,
            corpus="",
            server=GPS,
            lossless=self._lossless,
        )
        trainer = next(iter(self._trainers.values()))
        plane = self.problem.client_plane()
        node = SimulatedNode(EVALUATOR, self.layout.free_place, Evaluator(settings), plane, trainer)
        self.simulation.add(node)

    def _make_trainers(self) -> dict[str, SimulatedTrainer]:
        trainers: dict[str, SimulatedTrainer] = {}
        replica = 0
        for unit in self.layout.units:
            trainers[unit.name] = SimulatedTrainer(self, unit, replica)
            replica += 1 if unit.averages == "gradients" else len(unit.members)
        return trainers

    # --- losses and joins ----------------------------------------------------------------------------

    def _arrange_events(self) -> frozenset[str]:
        """Check the events of the run file. Returns the nodes that join later."""
        units = [unit.name for unit in self.layout.units]
        names = [*units, *(f"lps/{region.name}" for region in self.layout.run.region)]
        first: dict[str, SimulatedEvent] = {}
        for event in sorted(self.settings.event, key=lambda each: each.at_ms):
            if event.node not in names:
                raise ConfigError(
                    f"simulation.event.node = {event.node!r}: no such node; there are {names}"
                )
            first.setdefault(event.node, event)
        absent = frozenset(name for name, event in first.items() if event.kind == "join")
        if absent.issuperset(units):
            raise ConfigError(
                "simulation.event: all workers join later, so no worker starts the run"
            )
        return absent

    def _action(self, event: SimulatedEvent) -> Callable[[], None]:
        def lose() -> None:
            if self._processes[event.node]:
                self.simulation.lose(self._process(event.node))

        def join() -> None:
            # A process that still runs is replaced, as when a supervisor restarts it.
            lose()
            role, _, region = event.node.partition("/")
            if role == "lps":
                name = self._add_lps(region)
            else:
                unit = next(each for each in self.layout.units if each.name == event.node)
                name = self._add_worker(unit)
            self.simulation.start(name, Started())

        return lose if event.kind == "lose" else join

    def _incarnation(self, node: str) -> int:
        self._processes[node] += 1
        return INCARNATION + self._processes[node] - 1

    def _process(self, node: str) -> str:
        """Name of a node's present process; the first process has the node's name."""
        count = self._processes[node]
        return node if count == 1 else f"{node}#{count}"

    def _on_note(self, node: str, note: Note, now: int) -> None:
        if isinstance(note, UpdateApplied):
            self.staleness["lps"][note.staleness] += 1
        elif isinstance(note, ExchangeArrived) and node == GPS:
            self.staleness["gps"][note.staleness] += 1
            arrival = Arrival(note.elapsed_ps, note.region, note.steps, note.cumulative_steps)
            self.arrivals.append(arrival)
            if self._on_arrival is not None:
                self._on_arrival(arrival)
