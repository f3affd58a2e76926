"""The topology, the settings and the faults that are drawn from a seed."""

import math
from dataclasses import dataclass
from random import Random
from typing import Final

from pelago.core.machine import PS_PER_MS, PS_PER_S
from pelago.core.prng import derive
from pelago.sim.fault_profile import FaultProfile

REGIONS: Final = ("eu", "us", "asia", "africa")
UNREACHED_BUDGET: Final = 1 << 40
"""A budget of local steps that no trial reaches."""
FREEZING: Final = (4, 6, 9, 12)
"""Seeds modulo 16 in which processes are frozen. They leave out seeds that had found bugs before this fault
existed, so that those seeds still run as they did."""
SLOW: Final = (6, 9, 10, 14)
"""Seeds modulo 16 in which links are slow, chosen likewise."""
POWERLESS: Final = (4, 12)
"""Seeds modulo 16 in which the GPS's machine may lose its power, chosen likewise."""
OVERLAPPING: Final = 0.3
"""How many runs have workers whose rounds overlap with their exchanges."""


@dataclass(frozen=True, slots=True)
class FaultSchedule:
    """The mean time between two faults of each kind, in picoseconds; 0: there are none."""

    kill_ps: int
    """A process is killed between two events."""
    cut_ps: int
    """A link is cut."""
    one_way: float
    """Share of the cuts that affect one direction only."""
    full_ps: int
    """All disks are full for a while."""
    jump_ps: int
    """A clock jumps."""
    stop_ps: int
    """A node is asked to end in good order."""
    lose_ps: int
    """The GPS's host is lost with its disk; another one takes its place."""
    copy_ps: int
    """A copy of the GPS's state is made on another host."""
    lasts_ps: int
    """The longest time that a cut, a full disk or a slow link lasts, in picoseconds."""
    power_ps: int
    """The GPS's machine loses its power, if the GPS is durable; another process continues from what is left there."""
    freeze_ps: int
    """A process is frozen for a while."""
    frozen_ps: int
    """The longest time that a process is frozen, in picoseconds."""
    slow_ps: int
    """The link from a slot to its server holds payloads back for a while."""


@dataclass(frozen=True, slots=True)
class Scenario:
    """Everything that is drawn from a seed."""

    seed: int
    toml: str
    """The run file."""
    workers: tuple[int, ...]
    """How many workers each region has."""
    endless: bool
    """The budget of local steps is never reached: the trial asks the GPS to end."""
    evaluator: bool
    durable_gps: bool
    durable_lps: bool
    scalar: bool
    """The model is one number, so that parameters can be compared; otherwise there are no tensors."""
    anonymous: bool
    """Workers let their server choose their group."""
    ends_early: bool
    """The GPS is asked to end in the faulty phase."""
    skewed: bool
    """Clocks run at different rates."""
    failing: float
    """Share of the workers' rounds in which no gradient is finite."""
    hopeless: bool
    """In the healthy phase no gradient of any round is finite, and servers allow few rejected updates: the run
    must end with an error."""
    slow: tuple[str, ...]
    """Slots whose payloads are held back in the healthy phase, while others must make progress."""
    faulty_ps: int
    """How long the faulty phase lasts, in picoseconds."""
    profile: FaultProfile
    schedule: FaultSchedule


