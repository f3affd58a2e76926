"""The interface of what a simulated cluster trains: a problem makes the planes and trains the workers' rounds.

A `Job` is a round of one replica: a number of steps from given parameters, on given samples. A replica
owns one optimiser state: it is a worker, or a synchronous group of workers that averages its
gradients at every step. Jobs are trained in batches, since on one device many small models are
trained together far faster than one after the other; no job depends on another of its batch.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

from pelago.config.fields import InFlight
from pelago.config.servers import ServerSection
from pelago.core.frozen import frozen
from pelago.core.names import Spans
from pelago.core.ports import Payload, TensorPort
from pelago.sim.planes import Round
from pelago.wire.messages import TensorSpec


@dataclass(frozen=True, slots=True)
class Part:
    """A worker's part of every step of a job."""

    worker: int
    """The worker's index over all regions."""
    region: int
    samples: int
    """Samples of each step; their gradients are averaged over all samples of the step."""


@frozen
class Job:
    """Train ``steps`` steps from ``start``, each on the next ``batch`` samples of ``spans``."""

    replica: int
    """The replica whose optimiser state is used and advanced; it has at most one job at a time."""
    steps: int
    parts: tuple[Part, ...]
    """The parts of a step and their workers, in this order; one part, unless a group averages gradients."""
    spans: Spans
    """Exactly ``steps * batch`` samples of the global order."""
    clock: int
    """Samples that were handed out in the whole run before these: the learning rate's clock."""
    start: Payload

    def first(self, steps: int) -> "Job":
        """Only the first ``steps`` steps."""
        return replace(self, steps=steps, spans=_cut(self.spans, 0, steps * self.batch))

    def rest(self, steps: int, start: Payload, clock_step: int) -> "Job":
        """What is left after ``steps`` steps, from other parameters. ``clock_step``: samples by which the learning
        rate's clock moves in a step."""
        return replace(
            self,
            steps=self.steps - steps,
            spans=_cut(self.spans, steps * self.batch, self.steps * self.batch),
            clock=self.clock + steps * clock_step,
            start=start,
        )

    @property
    def batch(self) -> int:
        """Samples of one step."""
        return sum([part.samples for part in self.parts])


def _cut(spans: Spans, first: int, last: int) -> Spans:
    """The samples first <= i < last of some spans, counted in their order."""
    found, begun = [], 0
    for start, stop in spans:
        low, high = max(start, start + first - begun), min(stop, start + last - begun)
        if low < high:
            found.append((low, high))
        begun += stop - start
    return tuple(found)


class Problem(Protocol):
    """What is trained, and with what."""

    @property
    def specs(self) -> tuple[TensorSpec, ...]:
        """The model's tensors, for the manifest that travels in `Welcome`."""
        ...

    @property
    def fingerprint(self) -> str:
        """The model's fingerprint."""
        ...

    @property
    def validates(self) -> bool:
        """Whether `validate` measures a loss."""
        ...

    def server_plane(self, server: ServerSection, in_flight: InFlight | None) -> TensorPort:
        """A server's plane, with the initial parameters in it. ``in_flight`` None: it never exchanges (GPS)."""
        ...

    def client_plane(self) -> TensorPort:
        """The plane of a worker or of the evaluator: payloads only."""
        ...

    def train(self, jobs: Sequence[Job]) -> list[Round]:
        """Rounds of different replicas, in the order of the jobs."""
        ...

    def validate(self, payload: Payload) -> tuple[float, int]:
        """Mean loss of parameters, and the number of tokens that it is a mean of."""
        ...

    def value(self, plane: TensorPort) -> float | None:
        """A server's parameters, if they are one number, for `result.json`."""
        ...


@runtime_checkable
class Batchable(Problem, Protocol):
    """A problem that trains faster in larger batches, also of several simulations."""

    @property
    def batch_key(self) -> Hashable:
        """Problems with equal keys may train in one batch."""
        ...

    def train_together(self, requests: Sequence[tuple[Any, Sequence[Job]]]) -> list[list[Round]]:
        """`train` for several problems with this one's batch key, each with its own optimiser states."""
        ...
