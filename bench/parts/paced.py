"""A worker whose computing takes a given time and no processor.

`paced.py RUN.toml MODEL.json OUT REGION GROUP SECONDS` joins a region, both named by their numbers.
The worker's own machine and driver; only the trainer waits instead of computing.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import uvloop

from parts.real import SEED, elements_of, work
from pelago.config.run_toml import load
from pelago.core.ports import Cancellation, LogEvent, TrainingResult
from pelago.core.training_effects import Train
from pelago.net.tensors.malloc import keep_what_is_freed


class Paced:
    """Waits for ``seconds`` a round, and returns the same update each time."""

    def __init__(self, elements: int, steps: int, seconds: float) -> None:
        generator = torch.Generator().manual_seed(SEED)
        self._delta = 1e-3 * torch.randn(elements, generator=generator)
        self._steps, self._seconds = steps, seconds

    def begin(self, log: LogEvent) -> None:
        """Nothing is logged."""

    def prepare(self) -> None:
        """It is ready."""

    def rebase(self, model: Any) -> None:
        """Its update does not depend on parameters."""

    def rest(self) -> None:
        """Nothing is kept."""

    def train(
        self, work: Train, start: Any, on_step: Callable[[int, int], None], cancel: Cancellation
    ) -> TrainingResult | None:
        """A round that takes its time."""
        if cancel.wait(self._seconds):
            return None
        return TrainingResult(self._delta, self._steps, work.lease.samples, 1.0)

    def validate(self, parameters: Any, on_batch: Any) -> tuple[float, int]:
        """Not a worker's business."""
        raise AssertionError("a worker measures nothing")

    def export(self, parameters: Any) -> None:
        """Not a worker's business."""
        raise AssertionError("a worker exports nothing")


def main() -> None:
    """One worker process."""
    run_path, model_path, out, region, group, seconds = sys.argv[1:]
    torch.set_num_threads(1)
    keep_what_is_freed()  # As every daemon does.
    model = json.loads(Path(model_path).read_text(encoding="utf-8"))
    run = load(run_path)
    trainer = Paced(elements_of(model), run.worker.local_steps, float(seconds))
    place = int(region), int(group)
    uvloop.run(work(run, model, Path(out), trainer, lambda worker: worker, place))


if __name__ == "__main__":
    main()
