"""Methods as arrangements of the same machines: what a worker stands for, which servers there are, what a round costs.

Every method runs on the GPS, LPS and worker machines of the daemons. They differ in what one worker
machine stands for (a `WorkerUnit`: a worker, or a group of workers that is synchronous inside) and in which
servers there are:

| method | a unit is | servers |
|---|---|---|
| halos | a worker | an LPS in each region, and the GPS |
| regional-groups | all workers of a region, averaging gradients at every step | the same |
| async-local-sgd | a worker, wherever it stands | one, in the GPS's region |
| diloco | all workers of all regions, averaging their models after each round | one |
| synchronous | all workers of all regions, averaging gradients at every step | one |
| ideal | as synchronous, work in proportion to speed, communication free | one |

One server: an LPS that steps with the GPS's optimiser, and a GPS at no distance that follows it update
by update (K = 1, merge weight 0, movement replayed, a plain step of 1), keeps the ledger and counts.
So Async-Local-SGD runs for real as a run file with one region and those settings, and HALoS and
regional groups (as soon as a worker may be a group) with their own; the synchronous methods are here
to compare with.

Times. A worker computes for steps * step_ms / speed and, where workers are on their own, w * 1e-6 ms
more, which breaks ties by its number. A synchronous step ends with its slowest member and an
all-reduce. Source of the baselines: the released simulator of HALoS (arXiv 2506.04531).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, assert_never

from pelago.config.run_file import RunFile
from pelago.config.simulation import SimulationSection
from pelago.config.topology import RegionSection
from pelago.core.errors import ConfigError
from pelago.core.machine import PS_PER_MS
from pelago.sim.links import Links
from worker.schedule import local_steps

TIE_BREAK_PS: Final = 1_000
"""w * 1e-6 ms."""
RING_REGIONS_MAX: Final = 12
"""The best ring is sought among all orders of the regions."""
ONE_SERVER: Final = "global"
"""Name of the region of all workers, where there is one server."""


@dataclass(frozen=True, slots=True)
class SimulatedWorker:
    """A worker's part in a unit's round."""

    worker: int
    """The worker's index over all regions."""
    region: int
    speed: float
    steps: int
    batch: int
    """Samples of a step."""


@dataclass(frozen=True, slots=True)
class WorkerUnit:
    """The workers for which one worker machine stands: one worker, or a group."""

    name: str
    region: int
    """Place of its server's region in the layout's run file."""
    group: int
    place: int
    members: tuple[SimulatedWorker, ...]
    averages: Literal["nothing", "gradients", "models"]
    all_reduce_ps: int = 0
    """After every step (gradients) or round (models)."""
    all_reduce_wan_bytes: int = 0
    """Bytes that an all-reduce sends between regions."""

    @property
    def samples(self) -> int:
        """Samples of a round."""
        return sum(member.steps * member.batch for member in self.members)

    @property
    def all_reduces(self) -> int:
        """Local steps of a round."""
        return {"nothing": 0, "gradients": self.members[0].steps, "models": 1}[self.averages]

    def duration_ps(self, step_ms: float, batch_size: int, slowness: Sequence[float]) -> int:
        """Duration of a round in picoseconds. ``slowness``: how many times longer than usual each member computes."""
        times = [
            factor * each.steps * (each.batch / batch_size) * step_ms * PS_PER_MS / each.speed
            for each, factor in zip(self.members, slowness, strict=True)
        ]
        if self.averages == "nothing":
            return round(times[0]) + self.members[0].worker * TIE_BREAK_PS
        return round(max(times)) + self.all_reduces * self.all_reduce_ps


@dataclass(frozen=True, slots=True)
class ClusterLayout:
    """Nodes and their places. ``run`` is the run file as the machines see it."""

    run: RunFile
    units: tuple[WorkerUnit, ...]
    server_places: tuple[int, ...]
    """The place of each region's LPS."""
    gps_place: int
    free_place: int
    """A place that costs nothing to reach, for the evaluator and for what a method does not charge."""
    links: Links

    @property
    def replicas(self) -> int:
        """How many optimiser states there are: one for each worker that is on its own or averages
        models, one for each unit that averages gradients."""
        return sum(1 if unit.averages == "gradients" else len(unit.members) for unit in self.units)


