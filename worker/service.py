"""A worker or the evaluator as a process; or, if asked for, the initial model or a dry run instead."""

import argparse
import json
import mmap
import os
from functools import partial
from pathlib import Path
from typing import Final

import torch
import uvloop

from pelago import address
from pelago.config.run_file import RunFile
from pelago.core.errors import CheckpointError
from pelago.net import command, daemon
from pelago.net.durability import disk_needs
from pelago.net.limits import Limits, Patience
from pelago.net.node import Node, NodeSettings
from pelago.net.sockets.pair import Connect
from pelago.net.tensors.training import TrainingThread
from pelago.runlog.events import DeviceChosen, ModelBuilt
from pelago.tensor.manifest import ELEMENT_BYTES, Manifest
from pelago.tensor.payload import tensor_over
from pelago.tensor.plane import Plane
from worker import device as devices
from worker.data.sources import open_corpus
from worker.dry_run import describe
from worker.evaluator.held_out_loss import HeldOutLoss, export_companions
from worker.evaluator.port import EvaluatorPort
from worker.evaluator.state import Evaluator
from worker.models.build import build
from worker.port import WorkerPort
from worker.schedule import Pace
from worker.settings import evaluator_settings, worker_settings
from worker.state import Worker
from worker.trainer import Trainer

COMPILED: Final = "TORCHINDUCTOR_CACHE_DIR"
"""Where torch.compile keeps what it made: in the run's folder, for the next process, unless the user says where."""


def work(options: argparse.Namespace, run: RunFile) -> int:
    """Run what the flags ask for; returns the exit code."""
    # Bit-equal results need one thread, and processes that share a machine are faster so.
    torch.set_num_threads(1)
    if options.initialise:
        return _initialise(run, Path(options.initialise))
    if options.describe:
        return _describe(run, step=not options.no_step)
    if options.evaluate:
        return _evaluate(options, run)
    return _train(options, run)


def _initialise(run: RunFile, path: Path) -> int:
    """Leave the run's initial parameters in a file, fp32 in the manifest's order, and print what they are."""
    # Nothing here depends on how sums are split. A GPU would draw other numbers.
    torch.set_num_threads(devices.cores())
    corpus = open_corpus(run.data, run.run.seed)
    cpu, length = torch.device("cpu"), run.data.sequence_length
    with path.open("r+b") as file:

        def allocate(elements: int) -> torch.Tensor:
            size = elements * ELEMENT_BYTES
            file.truncate(size)
            return tensor_over(memoryview(mmap.mmap(file.fileno(), size)), torch.float32)

        try:
            model = build(run.model, corpus.vocabulary, run.run.seed, cpu, length, allocate)
        except OSError as error:
            raise CheckpointError(f"no memory for the initial model: {error}") from None
    corpus.limit_vocabulary(model.vocabulary)
    # What an export will hold beside the model is read again when it is written; better to fail here.
    export_companions(run)
    specs = [[spec.name, spec.shape] for spec in model.manifest()]
    print(json.dumps({"specs": specs, "corpus": corpus.digest, "origin": model.origin}))
    return 0


def _describe(run: RunFile, *, step: bool) -> int:
    for line in describe(run, step=step):
        print(line)
    return 0


def _train(options: argparse.Namespace, run: RunFile) -> int:
    region = run.region_index(options.region)
    host, port = command.address(options.connect, run.lps_connect(region), "--connect")
    out = daemon.out_folder(run, options.out)
    bits = daemon.random_bits()
    name = daemon.worker_folder(options.region, options.group, bits)
    log = daemon.telemetry(out, name)
    pace = Pace.of(run, region, options.group) if options.paced else None
    os.environ.setdefault(COMPILED, str(out.absolute() / "inductor"))
    trainer = Trainer(run, pace=pace, slot=options.slot, tell=log.line, empty=True)
    moments = out / "optimiser" if run.worker.keep_optimiser else None
    manifest = Manifest(trainer.manifest())
    machine = Worker(
        worker_settings(
            run,
            region,
            options.group,
            incarnation=daemon.incarnation(),
            fingerprint=manifest.fingerprint,
            corpus=trainer.corpus.digest,
        )
    )
    plane = Plane(manifest, None, exchanges=False, slab=trainer.slab)
    plane.on_open = trainer.expect
    node = Node(
        machine,
        NodeSettings(
            run_id=run.run_id,
            name=daemon.process_name(f"worker-{options.region}", bits),
            upstreams=(Connect(host, port, "lps", "--connect"),),
            limits=Limits.of(run.network),
            patience=Patience.of(run.network),
            executors=(partial(TrainingThread, WorkerPort(trainer, run, options.region, moments)),),
            crash_file=out / name / "crash.json",
        ),
        log,
        plane=plane,
    )
    log.event(DeviceChosen(devices.name(trainer.model.device)))
    log.event(ModelBuilt(trainer.model.origin))
    disk_needs.tell(log, disk_needs.of_worker(run, name, manifest.bytes, out))
    log.line(f"training for region {options.region}; its LPS is at {address.join(host, port)}")
    finish = uvloop.run(node.run())
    return daemon.outcome(finish)


def _evaluate(options: argparse.Namespace, run: RunFile) -> int:
    host, port = command.address(options.connect, run.gps_connect(), "--connect")
    out = daemon.out_folder(run, options.out)
    log = daemon.telemetry(out, "evaluator")
    measure = HeldOutLoss(run, slot=options.slot, empty=True)
    manifest = Manifest(measure.manifest())
    machine = Evaluator(
        evaluator_settings(
            run,
            incarnation=daemon.incarnation(),
            fingerprint=manifest.fingerprint,
            corpus=measure.corpus.digest,
        )
    )
    node = Node(
        machine,
        NodeSettings(
            run_id=run.run_id,
            name=daemon.process_name("evaluator", daemon.random_bits()),
            upstreams=(Connect(host, port, "gps", "--connect"),),
            limits=Limits.of(run.network),
            patience=Patience.of(run.network),
            executors=(partial(TrainingThread, EvaluatorPort(measure, out / "model")),),
            crash_file=out / "evaluator" / "crash.json",
        ),
        log,
        plane=Plane(manifest, None, exchanges=False),
    )
    disk_needs.tell(log, disk_needs.of_evaluator(manifest.bytes, out))
    log.event(DeviceChosen(devices.name(measure.model.device)))
    log.line(f"evaluating; the GPS is at {address.join(host, port)}")
    finish = uvloop.run(node.run())
    return daemon.outcome(finish)
