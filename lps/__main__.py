"""`lps --run RUN.toml --region NAME`: a local parameter server's command line."""

import argparse
import sys
from pathlib import Path

import torch

from lps.settings import settings
from lps.state import Lps
from pelago.config import RunFile
from pelago.core.errors import ForeignState
from pelago.core.names import Peer
from pelago.net import daemon
from pelago.net.keeper import Memory
from pelago.net.limits import Limits
from pelago.net.node import Node, NodeSettings
from pelago.net.sockets import Bind, Connect
from pelago.net.store import Store
from pelago.tensor.manifest import Manifest
from pelago.tensor.optim import DelayedNesterov
from pelago.tensor.plane import Plane


def parser() -> argparse.ArgumentParser:
    """The command line."""
    flags = daemon.flags("lps", "A region's local parameter server: merges its workers' updates.")
    flags.add_argument("--region", required=True, metavar="NAME", help="the region that it serves")
    flags.add_argument(
        "--bind", metavar="HOST:PORT", help="where to listen; bulk data uses the next port"
    )
    flags.add_argument("--connect", metavar="HOST:PORT", help="where the GPS is")
    flags.add_argument(
        "--resume",
        action="store_true",
        help="the run file was changed: begin anew where the folder has a state of the run before",
    )
    return flags


async def serve(options: argparse.Namespace, run: RunFile) -> int:
    """Serve a region until the GPS ends the run."""
    region = run.region_index(options.region)
    # One thread: its blocks fit the cache, and a norm then has the same last bits everywhere.
    torch.set_num_threads(1)
    host, port = daemon.address(options.bind, run.lps_bind(region), "--bind")
    gps_host, gps_port = daemon.address(options.connect, run.gps_connect(), "--connect")
    out = daemon.out_folder(run, options.out)
    name = f"lps-{options.region}"
    log = daemon.telemetry(out, name)
    memory, process, incarnation = _memory(run, out, name, resume=options.resume)
    outer = DelayedNesterov.from_eta(
        run.lps.lr, run.lps.momentum, run.lps.momentum_delay, run.lps.momentum_activation
    )

    def plane(manifest: Manifest) -> Plane:
        return Plane(manifest, outer, remember=run.lps.in_flight != "drop")

    node = Node(
        Lps(settings(run, region, incarnation=incarnation)),
        NodeSettings(
            run_id=run.run_id,
            name=process,
            server=Bind(host, port, f"region {options.region}: bind"),
            client=Connect(gps_host, gps_port, "gps", "--connect"),
            # One more place than workers' updates: the global model arrives beside them.
            limits=Limits(incoming_max=run.lps.staged_max + 1),
            crash_file=out / name / "crash.json",
        ),
        log,
        plane_factory=plane,
        memory=memory,
    )
    log.line(
        f"serving region {options.region} at {host}:{port}; the GPS is at {gps_host}:{gps_port}"
    )
    finish = await node.run()
    return daemon.outcome(finish)


def _memory(run: RunFile, out: Path, name: str, *, resume: bool) -> tuple[Memory | None, Peer, int]:
    """Where the LPS keeps its state, with its process name and incarnation: those of the life that it
    finds there and goes on with, or new ones. Raises `ConfigError`, `CheckpointError`."""
    process = daemon.process_name(name, daemon.random_bits())
    incarnation = daemon.incarnation()
    durability = run.lps.durability
    if durability == "none":
        return None, process, incarnation
    store = Store(daemon.state_folder(out, name), run.run_id, name)
    try:
        past = store.past()
    except ForeignState:
        if not resume:
            raise
        store.clear()
        past = None
    if past is not None and not daemon.is_certain(past, durability):
        # The GPS lends anew to a region whose past is uncertain: nothing of it would count.
        store.clear()
        past = None
    if past is not None:
        process, incarnation = past.header.process, past.header.incarnation
    memory = Memory(
        store=store, durability=durability, name=name, incarnation=incarnation, past=past
    )
    return memory, process, incarnation


def main() -> int:
    """Console script."""
    return daemon.main("lps", parser(), serve)


if __name__ == "__main__":
    sys.exit(main())
