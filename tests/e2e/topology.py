"""Real daemons in real processes, for the tests of this folder: started, watched, killed, always ended."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from pelago.runlog.log import LOG_NAME, DamagedLine, lines_of, read_log
from tests.tcp_ports import pairs

E = TypeVar("E")

DEADLINE_S = 90.0
ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}

TINY = """
[run]
name = "{name}"
seed = 3
budget_local_steps = {budget}
[model]
preset = "llama3-tiny"
overrides = {{hidden_size = 32, intermediate_size = 64, num_hidden_layers = 1}}
[data]
source = "text:{corpus}"
sequence_length = 32
validation_samples = 32
[worker]
local_steps = 2
batch_size = 8
global_batch_size = 16
max_lr = 5e-3
warmup_iterations = 10
total_iterations = 400
[lps]
lr = 0.5
momentum = 0.0
momentum_delay = 1
updates_per_exchange = 4
merge_weight = 0.5
lease_seconds = 1.0
[gps]
lr = 0.5
momentum = 0.0
momentum_delay = 1
validation_interval_steps = {interval}
[network]
heartbeat_ms = 200
lost_after_ms = 2000
{network}
[local]
step_ms = {step_ms}
"""


def write_corpus(folder: Path) -> Path:
    """Some text with structure in it; enough for a small model to learn from."""
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(8):
        lines = [
            f"region {i % 7} sends update {i * index % 11} to server {i % 3}." for i in range(900)
        ]
        (folder / f"text{index}.txt").write_text("\n".join(lines), encoding="utf-8")
    return folder


def run_file(
    folder: Path,
    *,
    name: str = "e2e",
    budget: int = 200,
    interval: int = 100,
    step_ms: float = 20.0,
    network: str = "",
    regions: dict[str, list[float]] | None = None,
) -> Path:
    """Write a run file with free ports; returns its path."""
    regions = regions or {"eu": [1.0, 0.5], "us": [0.8]}
    ports = pairs(1 + len(regions))
    text = TINY.format(
        name=name,
        budget=budget,
        interval=interval,
        step_ms=step_ms,
        network=network,
        corpus=write_corpus(folder / "corpus"),
    )
    text = text.replace("[gps]\n", f'[gps]\nbind = "127.0.0.1:{ports[0]}"\n')
    for (region, speeds), port in zip(regions.items(), ports[1:], strict=True):
        text += (
            f'[[region]]\nname = "{region}"\nworker_speeds = {speeds}\nbind = "127.0.0.1:{port}"\n'
        )
    path = folder / "run.toml"
    path.write_text(text, encoding="utf-8")
    return path


class Daemons:
    """Processes of one run. Use as a context manager: the processes that still run at the end are killed."""

    def __init__(self, path: Path, out: Path) -> None:
        self.path = path
        self.out = out
        self.processes: dict[str, subprocess.Popen[str]] = {}

    def __enter__(self) -> "Daemons":
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes.values():
            if process.poll() is None:
                process.kill()
            process.communicate()

    def start(
        self, node: str, role: str, *flags: str, run: Path | None = None
    ) -> subprocess.Popen[str]:
        """Start a daemon; ``node`` names it here."""
        return self.start_module(node, role, *flags, run=run)

    def start_module(
        self, node: str, module: str, *arguments: str, run: Path | None = None
    ) -> subprocess.Popen[str]:
        """Start a module that is a daemon, perhaps with changes; ``arguments`` come first."""
        command = [sys.executable, "-m", module, *arguments]
        command += ["--run", str(run or self.path), "--out", str(self.out)]
        self.processes[node] = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=os.environ | ONE_THREAD,
        )
        return self.processes[node]

    def start_servers(self, *regions: str) -> None:
        """The GPS and an LPS for each region."""
        self.start("gps", "gps")
        for region in regions:
            self.start(f"lps-{region}", "lps", "--region", region)

    def start_worker(self, region: str, group: int) -> subprocess.Popen[str]:
        """A paced worker for a group."""
        node = f"worker-{region}-{group}"
        return self.start(node, "worker", "--region", region, "--group", str(group), "--paced")

    def kill(self, node: str) -> None:
        """kill -9."""
        self.processes[node].send_signal(signal.SIGKILL)
        self.processes[node].communicate(timeout=DEADLINE_S)

    def wait(self, node: str) -> tuple[int, str]:
        """Until a process ends by itself: its exit code, and what it printed."""
        output, _ = self.processes[node].communicate(timeout=DEADLINE_S)
        return self.processes[node].returncode, output

    def events(self, node: str, kind: type[E]) -> list[E]:
        """What the node has logged so far, of a class; `object`: all of it."""
        lines = read_log(self.out / node / LOG_NAME)
        assert not [line for line in lines if isinstance(line, DamagedLine)], lines
        return [event for _, event in lines_of(kind, lines)]

    def until(self, what: str, true: Callable[[], bool]) -> None:
        """Wait, with a deadline, until something shows in the logs."""
        deadline = time.monotonic() + DEADLINE_S
        while not true():
            for node, process in self.processes.items():
                crashed = process.poll() not in (None, 0, -signal.SIGKILL)
                assert not crashed, f"{node} died: {process.communicate()[0]}"
            assert time.monotonic() < deadline, f"never happened: {what}"
            # The logs are flushed once a second; there is no event to wait on across processes.
            time.sleep(0.05)

    def result(self) -> dict[str, Any]:
        """The run's result.json."""
        result: dict[str, Any] = json.loads((self.out / "result.json").read_text(encoding="utf-8"))
        return result


def assert_ledger_balances(result: dict[str, Any]) -> None:
    """issued = applied + dropped + unexchanged + returned, and nothing twice."""
    ledger = result["ledger"]
    accounted = sum(
        ledger[key] for key in ("applied", "dropped_in_flight", "unexchanged", "returned")
    )
    assert ledger["issued"] == accounted, ledger
    assert ledger["duplicated"] == 0, ledger
    assert ledger["applied"] > 0, ledger
