"""A local parameter server as a process: its settings, and the state that it starts from."""

import argparse
from pathlib import Path

import torch
import uvloop

from lps.settings import settings
from lps.state import Lps
from pelago import address
from pelago.config.fields import Durability
from pelago.config.run_file import RunFile
from pelago.core.errors import CheckpointError, ForeignState
from pelago.core.names import Peer
from pelago.net import command, daemon
from pelago.net.durability import disk_needs
from pelago.net.durability.manager import StateStore
from pelago.net.durability.state_folder import StateFolder
from pelago.net.durability.state_reader import RecoveredState
from pelago.net.limits import Limits, Patience
from pelago.net.node import Node, NodeSettings
from pelago.net.sockets.pair import Bind, Connect
from pelago.net.telemetry import Telemetry
from pelago.runlog.events import StateDiscarded
from pelago.tensor.manifest import Manifest
from pelago.tensor.optim import DelayedNesterov
from pelago.tensor.plane import Plane


def serve(options: argparse.Namespace, run: RunFile) -> int:
    """Serve a region until the GPS ends the run."""
    region = run.region_index(options.region)
    # One thread: its blocks fit the cache, and a norm then has the same last bits everywhere.
    torch.set_num_threads(1)
    host, port = command.address(options.bind, run.lps_bind(region), "--bind")
    gps_host, gps_port = command.address(options.connect, run.gps_connect(), "--connect")
    out = daemon.out_folder(run, options.out)
    name = f"lps-{options.region}"
    log = daemon.telemetry(out, name)
    state_store, process, incarnation = open_state_store(run, out, name, log, resume=options.resume)
    outer = DelayedNesterov.from_eta(
        run.lps.lr, run.lps.momentum, run.lps.momentum_delay, run.lps.momentum_activation
    )

    def plane(manifest: Manifest) -> Plane:
        disk_needs.tell(log, disk_needs.of_lps(run, region, name, manifest.bytes, out))
        return Plane(manifest, outer, remember=run.lps.in_flight != "drop")

    node = Node(
        Lps(settings(run, region, incarnation=incarnation)),
        NodeSettings(
            run_id=run.run_id,
            name=process,
            server=Bind(host, port, f"region {options.region}: bind"),
            upstreams=(Connect(gps_host, gps_port, "gps", "--connect"),),
            # One more place than workers' updates: the global model arrives beside them.
            limits=Limits.of(run.network, run.lps.arriving_max + 1),
            patience=Patience.of(run.network),
            crash_file=out / name / "crash.json",
        ),
        log,
        plane_factory=plane,
        state_store=state_store,
    )
    log.line(
        f"serving region {options.region} at {address.join(host, port)};"
        f" the GPS is at {address.join(gps_host, gps_port)}"
    )
    finish = uvloop.run(node.run())
    return daemon.outcome(finish)


def open_state_store(
    run: RunFile, out: Path, name: str, log: Telemetry, *, resume: bool
) -> tuple[StateStore | None, Peer, int]:
    """The LPS's state store, process name and incarnation. If there is a state to continue from, they are its own,
    otherwise new ones. Raises `ConfigError`, `CheckpointError`."""
    process = daemon.process_name(name, daemon.random_bits())
    incarnation = daemon.incarnation()
    durability = run.lps.durability
    if durability == "none":
        return None, process, incarnation
    store = StateFolder(daemon.state_folder(out, name), run.run_id, name)
    try:
        recovered, why = _recovered(store, durability, resume=resume)
    except CheckpointError:
        store.close()
        raise
    if why:
        log.event(StateDiscarded(why, str(store.folder)))
        store.clear()
    if recovered is not None:
        process, incarnation = recovered.header.process, recovered.header.incarnation
    state_store = StateStore(
        store=store, durability=durability, name=name, incarnation=incarnation, recovered=recovered
    )
    return state_store, process, incarnation


def _recovered(
    store: StateFolder, durability: Durability, *, resume: bool
) -> tuple[RecoveredState | None, str]:
    """The state to continue from, or why the LPS starts anew although there is one. If the end of the journal may
    be missing it starts anew, since the GPS lends its samples again anyway. Raises `CheckpointError`."""
    try:
        recovered = store.recovered()
    except ForeignState as error:
        if not resume:
            raise
        return None, str(error)
    except CheckpointError as error:
        if not resume and not daemon.may_be_torn(store, durability):
            raise CheckpointError(
                f"{error}; --resume begins anew, without what the region had not exchanged"
            ) from None
        return None, str(error)
    if recovered is None or daemon.is_certain(recovered, durability):
        return recovered, ""
    return (
        None,
        f"this machine was started again, and lps.durability = {durability!r} does not survive that",
    )
