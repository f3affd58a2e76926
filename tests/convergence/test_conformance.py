"""The daemons' machines under the virtual clock do what HALoS's released simulator does.

The published values of the paper's environment were computed from the released formulas and checked
against that simulator; for other settings the reference of this folder stands in for it.
"""

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch

from convergence.cluster import Arrival, Cluster, HandedOut
from pelago.core.machine import PS_PER_MS
from tests.convergence.paper import PAPER, run_file, shipped
from tests.convergence.reference_simulator import Setting, halos

torch.set_num_threads(1)

FIRST_ARRIVALS = [
    (19544.546923280002, "r0", 198),
    (21088.146893710058, "r2", 361),
    (22638.497417117935, "r1", 521),
    (28311.11321326623, "r3", 721),
    (38085.48581502237, "r0", 910),
    (43898.226434487806, "r2", 1111),
]
FIRST_VALUES = [0.9787514938079704, 0.954230143826107, 0.9409264099801791, 0.9184122093245363]
FINAL_VALUE = -0.17861703049570526


def exactly(value: Any) -> Any:
    return pytest.approx(value, rel=1e-9, abs=1e-12)


@dataclass
class ConformanceRun:
    cluster: Cluster
    result: dict[str, Any]
    values: list[float]
    """The GPS's parameter after every arrival."""
    leases: list[HandedOut]


def play(setting: Setting, check: bool = True) -> ConformanceRun:
    values: list[float] = []
    leases: list[HandedOut] = []

    def on_arrival(arrival: Arrival) -> None:
        # The note comes after the effect that applies the update, so the step has been made.
        value = cluster.problem.value(cluster.plane("gps"))
        assert value is not None
        values.append(value)

    run = run_file(setting)
    cluster = Cluster(run, check=check, on_arrival=on_arrival)
    cluster.on_lease = leases.append
    return ConformanceRun(cluster, cluster.replay(), values, leases)


@pytest.fixture(scope="module")
def paper() -> ConformanceRun:
    return play(PAPER, check=False)


def test_the_shipped_run_files_are_the_papers_environment() -> None:
    timing, scalar = shipped("halos_paper"), shipped("halos_paper_scalar")
    ours = run_file(PAPER)
    for table in ("region", "network", "lps", "gps"):
        assert getattr(timing, table) == getattr(scalar, table) == getattr(ours, table)
    assert timing.simulation == run_file(PAPER, "timing").simulation
    assert scalar.simulation == ours.simulation
    assert timing.run.budget_local_steps == scalar.run.budget_local_steps == 98_304
    assert timing.worker == scalar.worker
    assert timing.worker.local_steps == 8


def test_the_papers_run_takes_the_published_time_and_updates(paper: ConformanceRun) -> None:
    found = paper.result
    assert found["gps"]["updates"] == found["gps"]["version"] == len(paper.cluster.arrivals) == 396
    assert found["counted_steps"] == 98_407
    assert found["elapsed_ms"] == exactly(2434417.23384859)
    by_region = {"r0": 131, "r1": 95, "r2": 107, "r3": 63}
    assert found["gps"]["updates_by_region"] == by_region


def test_the_papers_run_has_the_published_arrivals(paper: ConformanceRun) -> None:
    arrivals = [
        (each.time_ps / PS_PER_MS, each.region, each.cumulative_steps)
        for each in paper.cluster.arrivals
    ]
    for ours, published in zip(arrivals, FIRST_ARRIVALS, strict=False):
        assert ours == (exactly(published[0]), *published[1:])
    assert arrivals[-1] == (exactly(2434417.23384859), "r0", 98_407)


def test_the_scalar_model_takes_the_published_values(paper: ConformanceRun) -> None:
    assert paper.values[:4] == exactly(FIRST_VALUES)
    assert paper.result["final"]["gps"] == exactly(FINAL_VALUE)


def test_the_papers_run_agrees_with_the_reference_at_every_arrival(paper: ConformanceRun) -> None:
    compare(paper, PAPER)


def test_the_papers_ledger_drops_28_percent_and_balances(paper: ConformanceRun) -> None:
    ledger, regions = paper.result["ledger"], paper.result["lps"]
    parts = ("applied", "dropped_in_flight", "unexchanged", "returned")
    assert ledger["issued"] == sum(ledger[part] for part in parts)
    assert ledger["duplicated"] == 0
    updates = sum(each["updates"] for each in regions.values())
    in_flight = sum(each["in_flight_updates"] for each in regions.values())
    assert round(in_flight / updates, 2) == 0.28
    assert round(regions["r3"]["in_flight_updates"] / regions["r3"]["updates"], 2) == 0.57


