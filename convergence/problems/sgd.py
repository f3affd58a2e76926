"""Plain SGD rounds with Gaussian gradient noise, for the problems that are formulas.

Noise belongs to samples, not to rounds: a step that begins with sample i of the global order draws the
noise of its mean gradient from (seed, i). So the same samples give the same noise whichever worker trains
them, whatever else is in the batch, and in whatever order events happen.
"""

from collections.abc import Callable, Iterator
from itertools import accumulate
from math import sqrt
from typing import Final, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from convergence.problems.problem import Job
from pelago.config.run_file import RunFile
from pelago.config.training import WorkerSection
from pelago.core.prng import derive
from worker.schedule import learning_rate

Vector: TypeAlias = NDArray[np.float64]

_STREAM: Final = "gradient noise"


class Noise:
    """Zero-mean Gaussian noise whose squared norm has mean ``deviation``^2 for one sample.

    Each of the ``dimension`` coordinates has the standard deviation deviation / sqrt(dimension).
    """

    def __init__(self, seed: int, dimension: int, deviation: float) -> None:
        self._key = derive(_STREAM, seed)
        self._dimension = dimension
        self._each = deviation / sqrt(dimension)

    def mean(self, first_sample: int, batch: int) -> Vector | float:
        """Noise of the mean gradient of a step on ``batch`` samples, shape [dimension]; 0.0 if there is none.

        One draw of the mean's own distribution stands for the mean of ``batch`` draws.
        """
        if not self._each:
            return 0.0
        generator = np.random.Generator(np.random.Philox(key=derive(self._key, first_sample)))
        return generator.standard_normal(self._dimension) * (self._each / sqrt(batch))


def steps(job: Job, settings: WorkerSection) -> Iterator[tuple[int, float]]:
    """(first sample, learning rate) of each step of a job, on the clock of `worker.trainer`.

    The clock starts at the job's // global_batch_size and advances by one before each step.
    """
    clock = job.clock // settings.global_batch_size
    for number in range(job.steps):
        yield _sample(job, number * job.batch), learning_rate(settings, clock + number + 1)


def _sample(job: Job, offset: int) -> int:
    """The job's sample number ``offset``, in the global order."""
    ends = accumulate(stop - start for start, stop in job.spans)
    return next(
        stop - (end - offset)
        for (_, stop), end in zip(job.spans, ends, strict=True)
        if end > offset
    )


def descend(
    job: Job, run: RunFile, noise: Noise, gradient: Callable[[Vector, int], Vector]
) -> torch.Tensor:
    """Train a job by plain SGD and return start - end, shape [dimension], float64.

    ``gradient``: the true gradient at a point, and of which step (its first sample) it is asked.
    """
    start = numbers(job.start)
    point = start.copy()
    for first, rate in steps(job, run.worker):
        point -= rate * (gradient(point, first) + noise.mean(first, job.batch))
    return torch.from_numpy(start - point)


def numbers(payload: object) -> Vector:
    """A payload's parameters as an array, shape [dimension]; not to be written to."""
    assert isinstance(payload, torch.Tensor)
    found: Vector = payload.numpy()
    return found