def layout(run: RunFile) -> ClusterLayout:
    """The arrangement of a run file that has a [simulation]. Raises `ConfigError`."""
    assert run.simulation is not None
    method = run.simulation.method
    match method:
        case "halos":
            return _two_levels(run, _workers(run))
        case "regional-groups":
            return _two_levels(_with_groups(run), _regional_groups(run, run.simulation))
        case "async-local-sgd":
            units = [_at_server(unit, index) for index, unit in enumerate(_workers(run))]
            return _one_level(run, units)
        case "diloco":
            return _one_level(run, [_all_workers(run, run.simulation, "models")])
        case "synchronous" | "ideal":
            return _one_level(run, [_all_workers(run, run.simulation, "gradients")])
        case _:
            assert_never(method)


# --- units -----------------------------------------------------------------------------------------


def _workers(run: RunFile) -> list[WorkerUnit]:
    """Every worker on its own, served in its region."""
    units: list[WorkerUnit] = []
    for region, table in enumerate(run.region):
        for group in range(len(table.worker_speeds)):
            speed = run.relative_speed(region, group)
            steps = local_steps(run.worker.local_steps, speed, run.worker.rescale)
            member = SimulatedWorker(len(units), region, speed, steps, run.worker.batch_size)
            name = f"{table.name}/{group}"
            units.append(WorkerUnit(name, region, group, region, (member,), "nothing"))
    return units


def _at_server(unit: WorkerUnit, index: int) -> WorkerUnit:
    """A worker that talks to the one server, from where it stands."""
    return WorkerUnit(unit.name, 0, index, unit.place, unit.members, "nothing")


def _regional_groups(run: RunFile, simulation: SimulationSection) -> list[WorkerUnit]:
    """One synchronous group per region; its members share every step in proportion to their speed."""
    units = []
    workers = [unit.members[0] for unit in _workers(run)]
    for region, table in enumerate(run.region):
        own = [member for member in workers if member.region == region]
        total = simulation.group_batch or run.worker.batch_size * len(own)
        members = _proportional(own, total, run.worker.local_steps, run.worker.batch_size)
        time_ps = 0
        if len(members) > 1 and run.network.bandwidth_gbps:
            gbps = run.network.bandwidth_gbps[region][region]
            time_ps = all_reduce_ps(simulation.model_bytes, len(members), gbps)
        units.append(
            WorkerUnit(f"{table.name}/0", region, 0, region, members, "gradients", time_ps)
        )
    return units


def _proportional(
    members: Sequence[SimulatedWorker], total: int, steps: int, batch_size: int
) -> tuple[SimulatedWorker, ...]:
    """``total`` samples a step divided by speed, largest remainders first; a worker that gets none is left out.

    Raises `ConfigError` where a round is no whole number of local steps, in which the budget counts.
    """
    if total * steps % batch_size:
        raise ConfigError(
            f"simulation.group_batch = {total}: a round of {steps} steps has {total * steps} samples,"
            f" which must be a multiple of worker.batch_size = {batch_size}"
        )
    speeds = sum(member.speed for member in members)
    exact = [total * member.speed / speeds for member in members]
    shares = [int(share) for share in exact]
    by_remainder = sorted(range(len(members)), key=lambda i: (shares[i] - exact[i], i))
    for index in by_remainder[: total - sum(shares)]:
        shares[index] += 1
    return tuple(
        SimulatedWorker(each.worker, each.region, each.speed, steps, share)
        for each, share in zip(members, shares, strict=True)
        if share
    )


def _all_workers(
    run: RunFile, simulation: SimulationSection, averages: Literal["gradients", "models"]
) -> WorkerUnit:
    """All workers of all regions as one synchronous unit beside its server."""
    members = tuple(unit.members[0] for unit in _workers(run))
    ideal = simulation.method == "ideal"
    if averages == "gradients":
        # The outer step is the identity, so a round is one step, and its updates count iterations.
        batch = run.worker.batch_size
        members = tuple(SimulatedWorker(e.worker, e.region, e.speed, 1, batch) for e in members)
        if ideal or simulation.group_batch:
            total = simulation.group_batch or batch * len(members)
            members = _proportional(members, total, 1, batch)
    time_ps, wan_bytes = (0, 0) if ideal else ring_of_regions(run, simulation.model_bytes)
    place = len(run.region)
    return WorkerUnit("everybody/0", 0, 0, place, members, averages, time_ps, wan_bytes)


# --- servers ---------------------------------------------------------------------------------------


def _two_levels(run: RunFile, units: list[WorkerUnit]) -> ClusterLayout:
    places = range(len(run.region))
    home = run.region_index(run.gps_region)
    return ClusterLayout(run, tuple(units), tuple(places), home, len(places), _links(run))


def _with_groups(run: RunFile) -> RunFile:
    """The run file as the machines see it: one worker a region."""
    regions = [each.model_copy(update={"worker_speeds": (1.0,)}) for each in run.region]
    return run.model_copy(update={"region": tuple(regions)})


