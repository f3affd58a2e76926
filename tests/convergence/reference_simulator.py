"""HALoS's simulator written again in one page of plain Python, to compare the virtual driver with it.

Written from the algorithm of Kim et al. (arXiv 2506.04531) as the released simulator runs it:
floats, `heapq`, and nothing of Pelago. The model is a scalar that starts at 1; times are ms.
"""

import heapq
import itertools
import math
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Setting:
    """The settings of a run; the defaults are the paper's. Servers: (eta, momentum, delay)."""

    speeds: tuple[tuple[float, ...], ...]
    bandwidth_gbps: tuple[tuple[float, ...], ...]
    budget: int = 98_304
    model_bytes: int = 281_706_496
    step_ms: float = 238.391
    local_steps: int = 8
    rescale: bool = True
    every: int = 32
    alpha: float = 0.25
    carry: bool = False
    lps: tuple[float, float, int] = (0.2, 0.9, 16)
    gps: tuple[float, float, int] = (0.15, 0.5, 2)
    gps_region: int = 0


@dataclass
class ReferenceServer:
    """A parameter and its delayed Nesterov, Liu et al. 2024, Algorithm 3 with c = 0."""

    settings: tuple[float, float, int]
    th: float = 1.0
    m: float = 0.0
    accumulated: float = 0.0
    t: int = 0

    def step(self, g: float) -> None:
        eta, beta, delay = self.settings
        lr = eta * delay
        self.accumulated += g
        if (self.t + 1) % delay == 0:
            self.m = beta * self.m + self.accumulated / delay
            self.th -= lr * (beta * self.m + g / delay)
            self.accumulated = 0.0
        else:
            self.th -= lr * g / delay
        self.t += 1


@dataclass
class ReferenceRegion(ReferenceServer):
    snap: float = 1.0
    sent: float = 1.0
    version: int = 0
    merged: int = 0
    flying: bool = False
    steps: int = 0
    sent_steps: int = 0


@dataclass
class ReferenceResult:
    """Arrivals at the GPS as (ms, region, cumulative steps), and its value after each."""

    arrivals: list[tuple[float, int, int]] = field(default_factory=list)
    values: list[float] = field(default_factory=list)
    lps: list[float] = field(default_factory=list)
    leases: list[tuple[int, int]] = field(default_factory=list)
    """(worker, first sample) in order of hand-out"""


def halos(setting: Setting) -> ReferenceResult:
    """Run HALoS until the counted steps reach the budget."""
    fastest = max(itertools.chain(*setting.speeds))
    places = [(r, s / fastest) for r, row in enumerate(setting.speeds) for s in row]
    steps = [
        max(1, math.ceil(setting.local_steps * s)) if setting.rescale else setting.local_steps
        for _, s in places
    ]

    def comm(a: int, b: int) -> float:
        return setting.model_bytes * 8 / (setting.bandwidth_gbps[a][b] * 1e9) * 1e3

    def trained(w: int, th: float) -> float:
        for _ in range(steps[w]):
            th -= 1e-3 * (th - (w - 7.5) / 10)
        return th

    gps = ReferenceServer(setting.gps)
    regions = [ReferenceRegion(setting.lps) for _ in setting.speeds]
    outcome = ReferenceResult()
    events: list[tuple[float, int, str, int, float]] = []
    order = itertools.count()
    samples = counted = 0

    def schedule(at: float, kind: str, sender: int, value: float) -> None:
        heapq.heappush(events, (at, next(order), kind, sender, value))

    def begin_round(w: int, now: float) -> None:
        nonlocal samples
        r, speed = places[w]
        outcome.leases.append((w, samples))
        samples += steps[w] * 64
        compute = steps[w] * setting.step_ms / speed + w * 1e-6
        th = regions[r].th
        schedule(now + 2 * comm(r, r) + compute, "push", w, th - trained(w, th))

    for w in range(len(places)):
        begin_round(w, 0.0)
    while True:
        now, _, kind, sender, value = heapq.heappop(events)
        if kind == "push":
            r = places[sender][0]
            region = regions[r]
            region.step(value)
            region.version += 1
            region.steps += steps[sender]
            if not region.flying and region.version >= region.merged + setting.every:
                region.flying, region.sent = True, region.th
                schedule(now + comm(r, setting.gps_region), "delta", r, region.snap - region.th)
                # Counted are all steps since the last send, also those whose movement is dropped.
                region.sent_steps, region.steps = region.steps, 0
            begin_round(sender, now)
        elif kind == "delta":
            gps.step(value)
            counted += regions[sender].sent_steps
            outcome.arrivals.append((now, sender, counted))
            outcome.values.append(gps.th)
            if counted >= setting.budget:
                outcome.lps = [region.th for region in regions]
                return outcome
            schedule(now + comm(setting.gps_region, sender), "merge", sender, gps.th)
        else:
            region = regions[sender]
            before = region.th
            region.th = (1 - setting.alpha) * before + setting.alpha * value
            region.snap = region.th + (region.sent - before if setting.carry else 0.0)
            region.merged, region.flying = region.version, False


