"""Whole rounds with real daemons: how much of the time the workers compute. See bench/README.md."""

import argparse
import contextlib
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from parts.floors import floors
from parts.machine import describe
from parts.real_run import RealRun
from push_pull import OVERRIDES, describe_model

from pelago.cli.plan.model import model_facts
from pelago.config.run_toml import parse
from pelago.core.notes.worker import RoundTrained
from pelago.net.sockets.tcp_ports import free_pairs

REGIONS = ("eu", "us")
LOOK_S = 0.5
GB = 1e9
TABLES = """
[run]
name = "round"
budget_local_steps = 1000000000
[model]
preset = "{preset}"
{overrides}
[data]
sequence_length = {length}
[worker]
local_steps = {steps}
batch_size = {batch}
device = "{device}"
keep_optimiser = false
{worker}
[lps]
updates_per_exchange = {exchange}
durability = "{durability}"
{lps}
[gps]
durability = "{durability}"
bind = "127.0.0.1:{gps}"
{more_gps}
"""
REGION = """
[[region]]
name = "{name}"
worker_speeds = [{speeds}]
bind = "127.0.0.1:{port}"
"""


class Sampler:
    """Memory, disk and use of the GPUs while the run goes on."""

    def __init__(self, run: RealRun) -> None:
        self._run = run
        self.resident: dict[str, float] = {}
        """The most anonymous and shared memory of each process, in GB; files of state that are mapped not counted."""
        self.disk_gb: dict[str, float] = {}
        """The most that lay in each server's folder of state."""
        self.utilisation: list[tuple[float, float]] = []
        """Per cent of the time in which a kernel ran, mean of the GPUs, with the time of the look."""

    def look(self) -> None:
        """Take a sample."""
        for name, node in self._run.nodes.items():
            with contextlib.suppress(OSError, IndexError, ValueError):
                status = Path(f"/proc/{node.process.pid}/status").read_text(encoding="ascii")
                kib = sum(
                    int(line.split()[1])
                    for line in status.splitlines()
                    if line.startswith(("RssAnon:", "RssShmem:"))
                )
                self.resident[name] = max(self.resident.get(name, 0.0), kib * 1024 / GB)
            state = self._run.out / name / "state"
            if state.is_dir():
                self.disk_gb[name] = max(self.disk_gb.get(name, 0.0), used_gb(state))
        if torch.cuda.is_available():
            query = ["nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits"]
            said = subprocess.run(query, capture_output=True, text=True, check=False).stdout.split()
            self.utilisation.append((time.time(), statistics.mean(map(float, said or ["0"]))))


def used_gb(folder: Path) -> float:
    """Bytes of the blocks of a folder's files, in GB."""
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):
            total += path.stat().st_blocks * 512
    return total / GB


def run_text(options: argparse.Namespace, ports: list[int]) -> str:
    """The run file: so many regions with the workers divided among them."""
    overrides = ""
    if options.preset == "llama3-tiny":  # 64,007,168 parameters.
        overrides = (
            "overrides = { "
            + ", ".join(f"{key} = {value}" for key, value in OVERRIDES.items())
            + " }"
        )
    text = TABLES.format(
        preset=options.preset,
        overrides=overrides,
        length=options.length,
        steps=options.steps,
        batch=options.batch,
        device="cpu" if options.paced_seconds else "cuda",
        worker=options.worker.replace(";", "\n"),
        exchange=options.exchange,
        durability=options.durability,
        lps=options.lps.replace(";", "\n"),
        more_gps=options.gps.replace(";", "\n"),
        gps=ports[0],
    )
    for place in range(options.regions):
        count = len(range(place, options.workers, options.regions))
        text += REGION.format(
            name=REGIONS[place], speeds=", ".join(["1.0"] * count), port=ports[1 + place]
        )
    return text


def start(run: RealRun, options: argparse.Namespace, model: Path) -> list[str]:
    """Start all processes; returns the names of the workers."""
    run.start("gps", "gps", "gps")
    for place in range(options.regions):
        run.start(f"lps-{REGIONS[place]}", "lps", "lps", "--region", REGIONS[place])
    names = []
    for number in range(options.workers):
        place, group = number % options.regions, number // options.regions
        name = f"worker-{REGIONS[place]}-{group}"
        names.append(name)
        if options.paced_seconds:
            flags = [str(place), str(group), str(options.paced_seconds)]
            command = [sys.executable, "-m", "parts.paced", str(run.path), str(model)]
            run.start_command(name, "worker", [*command, str(run.out), *flags])
        else:
            flags = ["--region", REGIONS[place], "--group", str(group), "--slot", str(number)]
            run.start(name, "worker", "worker", *flags)
    return names


