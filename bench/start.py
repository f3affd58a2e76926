"""From the start of a run's processes to its first step, against a plain script. See bench/README.md."""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final

from parts.machine import describe, summary
from parts.real_run import ONE_THREAD, RealRun

from pelago.core.notes.worker import RoundTrained
from pelago.net.sockets.tcp_ports import free_pairs

PATIENCE_S: Final = 900
RUN: Final = """
[run]
name = "start"
budget_local_steps = 1000000
[model]
preset = "{preset}"
[data]
sequence_length = {length}
[worker]
device = "{device}"
local_steps = 1
batch_size = {batch}
[gps]
bind = "127.0.0.1:{gps}"
[[region]]
name = "here"
worker_speeds = [1.0]
bind = "127.0.0.1:{lps}"
"""
PLAIN: Final = """
import torch, transformers
from pelago.config.training import ModelSection
from worker.models.architecture import architecture
torch.set_num_threads(1)
settings = architecture(ModelSection(preset="{preset}"), 256)
torch.manual_seed(0)
cuda = "{device}" == "cuda"
model = transformers.AutoModelForCausalLM.from_config(settings, dtype=torch.float32).to("{device}")
optimiser = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
forward = torch.compile(model) if cuda else model
tokens = torch.randint(0, 256, ({batch}, {length} + 1), device="{device}")
with torch.autocast("{device}", dtype=torch.bfloat16, enabled=cuda):
    logits = forward(input_ids=tokens[:, :-1], use_cache=False).logits
loss = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), tokens[:, 1:].flatten())
loss.backward()
torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
optimiser.step()
print(float(loss.detach()))
"""


def ours(folder: Path, options: argparse.Namespace) -> float:
    """Seconds until the first round of one step is trained."""
    folder.mkdir()
    gps, lps = free_pairs(2)
    run = RealRun(folder, RUN.format(**vars(options), gps=gps, lps=lps), 0)
    began_s = time.time()
    try:
        run.start("gps", "gps", "gps")
        run.start("lps-here", "lps", "lps", "--region", "here")
        run.start("worker-here-0", "worker", "worker", "--region", "here", "--group", "0")
        while time.time() - began_s < PATIENCE_S:
            for name, node in run.nodes.items():
                assert node.process.poll() is None, f"{name} has ended: see {folder}"
            log = run.out / "worker-here-0"
            rounds = run.events("worker-here-0", RoundTrained) if log.exists() else []
            if rounds:
                return rounds[0][0] - began_s
            time.sleep(0.1)
        raise RuntimeError(f"no step in {PATIENCE_S} s: see {folder}")
    finally:
        run.end()


def plain(folder: Path, options: argparse.Namespace) -> float:
    """Seconds of a script that imports, builds, compiles and makes one step of the same model."""
    began_s = time.time()
    # Compiled code of an earlier round is not used: ours has a new folder each time, too.
    cache = {"TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor")}
    subprocess.run(
        [sys.executable, "-c", PLAIN.format(**vars(options))],
        env=os.environ | ONE_THREAD | cache,
        check=True,
        stdout=subprocess.DEVNULL,
        timeout=PATIENCE_S,
    )
    return time.time() - began_s


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", default="llama3-8m")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    times: dict[str, list[float]] = {"pelago": [], "plain": []}
    with tempfile.TemporaryDirectory() as base:
        for number in range(options.rounds):
            times["plain"].append(plain(Path(base) / f"plain-{number}", options))
            times["pelago"].append(ours(Path(base) / f"pelago-{number}", options))
            print({name: round(each[-1], 2) for name, each in times.items()}, flush=True)
    pairs = zip(times["pelago"], times["plain"], strict=True)
    figures: dict[str, Any] = {
        "benchmark": "start",
        "preset": options.preset,
        "device": options.device,
        **{name: summary(each, 2) for name, each in times.items()},
        "times_a_plain_script": round(statistics.median(a / b for a, b in pairs), 3),
        "machine": describe(),
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
