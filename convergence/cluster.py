"""A run file as a cluster inside the virtual driver: the machines of the daemons, unchanged.

One GPS, an LPS per region, a worker per entry of `worker_speeds`. All start at t = 0 with the
initial model, so no first transfer is charged, and one after the other, so that the first leases
are handed out in the workers' order. A round of worker w computes for H_w * step_ms / speed, and w
* 1e-6 ms longer to break ties by the worker's index; w counts the workers of all regions.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import gps.settings
import lps.settings
import worker.settings
from convergence.problems import Problem, build
from gps.result import result
from gps.state import Gps
from lps.state import Lps
from pelago.config import RunFile
from pelago.core.errors import ConfigError
from pelago.core.machine import PS_PER_MS, Loaded, Note, Started, StopRequested
from pelago.core.names import Lease, Version
from pelago.sim.links import PaperLinks
from pelago.sim.ports import Payload, Plan, PlanePort, Round
from pelago.sim.simulation import Node, Simulation
from pelago.sim.trace import Trace
from worker.state import Worker

INCARNATION: Final = 1
GPS: Final = "gps"
TIE_BREAK_PS: Final = 1_000
"""w * 1e-6 ms."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """An update of a region that the GPS applied."""

    time_ps: int
    region: str
    counted_steps: int
    cumulative_steps: int


@dataclass(frozen=True, slots=True)
class HandedOut:
    """A lease, as a worker got it."""

    time_ps: int
    worker: int
    lease: Lease


class SimulatedTrainer:
    """Trains one worker's rounds on a problem, at the worker's speed."""

    def __init__(self, cluster: "Cluster", worker: int, speed: float) -> None:
        self._cluster = cluster
        self._worker = worker
        self._batch_size = cluster.run.worker.batch_size
        self._step_ps = cluster.settings.step_ms * PS_PER_MS / speed

    def plan(self, lease: Lease) -> Plan:
        """H_w * step_ms / speed + w * 1e-6 ms."""
        cluster = self._cluster
        if cluster.on_lease is not None:
            cluster.on_lease(HandedOut(cluster.simulation.now, self._worker, lease))
        steps = lease.samples // self._batch_size
        return Plan(steps, round(steps * self._step_ps) + self._worker * TIE_BREAK_PS)

    def train(self, lease: Lease, payload: Payload) -> Round:
        """Train on a lease from the parameters ``payload``."""
        steps = lease.samples // self._batch_size
        return self._cluster.problem.train(self._worker, lease, steps, payload)

    def validate(self, payload: Payload) -> tuple[float, int]:
        """Held-out loss of parameters."""
        return self._cluster.problem.validate(payload)


class Cluster:
    """The nodes of a run file that has a [simulation]. Raises `ConfigError` where it has none.

    ``check``: assert every invariant after every event. ``trace``: keep a digest of everything.
    ``on_arrival``, ``on_lease``: hear of these as they happen.
    """

    def __init__(
        self,
        run: RunFile,
        check: bool = False,
        trace: bool = False,
        on_arrival: Callable[[Arrival], None] | None = None,
        on_lease: Callable[[HandedOut], None] | None = None,
    ) -> None:
        if run.simulation is None:
            raise ConfigError("simulation: this table is missing, so the run file is no experiment")
        self.run = run
        self.settings = run.simulation
        self.on_lease = on_lease
        self.problem: Problem = build(run, run.simulation)
        self.trace = Trace() if trace else None
        self.arrivals: list[Arrival] = []
        self._on_arrival = on_arrival
        links = PaperLinks(
            self.settings.model_bytes,
            len(run.region),
            run.network.bandwidth_gbps,
            run.network.latency_ms,
        )
        self.simulation = Simulation(run.run_id, links, check, self.trace, self._on_note)
        self.gps = self._gps()
        self.lps = {region.name: self._lps(place) for place, region in enumerate(run.region)}
        self.workers: dict[str, Worker] = {}
        for place, region in enumerate(run.region):
            for group in range(len(region.worker_speeds)):
                self.workers[f"{region.name}/{group}"] = self._worker(place, group)

    def replay(self) -> dict[str, Any]:
        """Run to the budget and return the content of `result.json`."""
        simulation = self.simulation
        version = Version(INCARNATION, 0)
        simulation.start(GPS, Started(), Loaded(version))
        for name in self.lps:
            simulation.start(f"lps/{name}", Loaded(version), Started())
        for name in self.workers:
            simulation.start(name, Started())
        # Without ticks the GPS's machine does not see time pass, so its budget of minutes is minded
        # here.
        if self.gps.settings.budget_ps:
            stop = StopRequested("budget of minutes reached")
            simulation.at(self.gps.settings.budget_ps, GPS, stop)
        simulation.run()
        return self.result()

    def result(self) -> dict[str, Any]:
        """The content of `result.json`; with ``final`` where the parameters are one number."""
        parameters = sum(size for spec in self.problem.specs for size in spec.shape)
        found = result(self.gps, self.run, clock="virtual", model_parameters=parameters)
        final = self.problem.value(self.plane(GPS))
        if final is not None:
            regions = {name: self.problem.value(self.plane(f"lps/{name}")) for name in self.lps}
            found["final"] = {"gps": final, "lps": regions}
        return found

    def plane(self, node: str) -> PlanePort:
        """The plane of a node: "gps", "lps/REGION" or "REGION/GROUP"."""
        return self.simulation.nodes[node].plane

    def _gps(self) -> Gps:
        machine = Gps(
            gps.settings.settings(
                self.run,
                incarnation=INCARNATION,
                manifest=self.problem.specs,
                fingerprint=self.problem.fingerprint,
                corpus="",
                lossless=True,
            )
        )
        place = self.run.region_index(self.run.gps_region)
        self.simulation.add(Node(GPS, place, machine, self.problem.gps_plane()))
        return machine

    def _lps(self, place: int) -> Lps:
        machine = Lps(
            lps.settings.settings(
                self.run,
                place,
                incarnation=INCARNATION,
                gps=GPS,
                payload_bytes=self.settings.model_bytes,
                lossless=True,
            )
        )
        name = f"lps/{self.run.region[place].name}"
        self.simulation.add(Node(name, place, machine, self.problem.lps_plane()))
        return machine

    def _worker(self, place: int, group: int) -> Worker:
        region = self.run.region[place].name
        machine = Worker(
            worker.settings.settings(
                self.run,
                place,
                group,
                incarnation=INCARNATION,
                fingerprint=self.problem.fingerprint,
                corpus="",
                server=f"lps/{region}",
                lossless=True,
            )
        )
        trainer = SimulatedTrainer(self, len(self.workers), self.run.relative_speed(place, group))
        plane = self.problem.worker_plane()
        self.simulation.add(Node(f"{region}/{group}", place, machine, plane, trainer))
        return machine

    def _on_note(self, node: str, note: Note, now: int) -> None:
        if node != GPS or note.kind != "arrival":
            return
        fields = note.fields
        arrival = Arrival(
            fields["elapsed_ps"], fields["region"], fields["steps"], fields["cumulative_steps"]
        )
        self.arrivals.append(arrival)
        if self._on_arrival is not None:
            self._on_arrival(arrival)
