"""Under any faults a run's ledger balances, no sample is applied twice, and the run ends."""

import pytest

from lps.exchange import InFlight
from tests.lps.scenario import LpsScenario


def played(seed: int, *, in_flight: InFlight, ahead_ticks: int) -> LpsScenario:
    """Faults for forty ticks or more, then none until all nodes have ended."""
    scenario = LpsScenario(seed, in_flight=in_flight, ahead_ticks=ahead_ticks, budget=160)
    scenario.run(ticks=scenario.random.randrange(40, 200))
    scenario.end_faults()
    for _ in range(75):
        scenario.run(ticks=20)
        if scenario.nodes["gps"].finish is not None:
            break
    scenario.run(ticks=40)
    return scenario


def assert_the_ledger_balances(scenario: LpsScenario) -> None:
    totals = scenario.gps.ledger.totals()
    assert totals.duplicated == 0
    assert totals.held == 0
    assert totals.issued == (
        totals.applied + totals.dropped_in_flight + totals.unexchanged + totals.returned
    )
    # The samples that moved the global model are those of the ledger.
    assert scenario.nodes["gps"].model.spans() == scenario.gps.ledger.applied.spans()
    for node in scenario.nodes.values():
        if node.finish is not None:
            assert not node.finish.error, (node.name, node.finish)
        elif node.alive:
            # The run ended without it, for it was cut off or came too late: it waits.
            assert not scenario.reaches_the_gps(node), (node.name, vars(node.machine))
    assert scenario.gps.evaluators.validations[-1][1] == scenario.gps.model.counted_steps


@pytest.mark.parametrize("ahead_ticks", [0, 8])
@pytest.mark.parametrize("in_flight", ["drop", "carry", "replay"])
@pytest.mark.parametrize("seed", range(8))
def test_the_ledger_balances_under_any_faults(
    seed: int, in_flight: InFlight, ahead_ticks: int
) -> None:
    scenario = played(seed, in_flight=in_flight, ahead_ticks=ahead_ticks)
    assert scenario.gps.model.counted_steps >= 160
    assert_the_ledger_balances(scenario)


@pytest.mark.slow
@pytest.mark.parametrize("in_flight", ["drop", "carry", "replay"])
@pytest.mark.parametrize("seed", range(100, 600))
def test_the_ledger_balances_in_many_more_scenarios(seed: int, in_flight: InFlight) -> None:
    scenario = played(seed, in_flight=in_flight, ahead_ticks=4 * (seed % 3))
    assert scenario.gps.model.counted_steps >= 160
    assert_the_ledger_balances(scenario)
