"""`worker --run RUN.toml --region NAME`: a worker's command line, the evaluator's too."""

import argparse
import json
import sys
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from pelago import reading
from pelago.config import RunFile
from pelago.core.errors import CheckpointError, ConfigError
from pelago.net import daemon
from pelago.net.node import Node, NodeSettings
from pelago.net.sockets import Connect
from pelago.tensor.manifest import Manifest
from pelago.tensor.plane import Plane
from worker.evaluator import Evaluator as Measure
from worker.ports import EvaluatorPort, WorkerPort
from worker.rehearsal import describe
from worker.schedule import Pace
from worker.settings import settings
from worker.state import Evaluator, Worker
from worker.trainer import Trainer


def parser() -> argparse.ArgumentParser:
    """The command line."""
    flags = daemon.flags("worker", "A worker of a region: trains on leases of samples.")
    flags.add_argument("--region", metavar="NAME", help="the region that it belongs to")
    flags.add_argument(
        "--group",
        type=int,
        default=-1,
        metavar="N",
        help="which of the region's groups (default: a free one)",
    )
    flags.add_argument("--connect", metavar="HOST:PORT", help="where its server is")
    flags.add_argument(
        "--paced",
        action="store_true",
        help="run at the group's speed of the run file, as `pelago local` does",
    )
    modes = flags.add_mutually_exclusive_group()
    modes.add_argument(
        "--evaluate",
        action="store_true",
        help="measure the global model and export it; trains nothing",
    )
    modes.add_argument(
        "--initialise",
        metavar="FILE",
        type=reading.expanded,
        help="write the run's initial model there, and end",
    )
    modes.add_argument(
        "--describe", action="store_true", help="say what model and corpus would be used, and end"
    )
    flags.add_argument(
        "--no-step", action="store_true", help="with --describe: try no training step"
    )
    return flags


async def work(options: argparse.Namespace, run: RunFile) -> int:
    """Do what the flags ask for."""
    # Bit-equal results need one thread, and processes that share a machine are faster so.
    torch.set_num_threads(1)
    if options.initialise:
        return _initialise(run, Path(options.initialise))
    if options.describe:
        return _describe(run, step=not options.no_step)
    if options.evaluate:
        return await _evaluate(options, run)
    if not options.region:
        raise ConfigError("--region: a worker needs to know its region (or --evaluate)")
    return await _train(options, run)


def _initialise(run: RunFile, path: Path) -> int:
    source = Measure(run)
    manifest = Manifest(source.manifest())
    tensors = {name: view.clone() for name, view in manifest.named_views(source.initial()).items()}
    facts = {
        "order": json.dumps([spec.name for spec in manifest.specs]),
        "corpus": source.corpus.digest,
        "origin": source.model.origin,
    }
    try:
        save_file(tensors, path, metadata=facts)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"cannot write the initial model to {path}: {error}") from None
    return 0


def _describe(run: RunFile, *, step: bool) -> int:
    for line in describe(run, step=step):
        print(line)
    return 0


async def _train(options: argparse.Namespace, run: RunFile) -> int:
    region = run.region_index(options.region)
    host, port = daemon.address(options.connect, run.lps_connect(region), "--connect")
    out = daemon.out_folder(run, options.out)
    bits = daemon.random_bits()
    name = daemon.worker_folder(options.region, options.group, bits)
    log = daemon.telemetry(out, name)
    pace = Pace.of(run, region, options.group) if options.paced else None
    trainer = Trainer(run, pace=pace)
    manifest = Manifest(trainer.manifest())
    machine = Worker(
        settings(
            run,
            region,
            options.group,
            incarnation=daemon.incarnation(),
            fingerprint=manifest.fingerprint,
            corpus=trainer.corpus.digest,
        )
    )
    node = Node(
        machine,
        NodeSettings(
            run_id=run.run_id,
            name=daemon.process_name(f"worker-{options.region}", bits),
            client=Connect(host, port, "lps", "--connect"),
            crash_file=out / name / "crash.json",
        ),
        log,
        plane=Plane(manifest, None, exchanges=False),
        trainer=WorkerPort(trainer),
    )
    log.event("model", origin=trainer.model.origin)
    log.line(f"training for region {options.region}; its LPS is at {host}:{port}")
    finish = await node.run()
    return daemon.outcome(finish)


async def _evaluate(options: argparse.Namespace, run: RunFile) -> int:
    host, port = daemon.address(options.connect, run.gps_connect(), "--connect")
    out = daemon.out_folder(run, options.out)
    log = daemon.telemetry(out, "evaluator")
    measure = Measure(run)
    manifest = Manifest(measure.manifest())
    machine = Evaluator(
        settings(
            run,
            None,
            -1,
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
            client=Connect(host, port, "gps", "--connect"),
            crash_file=out / "evaluator" / "crash.json",
        ),
        log,
        plane=Plane(manifest, None, exchanges=False),
        trainer=EvaluatorPort(measure, out / "model"),
    )
    log.line(f"evaluating; the GPS is at {host}:{port}")
    finish = await node.run()
    return daemon.outcome(finish)


def main() -> int:
    """Console script."""
    return daemon.main("worker", parser(), work)


if __name__ == "__main__":
    sys.exit(main())
