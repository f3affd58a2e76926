"""The arithmetic of the inner loop: number of local steps, learning rate, emulated speed.

Source of local steps and learning rate: Kim et al., "HALoS", arXiv 2506.04531, and its released code.
"""

import math
from dataclasses import dataclass

from pelago.config.run_file import RunFile
from pelago.config.training import WorkerSection


def local_steps(steps: int, speed: float, rescale: bool) -> int:
    """Local steps of a round: max(1, ceil(steps * speed)) if ``rescale``, else ``steps``.

    A relative speed is a quotient such as 2.1 / 2.8, whose double may lie a rounding error above
    3/4. A product within 1e-9 (relative) of a whole number therefore counts as that number: 8 *
    1.0000000001 is 8.
    """
    if not rescale:
        return steps
    product = steps * speed
    nearest = round(product)
    if abs(product - nearest) <= 1e-9 * max(1.0, product):
        return max(1, nearest)
    return max(1, math.ceil(product))


def learning_rate(settings: WorkerSection, iteration: int) -> float:
    """Linear warm-up from 0 to max_lr, cosine to min_lr at total_iterations, flat after that.

    ``iteration`` is the clock of the run: samples handed out so far, divided by the global batch.
    """
    warmup, total = settings.warmup_iterations, settings.total_iterations
    if iteration < warmup:
        return settings.max_lr * iteration / warmup
    if iteration >= total:
        return settings.min_lr
    progress = (iteration - warmup) / (total - warmup)
    return settings.min_lr + 0.5 * (settings.max_lr - settings.min_lr) * (
        1.0 + math.cos(math.pi * progress)
    )


def begins_late(run: RunFile, clock: int) -> bool:
    """Whether a worker whose first lease has this clock, in samples, joins after the warm-up of the run and
    after the first round of all workers of the run file."""
    workers = sum(len(region.worker_speeds) for region in run.region)
    first = workers * run.worker.local_steps * run.worker.batch_size
    return clock >= max(first, run.worker.warmup_iterations * run.worker.global_batch_size)


def warmed(step: int, steps: int) -> float:
    """Factor on the learning rate of step number ``step`` (from 1) of an optimiser that began without moments: a
    linear warm-up over ``steps`` steps.

    Moments of a few gradients are mostly noise: Adam's first step moves every parameter by the whole rate.
    Ma and Yarats, "On the adequacy of untuned warmup for adaptive optimization", arXiv 1910.04209, take
    2 / (1 - beta2) steps, which is 40 at the default of 0.95.
    """
    return min(1.0, step / steps) if steps else 1.0


@dataclass(frozen=True, slots=True)
class Pace:
    """An emulated speed: how long a local step should take.

    ``step_ms`` > 0: step_ms / speed milliseconds. ``step_ms`` = 0: 1 / speed times the step's own computing
    time.
    """

    step_ms: float
    speed: float

    @classmethod
    def of(cls, run: RunFile, region: int, group: int) -> "Pace":
        """The pace at which `pelago local` runs a worker."""
        return cls(step_ms=run.local.step_ms, speed=run.relative_speed(region, group))

    def due_s(self, due_s: float, started_s: float, ended_s: float) -> float:
        """When the step that ran from ``started_s`` to ``ended_s`` should end, in seconds of the
        same clock.

        ``due_s``: when the step before it should have ended. A fixed pace counts from there, so
        the next steps make up for one that took too long.
        """
        if self.step_ms > 0:
            return due_s + self.step_ms / 1e3 / self.speed
        return started_s + (ended_s - started_s) / self.speed
