"""The inner loop: tokens per second of Pelago's trainer against a plain PyTorch loop on the same model.

    python bench/trainer.py [--preset llama3-tiny] [--batch 16] [--length 64] [--steps 20] [--rounds 5]

Both train the same transformers model with AdamW, clipping and, on CUDA, bf16 autocast. The plain loop is
what a careful user writes: fused torch.optim.AdamW over the model's own parameters and
`clip_grad_norm_`. Ours runs over one flat tensor, and on CUDA through torch.compile; the plain loop is
measured with torch.compile as well there. Rounds are interleaved; the ratio is the median over the rounds.
"""

import argparse
import json
import statistics
import threading
import time
from collections.abc import Callable
from typing import Any

import torch
from parts.machine import describe

from pelago.config.run_file import RunFile
from pelago.core.names import Lease, PushId
from worker.models.language import LanguageModel
from worker.trainer import Trainer


def run_file(options: argparse.Namespace) -> RunFile:
    """A run of one worker."""
    return RunFile.model_validate(
        {
            "model": {"preset": options.preset},
            "data": {"sequence_length": options.length},
            "worker": {"batch_size": options.batch, "local_steps": options.steps},
            "region": [{"name": "here", "worker_speeds": [1.0]}],
        }
    )


def ours(trainer: Trainer, options: argparse.Namespace) -> Callable[[int], None]:
    """A round as a worker does it, on a lease."""
    start = trainer.initial()

    def work(number: int) -> None:
        samples = options.batch * options.steps
        lease = Lease(
            PushId(number + 1, 1), ((number * samples, (number + 1) * samples),), number * samples
        )
        assert trainer.train(lease, start, lambda *so_far: None, threading.Event()) is not None

    return work


def plain(
    source: LanguageModel, trainer: Trainer, options: argparse.Namespace, compiled: bool
) -> Callable[[int], None]:
    """The same number of steps in a plain loop."""
    import transformers

    module: Any = transformers.AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
        source.module.config, attn_implementation="sdpa"
    )
    module = module.to(source.device).train()
    forward = torch.compile(module) if compiled else module
    optimiser = torch.optim.AdamW(
        module.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1, fused=True
    )
    mixed = source.device.type == "cuda"

    def work(number: int) -> None:
        for step in range(options.steps):
            first = (number * options.steps + step) * options.batch
            tokens = trainer.corpus.batch(range(first, first + options.batch)).to(source.device)
            with torch.autocast(source.device.type, dtype=torch.bfloat16, enabled=mixed):
                logits = forward(input_ids=tokens[:, :-1], use_cache=False).logits
            loss = torch.nn.functional.cross_entropy(
                logits.float().flatten(0, 1), tokens[:, 1:].flatten()
            )
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
            loss.item()

    return work


def timed(work: Callable[[int], None], number: int) -> float:
    """Seconds that a round takes."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    started = time.perf_counter()
    work(number)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="llama3-tiny")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--length", type=int, default=64)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    trainer = Trainer(run_file(options))
    kinds = {
        "pelago": ours(trainer, options),
        "plain": plain(trainer.model, trainer, options, compiled=False),
    }
    if trainer.model.device.type == "cuda":
        kinds["plain_compiled"] = plain(trainer.model, trainer, options, compiled=True)
    for work in kinds.values():
        work(0)
    seconds: dict[str, list[float]] = {name: [] for name in kinds}
    for number in range(1, options.rounds + 1):
        for name, work in kinds.items():
            seconds[name].append(timed(work, number))
    tokens = options.batch * options.length * options.steps
    figures = {
        "benchmark": "trainer",
        "preset": options.preset,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "shape": [options.batch, options.length],
        "tokens_per_second": {
            name: round(tokens / statistics.median(s)) for name, s in seconds.items()
        },
        "ratio": {
            name: round(
                statistics.median(b / a for a, b in zip(seconds["pelago"], s, strict=True)), 3
            )
            for name, s in seconds.items()
            if name != "pelago"
        },
        "machine": describe(),
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
