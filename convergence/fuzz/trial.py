"""Runs one seed: first the faulty phase, in which no invariant may break, then the healthy phase, in which every
node must make progress."""

import traceback
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from convergence.fuzz.fuzzed_cluster import FuzzedCluster
from convergence.fuzz.invariant_checker import check_payloads
from convergence.fuzz.ledgers import GlobalLedger
from convergence.fuzz.scenario import draw_scenario
from gps.state import Gps
from lps.state import Lps
from pelago.config.timeouts import Timeouts
from pelago.core.machine import PS_PER_S, StopRequested
from pelago.sim.node import LOST, SimulatedNode
from pelago.sim.process import DOWN
from worker.state import Worker

EXCHANGES: Final = 2
"""How many updates of every region and worker must be applied in the healthy phase."""
CATCH_UP_PS: Final = 60 * PS_PER_S
"""How long that may take, in picoseconds."""
END_PS: Final = 60 * PS_PER_S
LOCAL_STEP_PS: Final = PS_PER_S // 4
"""An upper limit on the time of a local step on the slowest worker, in picoseconds, communication included."""
STEP_PS: Final = PS_PER_S // 2
"""How often the conditions of the healthy phase are checked, in picoseconds."""
STORY_CHARACTERS: Final = 20_000
"""The longest description of a failure that is kept: its end."""


class Verdict(IntEnum):
    """The verdict of a trial; the values are exit codes."""

    SOUND = 0
    WRONG = 1
    USAGE = 2
    STUCK = 3
    CRASHED = 4


@dataclass(frozen=True, slots=True)
class TrialResult:
    """The result of a trial. ``virtual_ps``: the simulation's clock at its end. ``counts``: of each kind of fault.
    ``story``: the failure, with what led to it. ``digest``: of everything that happened, if it was traced."""

    seed: int
    verdict: Verdict
    events: int
    virtual_ps: int
    counts: dict[str, int]
    story: str = ""
    digest: str = ""


class StuckError(Exception):
    """A condition of the healthy phase was not reached in time."""


def trial(seed: int, trace: bool = False) -> TrialResult:
    """Run a seed. ``trace``: keep a digest of everything."""
    cluster: FuzzedCluster | None = None
    verdict, story = Verdict.SOUND, ""
    try:
        cluster = FuzzedCluster(draw_scenario(seed), trace)
        _run(cluster)
    except AssertionError as error:
        verdict, story = Verdict.WRONG, _story(error)
    except StuckError as error:
        verdict, story = Verdict.STUCK, str(error)
    except Exception as error:
        verdict, story = Verdict.CRASHED, _story(error)
    if cluster is None:
        return TrialResult(seed, verdict, 0, 0, {}, story)
    simulation, digest = cluster.simulation, cluster.trace.digest() if cluster.trace else ""
    counts = cluster.injector.draws.counts
    return TrialResult(seed, verdict, simulation.events, simulation.now, counts, story, digest)


def _story(error: Exception) -> str:
    return "".join(traceback.format_exception(error))[-STORY_CHARACTERS:]


def _run(cluster: FuzzedCluster) -> None:
    scenario, simulation = cluster.scenario, cluster.simulation
    cluster.begin()
    simulation.run(until_ps=scenario.faulty_ps)
    cluster.heal()
    if scenario.slow:
        _check_progress(cluster, scenario.slow, "a node with a sound link makes no progress")
        cluster.quicken()
    _check_progress(cluster, (), "the updates of a node do not arrive")
    check_payloads(_present(cluster))
    if scenario.endless and cluster.gps.phase != "finished":
        simulation.give((cluster.node("gps"), StopRequested("the trial is over")))
    left = max(0, cluster.run.run.budget_local_steps - cluster.gps.model.counted_steps)
    end_ps = END_PS + (0 if scenario.endless else left * LOCAL_STEP_PS)
    _wait(cluster, end_ps, lambda: cluster.over, "the GPS does not finish")
    check_payloads(_present(cluster))
    # Nodes that no server serves any more end: first the servers that wait for the GPS, then their clients.
    give_up_ps = Timeouts.of(cluster.run.network).give_up_after_ps
    _wait(
        cluster, 3 * give_up_ps + END_PS, lambda: not _present(cluster), "a node waits without end"
    )
    gps = cluster.node("gps")
    cluster.checker.check_end(gps, [gps, *_present(cluster)])


def _check_progress(cluster: FuzzedCluster, but: tuple[str, ...], otherwise: str) -> None:
    """Wait until updates of every region and of every worker were applied, or the run is over. C15: ``but`` those
    whose links are slow. Raises `StuckError` if it takes too long."""
    begun = _progress(cluster)

    def all_did() -> bool:
        if cluster.node("gps").finished in (DOWN, LOST):
            return False  # It may have forgotten a request to end, and cannot be asked now.
        if cluster.gps.phase in ("draining", "finished"):
            return True
        return all(
            count - begun.get((slot, process), 0) >= EXCHANGES
            for (slot, process), count in _progress(cluster).items()
            if slot not in but
        )

    _wait(cluster, CATCH_UP_PS, all_did, otherwise)


def _progress(cluster: FuzzedCluster) -> dict[tuple[str, str], int]:
    """How many updates of each region and worker were applied, by slot and the process that has counted them."""
    gps, arrived = cluster.slots["gps"], _arrived(cluster)
    progress = {(f"lps/{each.name}", gps): arrived.get(each.name, 0) for each in cluster.run.region}
    for slot, process in cluster.slots.items():
        machine = cluster.machine(slot)
        if isinstance(machine, Worker):
            progress[slot, process] = machine.rounds
    return progress


def _present(cluster: FuzzedCluster) -> list[SimulatedNode]:
    nodes = [cluster.node(slot) for slot in cluster.slots]
    return [each for each in nodes if each.finished is None]


def _arrived(cluster: FuzzedCluster) -> dict[str, int]:
    ledger = cluster.checker.servers[cluster.slots["gps"]].ledger
    assert isinstance(ledger, GlobalLedger)
    return ledger.regions


def _wait(cluster: FuzzedCluster, within_ps: int, done: Callable[[], bool], otherwise: str) -> None:
    simulation = cluster.simulation
    until_ps = simulation.now + within_ps
    while not done():
        if simulation.now >= until_ps:
            raise StuckError(f"{otherwise}\n{_scene(cluster)}")
        simulation.run(until_ps=simulation.now + STEP_PS)


def _scene(cluster: FuzzedCluster) -> str:
    """The nodes and what each is doing, for the description of a failure."""
    lines = [
        f"GPS: {cluster.gps.phase}, {cluster.gps.model.counted_steps} steps, {_arrived(cluster)}"
    ]
    for slot, name in cluster.slots.items():
        node = cluster.node(slot)
        machine = node.machine
        state = getattr(machine, "state", None) or getattr(machine, "phase", "")
        line = f"{name}: {state}, {node.finished}"
        if isinstance(machine, Lps):
            line += f", {machine.model.version} updates, pool {machine.workers.leases.pool.total}, {machine.session}"
        if isinstance(machine, Gps):
            line += (
                f", {[(each.name, each.peer, each.replying) for each in machine.regions.values()]}"
            )
        lines.append(line)
    return "\n".join(lines)
