"""A worker or the evaluator as a process; or, if asked for, the initial model or a dry run instead."""

import argparse
import json
from functools import partial
from pathlib import Path

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
from pelago.tensor import model_file
from pelago.tensor.manifest import Manifest
from pelago.tensor.plane import Plane
from worker import device as devices
from worker.dry_run import describe
from worker.evaluator.held_out_loss import HeldOutLoss
from worker.evaluator.port import EvaluatorPort
from worker.evaluator.state import Evaluator
from worker.port import WorkerPort
from worker.schedule import Pace
from worker.settings import evaluator_settings, worker_settings
from worker.state import Worker
from worker.trainer import Trainer


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
    source = HeldOutLoss(run)
    manifest = Manifest(source.manifest())
    facts = {
        "order": json.dumps([spec.name for spec in manifest.specs]),
        "corpus": source.corpus.digest,
        "origin": source.model.origin,
    }
    try:
        model_file.write(path, manifest, source.initial(), facts)
    except OSError as error:
        raise CheckpointError(f"cannot write the initial model to {path}: {error}") from None
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
    trainer = Trainer(run, pace=pace, slot=options.slot, tell=log.line)
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
    plane = Plane(manifest, None, exchanges=False, pool=trainer.pool)
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
    measure = HeldOutLoss(run, slot=options.slot)
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
