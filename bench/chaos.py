"""kill -9, again and again, over every kind of process of a run: is anything lost or done twice?

    python bench/chaos.py [--kills 200] [--steps 60000] [--seed 1]

Starts a real run of two regions with two workers each, paced, and an evaluator. Kills a process at a
random instant, a GPS, an LPS or a worker in turn by chance but each kind at least a quarter of the
times, and starts it again at once. When all kills are done the run goes on to its budget. Then the
servers' histories are audited. Exits with 1 unless the budget was reached and nothing was lost or doubled.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from parts.machine import describe, summary

from pelago.cli.audit import examine, histories
from pelago.net.sockets.tcp_ports import free_pairs

RUN = """
[run]
name = "chaos"
budget_local_steps = {steps}
[model]
preset = "llama3-tiny"
overrides = {{ hidden_size = 32, intermediate_size = 64, num_hidden_layers = 1 }}
[data]
sequence_length = 32
validation_samples = 16
[worker]
local_steps = 4
batch_size = 4
global_batch_size = 16
device = "cpu"
compile = false
[lps]
lr = 0.5
momentum = 0.5
momentum_delay = 2
updates_per_exchange = 8
merge_weight = 0.5
in_flight = "{in_flight}"
durability = "{durability}"
[gps]
lr = 0.5
momentum = 0.5
momentum_delay = 2
bind = "127.0.0.1:{ports[0]}"
durability = "{durability}"
validation_interval_steps = 10000
[network]
heartbeat_ms = 250
lost_after_ms = 4000
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
ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
KINDS = ("gps", "lps", "worker")
SETTLE_S = 120.0
STEADY_S = 4.0


@dataclass
class Daemon:
    """A process of the run, whichever one it is by now."""

    name: str
    kind: str
    command: list[str]
    process: subprocess.Popen[bytes]
    started: float
    kills: list[float] = field(default_factory=list)


class Chaos:
    """The run, and what is done to it."""

    def __init__(self, folder: Path, text: str, seed: int) -> None:
        self.out = folder / "out"
        self.path = folder / "run.toml"
        self.path.write_text(text, encoding="utf-8")
        self.chance = random.Random(seed)
        self.nodes: dict[str, Daemon] = {}
        self.kills: list[tuple[float, str, str]] = []
        """(time, name, kind)"""

    def start(self, name: str, kind: str, *command: str) -> None:
        """Start a node."""
        line = [sys.executable, "-m", command[0], "--run", str(self.path), "--out", str(self.out)]
        line += command[1:]
        self.nodes[name] = Daemon(name, kind, line, self._spawn(name, line), time.time())

    def _spawn(self, name: str, line: list[str]) -> subprocess.Popen[bytes]:
        self.out.mkdir(exist_ok=True)
        with (self.out / f"{name}.log").open("ab") as log:
            return subprocess.Popen(
                line, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=os.environ | ONE_THREAD
            )

    def kill(self, kinds: list[str], age_s: float) -> bool:
        """Kill one that is at least so old; whether there was one."""
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
        """Kills of a kind so far."""
        return sum(each == kind for _, _, each in self.kills)

    def finished(self) -> bool:
        """Whether the run has reached its budget."""
        return self.nodes["gps"].process.poll() is not None

    def events(self, node: str, *kinds: str) -> list[dict[str, Any]]:
        """Of a node's log."""
        path = self.out / node / "events.jsonl"
        found = []
        for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
            try:
                event = json.loads(line)
            except ValueError:
                continue  # The process was killed while it wrote this line.
            if event["kind"] in kinds:
                found.append(event | {"at": datetime.fromisoformat(event["time"]).timestamp()})
        return found

    def end(self) -> None:
        """Kill what is left."""
        for node in self.nodes.values():
            if node.process.poll() is None:
                node.process.kill()
            node.process.wait()


def torment(chaos: Chaos, kills: int, mean_s: float, age_s: float, bar: Any) -> None:
    """Kill until it is enough of every kind."""
    least = kills // 4
    while len(chaos.kills) < kills:
        time.sleep(chaos.chance.expovariate(1 / mean_s))
        if chaos.finished():
            raise SystemExit(
                f"the budget was reached after {len(chaos.kills)} kills: raise --steps"
            )
        left = kills - len(chaos.kills)
        needed = [each for each in KINDS if chaos.count(each) < least]
        missing = sum(least - chaos.count(each) for each in needed)
        kinds = needed if needed and left <= missing else list(KINDS)
        if chaos.kill(kinds, chaos.chance.uniform(0.0, 2 * age_s)):
            bar(len(chaos.kills))


def restarts(chaos: Chaos, names: list[str]) -> dict[str, Any]:
    """What a restart of servers took, by part, in seconds."""
    parts: dict[str, list[float]] = {"imports": [], "reading": [], "rest": []}
    for name in names:
        begun: dict[str, Any] | None = None
        reading = 0.0
        for event in chaos.events(name, "started", "restored", "restarted"):
            if event["kind"] == "started":
                begun = event
            elif event["kind"] == "restored":
                reading = event["snapshot_s"] + event["journal_s"]
            elif begun is not None:
                parts["imports"].append(begun["process_s"])
                parts["reading"].append(reading)
                parts["rest"].append(max(0.0, event["at"] - begun["at"] - reading))
                begun = None
    return {key: summary(values, 3) for key, values in parts.items() if values}


