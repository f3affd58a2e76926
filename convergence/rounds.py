"""The rounds in progress in a simulation, trained in batches as large as their order allows.

A round's result depends on nothing but its start and its replica's optimiser state, both of which are
fixed when it begins. So it may be trained at any time until its result is needed: rounds wait until the
first of their results is needed, and then all waiting rounds are trained at once.
"""

from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any

from convergence.problems.problem import Job
from pelago.core.names import PushId
from pelago.core.ports import Payload
from pelago.sim.planes import Round

Key = tuple[str, PushId]
"""A node's name, and the lease that it trains on."""


class Rounds:
    """Jobs begun and not yet asked for, of all nodes of a simulation."""

    def __init__(self, train: Callable[[Sequence[Job]], list[Round]]) -> None:
        """``train``: rounds of different replicas, in the order of the jobs."""
        self._train_jobs = train
        self._waiting: dict[Key, Sequence[Job]] = {}
        self._found: dict[Key, Sequence[Round]] = {}

    def begin(self, key: Key, jobs: Sequence[Job]) -> None:
        """Jobs of different replicas, none of which is under way elsewhere."""
        assert key not in self._waiting, key
        assert key not in self._found, key
        self._waiting[key] = jobs

    def finish(self, key: Key) -> Round:
        """The mean result of the jobs of a key."""
        if key not in self._found:
            self._train()
        rounds = self._found.pop(key)
        return rounds[0] if len(rounds) == 1 else _mean(rounds)

    def cancel(self, key: Key) -> None:
        """Drop the jobs of a key, whose results are not needed. If they were trained already, their optimisers
        have advanced, like those of a worker that is stopped at the end of its round."""
        self._waiting.pop(key, None)
        self._found.pop(key, None)

    def _train(self) -> None:
        rounds = iter(self._train_jobs([job for jobs in self._waiting.values() for job in jobs]))
        for key, jobs in self._waiting.items():
            self._found[key] = list(islice(rounds, len(jobs)))
        self._waiting.clear()


def _mean(rounds: Sequence[Round]) -> Round:
    """Deltas averaged with equal weights (DiLoCo, arXiv 2311.08105, algorithm 1, line 12)."""
    tokens = sum(each.tokens for each in rounds)
    loss = sum(each.loss * each.tokens for each in rounds) / max(1, tokens)
    return Round(_mean_delta([each.delta for each in rounds]), tokens, loss)


def _mean_delta(deltas: Sequence[Payload]) -> Payload:
    """The mean of tensors of one shape; nothing where nothing is trained."""
    if deltas[0] is None:
        return None
    total: Any = deltas[0]
    for delta in deltas[1:]:
        total = total + delta
    return total / len(deltas)
