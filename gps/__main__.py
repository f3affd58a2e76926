"""`gps --run RUN.toml`: the global parameter server's command line."""

import argparse
import sys

import torch

from gps import files, initial
from gps.result import result
from gps.settings import settings
from gps.state import Gps
from pelago.config import RunFile
from pelago.core.names import Version
from pelago.net import daemon
from pelago.net.limits import Limits
from pelago.net.node import CRASHED, PAUSED, Node, NodeSettings
from pelago.net.ports import require_free
from pelago.net.sockets import Bind
from pelago.tensor.manifest import Manifest
from pelago.tensor.optim import DelayedNesterov
from pelago.tensor.plane import Plane


def parser() -> argparse.ArgumentParser:
    """The command line."""
    flags = daemon.flags(
        "gps", "The global parameter server of a run: merges the regions' updates."
    )
    flags.add_argument(
        "--bind", metavar="HOST:PORT", help="where to listen; bulk data uses the next port"
    )
    return flags


async def serve(options: argparse.Namespace, run: RunFile) -> int:
    """Run the GPS until its budget is reached and everybody has left, then write the results."""
    # One thread: its blocks fit the cache, and a norm then has the same last bits everywhere.
    torch.set_num_threads(1)
    host, port = daemon.address(options.bind, run.gps_bind(), "--bind")
    # Now, not after the model was built; the sockets are bound when there is something to serve.
    require_free(host, port, "gps.bind")
    out = daemon.out_folder(run, options.out)
    log = daemon.telemetry(out, "gps")
    memory, name, incarnation = daemon.memory(
        out, run, "gps", run.gps.durability, uncertain_ok=False
    )
    log.line("building the initial model")
    start = await initial.build(run)
    gps = Gps(
        settings(
            run,
            incarnation=incarnation,
            manifest=start.manifest.specs,
            fingerprint=start.manifest.fingerprint,
            corpus=start.corpus,
        )
    )
    outer = DelayedNesterov.from_eta(
        run.gps.lr, run.gps.momentum, run.gps.momentum_delay, run.gps.momentum_activation
    )

    def empty(manifest: Manifest) -> Plane:
        return Plane(manifest, outer, exchanges=False, average=run.gps.average)

    plane = empty(start.manifest)
    plane.adopt(0, start.flat)
    plane.apply("load", 0, 1.0)
    plane.release(0)
    node = Node(
        gps,
        NodeSettings(
            run_id=run.run_id,
            name=name,
            server=Bind(host, port, "gps.bind"),
            limits=Limits(incoming_max=run.gps.staged_max),
            loaded=Version(incarnation, 0),
            crash_file=out / "gps" / "crash.json",
        ),
        log,
        plane=plane,
        plane_factory=empty,
        memory=memory,
    )
    log.line(f"serving run {run.run_id} at {host}:{port}, {start.manifest.numel:,} parameters")
    finish = await node.run()
    if finish.reason not in (CRASHED, PAUSED):
        found = result(gps, run, clock="real", model_parameters=start.manifest.numel)
        plane = node.tensors.plane
        files.write(out, found, start.manifest, plane.model(), plane.average())
        log.line(f"{finish.reason}; results in {out}")
    return daemon.outcome(finish)


def main() -> int:
    """Console script."""
    return daemon.main("gps", parser(), serve)


if __name__ == "__main__":
    sys.exit(main())
