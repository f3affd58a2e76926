"""The delayed-Nesterov step of an LPS: fused by chunk, as whole-tensor operations, and the limit."""

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from parts.bare import optimiser, whole_step
from parts.machine import describe, summary

from pelago.tensor.manifest import CHUNK_BYTES, ELEMENT_BYTES
from pelago.tensor.optim import DelayedNesterov, OptimiserState

ELEMENTS = 64 << 20
"""256 MiB of fp32."""
WARM_UP_PERIODS = 1


@dataclass
class Arena:
    """The tensors of a step."""

    model: torch.Tensor
    target: torch.Tensor
    """Receives the new model in a step that leaves the old one to its readers."""
    update: torch.Tensor
    state: OptimiserState


def fused(outer: DelayedNesterov, arena: Arena, out: torch.Tensor) -> None:
    """A chunk at a time, all passes over it before the next, as the tensor plane does."""
    factors = outer.factors(arena.state.counter)
    step = CHUNK_BYTES // ELEMENT_BYTES
    for start in range(0, ELEMENTS, step):
        stop = start + step
        outer.step_piece(
            arena.model[start:stop],
            arena.update[start:stop],
            arena.state.piece(start, stop),
            factors,
            out=out[start:stop],
        )
    arena.state.counter += 1


def least_bytes(absorbs: bool) -> int:
    """The bytes that a step in place must read and write: model, update, accumulator -> model, accumulator; with the
    momentum as well if it absorbs the accumulator."""
    return (7 if absorbs else 5) * ELEMENTS * ELEMENT_BYTES


def seconds_of(job: Callable[[], object]) -> float:
    """Wall time of one call."""
    begin = time.perf_counter()
    job()
    return time.perf_counter() - begin


def measure(periods: int) -> dict[str, Any]:
    """Interleave the three ways, step by step, over whole periods of the momentum."""
    torch.set_num_threads(1)
    outer = optimiser()
    generator = torch.Generator().manual_seed(7)
    arenas = {}
    for name in ("fused_in_place", "fused_beside", "whole_tensor"):
        state = outer.init(ELEMENTS, torch.float32)
        model = torch.randn(ELEMENTS, generator=generator)
        update = 1e-3 * torch.randn(ELEMENTS, generator=generator)
        target = torch.zeros(ELEMENTS if name == "fused_beside" else 0)
        arenas[name] = Arena(model, target, update, state)
    jobs: dict[str, Callable[[Arena], None]] = {
        "fused_in_place": lambda arena: fused(outer, arena, arena.model),
        "fused_beside": lambda arena: fused(outer, arena, arena.target),
        "whole_tensor": lambda arena: whole_step(outer, arena.model, arena.update, arena.state),
    }
    times: dict[tuple[str, bool], list[float]] = {}
    streams: list[float] = []
    source, sink = arenas["fused_beside"].update, torch.zeros(ELEMENTS)
    for step in range((WARM_UP_PERIODS + periods) * outer.delay):
        absorbs = outer.factors(step).absorbs
        found = {name: seconds_of(lambda name=name: jobs[name](arenas[name])) for name in jobs}  # type: ignore[misc]
        stream = min(seconds_of(lambda: sink.copy_(source)), seconds_of(lambda: sink.mul_(0.999)))
        if step >= WARM_UP_PERIODS * outer.delay:
            streams.append(stream)
            for name, seconds in found.items():
                times.setdefault((name, absorbs), []).append(seconds)
    # Each reads one tensor and writes one; the faster of the two is the bandwidth that a thread gets.
    bytes_per_second = 2 * ELEMENTS * ELEMENT_BYTES / summary(streams, 9)["median"]
    figures: dict[str, Any] = {"stream_gb_per_second": round(bytes_per_second / 1e9, 2)}
    for absorbs, label in ((False, "accumulating_step_ms"), (True, "absorbing_step_ms")):
        limit = {"limit": round(1e3 * least_bytes(absorbs) / bytes_per_second, 1)}
        each = {name: summary([1e3 * s for s in times[name, absorbs]], 1) for name in jobs}
        figures[label] = {**each, **limit}
    return figures


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--periods", type=int, default=2, help="periods of 16 steps (default 2)")
    options = parser.parse_args()
    machine = describe()
    figures = measure(options.periods)
    head = {"benchmark": "optimiser", "elements": ELEMENTS, "torch_threads": 1, "machine": machine}
    print(json.dumps({**head, **figures}))


if __name__ == "__main__":
    main()
