"""A real run of Pelago as processes of this machine, to be killed and sampled."""

import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeVar

from pelago.cli.audit import Audit
from pelago.runlog.log import LOG_NAME, LogLine, read_log

E = TypeVar("E")
ONE_THREAD: Final = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
"""For torch in every process: all share this machine's cores."""


@dataclass
class Daemon:
    """A node of the run, and its present process."""

    name: str
    kind: str
    command: list[str]
    process: subprocess.Popen[bytes]
    started: float
    kills: list[float] = field(default_factory=list)


class RealRun:
    """A run whose processes are started one by one, killed and started again.

    ``folder``: for the run file, logs and state. ``text``: the run file. ``seed``: of the choice of processes to kill.
    """

    def __init__(self, folder: Path, text: str, seed: int) -> None:
        self.out = folder / "out"
        self.path = folder / "run.toml"
        self.path.write_text(text, encoding="utf-8")
        self.chance = random.Random(seed)
        self.nodes: dict[str, Daemon] = {}
        self.kills: list[tuple[float, str, str]] = []
        """(time in seconds since 1970, node, kind)"""

    def start(self, name: str, kind: str, *command: str) -> None:
        """Start a node. ``command``: a module and its flags beyond the run file and the folder."""
        line = [sys.executable, "-m", command[0], "--run", str(self.path), "--out", str(self.out)]
        self.start_command(name, kind, [*line, *command[1:]])

    def start_command(self, name: str, kind: str, line: list[str]) -> None:
        """Start a node by a command of its own."""
        self.nodes[name] = Daemon(name, kind, line, self._spawn(name, line), time.time())

    def _spawn(self, name: str, line: list[str]) -> subprocess.Popen[bytes]:
        self.out.mkdir(exist_ok=True)
        with (self.out / f"{name}.log").open("ab") as log:
            return subprocess.Popen(
                line, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=os.environ | ONE_THREAD
            )

    def start_all(self) -> None:
        """Start a GPS, two regions with two paced workers each, and an evaluator."""
        self.start("gps", "gps", "gps")
        for region in ("eu", "us"):
            self.start(f"lps-{region}", "lps", "lps", "--region", region)
            for group in (0, 1):
                flags = ("--region", region, "--group", str(group), "--paced")
                self.start(f"worker-{region}-{group}", "worker", "worker", *flags)
        self.start("evaluator", "evaluator", "worker", "--evaluate")

    def wait_for_all(self, timeout_s: float) -> None:
        """Wait until all processes have ended, at most so long."""
        deadline = time.time() + timeout_s
        while time.time() < deadline and any(
            each.process.poll() is None for each in self.nodes.values()
        ):
            time.sleep(0.1)

    def kill(self, kinds: list[str], age_s: float) -> bool:
        """Kill a random process of these kinds that is at least so old, and start it again. Returns False if there
        is none."""
        old = time.time() - age_s
        found = [each for each in self.nodes.values() if each.kind in kinds and each.started < old]
        if not found:
            return False
        node = self.chance.choice(found)
        assert node.process.poll() is None, f"{node.name} ended by itself: see {self.out}"
        node.process.send_signal(signal.SIGKILL)
        node.process.wait()
        self.kills.append((time.time(), node.name, node.kind))
        node.process, node.started = self._spawn(node.name, node.command), time.time()
        return True

    def count(self, kind: str) -> int:
        """How many processes of a kind were killed so far."""
        return sum(each == kind for _, _, each in self.kills)

    def finished(self) -> bool:
        """Whether the run has reached its budget."""
        return self.nodes["gps"].process.poll() is not None

    def events(self, node: str, *classes: type[E]) -> list[tuple[float, E]]:
        """The events of these classes in a node's log, each with its time: seconds since 1970."""
        # Lines may be damaged: a process was killed while it wrote.
        return [
            (line.time_s, line.event)
            for line in read_log(self.out / node / LOG_NAME)
            if isinstance(line, LogLine) and isinstance(line.event, classes)
        ]

    def end(self) -> None:
        """Kill all processes that still run."""
        for node in self.nodes.values():
            if node.process.poll() is None:
                node.process.kill()
            node.process.wait()


def audit_figures(audit: Audit) -> dict[str, Any]:
    """The sums of an audit, for the JSON line."""
    return {
        "updates": audit.updates,
        "exchanges": audit.exchanges,
        "applied": audit.applied,
        "dropped": audit.dropped,
        "waiting": audit.waiting,
        "doubled": audit.doubled,
        "exceptions": audit.exceptions[:10],
    }


def is_balanced(ledger: dict[str, Any]) -> bool:
    """Whether every issued sample is accounted for once in a result's ledger."""
    parts = ("applied", "dropped_in_flight", "unexchanged", "returned")
    return ledger["issued"] == sum(ledger[part] for part in parts) and not ledger["duplicated"]