def _one_level(run: RunFile, units: list[WorkerUnit]) -> ClusterLayout:
    """One server with the GPS's optimiser, and a GPS beside it that follows and counts."""
    assert run.simulation is not None
    plain = {"lr": 1.0, "momentum": 0.0, "momentum_delay": 1, "momentum_activation": 0.0}
    server = {key: getattr(run.gps, key) for key in plain}
    if run.simulation.method in ("synchronous", "ideal"):
        server = plain
    lps = run.lps.model_copy(
        update={
            **server,
            "updates_per_exchange": 1,
            "merge_weight": 0.0,
            "in_flight": "replay",
            "update_norm_max": run.gps.update_norm_max,
            "staged_max": run.gps.staged_max,
        }
    )
    seen = run.model_copy(
        update={
            "region": (RegionSection(name=ONE_SERVER, worker_speeds=(1.0,) * len(units)),),
            "lps": lps,
            "gps": run.gps.model_copy(update={**plain, "region": ONE_SERVER}),
        }
    )
    home = run.region_index(run.gps_region)
    free = len(run.region)
    at = free if units[0].place == free else home
    return ClusterLayout(seen, tuple(units), (at,), free, free, _links(run))


def _links(run: RunFile) -> Links:
    """The run file's links, and one more place that costs nothing to reach."""
    assert run.simulation is not None
    network = run.network
    places = len(run.region) + 1

    def extended(matrix: Sequence[Sequence[float]], value: float) -> list[list[float]]:
        return [[*row, value] for row in matrix] + [[value] * places] if matrix else []

    return Links(
        run.simulation.model_bytes,
        places,
        extended(network.bandwidth_gbps, float("inf")),
        extended(network.latency_ms, 0.0),
        network.share_links,
        control_pays=run.simulation.daemons,
    )


# --- all-reduce ------------------------------------------------------------------------------------


def all_reduce_ps(payload_bytes: int, workers: int, gbps: float, latency_ms: float = 0.0) -> int:
    """A ring all-reduce: 2 (N - 1) messages of 1/N of the payload, one after the other."""
    messages = 2 * (workers - 1)
    each_ps = payload_bytes * 8 / workers / gbps * 1_000 + latency_ms * PS_PER_MS
    return round(messages * each_ps)


def ring_of_regions(run: RunFile, payload_bytes: int) -> tuple[int, int]:
    """Time of an all-reduce over all workers, and the bytes it sends between regions.

    The ring visits every region once, all workers of it in a row. Its pace is that of its slowest
    link; of all orders of the regions the one whose slowest link is fastest is taken. Raises
    `ConfigError` for more than `RING_REGIONS_MAX` regions.
    """
    network, regions = run.network, len(run.region)
    workers = sum(len(region.worker_speeds) for region in run.region)
    if regions > RING_REGIONS_MAX:
        raise ConfigError(
            f"region: the ring of a synchronous method is sought among at most {RING_REGIONS_MAX}"
            f" regions, and there are {regions}"
        )
    edges = regions if regions > 1 else 0
    wan_bytes = round(edges * 2 * (workers - 1) / workers * payload_bytes)
    if workers == 1 or not network.bandwidth_gbps:
        return 0, wan_bytes
    crowded = [i for i, region in enumerate(run.region) if len(region.worker_speeds) > 1]
    inside = min((network.bandwidth_gbps[i][i] for i in crowded), default=float("inf"))
    gbps = min(inside, _widest_ring(network.bandwidth_gbps))
    latency_ms = max((value for row in network.latency_ms for value in row), default=0.0)
    return all_reduce_ps(payload_bytes, workers, gbps, latency_ms), wan_bytes


def _widest_ring(gbps: Sequence[Sequence[float]]) -> float:
    """Bandwidth of the slowest link of the best ring over all places; no limit for one place.

    Held and Karp's dynamic programme over subsets (1962), with min and max in place of sum and min.
    """
    places = len(gbps)
    if places == 1:
        return float("inf")
    # best[subset][last]: the widest path from place 0 over the subset that ends in `last`.
    best: list[dict[int, float]] = [{} for _ in range(1 << places)]
    best[1][0] = float("inf")
    for subset in range(1, 1 << places):
        for last, width in best[subset].items():
            for place in range(1, places):
                if not subset >> place & 1:
                    wider = min(width, gbps[last][place])
                    target = best[subset | 1 << place]
                    target[place] = max(target.get(place, 0.0), wider)
    return max(min(width, gbps[last][0]) for last, width in best[-1].items())