def rounds_of(run: RealRun, name: str) -> list[tuple[float, float]]:
    """When each round of a worker was trained, and how long it computed, in seconds."""
    return [(at, note.busy_ms / 1e3) for at, note in run.events(name, RoundTrained)]


def wait_for_rounds(
    run: RealRun, names: list[str], count: int, limit_s: float, sampler: Sampler
) -> None:
    """Until every worker has trained so many rounds, or the time is over. Raises `SystemExit` if a node ends."""
    deadline = time.time() + limit_s
    while time.time() < deadline:
        sampler.look()
        for node in run.nodes.values():
            if node.process.poll() is not None:
                raise SystemExit(f"{node.name} has ended: see {run.out}")
        if all(len(rounds_of(run, name)) >= count for name in names):
            return
        time.sleep(LOOK_S)


def figures(
    run: RealRun, names: list[str], warm_up: int, sampler: Sampler, floor: dict[str, float]
) -> dict[str, Any]:
    """Periods and computing of the rounds after the first ones."""
    periods: list[float] = []
    busy: list[float] = []
    window = [float("inf"), 0.0]
    for name in names:
        done = rounds_of(run, name)[warm_up - 1 :]
        for (before, _), (after, computed) in pairwise(done):
            periods.append(after - before)
            busy.append(computed)
            window = [min(window[0], before), max(window[1], after)]
    if not periods:
        raise SystemExit(f"no worker has trained {warm_up + 1} rounds: see {run.out}")
    over = statistics.median(a - b for a, b in zip(periods, busy, strict=True))
    parts = 2 * (floor["copy"] + floor["hash"] + floor["wire"]) + floor["step"]
    used = [use for at, use in sampler.utilisation if window[0] <= at <= window[1]]
    return {
        "rounds": len(periods),
        "round_s": round(statistics.median(periods), 4),
        "computing_s": round(statistics.median(busy), 4),
        "busy": round(sum(busy) / sum(periods), 4),
        "overhead_s": round(over, 4),
        "floor_s": round(parts, 4),
        "overhead_to_floor": round(over / parts, 3),
        "floors": floor,
        "gpu_utilisation": round(statistics.mean(used) / 100, 3) if used else None,
        "resident_gb": {name: round(each, 3) for name, each in sampler.resident.items()},
        "state_gb": {name: round(each, 3) for name, each in sampler.disk_gb.items()},
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", default="llama3-tiny", help="llama3-tiny: 64 M parameters")
    parser.add_argument("--regions", type=int, default=1, choices=(1, 2))
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=10, help="rounds that count")
    parser.add_argument("--warm-up", type=int, default=3)
    parser.add_argument("--limit", type=float, default=300.0, help="seconds at most")
    parser.add_argument("--steps", type=int, default=48)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--exchange", type=int, default=1, help="K: updates between exchanges")
    parser.add_argument("--durability", default="process")
    parser.add_argument("--paced-seconds", type=float, default=2.0, help="0: compute, on CUDA")
    for table in ("worker", "lps", "gps"):
        parser.add_argument(
            f"--{table}", default="", help=f"more keys of [{table}], key = value; ..."
        )
    parser.add_argument("--keep", type=Path, help="folder of logs, kept (default: a temporary one)")
    options = parser.parse_args()
    machine = describe()
    folder = options.keep or Path(tempfile.mkdtemp())
    folder.mkdir(parents=True, exist_ok=True)
    text = run_text(options, free_pairs(1 + options.regions))
    parsed = parse(text)
    elements = model_facts(parsed).parameters
    if options.paced_seconds:
        describe_model(parsed, folder / "model.json")
    floor = floors(elements)
    print(json.dumps({"floors": floor}), flush=True)
    run = RealRun(folder, text, 0)
    sampler = Sampler(run)
    paths = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    try:
        names = start(run, options, folder / "model.json")
        wait_for_rounds(run, names, options.warm_up + options.rounds, options.limit, sampler)
        found = figures(run, names, options.warm_up, sampler, floor)
        run.nodes["gps"].process.send_signal(signal.SIGTERM)
        run.wait_for_all(20.0)
    finally:
        run.end()
        if options.keep is None:
            shutil.rmtree(folder, ignore_errors=True)
    keys = ("regions", "workers", "steps", "batch", "length", "exchange", "durability")
    print(
        json.dumps(
            {
                "benchmark": "round",
                "preset": options.preset,
                "parameters": elements,
                "model_gb": round(4 * elements / GB, 3),
                "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
                "paced_seconds": options.paced_seconds,
                **{key: getattr(options, key) for key in keys},
                "more": {key: getattr(options, key) for key in ("worker", "lps", "gps")},
                **found,
                "machine": machine,
            }
        )
    )


if __name__ == "__main__":
    main()
