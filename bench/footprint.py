"""Peak memory and disk of each process of a run, in models, beside what `pelago plan` says. See bench/README.md."""

import argparse
import asyncio
import json
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import AsyncExitStack, ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from parts.machine import describe
from parts.real_run import RealRun
from push_pull import PARTS, describe_model, process

from pelago.cli.plan.facts import Gpu, ModelFacts
from pelago.cli.plan.forecast import Assumptions, forecast
from pelago.cli.plan.model import model_facts
from pelago.config.run_file import RunFile
from pelago.config.run_toml import dump, load
from pelago.emulate.wan import Link, WanProxy
from pelago.net.durability import disk_needs
from pelago.net.sockets.tcp_ports import free_pairs
from pelago.runlog.log import LOG_NAME

SAMPLE_S: Final = 0.5
START_S: Final = 900
"""A run that has made no exchange after so long is given up."""
SLOW_S: Final = 15.0
"""Time of a payload on the link of a slow reader, one way."""
SIZES: Final = {
    "256": "hidden_size = 1024, intermediate_size = 2784, num_hidden_layers = 5, num_attention_heads = 8,"
    " num_key_value_heads = 8",
    "1000": "hidden_size = 2048, intermediate_size = 5568, num_hidden_layers = 5, num_attention_heads = 16,"
    " num_key_value_heads = 16",
}
"""Shapes of about so many megabytes in fp32, 64 and 256 million parameters."""
RUN: Final = """
[run]
name = "footprint"
budget_local_steps = 1000000000
[model]
preset = "{preset}"
overrides = {{ {overrides} }}
[data]
sequence_length = {length}
validation_samples = 4
[worker]
device = "{device}"
local_steps = {steps}
batch_size = {batch}
rescale = false
[lps]
updates_per_exchange = 1
durability = "{durability}"
[gps]
durability = "{durability}"
bind = "127.0.0.1:{gps}"
[[region]]
name = "here"
worker_speeds = [{speeds}]
bind = "127.0.0.1:{lps}"
"""


@dataclass
class Peaks:
    """The most that was seen of one node."""

    memory_bytes: int = 0
    disk_bytes: int = 0


@dataclass
class PeakSampler:
    """Samples the memory of processes, and the disk below their folders, in a thread of its own."""

    out: Path
    processes: Mapping[str, int]
    """Process ids by node."""
    found: dict[str, Peaks] = field(default_factory=dict)
    _done: threading.Event = field(default_factory=threading.Event)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Sample as long as the context lasts."""
        thread = threading.Thread(target=self._sample, daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._done.set()
            thread.join()

    def _sample(self) -> None:
        while not self._done.wait(SAMPLE_S):
            for node, pid in self.processes.items():
                peaks = self.found.setdefault(node, Peaks())
                peaks.memory_bytes = max(peaks.memory_bytes, own_bytes(pid, self.out))
                peaks.disk_bytes = max(peaks.disk_bytes, disk_bytes(self.out / node))


def own_bytes(pid: int, out: Path) -> int:
    """Resident bytes of a process that are its own: anonymous pages, pages of shared memory, and pages of mapped
    files of the run's folder that hold its tensors. Pages of libraries, and the cache of files that are only read or
    written, are not."""
    total, counts = 0, False
    with suppress(OSError):  # The process may end.
        for line in Path(f"/proc/{pid}/smaps").read_text(encoding="utf-8").splitlines():
            first, _, rest = line.partition(" ")
            if "-" in first and not first.endswith(":"):
                path = rest.split(maxsplit=4)[4] if len(rest.split(maxsplit=4)) > 4 else ""
                counts = path.startswith(("/dev/shm", str(out), "/memfd:"))
            elif (first == "Anonymous:" and not counts) or (first == "Rss:" and counts):
                total += int(rest.split()[0]) << 10
    return total


def disk_bytes(folder: Path) -> int:
    """Blocks of the files below a folder."""
    total = 0
    for each in folder.rglob("*"):
        with suppress(OSError):  # It may be gone again.
            if each.is_file():
                total += each.stat().st_blocks * 512
    return total


class SlowLinks:
    """Links to an LPS that take `SLOW_S` for a model each way, in a thread of their own."""

    def __init__(self, model_bytes: int, port: int, own_ports: list[int]) -> None:
        self._rate = model_bytes / SLOW_S
        self._port, self._own = port, own_ports
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Carry as long as the context lasts."""
        thread = threading.Thread(target=self._loop.run_until_complete, args=[self._carry()])
        thread.start()
        self._ready.wait()
        try:
            yield
        finally:
            self._loop.call_soon_threadsafe(self._stop.set)
            thread.join()

    async def _carry(self) -> None:
        self._stop = asyncio.Event()
        async with AsyncExitStack() as stack:
            for own in self._own:
                up, down = Link(self._rate, 0.0), Link(self._rate, 0.0)
                for offset in (0, 1):
                    ends = ("127.0.0.1", own + offset, "127.0.0.1", self._port + offset)
                    await stack.enter_async_context(WanProxy(*ends, up, down))
            self._ready.set()
            await self._stop.wait()


def run_text(options: argparse.Namespace, size: str, slow: int, ports: list[int]) -> str:
    """The run file of one measurement."""
    gpu = size in ("llama3-125m", "llama3-350m", "llama3-1b")
    return RUN.format(
        preset=size if gpu else "llama3-tiny",
        overrides="" if gpu else SIZES[size],
        length=1024 if gpu else 32,
        device="cuda" if gpu else "cpu",
        steps=8 if gpu else 1,
        batch=8 if gpu else 1,
        durability=options.durability,
        gps=ports[0],
        lps=ports[1],
        speeds=", ".join(["1.0"] * (options.workers + slow)),
    )


