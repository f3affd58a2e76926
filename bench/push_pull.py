"""Push + pull of a 256 MB model through a real LPS, beside bare ZeroMQ peers. See bench/README.md."""

import argparse
import contextlib
import json
import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from parts.machine import describe, summary, usage

from pelago.config.run_file import RunFile
from pelago.config.run_toml import dump, parse
from pelago.net.sockets.tcp_ports import free_pairs
from pelago.tensor.manifest import Manifest
from worker.evaluator.held_out_loss import HeldOutLoss

PARTS = Path(__file__).parent / "parts"
KINDS = ("blocked", "whole", "nothing")
"""Kinds of bare peers; see parts/bare.py."""
WARM_UP_ROUNDS = 8
"""Warm-up rounds: the allocator reuses the memory of the bare peers only after a few rounds."""
ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
"""For torch in every process, the daemons' too: two sides of a round share this machine's cores."""
PAGE_MB = 4096 / 1e6
PATIENCE_S = 120
RUN = """
[run]
name = "bench"
budget_local_steps = 1000000000
[model]
preset = "llama3-tiny"
overrides = {{ {overrides} }}
[worker]
device = "cpu"
[lps]
updates_per_exchange = 1000000000
durability = "{durability}"
[gps]
durability = "none"
bind = "127.0.0.1:{gps}"
[[region]]
name = "here"
worker_speeds = [1.0]
bind = "127.0.0.1:{lps}"
"""
OVERRIDES = {
    "hidden_size": 1024,
    "intermediate_size": 2784,
    "num_hidden_layers": 5,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
}
"""64,007,168 parameters, 256.03 MB in fp32."""


@dataclass
class BenchProcess:
    """One side of the comparison: a client, which times rounds, and its server."""

    name: str
    client: subprocess.Popen[str]
    server: subprocess.Popen[str]
    rounds: list[dict[str, float]] = field(default_factory=list)

    def listen(self) -> dict[str, Any]:
        """The client's next line. Raises `RuntimeError` if a process has ended, or none comes."""
        assert self.client.stdout is not None
        for _ in range(PATIENCE_S):
            # A client says one line at a time, so none waits in Python's buffer.
            if select.select([self.client.stdout], [], [], 1.0)[0]:
                break
            if self.server.poll() is not None:
                raise RuntimeError(f"the server of {self.name!r} has ended")
        else:
            raise RuntimeError(f"the client of {self.name!r} has said nothing in {PATIENCE_S} s")
        line = self.client.stdout.readline()
        if not line:
            raise RuntimeError(f"the client of {self.name!r} has ended")
        found: dict[str, Any] = json.loads(line)
        return found

    def round(self) -> None:
        """Run one round, and record its time, processor seconds and fresh memory."""
        assert self.client.stdin is not None
        pids = {"client": self.client.pid, "server": self.server.pid}
        before = {key: usage(pid) for key, pid in pids.items()}
        self.client.stdin.write("go\n")
        self.client.stdin.flush()
        found = self.listen()
        # Memory is given back and the model copied after a round; its cost belongs to the round too.
        time.sleep(0.3)
        used: dict[str, float] = {}
        for key, pid in pids.items():
            seconds, pages = usage(pid)
            used[f"{key}_cpu"] = seconds - before[key][0]
            used[f"{key}_fresh_mb"] = (pages - before[key][1]) * PAGE_MB
        self.rounds.append({**found, **used})


