"""The whole forecast for one run file: memory, transfers and times of every process, region and worker."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pelago.cli.plan import processes
from pelago.cli.plan.facts import Gpu, ModelFacts
from pelago.cli.plan.links import Hop, encodings, hops, payload_bytes
from pelago.cli.plan.pace import (
    ExchangePace,
    RoundTime,
    StepTime,
    exchange_pace,
    round_time,
    step_time,
)
from pelago.cli.plan.processes import ProcessMemory
from pelago.config.run_file import RunFile
from pelago.net.sockets.tcp_ports import THIS_MACHINE
from worker.schedule import local_steps


@dataclass(frozen=True, slots=True)
class Assumptions:
    """What the run file does not say. ``step_seconds``: of a local step at relative speed 1. ``gpu``: that workers and
    evaluator compute on, None: they compute on CPUs; ``gpus``: of each host, 0: one for each of its processes.
    ``mfu``: share of the GPU's peak. ``host_bytes``: memory of each host, None: unknown."""

    step_seconds: float | None = None
    gpu: Gpu | None = None
    gpus: int = 0
    mfu: float | None = None
    host_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class TransferTime:
    """A payload on a link: bytes each way, and seconds until it is there."""

    encoding: str
    up_bytes: int
    up_s: float
    down_bytes: int
    down_s: float


@dataclass(frozen=True, slots=True)
class RegionPlan:
    """One region. ``exchange`` and ``push_pull``: transfers to the GPS, and of a worker to the LPS, in each encoding.
    ``rounds``: by worker; empty where the time of a step is unknown."""

    name: str
    exchange: Sequence[TransferTime]
    push_pull: Sequence[TransferTime]
    rounds: Mapping[str, RoundTime]
    pace: ExchangePace


@dataclass(frozen=True, slots=True)
class Forecast:
    """Everything that was computed. ``gpus``: bytes wanted of each GPU, by (host, number)."""

    model: ModelFacts
    step: StepTime | None
    regions: Sequence[RegionPlan]
    processes: Sequence[ProcessMemory]
    gpus: Mapping[tuple[str, int], int]
    assumed: Assumptions

    @property
    def hosts(self) -> dict[str, int]:
        """Bytes of memory wanted of each host."""
        found: dict[str, int] = {}
        for each in self.processes:
            found[each.place] = found.get(each.place, 0) + each.host_bytes
        return found

    def figures(self) -> dict[str, Any]:
        """All figures, for JSON. Times in seconds, sizes in bytes."""
        return {
            "model": asdict(self.model) | {"bytes": self.model.bytes},
            "step": None if self.step is None else asdict(self.step),
            "regions": {each.name: _region(each) for each in self.regions},
            "processes": {each.name: _process(each, self.model) for each in self.processes},
            "hosts": self.hosts,
            "gpus": {f"{host} cuda:{number}": size for (host, number), size in self.gpus.items()},
        }


def forecast(run: RunFile, facts: ModelFacts, assumed: Assumptions) -> Forecast:
    """Compute the forecast for a run file."""
    step = step_time(run, facts, assumed.step_seconds, assumed.gpu, assumed.mfu)
    far, near = hops(run)
    regions = [
        _planned_region(run, index, facts, step, (far[region.name], near[region.name]))
        for index, region in enumerate(run.region)
    ]
    found = _processes(run, facts, assumed.gpu)
    return Forecast(facts, step, regions, found, _gpus(found, assumed), assumed)


def _planned_region(
    run: RunFile, index: int, facts: ModelFacts, step: StepTime | None, links: tuple[Hop, Hop]
) -> RegionPlan:
    region, (far, near) = run.region[index], links
    sizes = (facts.bytes, facts.bytes)
    rounds: dict[str, RoundTime] = {}
    if step is not None:
        for group in range(len(region.worker_speeds)):
            speed = run.relative_speed(index, group)
            steps = local_steps(run.worker.local_steps, speed, run.worker.rescale)
            name = f"worker-{region.name}-{group}"
            rounds[name] = round_time(steps, step.seconds, speed, near, sizes)
    pace = exchange_pace(rounds or None, run.lps.updates_per_exchange, far, sizes)
    return RegionPlan(region.name, _transfers(far, facts), _transfers(near, facts), rounds, pace)


def _transfers(hop: Hop, facts: ModelFacts) -> list[TransferTime]:
    found = []
    for encoding in encodings():
        size = payload_bytes(encoding, facts.parameters)
        found.append(TransferTime(encoding.name, size, hop.push_s(size), size, hop.pull_s(size)))
    return found


def _processes(run: RunFile, facts: ModelFacts, gpu: Gpu | None) -> list[ProcessMemory]:
    """All processes. Workers are on the host of their LPS and the evaluator is on that of the GPS, as far as the run
    file tells."""
    home = _place(run.gps_connect()[0])
    found = [processes.gps(run, facts, home)]
    for index, region in enumerate(run.region):
        place = _place(run.lps_connect(index)[0])
        found.append(processes.lps(run, index, facts, place))
        found += [
            processes.worker(run, f"worker-{region.name}-{group}", facts, place, gpu)
            for group in range(len(region.worker_speeds))
        ]
    return [*found, processes.evaluator(run, facts, home, gpu)]


def _place(host: str) -> str:
    return "this host" if host in THIS_MACHINE else host


def _gpus(found: Sequence[ProcessMemory], assumed: Assumptions) -> dict[tuple[str, int], int]:
    """Processes take the GPUs of their host in turn."""
    wanted: dict[tuple[str, int], int] = {}
    turns: dict[str, int] = {}
    for each in found:
        if each.gpu_bytes:
            turn = turns[each.place] = turns.get(each.place, -1) + 1
            key = (each.place, turn % assumed.gpus if assumed.gpus else turn)
            wanted[key] = wanted.get(key, 0) + each.gpu_bytes
    return wanted


def _region(region: RegionPlan) -> dict[str, Any]:
    return {
        "exchange": {each.encoding: asdict(each) for each in region.exchange},
        "push_pull": {each.encoding: asdict(each) for each in region.push_pull},
        "rounds": {
            name: {**asdict(each), "seconds": each.seconds, "busy": each.busy}
            for name, each in region.rounds.items()
        },
        "exchange_s": region.pace.seconds,
        "updates_s": region.pace.updates_s,
        "in_flight": region.pace.in_flight,
    }


def _process(each: ProcessMemory, facts: ModelFacts) -> dict[str, Any]:
    return {
        "host": each.place,
        "host_bytes": each.host_bytes,
        "host_models": round(each.host_bytes / facts.bytes, 3),
        "gpu_bytes": each.gpu_bytes,
        "models": dict(each.parts),
    }