def throughout(chaos: Chaos, servers: list[str]) -> dict[str, Any]:
    """What workers did while a server that is not their own was away: from its kill until it served again.

    Counted is every worker that had trained for `STEADY_S` before the kill and was not killed itself, nor
    its LPS, until then: how many finished rounds, and how many a second against those seconds before.
    """
    deaths: dict[str, list[float]] = {name: [] for name in chaos.nodes}
    for at, name, _ in chaos.kills:
        deaths[name].append(at)
    rounds = {
        each.name: [event["at"] for event in chaos.events(each.name, "round")]
        for each in chaos.nodes.values()
        if each.kind == "worker"
    }
    outages, trained, ratios = 0, 0, []
    for name in servers:
        backs = [event["at"] for event in chaos.events(name, "restarted")]
        for at in deaths[name]:
            back = min((each for each in backs if each > at), default=at)
            for worker, done in rounds.items():
                own = f"lps-{worker.split('-')[1]}"
                since, until = at - STEADY_S, back + 0.5
                upset = [t for each in (worker, own) for t in deaths[each] if since - 1 < t < until]
                before = sum(since <= each <= at for each in done)
                if name == own or upset or back - at < 1.0 or before < 2:
                    continue
                outages += 1
                during = sum(at < each <= back for each in done)
                trained += during > 0
                ratios.append(during / (back - at) / (before / STEADY_S))
    return {
        "outages_seen_by_workers": outages,
        "trained": trained,
        "rounds_per_second_against_before": summary(ratios, 2) if ratios else {},
    }


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--steps", type=int, default=90_000, help="the budget, in local steps")
    parser.add_argument("--step-ms", type=float, default=20.0)
    parser.add_argument("--mean-s", type=float, default=2.5, help="mean time between kills")
    parser.add_argument(
        "--age-s", type=float, default=12.0, help="mean age of a process that is killed"
    )
    parser.add_argument("--in-flight", default="drop")
    parser.add_argument("--durability", default="process")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--keep", type=Path, help="folder of the run, kept (default: a temporary one)"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        text = RUN.format(
            steps=options.steps,
            ports=free_pairs(3),
            step_ms=options.step_ms,
            in_flight=options.in_flight,
            durability=options.durability,
        )
        chaos = Chaos(folder, text, options.seed)
        begun = time.time()
        try:
            chaos.start("gps", "gps", "gps")
            for region in ("eu", "us"):
                chaos.start(f"lps-{region}", "lps", "lps", "--region", region)
                for group in (0, 1):
                    flags = ("--region", region, "--group", str(group), "--paced")
                    chaos.start(f"worker-{region}-{group}", "worker", "worker", *flags)
            chaos.start("evaluator", "evaluator", "worker", "--evaluate")
            bar = _Bar(options.kills)
            torment(chaos, options.kills, options.mean_s, options.age_s, bar)
            tormented = time.time()
            print("all kills are done; the run goes on to its budget", flush=True)
            code = chaos.nodes["gps"].process.wait(timeout=3600)
            deadline = time.time() + SETTLE_S
            while time.time() < deadline and any(
                each.process.poll() is None for each in chaos.nodes.values()
            ):
                time.sleep(0.1)
        finally:
            chaos.end()
        found = examine(histories(chaos.out))
        result = json.loads((chaos.out / "result.json").read_text(encoding="utf-8"))
        figures = {
            "benchmark": "chaos",
            "machine": describe(),
            "durability": options.durability,
            "in_flight": options.in_flight,
            "kills": {kind: chaos.count(kind) for kind in KINDS},
            "tormented_s": round(tormented - begun, 1),
            "elapsed_s": round(time.time() - begun, 1),
            "gps_exit": code,
            "end": result.get("end_reason", ""),
            "counted_steps": result["counted_steps"],
            "ledger": result["ledger"],
            "audit": {
                "updates": found.updates,
                "exchanges": found.exchanges,
                "applied": found.applied,
                "dropped": found.dropped,
                "waiting": found.waiting,
                "doubled": found.doubled,
                "exceptions": found.exceptions[:10],
            },
            "restart_s": restarts(chaos, ["gps", "lps-eu", "lps-us"]),
            "others": throughout(chaos, ["gps", "lps-eu", "lps-us"]),
            "rejoined": sum(len(chaos.events(each, "rejoining")) for each in ("lps-eu", "lps-us")),
        }
        print(json.dumps(figures))
        ledger = result["ledger"]
        balanced = ledger["issued"] == sum(
            ledger[key] for key in ("applied", "dropped_in_flight", "unexchanged", "returned")
        )
        good = balanced and not ledger["duplicated"] and not found.exceptions and code == 0
        return 0 if good and result["counted_steps"] >= options.steps else 1


class _Bar:
    """Progress, a line for every tenth."""

    def __init__(self, total: int) -> None:
        self._total, self._begun = total, time.time()

    def __call__(self, done: int) -> None:
        if done % max(1, self._total // 10) == 0:
            print(f"{done} of {self._total} kills, {time.time() - self._begun:.0f} s", flush=True)


if __name__ == "__main__":
    sys.exit(main())
