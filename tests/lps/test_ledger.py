"""Whatever befalls a run, its books balance, nothing is applied twice, and it ends."""

import pytest

from lps.exchange import InFlight
from tests.lps.world import LpsScenario


def live_through(seed: int, *, in_flight: InFlight, ahead_ticks: int) -> LpsScenario:
    """Forty ticks or more of faults, then peace until everybody is gone."""
    world = LpsScenario(seed, in_flight=in_flight, ahead_ticks=ahead_ticks, budget=160)
    world.run(ticks=world.random.randrange(40, 200))
    world.make_peace()
    for _ in range(75):
        world.run(ticks=20)
        if world.nodes["gps"].finish is not None:
            break
    world.run(ticks=40)
    return world


def assert_the_books_balance(world: LpsScenario) -> None:
    totals = world.gps.ledger.totals()
    assert totals.duplicated == 0
    assert totals.held == 0
    assert totals.issued == (
        totals.applied + totals.dropped_in_flight + totals.unexchanged + totals.returned
    )
    # What really moved the global model is what the ledger says.
    assert world.nodes["gps"].model.spans() == world.gps.ledger.applied.spans()
    for node in world.nodes.values():
        if node.finish is not None:
            assert not node.finish.error, (node.name, node.finish)
        elif node.alive:
            # The run ended without it, for it was cut off or came too late: it waits.
            assert not world.reaches_the_gps(node), (node.name, vars(node.machine))
    assert world.gps.evaluators.validations[-1][1] == world.gps.model.counted_steps


@pytest.mark.parametrize("ahead_ticks", [0, 8])
@pytest.mark.parametrize("in_flight", ["drop", "carry", "replay"])
@pytest.mark.parametrize("seed", range(8))
def test_the_books_balance_whatever_happens(
    seed: int, in_flight: InFlight, ahead_ticks: int
) -> None:
    world = live_through(seed, in_flight=in_flight, ahead_ticks=ahead_ticks)
    assert world.gps.model.counted_steps >= 160
    assert_the_books_balance(world)


@pytest.mark.slow
@pytest.mark.parametrize("in_flight", ["drop", "carry", "replay"])
@pytest.mark.parametrize("seed", range(100, 600))
def test_the_books_balance_in_many_more_worlds(seed: int, in_flight: InFlight) -> None:
    world = live_through(seed, in_flight=in_flight, ahead_ticks=4 * (seed % 3))
    assert world.gps.model.counted_steps >= 160
    assert_the_books_balance(world)