def draw_scenario(seed: int) -> Scenario:
    """The scenario of a seed: equal for equal seeds."""
    random = Random(derive("fuzz", seed))
    workers = tuple(random.randint(1, 4) for _ in range(random.randint(1, 4)))
    endless, scalar = random.random() < 0.6, random.random() < 0.1
    lost_after_ms = random.randint(3, 12) * 100
    # From a stream of its own, and not for all seeds, so that seeds that once found bugs still run as they did.
    training = Random(derive("fuzz-training", seed))
    hopeless = training.random() < 0.03
    failing = _chance(training, 0.3) if hopeless or training.random() < 0.25 else 0.0
    toml = _TOML.format(
        budget=UNREACHED_BUDGET if endless else random.randint(20, 2000),
        seed=seed,
        local_steps=random.randint(1, 4),
        batch_size=random.randint(1, 3),
        exchange=random.randint(1, 8),
        in_flight=random.choice(("drop", "carry", "replay")),
        lease_seconds=random.choice((0.0, 0.1, 0.5, 4.0)),
        lps_staged=random.randint(1, 3),
        gps_staged=random.randint(1, 2),
        validation=random.choice((10, 50, 200)),
        lost_after_ms=lost_after_ms,
        region_lost_after_ms=random.choice((1, 2, 8)) * lost_after_ms,
        give_up_after_ms=3000 if Random(derive("patience", seed)).random() < 0.1 else 60_000,
        problem="scalar" if scalar else "timing",
        step_ms=random.choice((10.0, 20.0, 40.0)),
        rescale=random.choice(("true", "false")),
        # From a stream of its own as well.
        overlap="true" if Random(derive("overlap", seed)).random() < OVERLAPPING else "false",
        rejected_max=3 if hopeless else 1000,
        bandwidth=_matrix(random, len(workers), 0.02, 1.0, inside=10.0),
        latency=_matrix(random, len(workers), 1.0, 100.0, inside=0.5),
    ) + "".join(
        _REGION.format(name=name, speeds=[round(random.uniform(0.3, 1.0), 2) for _ in range(count)])
        for name, count in zip(REGIONS, workers, strict=False)
    )
    late_ps = round(math.exp(random.uniform(math.log(1), math.log(2000))) * PS_PER_MS)
    down_ps = random.randint(1, 3 * lost_after_ms) * PS_PER_MS
    profile = FaultProfile(
        control_lost=_chance(random, 0.3),
        control_repeated=_chance(random, 0.3),
        control_late=_chance(random, 0.5),
        late_ps=late_ps,
        payload_lost=_chance(random, 0.3),
        payload_unconfirmed=_chance(random, 0.2),
        payload_repeated=_chance(random, 0.2),
        crash=_chance(random, 0.005),
        down_ps=down_ps,
        snapshot=_chance(random, 0.1),
        disk_ps=random.choice((0, 1, 20, 300)) * PS_PER_MS,
        damage=_chance(random, 0.5),
        unfit=_chance(random, 0.05),
    )
    hosts = Random(derive("hosts", seed))
    # From streams of their own as well.
    frost, crawling = Random(derive("freeze", seed)), Random(derive("slow", seed))
    schedule = FaultSchedule(
        kill_ps=_interval(random),
        cut_ps=_interval(random),
        one_way=random.choice((0.0, 0.5, 1.0)),
        full_ps=_interval(random),
        jump_ps=_interval(random),
        stop_ps=_interval(random) * 3,
        # From a stream of its own as well.
        lose_ps=_interval(hosts) * 2 if seed % 4 in (1, 2) else 0,
        copy_ps=_interval(hosts) if seed % 4 in (1, 2) else 0,
        lasts_ps=random.randint(1, 4 * lost_after_ms) * PS_PER_MS,
        freeze_ps=_interval(frost) if seed % 16 in FREEZING else 0,
        # From a stream of its own as well.
        power_ps=_interval(Random(derive("fuzz-power", seed))) if seed % 16 in POWERLESS else 0,
        frozen_ps=frost.randint(1, 8) * lost_after_ms * PS_PER_MS,
        slow_ps=_interval(crawling) if seed % 16 in SLOW else 0,
    )
    return Scenario(
        seed,
        toml,
        workers,
        endless=endless,
        evaluator=random.random() < 0.7,
        durable_gps=random.random() < 0.7,
        durable_lps=random.random() < 0.7,
        scalar=scalar,
        # From a stream of its own as well.
        anonymous=Random(derive("anonymous", seed)).random() < 0.15,
        ends_early=seed % 8 == 7,
        skewed=random.random() < 0.5,
        failing=failing,
        hopeless=hopeless,
        # Where no gradient is finite no node makes progress.
        slow=_slow_slots(crawling, workers) if seed % 16 in SLOW and not hopeless else (),
        faulty_ps=random.randint(2, 12) * PS_PER_S,
        profile=profile,
        schedule=schedule,
    )


def _slow_slots(random: Random, workers: tuple[int, ...]) -> tuple[str, ...]:
    """Any of the regions and of the workers of each, but not all."""
    slots = [f"lps/{name}" for name in REGIONS[: len(workers)]]
    slow = random.sample(slots, random.randrange(len(slots)))
    for name, count in zip(REGIONS, workers, strict=False):
        groups = random.sample(range(count), random.randrange(count))
        slow += [f"{name}/{group}" for group in groups]
    return tuple(slow)


def _chance(random: Random, most: float) -> float:
    """A probability: 0 half of the time; else log-uniform between a hundredth of ``most`` and ``most``."""
    if random.random() < 0.5:
        return 0.0
    return most * math.exp(random.uniform(math.log(0.01), 0.0))


def _interval(random: Random) -> int:
    """A mean time in picoseconds: 0 half of the time; else log-uniform between 0.2 and 10 s."""
    if random.random() < 0.5:
        return 0
    return round(math.exp(random.uniform(math.log(0.2), math.log(10.0))) * PS_PER_S)


def _matrix(random: Random, size: int, low: float, high: float, inside: float) -> list[list[float]]:
    """A square matrix over regions: ``inside`` on the diagonal, uniform between ``low`` and ``high`` elsewhere."""
    return [
        [inside if a == b else round(random.uniform(low, high), 3) for b in range(size)]
        for a in range(size)
    ]


_TOML: Final = """
[run]
budget_local_steps = {budget}
seed = {seed}
[worker]
local_steps = {local_steps}
batch_size = {batch_size}
rescale = {rescale}
overlap = {overlap}
[lps]
updates_per_exchange = {exchange}
in_flight = "{in_flight}"
lease_seconds = {lease_seconds}
staged_max = {lps_staged}
rejected_max = {rejected_max}
[gps]
rejected_max = {rejected_max}
staged_max = {gps_staged}
validation_interval_steps = {validation}
[network]
bandwidth_gbps = {bandwidth}
latency_ms = {latency}
heartbeat_ms = 100
lost_after_ms = {lost_after_ms}
region_lost_after_ms = {region_lost_after_ms}
give_up_after_ms = {give_up_after_ms}
[simulation]
problem = "{problem}"
model_bytes = 1000000
step_ms = {step_ms}
daemons = true
"""
_REGION: Final = """
[[region]]
name = "{name}"
worker_speeds = {speeds}
"""
