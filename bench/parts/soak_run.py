"""The run of `soak.py`: restarts of its nodes, and samples of their processes and folders."""

import signal
import subprocess
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from parts.flatness import MB, Sample
from parts.machine import usage
from parts.real_run import RealRun
from pelago.runlog.history import HISTORY
from pelago.runlog.log import LOG_NAME

SERVERS: Final = ("gps", "lps")
SIGNALS: Final = {"gps": signal.SIGHUP, "lps": signal.SIGHUP, "worker": signal.SIGTERM}
SPARED: Final = ((), ("gps", "worker-eu-0"), ("lps-eu", "worker-us-1"), ())
"""Nodes that are not restarted, by quarter of the run."""
SIGNAL_S: Final = 30.0
"""How long a node may take to end after its signal, in seconds."""
FAILURES_MAX: Final = 20
"""After so many failures the run is given up."""


@dataclass(frozen=True, slots=True)
class SoakRestart:
    """How a node was ended before it was started again. ``code``: its exit code."""

    at_s: float
    node: str
    kind: str
    manner: str
    code: int
    took_s: float
    """From the signal to the end of the process."""


@dataclass
class SoakRun:
    """The run, its restarts and its samples. ``minutes``: its budget."""

    run: RealRun
    minutes: float
    begun: float = field(default_factory=time.time)
    samples: list[Sample] = field(default_factory=list)
    restarts: list[SoakRestart] = field(default_factory=list)
    incarnations: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    """Processes that ended without being asked to, or not as they should."""

    @property
    def elapsed_s(self) -> float:
        """Seconds since the start."""
        return time.time() - self.begun

    def next_node(self) -> str:
        """The node to restart next: of those not spared, the one whose last start is longest ago."""
        quarter = min(3, int(4 * self.elapsed_s / (60 * self.minutes)))
        nodes = [each for each in self.run.nodes.values() if each.kind in SIGNALS]
        return min(
            (each for each in nodes if each.name not in SPARED[quarter]), key=lambda e: e.started
        ).name

    def restart(self, name: str) -> SoakRestart:
        """End a node, by turns with SIGKILL and with its own signal, and start it again."""
        node = self.run.nodes[name]
        done = sum(each.node == name for each in self.restarts)
        number = SIGNALS[node.kind] if done % 2 else signal.SIGKILL
        begun, at_s = time.monotonic(), self.elapsed_s
        node.process.send_signal(number)
        try:
            code = node.process.wait(SIGNAL_S)
        except subprocess.TimeoutExpired:
            self.failures.append(f"{name} did not end in {SIGNAL_S:g} s after {number.name}")
            node.process.kill()
            code = node.process.wait()
        took_s = round(time.monotonic() - begun, 2)
        if code != (0 if number != signal.SIGKILL else -signal.SIGKILL):
            self.failures.append(f"{name} ended with exit code {code} after {number.name}")
        self._again(name)
        found = SoakRestart(round(at_s, 1), name, node.kind, number.name, code, took_s)
        self.restarts.append(found)
        return found

    def revive(self) -> None:
        """Start nodes again that ended by themselves, and note the failures. Exits if there are too many."""
        for node in list(self.run.nodes.values()):
            code = node.process.poll()
            if code is None or (node.name == "gps" and code == 0):
                continue
            said = f"{node.name} ended by itself with exit code {code} after {self.elapsed_s:.0f} s"
            self.failures.append(said)
            print(said, flush=True)
            if len(self.failures) > FAILURES_MAX:
                raise SystemExit(f"too many processes ended by themselves: see {self.run.out}")
            self._again(node.name)

    def _again(self, name: str) -> None:
        node = self.run.nodes[name]
        self.incarnations[name] += 1
        # After `python -m` come the module, the run file and the folder, which `start` puts there itself.
        self.run.start(name, node.kind, node.command[2], *node.command[7:])

    def sample(self) -> None:
        """Take a sample of every node that runs."""
        for node in self.run.nodes.values():
            if node.process.poll() is not None:
                continue
            try:
                found = self._sample(node.name, node.kind, node.process.pid, node.started)
            except (OSError, KeyError, IndexError):
                continue  # It ended meanwhile.
            self.samples.append(found)

    def _sample(self, name: str, kind: str, process_id: int, started: float) -> Sample:
        proc, now, state = Path(f"/proc/{process_id}"), time.time(), self.run.out / name / "state"
        status = dict(line.split(":", 1) for line in (proc / "status").read_text().splitlines())
        sizes = _sizes(state)
        logs = (self.run.out / f"{name}.log", self.run.out / name / LOG_NAME)
        grouped = {
            group: sum(size for each, size in sizes.items() if each.startswith(group)) / MB
            for group in ("journal", "snapshot", "spare")
        }
        return Sample(
            at_s=round(now - self.begun, 1),
            node=name,
            kind=kind,
            incarnation=self.incarnations[name],
            age_s=round(now - started, 1),
            rss_mb=int(status["VmRSS"].split()[0]) * 1024 / MB,
            anonymous_mb=int(status["RssAnon"].split()[0]) * 1024 / MB,
            descriptors=sum(1 for _ in (proc / "fd").iterdir()),
            threads=int(status["Threads"]),
            cpu_s=usage(process_id)[0],
            unlinked_mb=_unlinked(proc / "maps", state) / MB,
            state_mb=sum(grouped.values()),
            journal_mb=grouped["journal"],
            snapshot_mb=grouped["snapshot"],
            spare_mb=grouped["spare"],
            files=len(sizes),
            history_mb=sizes.get(HISTORY, 0) / MB,
            logs_mb=sum(each.stat().st_size for each in logs if each.exists()) / MB,
        )

    def latest(self) -> list[Sample]:
        """The last sample of every node."""
        return list({each.node: each for each in self.samples}.values())


def _sizes(folder: Path) -> dict[str, int]:
    """Bytes that each file takes on disk."""
    found = {}
    for path in folder.iterdir() if folder.exists() else ():
        try:
            found[path.name] = path.stat().st_blocks * 512
        except OSError:
            continue  # Renamed or removed meanwhile.
    return found


def _unlinked(maps: Path, folder: Path) -> int:
    """Bytes of removed files of a folder that a process has mapped."""
    found: dict[str, int] = {}
    for line in maps.read_text().splitlines():
        if line.endswith("(deleted)") and str(folder) in line:
            span, _, _, _, inode, *_ = line.split()
            start, _, stop = span.partition("-")
            found[inode] = found.get(inode, 0) + int(stop, 16) - int(start, 16)
    return sum(found.values())
