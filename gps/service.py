"""The global parameter server as a process: its first or recovered state, its node, its results."""

import argparse
import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
import uvloop

from gps import files, initial
from gps.early import EarlyResults
from gps.result import result
from gps.resume import NODE, facts_of, machine_of, open_state, plane_of
from gps.state import Gps
from pelago import address
from pelago.config.run_file import RunFile
from pelago.core.errors import ConfigError
from pelago.core.machine import Finish
from pelago.core.names import Peer, Version
from pelago.core.notes.worker import Exported, ExportFailed
from pelago.net import command, daemon
from pelago.net.command import EXIT_FAILED
from pelago.net.durability import disk_needs
from pelago.net.durability.archive import Archive, Copier
from pelago.net.durability.manager import StateStore
from pelago.net.durability.restore import SnapshotContents
from pelago.net.durability.state_reader import RecoveredState
from pelago.net.limits import Limits, Patience
from pelago.net.node import CRASHED, PAUSED, Node, NodeSettings
from pelago.net.sockets.pair import Bind
from pelago.net.sockets.tcp_ports import require_free
from pelago.net.telemetry import Telemetry
from pelago.runlog.events import InitialModelBuilt, ResultNotWritten
from pelago.tensor.manifest import Manifest
from pelago.tensor.plane import Plane
from pelago.tensor.snapshot import PlaneSnapshot

S_PER_MINUTE: Final = 60.0


def serve(options: argparse.Namespace, run: RunFile) -> int:
    """Run the GPS until its budget is reached and all clients have left, then write the results."""
    # One thread: its blocks fit the cache, and a norm then has the same last bits everywhere.
    torch.set_num_threads(1)
    host, port = command.address(options.bind, run.gps_bind(), "--bind")
    # Now, not after the model was built; the sockets are bound when there is something to serve.
    require_free(host, port, "gps.bind")
    out = daemon.out_folder(run, options.out)
    log = daemon.telemetry(out, "gps")
    start = _begin(options, run, out, log)
    gps, manifest = start.machine, start.manifest
    results = EarlyResults()
    node = Node(
        gps,
        NodeSettings(
            run_id=run.run_id,
            name=start.process,
            server=Bind(host, port, "gps.bind"),
            limits=Limits.of(run.network, run.gps.arriving_max),
            patience=Patience.of(run.network),
            loaded=Version(gps.settings.incarnation, 0),
            crash_file=out / "gps" / "crash.json",
            on_note=results.on_note,
        ),
        log,
        plane=start.plane,
        plane_factory=lambda found: plane_of(run, found),
        state_store=start.state_store,
    )
    here, _ = disk_needs.on_this_machine(run, manifest.bytes, out)
    disk_needs.tell(log, here or disk_needs.of_gps(run, manifest.bytes, out))
    log.line(
        f"serving run {run.run_id} at {address.join(host, port)}, {manifest.numel:,} parameters"
    )
    finish, is_written = uvloop.run(_run(node, gps, run, out, log, results))
    if finish.reason in (CRASHED, PAUSED):
        return daemon.outcome(finish)
    found = result(gps, run, clock="real", model_parameters=manifest.numel)
    plane = node.tensors.plane
    flat = None if is_written else plane.model()
    failures = files.write(out, found, manifest, flat, plane.average())
    for failure in failures:
        log.event(ResultNotWritten(failure))
    log.line(
        f"{finish.reason}; results in {out}{', but for what is named above' if failures else ''}"
    )
    return max(daemon.outcome(finish), EXIT_FAILED if failures else 0)


async def _run(
    node: Node, gps: Gps, run: RunFile, out: Path, log: Telemetry, results: EarlyResults
) -> tuple[Finish, bool]:
    """How the node ended, and whether the model is written already."""
    exporting = asyncio.create_task(_export_regularly(node, gps, run, out, log, results.lock))
    writing = asyncio.create_task(results.write(node, gps, run, out, log))
    finish = await node.run()
    exporting.cancel()
    return finish, await results.has_written(writing)


async def _export_regularly(
    node: Node, gps: Gps, run: RunFile, out: Path, log: Telemetry, lock: asyncio.Lock
) -> None:
    """Write the global model every so often, until the run ends; after a failure, try again the next time."""
    while run.run.export_minutes:
        await asyncio.sleep(run.run.export_minutes * S_PER_MINUTE)
        async with lock:
            if gps.phase in ("draining", "finished"):
                return
            taken: asyncio.Future[PlaneSnapshot] = asyncio.get_running_loop().create_future()
            facts = {"version": gps.model.version.counter, "counted_steps": gps.model.counted_steps}
            node.tensors.snapshot((), taken.set_result)
            failures = await asyncio.to_thread(files.write_snapshot, out, await taken, facts)
        for failure in failures:
            log.event(ExportFailed(failure))
        if not failures:
            log.event(Exported(**facts))


@dataclass(frozen=True, slots=True)
class _Start:
    """The state that a GPS begins or continues with. ``plane``: None if ``state_store`` has one."""

    machine: Gps
    process: Peer
    manifest: Manifest
    plane: Plane | None
    state_store: StateStore | None


def _begin(options: argparse.Namespace, run: RunFile, out: Path, log: Telemetry) -> _Start:
    """Find the state to go on with, or make the model to begin with."""
    process = daemon.process_name(NODE, daemon.random_bits())
    incarnation = daemon.incarnation()
    store, recovered = None, None
    if run.gps.durability != "none":
        store, recovered, word = open_state(run, out, options.resume)
        if word:
            log.line(word)
    elif options.resume is not None:
        raise ConfigError("gps.durability = 'none': --resume needs a state that is kept")
    if recovered is not None:
        process, incarnation = recovered.header.process, recovered.header.incarnation
    copier = None if store is None else _copier(run, begins=recovered is None)
    manifest, corpus = _known(recovered)
    plane = None
    if manifest is None:
        log.line("building the initial model")
        start = initial.build(run)
        log.line(f"initial model: {start.origin}")
        log.event(InitialModelBuilt(start.origin))
        manifest, corpus, plane = start.manifest, start.corpus, plane_of(run, start.manifest)
        plane.adopt(0, start.flat)
        plane.apply("load", 0, 1.0)
        plane.release(0)
    state_store = None
    if store is not None:
        state_store = StateStore(
            store=store,
            durability=run.gps.durability,
            name=NODE,
            incarnation=incarnation,
            recovered=recovered,
            facts=facts_of(run, corpus),
            copier=copier,
            is_read=True,
        )
    machine = machine_of(run, incarnation, manifest, corpus)
    return _Start(machine, process, manifest, plane, state_store)


def _known(recovered: RecoveredState | None) -> tuple[Manifest | None, str]:
    """The manifest and corpus digest of the state to continue from, if a snapshot has them."""
    if recovered is None or recovered.snapshot is None:
        return None, ""
    kept = SnapshotContents.of(recovered.snapshot)
    return kept.manifest, kept.facts.get("corpus", "")


def _copier(run: RunFile, *, begins: bool) -> Copier | None:
    """Raises `ConfigError` if a run that begins could not write its copies; one that goes on is not held
    up by that."""
    gps = run.gps
    if not gps.snapshots:
        return None
    archive = Archive(gps.snapshots)
    if begins:
        archive.require_writable()
    return Copier(archive, gps.snapshots_minutes, gps.snapshots_kept)
