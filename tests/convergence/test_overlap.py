"""Rounds that overlap with exchanges, in the simulator: they are trained in two parts, and nothing is lost."""

from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction

import pytest
import torch

from convergence.cluster import Cluster
from convergence.problems.problem import Job, Part
from convergence.rounds import Rounds
from pelago.sim.planes import Round
from tests.convergence.paper import PAPER, run_file

RATE = 0.1


class Descent:
    """Steps towards the number of each sample: x <- x - RATE * (x - sample). Remembers each batch of jobs."""

    def __init__(self) -> None:
        self.batches: list[list[Job]] = []

    def train(self, jobs: Sequence[Job]) -> list[Round]:
        self.batches.append(list(jobs))
        return [self._round(job) for job in jobs]

    @staticmethod
    def _round(job: Job) -> Round:
        point = start = job.start
        for first, stop in job.spans:
            for sample in range(first, stop):
                point = point - RATE * (point - sample)
        return Round(start - point, job.steps, float(job.clock))


def job(start: float, samples: int = 4, replica: int = 0) -> Job:
    spans = ((0, 2), (7, 7 + samples - 2))
    return Job(replica, samples, (Part(0, 0, 1),), spans, 100, torch.tensor([start]).double())


def after(point: float, samples: Sequence[int]) -> float:
    for sample in samples:
        point -= RATE * (point - sample)
    return point


def number(value: float) -> torch.Tensor:
    return torch.tensor([value]).double()


@pytest.mark.parametrize("done", range(5))
def test_a_rebased_round_goes_on_from_the_model_plus_its_movement(done: int) -> None:
    """After any of its four steps, or before the first; its delta is what was trained, and nothing else."""
    rounds = Rounds(Descent().train, clock_step=10)
    rounds.begin("one", [job(5.0)], fresh=False)
    rounds.rebase("one", number(-3.0), Fraction(done, 4))
    found = rounds.finish("one")
    samples = [0, 1, 7, 8]
    moved = after(5.0, samples[:done]) - 5.0
    end = after(-3.0 + moved, samples[done:])
    assert float(found.delta) == pytest.approx(-3.0 - end)
    assert float(rounds.left("one")) == pytest.approx(end)
    assert found.tokens == 4


def test_the_second_part_has_the_clock_of_its_first_step() -> None:
    descent = Descent()
    rounds = Rounds(descent.train, clock_step=10)
    rounds.begin("one", [job(5.0)], fresh=False)
    rounds.rebase("one", number(1.0), Fraction(3, 4))
    found = rounds.finish("one")
    assert [[(each.steps, each.clock) for each in batch] for batch in descent.batches] == [
        [(3, 100)],
        [(1, 130)],
    ]
    assert found.loss == pytest.approx((3 * 100 + 130) / 4)


def test_a_round_that_may_still_be_rebased_is_not_trained_with_others() -> None:
    """
    1. Three rounds: one from a model, one that was rebased, one that awaits its rebase.
    2. The result of the first is needed: the second is trained with it, the third is not.
    3. The third is rebased afterwards, as if nothing had happened.
    """
    descent = Descent()
    rounds = Rounds(descent.train, clock_step=10)
    for replica, (name, fresh) in enumerate((("a", True), ("b", False), ("c", False))):
        rounds.begin(name, [job(float(replica), replica=replica)], fresh)
    rounds.rebase("b", number(1.0), Fraction(1, 4))
    rounds.finish("a")
    assert [[each.replica for each in batch] for batch in descent.batches] == [[0, 1], [1]]
    rounds.rebase("c", number(1.0), Fraction(1, 2))
    rounds.finish("c")
    rounds.finish("b")
    assert [[each.replica for each in batch] for batch in descent.batches[2:]] == [[2], [2]]


def test_what_a_round_left_is_moved_when_the_answer_comes_after_its_end() -> None:
    rounds = Rounds(Descent().train, clock_step=10)
    rounds.begin("one", [job(5.0)], fresh=True)
    found = rounds.finish("one")
    assert float(rounds.left("one")) == pytest.approx(5.0 - float(found.delta))
    rounds.rebase("one", number(2.0), None)
    assert float(rounds.left("one")) == pytest.approx(2.0 - float(found.delta))


def test_a_cancelled_round_leaves_what_was_there_before() -> None:
    rounds = Rounds(Descent().train, clock_step=10)
    rounds.begin("one", [job(5.0)], fresh=True)
    rounds.finish("one")
    left = rounds.left("one")
    rounds.begin("one", [job(float(left))], fresh=False)
    rounds.cancel("one")
    assert torch.equal(rounds.left("one"), left)


SLOW_LAN = [[8.0 if a == b else 0.5 for b in range(4)] for a in range(4)]
"""A model of 281.7 MB takes 0.28 s inside a region."""


def replay(overlap: bool, problem: str, gbps: list[list[float]] = SLOW_LAN) -> Cluster:
    run = run_file(PAPER, problem)
    run = run.model_copy(
        update={
            "worker": run.worker.model_copy(update={"overlap": overlap, "local_steps": 4}),
            "network": run.network.model_copy(
                update={"bandwidth_gbps": tuple(tuple(row) for row in gbps)}
            ),
            "run": run.run.model_copy(update={"budget_local_steps": 1000}),
        }
    )
    cluster = Cluster(run, check=True)
    cluster.replay()
    return cluster


def test_workers_never_wait_where_a_round_takes_longer_than_an_exchange_with_the_lps() -> None:
    waiting, overlapping = (replay(overlap, "timing") for overlap in (False, True))
    busy = [
        [
            each.report().busy_ms / each.report().alive_ms
            for each in cluster.workers.values()
            if each.report().rounds > 10
        ]
        for cluster in (waiting, overlapping)
    ]
    assert min(busy[1]) > 0.95
    assert max(busy[0]) < 0.95
    assert sum(busy[0]) / len(busy[0]) < 0.8
    totals = overlapping.gps.ledger.totals()
    spent = totals.applied + totals.dropped_in_flight + totals.unexchanged
    assert totals.issued == spent + totals.returned + totals.held
    assert totals.duplicated == 0


def test_where_an_exchange_takes_longer_than_a_round_the_worker_waits_for_it() -> None:
    """At 1 Gbps a model takes 2.25 s each way, and a round of four steps 0.95 s at most."""
    gbps = [[1.0 if a == b else 0.5 for b in range(4)] for a in range(4)]
    cluster = replay(True, "timing", gbps)
    assert all(each.rounds > 3 for each in cluster.workers.values())


def test_a_convex_problem_is_learnt_as_fast_for_a_number_of_steps() -> None:
    """The scalar problem goes from 1 towards its optimum 0, equally fast either way."""
    finals = [
        float(cluster.problem.value(cluster.plane("gps")) or 0.0)
        for cluster in (replay(overlap, "scalar") for overlap in (False, True))
    ]
    assert finals[0] == pytest.approx(finals[1], abs=0.02)
    assert all(each < 0.9 for each in finals)


def test_an_overlapping_run_is_deterministic() -> None:
    first, second = (replay(True, "scalar") for _ in range(2))
    assert first.simulation.events == second.simulation.events
    assert first.problem.value(first.plane("gps")) == second.problem.value(second.plane("gps"))


def test_a_job_is_cut_in_the_order_of_its_samples() -> None:
    whole = replace(job(0.0), spans=((10, 12), (3, 5)), clock=7)
    assert whole.first(3).spans == ((10, 12), (3, 4))
    rest = whole.rest(3, number(1.0), clock_step=5)
    assert (rest.spans, rest.steps, rest.clock, float(rest.start)) == (((4, 5),), 1, 22, 1.0)