def measured(
    options: argparse.Namespace, size: str, slow: int, folder: Path
) -> tuple[dict[str, Peaks], RunFile]:
    """Peaks of a run of real processes, by node."""
    ports = free_pairs(2 + slow)
    run = RealRun(folder, run_text(options, size, slow, ports), 0)
    settings = load(run.path)
    manifest = describe_model(
        settings.model_copy(
            update={"worker": settings.worker.model_copy(update={"device": "cpu"})}
        ),
        folder / "model.json",
    )
    with ExitStack() as stack:
        stack.callback(run.end)
        run.start("gps", "gps", "gps")
        run.start("lps-here", "lps", "lps", "--region", "here")
        for group in range(options.workers):
            flags = ("--region", "here", "--group", str(group))
            run.start(f"worker-here-{group}", "worker", "worker", *flags)
        if options.evaluator:
            run.start("evaluator", "evaluator", "worker", "--evaluate")
        pids = {name: node.process.pid for name, node in run.nodes.items()}
        sampler = PeakSampler(run.out, pids)
        stack.enter_context(sampler.running())
        _wait_for_an_exchange(run)
        if slow:
            stack.enter_context(SlowLinks(manifest.bytes, ports[1], ports[2:]).running())
            stack.enter_context(_slow_readers(folder, settings, ports[2:]))
        time.sleep(options.seconds)
        for name, node in run.nodes.items():
            assert node.process.poll() is None, f"{name} has ended: see {folder}"
    return sampler.found, settings


@contextmanager
def _slow_readers(folder: Path, settings: RunFile, ports: list[int]) -> Iterator[None]:
    """Workers whose updates are ready at once, behind slow links."""
    with ExitStack() as stack:
        for index, port in enumerate(ports):
            keys = settings.model_dump(mode="json", exclude_none=True)
            keys["region"][0]["connect"] = f"127.0.0.1:{port}"
            own = folder / f"slow-{index}"
            own.mkdir()
            (own / "run.toml").write_text(dump(RunFile.model_validate(keys)), encoding="utf-8")
            script = [str(PARTS / "real.py"), str(own / "run.toml"), str(folder / "model.json")]
            reader = stack.enter_context(process([*script, str(own)], own / "log"))
            assert reader.stdin is not None
            reader.stdin.write("go\n" * 1000)
            reader.stdin.flush()
        yield


def _wait_for_an_exchange(run: RealRun) -> None:
    deadline = time.monotonic() + START_S
    log = run.out / "lps-here" / LOG_NAME
    while '"kind": "merge"' not in (log.read_text(encoding="utf-8") if log.exists() else ""):
        for name, node in run.nodes.items():
            assert node.process.poll() is None, f"{name} has ended: see {run.out}"
        assert time.monotonic() < deadline, f"no exchange in {START_S} s: see {run.out}"
        time.sleep(0.2)


def figures(peaks: Mapping[str, Peaks], run: RunFile, facts: ModelFacts) -> dict[str, Any]:
    """Peaks beside the plan's limits. ``models``: of the memory beyond what the plan allows for a process without a
    model."""
    gpu = Gpu("any", 1 << 62, 0.0) if run.worker.device == "cuda" else None
    planned = {each.name: each for each in forecast(run, facts, Assumptions(gpu=gpu)).processes}
    disks: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as empty:
        here, _ = disk_needs.on_this_machine(run, facts.bytes, Path(empty))
    for need in here:
        disks[need.node] = disks.get(need.node, 0) + need.bytes
    found = {}
    for name, each in peaks.items():
        plan = planned[name]
        base = plan.host_bytes - sum(plan.parts.values()) * facts.bytes
        found[name] = {
            "memory_mb": round(each.memory_bytes / 1e6, 1),
            "models": round((each.memory_bytes - base) / facts.bytes, 2),
            "plan_mb": round(plan.host_bytes / 1e6, 1),
            "plan_models": sum(plan.parts.values()),
            "plan_over_measured": round(plan.host_bytes / each.memory_bytes, 3),
            "disk_mb": round(each.disk_bytes / 1e6, 1),
            "disk_models": round(each.disk_bytes / facts.bytes, 2),
            "plan_disk_mb": round(disks[name] / 1e6, 1) if name in disks else None,
        }
    return found


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", default="256,1000", help="megabytes, or presets for a GPU")
    parser.add_argument("--slow", default="0,10", help="slow readers beside the workers")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--evaluator", action="store_true")
    parser.add_argument("--durability", default="process", choices=("none", "process", "host"))
    parser.add_argument("--seconds", type=float, default=60.0, help="after the first exchange")
    parser.add_argument("--keep", type=Path, help="folder of logs, kept (default: a temporary one)")
    options = parser.parse_args()
    report: dict[str, Any] = {"benchmark": "footprint", "durability": options.durability}
    report["machine"] = describe()
    for size in options.sizes.split(","):
        for slow in map(int, options.slow.split(",")):
            with ExitStack() as stack:
                base = options.keep or Path(stack.enter_context(tempfile.TemporaryDirectory()))
                folder = base / f"{size}-{slow}"
                folder.mkdir(parents=True)
                peaks, run = measured(options, size, slow, folder)
                facts = model_facts(run)
                name = f"{size}, {slow} slow readers"
                report[name] = {"model_mb": round(facts.bytes / 1e6, 1)}
                report[name] |= figures(peaks, run, facts)
            print(name, json.dumps(report[name]), flush=True)
    print(json.dumps(report))


if __name__ == "__main__":
    main()
