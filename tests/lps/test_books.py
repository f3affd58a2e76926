"""Whatever befalls a run, its books balance, nothing is applied twice, and it ends."""

import pytest

from lps.state import Lps
from tests.lps.world import Faults, World
from worker.state import Worker


def live_through(seed: int, *, carry: bool, lease_block: int) -> World:
    """Forty ticks and more of faults, then peace until the budget is reached and everybody is gone."""
    world = World(seed, carry=carry, lease_block=lease_block, budget=160, faults=Faults())
    world.run(ticks=world.random.randrange(40, 200))
    world.faults = None
    for node in world.nodes.values():
        node.cut_off_until = 0
    for region in ("eu", "us"):
        if not any(node.machine.settings.region == region for node in world.running(Lps)):
            world.start_region(region)
        if not any(node.machine.settings.server == region for node in world.running(Worker)):
            world.start_worker(region, -1)
    world.run(ticks=1500)
    return world


def assert_the_books_balance(world: World) -> None:
    totals = world.gps.ledger.totals()
    assert totals.duplicated == 0
    assert totals.held == 0
    assert totals.issued == (
        totals.applied + totals.dropped_in_flight + totals.unexchanged + totals.returned
    )
    # What really moved the global model is what the ledger says.
    assert world.nodes["gps"].model.spans() == world.gps.ledger.applied.spans()
    for node in world.nodes.values():
        assert not node.alive or node.finish is not None, (node.name, node.machine.__dict__)
        assert node.finish is None or not node.finish.error, (node.name, node.finish)


@pytest.mark.parametrize("lease_block", [1, 3])
@pytest.mark.parametrize("carry", [False, True], ids=["drop", "carry"])
@pytest.mark.parametrize("seed", range(12))
def test_the_books_balance_whatever_happens(seed: int, carry: bool, lease_block: int) -> None:
    world = live_through(seed, carry=carry, lease_block=lease_block)
    assert world.gps.counted_steps >= 160
    assert_the_books_balance(world)


@pytest.mark.slow
@pytest.mark.parametrize("carry", [False, True], ids=["drop", "carry"])
@pytest.mark.parametrize("seed", range(100, 600))
def test_the_books_balance_in_many_more_worlds(seed: int, carry: bool) -> None:
    world = live_through(seed, carry=carry, lease_block=1 + seed % 3)
    assert world.gps.counted_steps >= 160
    assert_the_books_balance(world)
