"""kill -9, again and again, over every kind of process of a run: is anything lost or done twice?

    python bench/chaos.py [--kills 200] [--steps 60000] [--seed 1]

Starts a real run of two regions with two paced workers each and an evaluator. Kills a random process at a random
instant and starts it again at once: a GPS, an LPS or a worker, each kind at least a quarter of the times. When all
kills are done the run goes on to its budget. Then the servers' histories are audited. Exits with 1 unless the budget
was reached and nothing was lost or applied twice.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from parts.machine import describe, summary
from parts.real_run import RealRun, audit_figures, is_balanced

from pelago.cli.audit import examine, histories
from pelago.core.notes.common import ServerRestarted
from pelago.core.notes.lps import Rejoining
from pelago.core.notes.worker import RoundTrained
from pelago.net.sockets.tcp_ports import free_pairs
from pelago.runlog.events import NodeRestored, NodeStarted

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
KINDS = ("gps", "lps", "worker")
SETTLE_S = 120.0
"""How long the other processes may take to end after the GPS."""
STEADY_S = 4.0
"""How long a worker must have trained before a kill, to count."""


class _Progress:
    """Prints a line for every tenth of the kills."""

    def __init__(self, total: int) -> None:
        self._total, self._begun = total, time.time()

    def __call__(self, done: int) -> None:
        if done % max(1, self._total // 10) == 0:
            print(f"{done} of {self._total} kills, {time.time() - self._begun:.0f} s", flush=True)


def kill_many(run: RealRun, kills: int, mean_s: float, age_s: float, progress: _Progress) -> None:
    """Kill so many processes, a quarter of them at least of each kind; ``mean_s``: mean time between kills;
    ``age_s``: mean age of a process that is killed. Exits if the budget is reached before."""
    least = kills // 4
    while len(run.kills) < kills:
        time.sleep(run.chance.expovariate(1 / mean_s))
        if run.finished():
            raise SystemExit(f"the budget was reached after {len(run.kills)} kills: raise --steps")
        left = kills - len(run.kills)
        needed = [each for each in KINDS if run.count(each) < least]
        missing = sum(least - run.count(each) for each in needed)
        kinds = needed if needed and left <= missing else list(KINDS)
        if run.kill(kinds, run.chance.uniform(0.0, 2 * age_s)):
            progress(len(run.kills))


def restarts(run: RealRun, names: list[str]) -> dict[str, Any]:
    """The time that restarts of servers took, by part, in seconds."""
    parts: dict[str, list[float]] = {"imports": [], "reading": [], "rest": []}
    for name in names:
        begun: tuple[float, NodeStarted] | None = None
        reading = 0.0
        for at, event in run.events(name, NodeStarted, NodeRestored, ServerRestarted):
            match event:
                case NodeStarted():
                    begun = at, event
                case NodeRestored():
                    reading = event.snapshot_s + event.journal_s
                case _ if begun is not None:
                    parts["imports"].append(begun[1].process_s)
                    parts["reading"].append(reading)
                    parts["rest"].append(max(0.0, at - begun[0] - reading))
                    begun = None
    return {key: summary(values, 3) for key, values in parts.items() if values}


def other_regions(run: RealRun, servers: list[str]) -> dict[str, Any]:
    """Rounds of workers during the outage of a server that is not their own: from its kill until it served again.

    Every worker counts that had trained for `STEADY_S` before the kill and that was not killed during the outage, nor
    its LPS: how many of these finished rounds, and their rounds a second divided by those before the kill.
    """
    deaths: dict[str, list[float]] = {name: [] for name in run.nodes}
    for at, name, _ in run.kills:
        deaths[name].append(at)
    rounds = {
        each.name: [at for at, _ in run.events(each.name, RoundTrained)]
        for each in run.nodes.values()
        if each.kind == "worker"
    }
    outages, trained, ratios = 0, 0, []
    for name in servers:
        backs = [at for at, _ in run.events(name, ServerRestarted)]
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
        run = RealRun(folder, text, options.seed)
        begun = time.time()
        try:
            run.start_all()
            progress = _Progress(options.kills)
            kill_many(run, options.kills, options.mean_s, options.age_s, progress)
            killed = time.time()
            print("all kills are done; the run goes on to its budget", flush=True)
            code = run.nodes["gps"].process.wait(timeout=3600)
            run.wait_for_all(SETTLE_S)
        finally:
            run.end()
        found = examine(histories(run.out))
        result = json.loads((run.out / "result.json").read_text(encoding="utf-8"))
        figures = {
            "benchmark": "chaos",
            "machine": describe(),
            "durability": options.durability,
            "in_flight": options.in_flight,
            "kills": {kind: run.count(kind) for kind in KINDS},
            "tormented_s": round(killed - begun, 1),
            "elapsed_s": round(time.time() - begun, 1),
            "gps_exit": code,
            "end": result.get("end_reason", ""),
            "counted_steps": result["counted_steps"],
            "ledger": result["ledger"],
            "audit": audit_figures(found),
            "restart_s": restarts(run, ["gps", "lps-eu", "lps-us"]),
            "others": other_regions(run, ["gps", "lps-eu", "lps-us"]),
            "rejoined": sum(len(run.events(each, Rejoining)) for each in ("lps-eu", "lps-us")),
        }
        print(json.dumps(figures))
        good = is_balanced(result["ledger"]) and not found.exceptions and code == 0
        return 0 if good and result["counted_steps"] >= options.steps else 1


if __name__ == "__main__":
    sys.exit(main())
