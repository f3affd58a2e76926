"""Simulations that train together: each in a thread of its own, one batch for all of them.

A device trains a thousand small models in little more time than sixteen, but one simulation has few
workers. So several simulations run side by side until each of them needs a round that is not trained
yet; then the rounds of all are trained in one batch, and all go on. No simulation affects another: each
computes the same as it would alone, except for the rounding of sums, which a device may add in another
order for another batch size.
"""

import threading
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

from convergence.problems.problem import Batchable, Job, Problem
from pelago.sim.planes import Round


@dataclass(slots=True, eq=False)
class _Request:
    """The jobs of one simulation that waits for their results."""

    problem: Problem
    jobs: Sequence[Job]
    rounds: list[Round] = field(default_factory=list)
    done: bool = False


class BatchTrainer:
    """A meeting point of a fixed number of simulations. Every one of them must `leave`, however it ends."""

    def __init__(self, members: int) -> None:
        self._members = members
        self._waiting: list[_Request] = []
        self._changed = threading.Condition()
        self._failure: BaseException | None = None

    def train(self, problem: Problem, jobs: Sequence[Job]) -> list[Round]:
        """Wait until every simulation has jobs, then train all of them. Raises what training raises."""
        request = _Request(problem, jobs)
        with self._changed:
            self._waiting.append(request)
            self._train_if_complete()
            while not request.done:
                self._changed.wait()
        if self._failure is not None:
            raise RuntimeError(f"training together failed: {self._failure}") from self._failure
        return request.rounds

    def leave(self) -> None:
        """A simulation is over; the others do not wait for it any more."""
        with self._changed:
            self._members -= 1
            self._train_if_complete()

    def _train_if_complete(self) -> None:
        if not self._waiting or len(self._waiting) < self._members:
            return
        waiting, self._waiting = self._waiting, []
        try:
            self._train(waiting)
        except BaseException as error:  # the others must not wait without end
            self._failure = error
        for request in waiting:
            request.done = True
        self._changed.notify_all()

    @staticmethod
    def _train(requests: list[_Request]) -> None:
        groups: dict[Hashable, list[_Request]] = {}
        for request in requests:
            if isinstance(request.problem, Batchable):
                groups.setdefault(request.problem.batch_key, []).append(request)
            else:
                request.rounds = request.problem.train(request.jobs)
        for group in groups.values():
            first = group[0].problem
            assert isinstance(first, Batchable)
            found = first.train_together([(each.problem, each.jobs) for each in group])
            for request, rounds in zip(group, found, strict=True):
                request.rounds = rounds
