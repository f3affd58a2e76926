"""Golden values: today's numbers, so that a refactor can prove that it changed none.

``python tests/golden/regenerate.py NAME...`` (default: all) computes ``NAME.json`` beside this file
once for each instruction set that torch may choose on a machine, since last bits may differ between
them. A test compares with the entry of its own machine; see `test_optim_golden.py`.
"""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from pelago.core.tensor_effects import Operation
from pelago.tensor.manifest import Manifest
from pelago.tensor.optim import DelayedNesterov
from pelago.tensor.plane import Plane
from pelago.wire.messages import TensorSpec

FOLDER = Path(__file__).parent
CAPABILITIES = ("default", "avx2", "avx512")


def optim() -> dict[str, Any]:
    """An LPS and a GPS that exchange: hashes and norms for three seeds, dropping and carrying."""
    return {
        f"{rule}-{seed}": _exchanges(seed, rule) for rule in ("drop", "carry") for seed in range(3)
    }


def replay() -> dict[str, Any]:
    """The same exchanges, the movement in flight replayed on the merge."""
    return {f"replay-{seed}": _exchanges(seed, "replay") for seed in range(3)}


def global_model() -> dict[str, Any]:
    """The GPS's parameters after the arrivals of `arrivals`, in their order and in another."""
    return {"in_order": _after(arrivals()), "reversed": _after(arrivals()[::-1])}


def arrivals() -> list[torch.Tensor]:
    """The updates that regions send to the GPS of `global_plane`, one after the other."""
    generator = torch.Generator().manual_seed(17)
    return [torch.rand(ARRIVAL_MANIFEST.numel, generator=generator) - 0.5 for _ in range(7)]


def global_plane() -> Plane:
    """A GPS's plane with HALoS's settings and parameters drawn from a seed."""
    plane = Plane(ARRIVAL_MANIFEST, DelayedNesterov.from_eta(0.15, 0.5, 2), exchanges=False)
    generator = torch.Generator().manual_seed(5)
    plane.adopt(-(10**6), torch.rand(ARRIVAL_MANIFEST.numel, generator=generator))
    plane.apply("load", -(10**6))
    plane.release(-(10**6))
    return plane


ARRIVAL_MANIFEST = Manifest((TensorSpec("matrix", (211, 173)), TensorSpec("vector", (173,))), 16384)


def _after(updates: list[torch.Tensor]) -> str:
    plane = global_plane()
    for number, update in enumerate(updates, start=1):
        plane.adopt(number, update)
        plane.apply("step", number)
        plane.release(number)
    return plane.digest()


GOLDEN: dict[str, Callable[[], dict[str, Any]]] = {
    "optim": optim,
    "replay": replay,
    "global_model": global_model,
}
"""Name of the file -> function that computes its entry for this machine, as JSON has it."""


MERGES: dict[str, Operation] = {"drop": "merge", "carry": "merge_carry", "replay": "merge_replay"}


def _exchanges(seed: int, in_flight: str) -> dict[str, Any]:
    shapes = {"embedding": (61, 37), "norm": (37,), "scale": (), "head": (37, 129)}
    manifest = Manifest(tuple(TensorSpec(*item) for item in shapes.items()), 4096)
    lps = Plane(manifest, DelayedNesterov.from_eta(0.2, 0.9, 4), remember=in_flight != "drop")
    gps = Plane(manifest, DelayedNesterov.from_eta(0.15, 0.5, 2), exchanges=False)
    generator = torch.Generator().manual_seed(seed)
    start = torch.rand(manifest.numel, generator=generator)
    for plane in (lps, gps):
        plane.adopt(1, start)
        plane.apply("load", 1)
    found: dict[str, Any] = {"norms": [], "differences": [], "lps": [], "gps": []}
    for exchange in range(10, 16):
        for update in range(100, 107):
            lps.adopt(update, torch.rand(manifest.numel, generator=generator) - 0.5)
            if update == 104:  # the rest moves while this exchange is in flight
                lps.difference(exchange)
                difference = lps.lend(exchange)
            lps.apply("step", update, 0.3 if update == 101 else 1.0)
            lps.release(update)
        gps.adopt(exchange, difference)
        found["norms"].append(gps.measure(exchange)[0].hex())
        found["differences"].append(hashlib.sha256(difference.numpy().tobytes()).hexdigest()[:16])
        gps.apply("step", exchange)
        lps.adopt(2, gps.model())
        lps.apply(MERGES[in_flight], 2, 0.25)
        lps.release(2)
        found["lps"].append(lps.digest())
        found["gps"].append(gps.digest())
    return found


def main(names: list[str]) -> None:
    """Write files; each instruction set has a process, as torch chooses when it is imported.

    Entries of instruction sets that this machine lacks are kept, and named.
    """
    for name in names or list(GOLDEN):
        path = FOLDER / f"{name}.json"
        entries: dict[str, Any] = json.loads(path.read_text("utf-8")) if path.exists() else {}
        computed: dict[str, Any] = {}
        for capability in CAPABILITIES:
            environment = os.environ | {"ATEN_CPU_CAPABILITY": capability}
            command = [sys.executable, __file__, "--entry", name]
            done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=False)
            computed |= json.loads(done.stdout) if done.returncode == 0 else {}
        text = json.dumps(entries | computed, indent=1, sort_keys=True)
        path.write_text(text + "\n", encoding="utf-8")
        print(
            f"{name}.json: computed {sorted(computed)}, kept {sorted(set(entries) - set(computed))}"
        )


def entry(name: str) -> dict[str, Any]:
    """The entry of this process: {capability: values}."""
    torch.set_num_threads(1)
    return {torch.backends.cpu.get_cpu_capability(): GOLDEN[name]()}


if __name__ == "__main__":
    if sys.argv[1:2] == ["--entry"]:
        print(json.dumps(entry(sys.argv[2])))
    else:
        main(sys.argv[1:])