def test_the_learning_rate_clock_counts_samples_as_they_are_handed_out(
    paper: ConformanceRun,
) -> None:
    """One global stream, first come first served: the clock of a round is range.start // 1024."""
    # Regions are equally fast inside, so rounds begin in the order in which they were handed out.
    ours = [(each.worker, each.lease.spans[0][0]) for each in paper.leases]
    assert all(len(each.lease.spans) == 1 for each in paper.leases)
    clock = [start // 1024 for _, start in ours]
    assert clock == sorted(clock)
    assert (clock[0], clock[-1]) == (0, 6186)
    # Those handed out last had not reached their workers when the run ended.
    assert ours == halos(PAPER).leases[: len(ours)]
    assert len(ours) == 17_636


def compare(run: ConformanceRun, setting: Setting) -> None:
    """All arrivals, the GPS's value after each, the regions' last values; and the ledger balances."""
    reference = halos(setting)
    ours = [
        (each.time_ps / PS_PER_MS, int(each.region[1:]), each.cumulative_steps)
        for each in run.cluster.arrivals
    ]
    assert len(ours) == len(reference.arrivals)
    assert [each[1:] for each in ours] == [each[1:] for each in reference.arrivals]
    assert [each[0] for each in ours] == exactly([each[0] for each in reference.arrivals])
    assert run.values == exactly(reference.values)
    final = run.result["final"]
    assert final["gps"] == exactly(reference.values[-1])
    assert list(final["lps"].values()) == exactly(reference.lps)
    ledger = run.result["ledger"]
    parts = ("applied", "dropped_in_flight", "unexchanged", "returned")
    assert ledger["issued"] == sum(ledger[part] for part in parts)
    assert ledger["duplicated"] == 0


SHORT = replace(PAPER, budget=1_500)
FLAT_100 = ((100.0, 100.0, 100.0),) * 3
OTHER_SETTINGS = {
    "the default, short": SHORT,
    "carry": replace(SHORT, carry=True),
    "alpha 0": replace(SHORT, alpha=0.0),
    "alpha 1": replace(SHORT, alpha=1.0),
    "alpha 1, carry": replace(SHORT, alpha=1.0, carry=True),
    "K 1": replace(SHORT, every=1, budget=500),
    "K 4, carry": replace(SHORT, every=4, carry=True, alpha=0.5),
    "K 100": replace(SHORT, every=100),
    "H 1": replace(SHORT, local_steps=1, budget=400),
    "H 3": replace(SHORT, local_steps=3),
    "H 32, not rescaled": replace(SHORT, local_steps=32, rescale=False, budget=10_000),
    "other delays": replace(SHORT, lps=(0.1, 0.8, 5), gps=(0.7, 0.9, 3)),
    "no delays": replace(SHORT, lps=(0.2, 0.9, 1), gps=(0.15, 0.5, 1)),
    "no momentum": replace(SHORT, lps=(0.25, 0.0, 1), gps=(0.5, 0.0, 1)),
    "the GPS elsewhere": replace(SHORT, gps_region=3),
    "links ten times slower": replace(
        SHORT,
        bandwidth_gbps=tuple(tuple(rate / 10 for rate in row) for row in PAPER.bandwidth_gbps),
    ),
    "links of two different directions": replace(
        SHORT,
        speeds=((1.0, 0.6), (0.8, 0.5)),
        bandwidth_gbps=((50.0, 0.3), (0.9, 20.0)),
        every=6,
    ),
    "another model": replace(SHORT, model_bytes=1_000_000_003, step_ms=117.3),
    "a budget of one step": replace(SHORT, budget=1),
    "uneven regions": replace(
        SHORT,
        speeds=((0.9,), (0.31, 0.77, 0.52, 0.44, 0.68), (0.21, 0.83)),
        bandwidth_gbps=((100.0, 0.5, 0.2), (0.5, 80.0, 0.3), (0.2, 0.3, 60.0)),
        every=7,
    ),
    "one region": replace(SHORT, speeds=((0.5, 1.0, 0.7),), bandwidth_gbps=((10.0,),), every=5),
    "equal workers": replace(SHORT, speeds=((2.0,) * 3,) * 3, bandwidth_gbps=FLAT_100, every=8),
}


@pytest.mark.parametrize("setting", OTHER_SETTINGS.values(), ids=OTHER_SETTINGS)
def test_other_settings_agree_with_the_reference_under_all_invariants(setting: Setting) -> None:
    compare(play(setting), setting)


def test_carry_keeps_what_drop_loses() -> None:
    dropped, carried = play(SHORT).result, play(replace(SHORT, carry=True)).result
    assert dropped["ledger"]["dropped_in_flight"] > 0
    assert carried["ledger"]["dropped_in_flight"] == 0
    assert carried["elapsed_ms"] == dropped["elapsed_ms"]
    assert carried["final"] != dropped["final"]
