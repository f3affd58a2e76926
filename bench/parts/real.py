"""The real client: the worker's own machine on the real driver, with a trainer that takes no time.

`real.py RUN.toml MODEL.json OUT` joins the run's only region. It answers each line on its standard
input with the seconds of one round: from `Trained`, when the update exists and no byte of it was
hashed or sent, to `Received(Model)`, when all of the next model is here and verified. Copying the
model to where the trainer wants it, and letting go of it, is not part of a round.
"""

import json
import math
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import uvloop

from pelago.config.run_file import RunFile
from pelago.config.run_toml import load
from pelago.core.machine import Machine, Received
from pelago.core.names import Peer
from pelago.core.ports import Cancellation, LogEvent, TrainerPort, TrainingResult
from pelago.core.training_effects import Train, Trained
from pelago.net import daemon
from pelago.net.limits import Limits
from pelago.net.node import Node, NodeSettings
from pelago.net.sockets.pair import Connect
from pelago.net.tensors.malloc import keep_what_is_freed
from pelago.net.tensors.training import TrainingThread
from pelago.tensor.manifest import Manifest
from pelago.tensor.plane import Plane
from pelago.wire.messages import Ack, Effect, Message, Model, TensorSpec, WorkerEvent
from worker.settings import worker_settings
from worker.state import Worker

SEED = 7


class TimedWorker:
    """The worker's machine, unchanged, which measures its rounds."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._begun_at: float | None = None
        self._applied_at = 0.0

    def handle(self, event: WorkerEvent, now: int) -> list[Effect]:
        """Record the time of an event that begins or ends a round, and pass it on."""
        seconds = time.perf_counter()
        match event:
            case Trained():
                self._begun_at = seconds
            case Received(_, Ack(_, outcome), _):
                assert outcome == "applied", outcome
                self._applied_at = seconds
            case Received(_, Model(), _) if self._begun_at is not None:
                push, pull = self._applied_at - self._begun_at, seconds - self._applied_at
                found = {"seconds": seconds - self._begun_at, "push": push, "pull": pull}
                print(json.dumps(found), flush=True)
                self._begun_at = None
        return self._worker.handle(event, now)

    def expects(self, peer: Peer, message: Message) -> bool:
        """Every message is expected."""
        return True

    def check(self) -> None:
        """Assert the worker's invariants."""
        self._worker.check()


class Instant:
    """A trainer that has its update already. It waits for a line on the standard input first."""

    def __init__(self, elements: int, steps: int) -> None:
        self._delta = 1e-3 * torch.randn(elements, generator=torch.Generator().manual_seed(SEED))
        self._steps = steps
        self._ready = False

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
        """The same update, whatever the lease; None at the end of the input."""
        if not self._ready:
            self._ready = True
            print(json.dumps({"ready": "pelago"}), flush=True)
        if not sys.stdin.readline():
            return None
        return TrainingResult(self._delta, self._steps, work.lease.samples, 1.0)

    def validate(self, flat: Any, on_batch: Any) -> tuple[float, int]:
        """Not a worker's business."""
        raise AssertionError("a worker measures nothing")

    def export(self, flat: Any) -> None:
        """Not a worker's business."""
        raise AssertionError("a worker exports nothing")


def elements_of(model: dict[str, Any]) -> int:
    """The number of parameters."""
    return sum(math.prod(shape) for _, shape in model["specs"])


async def work(
    run: RunFile,
    model: dict[str, Any],
    out: Path,
    trainer: TrainerPort,
    wrap: Callable[[Worker], Machine[Message]],
    place: tuple[int, int] = (0, 0),
) -> None:
    """Join, and work until the orchestrator ends the run. ``place``: region and group."""
    manifest = Manifest(tuple(TensorSpec(name, tuple(shape)) for name, shape in model["specs"]))
    region, group = place
    host, port = run.lps_connect(region)
    name = f"worker-{run.region[region].name}-{group}"
    machine = Worker(
        worker_settings(
            run,
            region,
            group,
            incarnation=daemon.incarnation(),
            fingerprint=manifest.fingerprint,
            corpus=model["corpus"],
        )
    )
    node = Node(
        wrap(machine),
        NodeSettings(
            run_id=run.run_id,
            name=daemon.process_name(name, daemon.random_bits()),
            upstreams=(Connect(host, port, "lps"),),
            limits=Limits.of(run.network),
            executors=(partial(TrainingThread, trainer),),
            crash_file=out / name / "crash.json",
        ),
        daemon.telemetry(out, name),
        plane=Plane(manifest, None),
    )
    finish = await node.run()
    if finish.error:
        raise SystemExit(f"{finish.reason}: {finish.error}")


def main() -> None:
    """One worker process."""
    run_path, model_path, out = sys.argv[1:]
    torch.set_num_threads(1)
    keep_what_is_freed()  # As every daemon does.
    model = json.loads(Path(model_path).read_text(encoding="utf-8"))
    run = load(run_path)
    trainer = Instant(elements_of(model), run.worker.local_steps)
    uvloop.run(work(run, model, Path(out), trainer, TimedWorker))


if __name__ == "__main__":
    main()
