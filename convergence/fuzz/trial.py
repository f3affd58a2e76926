"""One seed: the faulty phase first, in which nothing may be wrong, then the healthy phase, in which all must go on."""

import traceback
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from convergence.fuzz.fuzzed_cluster import World
from convergence.fuzz.invariant_checker import check_payloads
from convergence.fuzz.ledgers import GlobalLedger
from convergence.fuzz.scenario import draw
from gps.state import Gps
from lps.state import Lps
from pelago.config.timeouts import Timeouts
from pelago.core.machine import PS_PER_S, StopRequested
from pelago.sim.node import LOST, SimulatedNode
from pelago.sim.process import DOWN
from worker.state import Worker

EXCHANGES: Final = 2
"""So many updates of every region must arrive in the healthy phase."""
CATCH_UP_PS: Final = 60 * PS_PER_S
END_PS: Final = 60 * PS_PER_S
LOCAL_STEP_PS: Final = PS_PER_S // 4
"""More than a local step takes on the slowest worker, all told."""
STEP_PS: Final = PS_PER_S // 2
"""How often it is looked whether they did."""
STORY_CHARACTERS: Final = 20_000


class Verdict(IntEnum):
    """Exit codes."""

    SOUND = 0
    WRONG = 1
    USAGE = 2
    STUCK = 3
    CRASHED = 4


@dataclass(frozen=True, slots=True)
class TrialResult:
    """What a seed came to."""

    seed: int
    verdict: Verdict
    events: int
    virtual_ps: int
    counts: dict[str, int]
    story: str = ""
    digest: str = ""


class StuckError(Exception):
    """In the healthy phase something did not happen that should."""


def trial(seed: int, trace: bool = False) -> TrialResult:
    """Run a seed."""
    world: World | None = None
    verdict, story = Verdict.SOUND, ""
    try:
        world = World(draw(seed), trace)
        _run(world)
    except AssertionError as error:
        verdict, story = Verdict.WRONG, _story(error)
    except StuckError as error:
        verdict, story = Verdict.STUCK, str(error)
    except Exception as error:
        verdict, story = Verdict.CRASHED, _story(error)
    if world is None:
        return TrialResult(seed, verdict, 0, 0, {}, story)
    simulation, digest = world.simulation, world.trace.digest() if world.trace else ""
    counts = world.injector.draws.counts
    return TrialResult(seed, verdict, simulation.events, simulation.now, counts, story, digest)


def _story(error: Exception) -> str:
    return "".join(traceback.format_exception(error))[-STORY_CHARACTERS:]


def _run(world: World) -> None:
    drawn, simulation = world.drawn, world.simulation
    world.begin()
    simulation.run(until_ps=drawn.safety_ps)
    world.heal()
    if drawn.slow:
        _get_on(world, drawn.slow, "somebody with a sound link does not get on")
        world.quicken()
    _get_on(world, (), "somebody's updates do not arrive")
    check_payloads(_present(world))
    if drawn.endless and world.gps.phase != "finished":
        simulation.give(world.node("gps"), StopRequested("the trial is over"))
    left = max(0, world.run.run.budget_local_steps - world.gps.model.counted_steps)
    end_ps = END_PS + (0 if drawn.endless else left * LOCAL_STEP_PS)
    _wait(world, end_ps, lambda: world.over, "the GPS does not finish")
    check_payloads(_present(world))
    # Whoever cannot be served any more ends: first the servers that wait for the GPS, then their clients.
    give_up_ps = Timeouts.of(world.run.network).give_up_after_ps
    _wait(world, 3 * give_up_ps + END_PS, lambda: not _present(world), "somebody waits for ever")
    gps = world.node("gps")
    world.checker.check_end(gps, [gps, *_present(world)])


def _get_on(world: World, but: tuple[str, ...], otherwise: str) -> None:
    """Updates of every region and of every worker are taken in, unless the run is over before. C15: so they
    are of those whose links are well while others, ``but`` these, crawl."""
    begun = _progress(world)

    def all_did() -> bool:
        if world.node("gps").finished in (DOWN, LOST):
            return False  # What it was asked last it may have forgotten, and nobody can ask it now.
        if world.gps.phase in ("draining", "finished"):
            return True
        return all(
            count - begun.get((slot, process), 0) >= EXCHANGES
            for (slot, process), count in _progress(world).items()
            if slot not in but
        )

    _wait(world, CATCH_UP_PS, all_did, otherwise)


def _progress(world: World) -> dict[tuple[str, str], int]:
    """Updates of each region and worker that its server took in, and the process that has counted them."""
    gps, arrived = world.slots["gps"], _arrived(world)
    progress = {(f"lps/{each.name}", gps): arrived.get(each.name, 0) for each in world.run.region}
    for slot, process in world.slots.items():
        machine = world.machine(slot)
        if isinstance(machine, Worker):
            progress[slot, process] = machine.rounds
    return progress


def _present(world: World) -> list[SimulatedNode]:
    nodes = [world.node(slot) for slot in world.slots]
    return [each for each in nodes if each.finished is None]


def _arrived(world: World) -> dict[str, int]:
    ledger = world.checker.servers[world.slots["gps"]].ledger
    assert isinstance(ledger, GlobalLedger)
    return ledger.regions


def _wait(world: World, within_ps: int, done: Callable[[], bool], otherwise: str) -> None:
    simulation = world.simulation
    until_ps = simulation.now + within_ps
    while not done():
        if simulation.now >= until_ps:
            raise StuckError(f"{otherwise}\n{_scene(world)}")
        simulation.run(until_ps=simulation.now + STEP_PS)


def _scene(world: World) -> str:
    """Who is where."""
    lines = [f"GPS: {world.gps.phase}, {world.gps.model.counted_steps} steps, {_arrived(world)}"]
    for slot, name in world.slots.items():
        node = world.node(slot)
        machine = node.machine
        state = getattr(machine, "state", None) or getattr(machine, "phase", "")
        told = f"{name}: {state}, {node.finished}"
        if isinstance(machine, Lps):
            told += f", {machine.model.version} updates, pool {machine.workers.leases.pool.total}, {machine.session}"
        if isinstance(machine, Gps):
            told += (
                f", {[(each.name, each.peer, each.replying) for each in machine.regions.values()]}"
            )
        lines.append(told)
    return "\n".join(lines)