def one_server(setting: Setting) -> ReferenceResult:
    """Async-Local-SGD: every worker talks to one server, in `gps_region`, with `setting.gps`."""
    fastest = max(itertools.chain(*setting.speeds))
    places = [(r, s / fastest) for r, row in enumerate(setting.speeds) for s in row]
    server, outcome = ReferenceServer(setting.gps), ReferenceResult()
    events: list[tuple[float, int, int, float]] = []
    order = itertools.count()
    counted = 0

    def begin_round(w: int, now: float) -> None:
        r, speed = places[w]
        steps = (
            max(1, math.ceil(setting.local_steps * speed))
            if setting.rescale
            else setting.local_steps
        )
        comm = setting.model_bytes * 8 / (setting.bandwidth_gbps[setting.gps_region][r] * 1e9) * 1e3
        th = server.th
        for _ in range(steps):
            th -= 1e-3 * (th - (w - 7.5) / 10)
        end = now + 2 * comm + steps * setting.step_ms / speed + w * 1e-6
        heapq.heappush(events, (end, next(order), w, server.th - th))
        counted_steps[w] = steps

    counted_steps = [0] * len(places)
    for w in range(len(places)):
        begin_round(w, 0.0)
    while counted < setting.budget:
        now, _, w, value = heapq.heappop(events)
        server.step(value)
        counted += counted_steps[w]
        outcome.arrivals.append((now, w, counted))
        outcome.values.append(server.th)
        begin_round(w, now)
    return outcome


def diloco(setting: Setting) -> ReferenceResult:
    """DiLoCo (`rescale`: with dynamic local updates): rounds of all workers, then an all-reduce.

    Arrivals are (ms, 0, cumulative steps), one a round.
    """
    fastest = max(itertools.chain(*setting.speeds))
    speeds = [s / fastest for row in setting.speeds for s in row]
    steps = [
        max(1, math.ceil(setting.local_steps * s)) if setting.rescale else setting.local_steps
        for s in speeds
    ]
    round_ms = max(n * setting.step_ms / s for n, s in zip(steps, speeds, strict=True))
    round_ms += all_reduce_ms(setting)
    server, outcome = ReferenceServer(setting.gps), ReferenceResult()
    while not outcome.arrivals or outcome.arrivals[-1][2] < setting.budget:
        deltas = []
        for w, count in enumerate(steps):
            th = server.th
            for _ in range(count):
                th -= 1e-3 * (th - (w - 7.5) / 10)
            deltas.append(server.th - th)
        server.step(sum(deltas) / len(deltas))
        done = len(outcome.arrivals) + 1
        outcome.arrivals.append((done * round_ms, 0, done * sum(steps)))
        outcome.values.append(server.th)
    return outcome


def synchronous(setting: Setting) -> ReferenceResult:
    """Data parallel: every iteration is the slowest worker's step and an all-reduce."""
    fastest = max(itertools.chain(*setting.speeds))
    speeds = [s / fastest for row in setting.speeds for s in row]
    iteration_ms = setting.step_ms / min(speeds) + all_reduce_ms(setting)
    target = sum((w - 7.5) / 10 for w in range(len(speeds))) / len(speeds)
    th, outcome = 1.0, ReferenceResult()
    for done in range(1, math.ceil(setting.budget / len(speeds)) + 1):
        th -= 1e-3 * (th - target)
        outcome.arrivals.append((done * iteration_ms, 0, done * len(speeds)))
        outcome.values.append(th)
    return outcome


def all_reduce_ms(setting: Setting) -> float:
    """A ring over all workers at the best of all rings of the regions."""
    regions, gbps = range(len(setting.speeds)), setting.bandwidth_gbps
    workers = sum(len(row) for row in setting.speeds)
    inside = min(gbps[r][r] for r in regions if len(setting.speeds[r]) > 1)
    rings = [
        min(
            [gbps[a][b] for a, b in zip(ring, (*ring[1:], ring[0]), strict=True) if a != b]
            or [inside]
        )
        for ring in itertools.permutations(regions)
    ]
    slowest = min(inside, max(rings))
    return 2 * (workers - 1) * (setting.model_bytes * 8 / workers) / (slowest * 1e9) * 1e3
