"""Hours of a durable run with a restart every minute: do memory, descriptors and disk stay flat?

    python bench/soak.py [--minutes 120] [--every-s 60] [--keep DIR]

Starts a real run of two regions with two paced workers each and an evaluator, as processes. Every minute the node
whose last start is longest ago is restarted: by turns with kill -9 and with the signal that docs/OPERATIONS.md gives
for its role (servers SIGHUP, workers SIGTERM). In the second quarter the GPS and a worker are not restarted, in the
third an LPS and another worker, so that there are long-lived processes as well. The evaluator is never restarted.
Every ten seconds each process and each state folder is sampled. The run ends by its own budget of minutes, and the
servers' histories are audited.

A process that has just started is smaller than one that has run for minutes. So memory is compared at equal age, and
the first process of a node, which had nothing to restore, is left out. Slopes are medians over pairs of samples (Theil
1950, Sen 1968), of pairs within one node or within one process only.

Exits with 1 unless the audit is clean, no process ended by itself, and everything measured is flat.
"""

import argparse
import json
import signal
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from parts.flatness import MB, disk, flat, sizes
from parts.machine import describe
from parts.real_run import RealRun, audit_figures, is_balanced
from parts.soak_run import SERVERS, SIGNAL_S, SoakRestart, SoakRun

from pelago.cli.audit import examine, histories
from pelago.durable import record
from pelago.durable.replay import scan
from pelago.net.sockets.tcp_ports import free_pairs
from pelago.runlog.events import NodeRestored, SnapshotWritten
from pelago.runlog.history import HISTORY

RUN: Final = """
[run]
name = "soak"
budget_local_steps = 1000000000
budget_minutes = {minutes}
[model]
preset = "llama3-tiny"
[data]
sequence_length = 32
validation_samples = 16
[worker]
local_steps = 1
batch_size = 1
global_batch_size = 16
max_lr = 2e-4
min_lr = 1e-5
device = "cpu"
compile = false
[lps]
lr = 0.5
momentum = 0.5
momentum_delay = 2
updates_per_exchange = 4
merge_weight = 0.5
durability = "process"
[gps]
lr = 0.5
momentum = 0.5
momentum_delay = 2
bind = "127.0.0.1:{ports[0]}"
durability = "process"
validation_interval_steps = 300
[network]
heartbeat_ms = 500
lost_after_ms = 5000
[local]
step_ms = {step_ms}
[[region]]
name = "eu"
worker_speeds = [1.0, 0.7]
bind = "127.0.0.1:{ports[1]}"
[[region]]
name = "us"
worker_speeds = [0.9, 0.5]
bind = "127.0.0.1:{ports[2]}"
"""
"""Small steps and a model of 1.58 MB: nearly all that happens is updates, exchanges and journals."""

KINDS: Final = (*SERVERS, "worker", "evaluator")
UNIT: Final = {"gps": "arrival", "lps": "update"}
"""Kind of the lines for which a server's history is kept."""
SAMPLE_S: Final = 10.0
END_S: Final = 600.0
"""How much longer than its budget the run may take: the clock begins with the first lease and stops while
the GPS is down."""


def soak(run: SoakRun, every_s: float) -> int:
    """Restart and look until the run ends by itself. Returns the GPS's exit code."""
    end_s, gps_code = 60 * run.minutes, None
    restart_s, look_s = every_s, SAMPLE_S
    while gps_code is None:
        time.sleep(max(0.0, min(restart_s, look_s) - run.elapsed_s))
        gps_code = run.run.nodes["gps"].process.poll()
        if gps_code == 0:
            if run.elapsed_s < end_s:
                run.failures.append(f"the run ended by itself after {run.elapsed_s:.0f} s")
            break
        if run.elapsed_s < end_s - every_s / 2:
            run.revive()
            gps_code = None
        if run.elapsed_s >= look_s:
            run.sample()
            look_s += SAMPLE_S
        if run.elapsed_s >= restart_s:
            restart_s += every_s
            # The run must not be restarted while it ends.
            done = run.restart(run.next_node()) if run.elapsed_s < end_s - every_s / 2 else None
            print(_progress(run, done), flush=True)
        if run.elapsed_s > end_s + END_S:
            run.failures.append("the run did not end by itself")
            run.run.nodes["gps"].process.terminate()
            return run.run.nodes["gps"].process.wait(END_S)
    return gps_code


def _progress(run: SoakRun, done: SoakRestart | None) -> str:
    now = run.latest()
    parts = [f"{run.elapsed_s / 60:.1f} min"]
    if done is not None:
        parts.append(f"{done.manner} {done.node} ({done.took_s:.1f} s)")
    for kind in KINDS:
        those = [each for each in now if each.kind == kind]
        sizes = " ".join(f"{each.anonymous_mb:.0f}/{each.descriptors}" for each in those)
        parts.append(f"{kind} {sizes}")
    parts.append(f"state {sum(each.state_mb for each in now):.0f} MB")
    parts.append(f"history {sum(each.history_mb for each in now):.2f} MB")
    return ", ".join(parts)


