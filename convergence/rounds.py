"""The rounds in progress in a simulation, trained in batches as large as their order allows.

A round's result depends on nothing but its start and its replica's optimiser state, both of which are
fixed when it begins. So it may be trained at any time until its result is needed: rounds wait until the
first of their results is needed, and then all waiting rounds are trained at once.

A round that began from the parameters of the one before (`worker.overlap`) will be rebased in its course, or
after it. Until then only its own end has it trained. Once it is rebased it waits with the others, and is
trained in two parts: the steps before, from its start, and those after it, from where the rebase puts them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from math import ceil
from typing import Any

from convergence.problems.problem import Job
from pelago.core.ports import Payload
from pelago.sim.planes import Round

Train = Callable[[Sequence[Job]], list[Round]]
"""Trains jobs of different replicas; the rounds are in the order of the jobs."""


@dataclass(slots=True, eq=False)
class RunningRound:
    """The jobs of a node's round, and what becomes of them."""

    jobs: Sequence[Job]
    settled: bool
    """Whether no rebase can come any more."""
    share: Fraction | None = None
    """The share of its steps before the rebase; None: there is none."""
    model: Payload = None
    """The model of the rebase."""
    found: list[Round] = field(default_factory=list)
    """The results, one a job, once it is trained."""

    def rebase(self, model: Payload, share: Fraction) -> None:
        """A rebase comes after this share of its steps."""
        assert not self.settled, "a round is rebased once"
        self.settled, self.model, self.share = True, model, share

    def first(self, index: int) -> Job | None:
        """What a job does before the rebase, if it does anything."""
        job = self.jobs[index]
        done = self._done(job)
        return job if done == job.steps else job.first(done) if done else None

    def rest(self, index: int, before: Round | None, clock_step: int) -> Job | None:
        """What a job does after the rebase, if it does anything. ``before``: the result of `first`."""
        job = self.jobs[index]
        done = self._done(job)
        if done == job.steps:
            return None
        start = self.model if before is None else _less(self.model, before.delta)
        return job.rest(done, start, clock_step)

    def _done(self, job: Job) -> int:
        return job.steps if self.share is None else ceil(job.steps * self.share)


@dataclass(slots=True)
class LeftParameters:
    """Where a node's last round ended: ``anchor - delta``."""

    anchor: Payload
    delta: Payload


class Rounds:
    """Jobs begun and not yet asked for, of all nodes of a simulation; a node has one round at a time."""

    def __init__(self, train: Train, clock_step: int) -> None:
        """``clock_step``: samples by which the learning rate's clock moves in a local step."""
        self._train_jobs = train
        self._clock_step = clock_step
        self._running: dict[str, RunningRound] = {}
        self._left: dict[str, LeftParameters] = {}

    def begin(self, node: str, jobs: Sequence[Job], fresh: bool) -> None:
        """Jobs of different replicas, none of which is under way elsewhere. ``fresh``: from a server's model, so that
        no rebase will come; else from `left`."""
        assert node not in self._running, node
        self._running[node] = RunningRound(jobs, settled=fresh)

    def left(self, node: str) -> Payload:
        """The parameters that a node's last round left."""
        left = self._left[node]
        return _less(left.anchor, left.delta)

    def rebase(self, node: str, model: Payload, share: Fraction | None) -> None:
        """Rebase a node's round when this share of its steps has begun; None: it is over, move what it left."""
        if share is None:
            self._left[node].anchor = model
        else:
            self._running[node].rebase(model, share)

    def finish(self, node: str) -> Round:
        """The mean result of a node's jobs."""
        running = self._running[node]
        if not running.found:
            self._train(
                [each for each in self._running.values() if each.settled or each is running]
            )
        del self._running[node]
        found = running.found[0] if len(running.found) == 1 else _mean(running.found)
        anchor = running.jobs[0].start if running.share is None else running.model
        self._left[node] = LeftParameters(anchor, found.delta)
        return found

    def cancel(self, node: str) -> None:
        """Drop a node's jobs, whose results are not needed. If they were trained already, their optimisers
        have advanced, like those of a worker that is stopped at the end of its round."""
        self._running.pop(node, None)

    def _train(self, rounds: Sequence[RunningRound]) -> None:
        """Train those whose results are not known yet: up to their rebase, then from there."""
        jobs = [
            (each, index) for each in rounds if not each.found for index in range(len(each.jobs))
        ]
        firsts = self._run([each.first(index) for each, index in jobs])
        rests = self._run(
            [
                each.rest(index, before, self._clock_step)
                for (each, index), before in zip(jobs, firsts, strict=True)
            ]
        )
        for (each, _), first, rest in zip(jobs, firsts, rests, strict=True):
            each.found.append(_joined([part for part in (first, rest) if part is not None]))

    def _run(self, jobs: Sequence[Job | None]) -> list[Round | None]:
        real = [job for job in jobs if job is not None]
        found = iter(self._train_jobs(real) if real else [])
        return [None if job is None else next(found) for job in jobs]


def _joined(parts: Sequence[Round]) -> Round:
    """The result of parts that followed one another: deltas are added, losses weighted by tokens."""
    if len(parts) == 1:
        return parts[0]
    tokens = sum(each.tokens for each in parts)
    loss = sum(each.loss * each.tokens for each in parts) / max(1, tokens)
    return Round(_sum([each.delta for each in parts]), tokens, loss)


def _mean(rounds: Sequence[Round]) -> Round:
    """Deltas averaged with equal weights (DiLoCo, arXiv 2311.08105, algorithm 1, line 12)."""
    tokens = sum(each.tokens for each in rounds)
    loss = sum(each.loss * each.tokens for each in rounds) / max(1, tokens)
    total = _sum([each.delta for each in rounds])
    return Round(None if total is None else total / len(rounds), tokens, loss)


def _sum(deltas: Sequence[Payload]) -> Payload:
    """The sum of tensors of one shape; nothing where nothing is trained."""
    total: Any = deltas[0]
    for delta in deltas[1:]:
        total = None if total is None else total + delta
    return total


def _less(parameters: Payload, delta: Payload) -> Payload:
    """Parameters minus a delta; nothing where nothing is trained."""
    return None if delta is None else parameters - delta