@contextlib.contextmanager
def process(arguments: list[str], log: Path) -> Iterator[subprocess.Popen[str]]:
    """A process with pipes for its input and output; it is killed when the context ends."""
    with log.open("w") as errors:
        started = subprocess.Popen(
            [sys.executable, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env={**os.environ, **ONE_THREAD},
        )
        try:
            yield started
        finally:
            started.kill()
            started.wait()


def describe_model(run: RunFile, path: Path) -> Manifest:
    """Build the model once and write its shape to a file for every process. Returns the manifest."""
    source = HeldOutLoss(run)
    specs = [[spec.name, spec.shape] for spec in source.manifest()]
    path.write_text(json.dumps({"specs": specs, "corpus": source.corpus.digest}), encoding="utf-8")
    return Manifest(source.manifest())


def run_file(ports: list[int], durability: str = "none") -> RunFile:
    """The run file of one region; ``ports``: of the GPS and the LPS."""
    overrides = ", ".join(f"{key} = {value}" for key, value in OVERRIDES.items())
    return parse(RUN.format(overrides=overrides, gps=ports[0], lps=ports[1], durability=durability))


def start_pelago(
    name: str, folder: Path, stack: ExitStack, run: RunFile, model: Path
) -> BenchProcess:
    """Start the daemons and the real worker."""
    run_path = folder / "run.toml"
    run_path.write_text(dump(run), encoding="utf-8")
    common = ["--run", str(run_path), "--out", str(folder)]
    stack.enter_context(process(["-m", "gps", *common], folder / "gps.err"))
    lps = stack.enter_context(
        process(["-m", "lps", *common, "--region", "here"], folder / "lps.err")
    )
    arguments = [str(PARTS / "real.py"), str(run_path), str(model), str(folder)]
    return BenchProcess(name, stack.enter_context(process(arguments, folder / "worker.err")), lps)


def start_all(
    folder: Path, stack: ExitStack, run: RunFile, model: Path, ports: list[int], kinds: list[str]
) -> list[BenchProcess]:
    """Start Pelago and the bare pairs; wait until all are ready."""
    sides = [start_pelago("pelago", folder, stack, run, model)]
    for kind, port in zip(kinds, ports, strict=True):

        def peer(side: str, kind: str = kind, port: int = port) -> subprocess.Popen[str]:
            script = [str(PARTS / "bare.py"), side, kind, str(port), str(model)]
            return stack.enter_context(process(script, folder / f"{side}-{kind}.err"))

        sides.append(BenchProcess(kind, peer("client"), peer("server")))
    for side in sides:
        side.listen()
    return sides


def report(
    benchmark: str,
    sides: list[BenchProcess],
    manifest: Manifest,
    machine: dict[str, Any],
    counting: slice = slice(WARM_UP_ROUNDS, None),
) -> dict[str, Any]:
    """All figures. A ratio is the median over rounds of (another side's seconds / the first side's)."""
    ours, *others = sides
    kept = {side.name: side.rounds[counting] for side in sides}
    figures: dict[str, Any] = {
        "benchmark": benchmark,
        "parameters": manifest.numel,
        "model_mb": round(manifest.bytes / 1e6, 2),
        "chunks": len(manifest.chunks),
        "chunk_bytes": manifest.chunk_bytes,
        "rounds": len(kept[ours.name]),
        "torch_threads": 1,
        "machine": machine,
    }
    for name, rounds in kept.items():
        keys = rounds[0].keys()
        figures[name] = {key: summary([each[key] for each in rounds]) for key in keys}
    for other in others:
        pairs = zip(kept[other.name], kept[ours.name], strict=True)
        ratios = [theirs["seconds"] / mine["seconds"] for theirs, mine in pairs]
        figures[f"ratio_to_{other.name}"] = summary(ratios, 3)
    return figures


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15, help="rounds that count (default 15)")
    parser.add_argument("--kinds", default=",".join(KINDS), help="bare peers to compare with")
    parser.add_argument("--keep", type=Path, help="folder of logs, kept (default: a temporary one)")
    options = parser.parse_args()
    kinds = options.kinds.split(",")
    machine = describe()
    gps, lps, *ports = free_pairs(2 + len(kinds))
    run = run_file([gps, lps])
    with ExitStack() as stack:
        folder = options.keep or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.mkdir(parents=True, exist_ok=True)
        manifest = describe_model(run, folder / "model.json")
        sides = start_all(folder, stack, run, folder / "model.json", ports, kinds)
        for _ in range(WARM_UP_ROUNDS + options.rounds):
            for side in sides:
                side.round()
            times = (f"{side.name} {side.rounds[-1]['seconds']:.3f} s" for side in sides)
            print("  ".join(times), flush=True)
    print(json.dumps(report("push_pull", sides, manifest, machine)))


if __name__ == "__main__":
    main()