def history(out: Path, node: str, unit: str) -> dict[str, Any]:
    """Bytes of a history per line of what it is kept for, in the first and the last quarter of it."""
    view = memoryview((out / node / "state" / HISTORY).read_bytes())
    lines: list[tuple[int, bool]] = []
    begun = 0
    for each, stop in scan(view):
        lines.append((stop - begun, record.unpack(each.body)[0] == unit))
        begun = stop
    quarter = max(1, len(lines) // 4)

    def per_unit(those: Sequence[tuple[int, bool]]) -> float:
        return round(
            sum(size for size, _ in those) / max(1, sum(is_unit for _, is_unit in those)), 1
        )

    return {
        "bytes": len(view),
        f"{unit}s": sum(is_unit for _, is_unit in lines),
        "bytes_each_first": per_unit(lines[:quarter]),
        "bytes_each_last": per_unit(lines[-quarter:]),
    }


def snapshots(run: RealRun, node: str) -> dict[str, Any]:
    """How many there were, and whether they or the restarts that read them grew."""
    written = [event.bytes / MB for _, event in run.events(node, SnapshotWritten)]
    read = [e.snapshot_s + e.journal_s for _, e in run.events(node, NodeRestored)]

    def ends(values: Sequence[float]) -> list[float]:
        part = max(1, len(values) // 4)
        return [round(statistics.median(each), 3) for each in (values[:part], values[-part:])]

    return {
        "snapshots": len(written),
        "mb_first_last": ends(written) if written else None,
        "restored": len(read),
        "restored_s_first_last": ends(read) if read else None,
    }


def plot(run: SoakRun, path: Path) -> None:
    """Draw everything over time."""
    from matplotlib.figure import Figure

    panels = {
        "anonymous_mb": "anonymous memory, MB",
        "rss_mb": "resident memory, MB",
        "descriptors": "descriptors",
        "threads": "threads",
        "state_mb": "journals, snapshots, spares, MB",
        "history_mb": "history, MB",
    }
    made = Figure(figsize=(12, 10), layout="constrained")
    axes = list(made.subplots(3, 2, sharex=True).flat)
    for axis, (measure, title) in zip(axes, panels.items(), strict=True):
        for place, name in enumerate(run.run.nodes):
            those = [each for each in run.samples if each.node == name]
            if measure in ("state_mb", "history_mb"):
                those = [each for each in those if each.kind in SERVERS]
            if those:
                x, y = [e.at_s / 60 for e in those], [getattr(e, measure) for e in those]
                axis.plot(x, y, ".", markersize=2, color=f"C{place}", label=name)
        axis.set_title(title)
        axis.set_ylim(bottom=0)
    for axis in axes[-2:]:
        axis.set_xlabel("minutes")
    axes[0].legend(fontsize="x-small", markerscale=4, ncols=2, loc="lower right")
    made.savefig(path, dpi=110)


def figures(run: SoakRun, gps_code: int, every_s: float) -> dict[str, Any]:
    """The figures to print."""
    real, end_s = run.run, run.samples[-1].at_s if run.samples else 0.0
    servers = {each.name: each.kind for each in real.nodes.values() if each.kind in SERVERS}
    result = json.loads((real.out / "result.json").read_text(encoding="utf-8"))
    found = examine(histories(real.out))
    kinds = {kind: sizes(run.samples, kind, end_s) for kind in KINDS}
    disks = {kind: disk(run.samples, kind, end_s) for kind in SERVERS}
    used = {(each.node, each.incarnation): each.cpu_s for each in run.samples}
    manners = Counter(f"{each.kind} {each.manner}" for each in run.restarts)
    return {
        "benchmark": "soak",
        "machine": describe(),
        "minutes": round(run.elapsed_s / 60, 1),
        "every_s": every_s,
        "samples": len(run.samples),
        "restarts": len(run.restarts),
        "restarts_by": dict(sorted(manners.items())),
        "failures": run.failures,
        "gps_exit": gps_code,
        "counted_steps": result["counted_steps"],
        "exchanges": result["gps"]["updates"],
        "ledger": result["ledger"],
        "audit": audit_figures(found),
        "cores_used": round(sum(used.values()) / end_s, 2) if end_s else None,
        "logs_mb": round(sum(each.logs_mb for each in run.latest()), 2),
        "history": {name: history(real.out, name, UNIT[kind]) for name, kind in servers.items()},
        "snapshots": {name: snapshots(real, name) for name in servers},
        "processes": kinds,
        "disk": disks,
        "flat": flat(kinds, disks),
    }


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=120.0)
    parser.add_argument("--every-s", type=float, default=60.0, help="time between restarts")
    parser.add_argument(
        "--step-ms", type=float, default=1000.0, help="pace of the fastest worker, an update each"
    )
    parser.add_argument(
        "--keep",
        type=Path,
        help="folder of the run, its samples and plot (default: a temporary one)",
    )
    options = parser.parse_args()
    # So that the processes are ended however this one ends.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / "out").exists():
            parser.error(f"{folder} holds an earlier run")
        text = RUN.format(minutes=options.minutes, ports=free_pairs(3), step_ms=options.step_ms)
        run = SoakRun(RealRun(folder, text, seed=0), options.minutes)
        try:
            run.run.start_all()
            code = soak(run, options.every_s)
            run.run.wait_for_all(SIGNAL_S)
        finally:
            run.run.end()
            if options.keep:
                rows = [asdict(each) for each in run.samples] + [asdict(e) for e in run.restarts]
                lines = "".join(json.dumps(row) + "\n" for row in rows)
                (folder / "samples.jsonl").write_text(lines, encoding="utf-8")
        if options.keep:
            plot(run, folder / "soak.png")
        found = figures(run, code, options.every_s)
        print(json.dumps(found))
        clean = is_balanced(found["ledger"]) and not found["audit"]["exceptions"]
        good = code == 0 and not run.failures and False not in found["flat"].values()
        return 0 if clean and good else 1


if __name__ == "__main__":
    sys.exit(main())
