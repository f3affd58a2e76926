"""How much the nodes of a run will write, and whether there is room for it.

The figures are what may lie on a disk at once, at most, while the run goes on and at its end. They grow with
the model; logs and histories, which grow with the run, are counted as `LOG_BYTES`.
"""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pelago.config import models_held
from pelago.config.run_file import RunFile
from pelago.net import daemon, disk
from pelago.net.durability.journal import SNAPSHOT_BYTES, SNAPSHOT_MODELS
from pelago.net.sockets.tcp_ports import THIS_MACHINE
from pelago.net.telemetry import Telemetry
from pelago.runlog.events import DiskForecast, DiskShort

LOG_BYTES: Final = 16 << 20
SNAPSHOTS: Final = 2
"""The newest one, and the one before it or the one being written."""
JOURNALS: Final = 2
"""The one being written, and those between the two snapshots."""
TWICE: Final = 2
"""Nearly everything is there twice while one file replaces another, so at least half of it is always there."""


@dataclass(frozen=True, slots=True)
class Need:
    """The bytes that a node writes to a folder, at most."""

    node: str
    folder: Path
    bytes: int


def of_gps(run: RunFile, model_bytes: int, out: Path) -> list[Need]:
    """State, results, and copies of snapshots that go to a folder."""
    models = 2 if run.gps.average else 1
    snapshot = models_held.of_gps(run).durable * model_bytes
    needs = [Need("gps", out, 2 * models * model_bytes + LOG_BYTES)]
    if run.gps.durability != "none":
        state = daemon.state_folder(out, "gps")
        needs.append(Need("gps", state, _state(snapshot, model_bytes) - _used(state)))
    if run.gps.snapshots and "://" not in run.gps.snapshots:
        copies = run.gps.snapshots_kept + 1
        needs.append(Need("copies", Path(run.gps.snapshots), copies * snapshot))
    return needs


def of_lps(run: RunFile, region: int, name: str, model_bytes: int, out: Path) -> list[Need]:
    """State; ``name``: of the node."""
    if run.lps.durability == "none":
        return [Need(name, out, LOG_BYTES)]
    state = daemon.state_folder(out, name)
    snapshot = models_held.of_lps(run, region).durable * model_bytes
    return [Need(name, state, _state(snapshot, model_bytes) + LOG_BYTES - _used(state))]


def of_evaluator(model_bytes: int, out: Path) -> list[Need]:
    """The exported model, and one that is to take its place."""
    return [Need("evaluator", out, 2 * model_bytes + LOG_BYTES)]


def of_worker(run: RunFile, name: str, model_bytes: int, out: Path) -> list[Need]:
    """A worker's log, and its optimiser's moments."""
    moments = models_held.moments(run) * model_bytes if run.worker.keep_optimiser else 0
    # One file of them, and one being written.
    return [Need(name, out, 2 * moments + LOG_BYTES)]


def on_this_machine(run: RunFile, model_bytes: int, out: Path) -> tuple[list[Need], list[Need]]:
    """What the nodes on this machine need (servers whose address is here, the evaluator, the workers of LPSs that are
    here), and what the nodes elsewhere need."""
    here: list[Need] = []
    elsewhere: list[Need] = []
    gps = here if run.gps_connect()[0] in THIS_MACHINE else elsewhere
    gps += [*of_gps(run, model_bytes, out), *of_evaluator(model_bytes, out)]
    for index, region in enumerate(run.region):
        lps = here if run.lps_connect(index)[0] in THIS_MACHINE else elsewhere
        lps += of_lps(run, index, f"lps-{region.name}", model_bytes, out)
        for _ in region.worker_speeds:
            lps += of_worker(run, f"workers of {region.name}", model_bytes, out)
    return here, elsewhere


@dataclass(frozen=True, slots=True)
class Comparison:
    """``lines``: a line for each disk, with what is needed there and what is free. ``may``: what may be too
    little, ``will``: what surely is, in words; empty: nothing is."""

    lines: list[str]
    may: str
    will: str


def compare(needs: Sequence[Need]) -> Comparison:
    """Compare the needs of nodes with the free bytes, disk by disk. Raises `OSError`."""
    lines, may, will = [], [], []
    disks: dict[int, list[Need]] = {}
    for each in needs:
        disks.setdefault(os.stat(disk.nearest(each.folder)).st_dev, []).append(each)
    for each_disk in disks.values():
        folder = each_disk[0].folder
        total = sum(each.bytes for each in each_disk)
        free = disk.free_bytes(folder)
        line = f"{folder}: up to {size(total)} ({listed(each_disk)}), {size(free)} free"
        lines.append(line)
        if TWICE * free < total:
            will.append(line)
        elif free < total:
            may.append(line)
    return Comparison(lines, _words("may", may), _words("will", will))


def _words(verb: str, short: list[str]) -> str:
    if not short:
        return ""
    return f"the disk {verb} get full: {'; '.join(short)}: make room, or choose another folder"


def tell(log: Telemetry, needs: Sequence[Need]) -> None:
    """Log the figures. A run that may not fit begins all the same, since it waits where it finds no room."""
    try:
        found = compare(needs)
    except OSError as error:
        found = Comparison([f"cannot see how much is free: {error}"], "", "")
    for line in found.lines:
        log.line(f"disk {line}")
    log.event(DiskForecast(tuple(found.lines)))
    for why in filter(None, (found.will, found.may)):
        log.event(DiskShort(why))


def listed(needs: Iterable[Need]) -> str:
    """Nodes with their figures, in one line."""
    sums: dict[str, int] = {}
    for each in needs:
        sums[each.node] = sums.get(each.node, 0) + each.bytes
    return ", ".join(f"{node} {size(total)}" for node, total in sums.items())


def size(count: int) -> str:
    """Bytes in decimal units."""
    for unit, scale in (("GB", 10**9), ("MB", 10**6)):
        if abs(count) >= scale:
            return f"{count / scale:,.1f} {unit}"
    return f"{count / 1e3:,.1f} kB"


def _state(snapshot_bytes: int, model_bytes: int) -> int:
    # Updates go on arriving while a snapshot is written.
    journal = max(SNAPSHOT_BYTES, SNAPSHOT_MODELS * model_bytes) + model_bytes
    return SNAPSHOTS * snapshot_bytes + JOURNALS * journal


def _used(folder: Path) -> int:
    """Bytes of the files that are there already, and are written over."""
    if not folder.is_dir():
        return 0
    return sum(each.stat().st_blocks * 512 for each in folder.iterdir() if each.is_file())
