"""The inner loop: tokens per second of Pelago's trainer against a plain PyTorch loop on the same model.

    python bench/trainer.py [--preset llama3-tiny] [--batch 16] [--length 64] [--steps 20,8] [--rounds 5]

Both train the same transformers model with AdamW, clipping and, on CUDA, bf16 autocast. The plain loop is
what a careful user writes: fused torch.optim.AdamW over the model's own parameters and
`clip_grad_norm_`. Ours runs over one flat tensor, and on CUDA through torch.compile; the plain loop is
measured with torch.compile as well there. Rounds are interleaved; a ratio is the median over the rounds.

A round of ours ends when all chunks of the pseudo-gradient are on the host. `pelago` begins with all chunks of the
model on the host and none on the device, so all copies count. `pelago_streamed` begins when the last chunk has arrived,
as a worker's round does: the others have gone to the device while they arrived, which is not on the clock.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import torch
from parts.flat_training import received, streamed, train
from parts.machine import describe

from pelago.config.run_file import RunFile
from worker.models.language import LanguageModel
from worker.trainer import Trainer

OURS: Final = ("pelago", "pelago_streamed")


@dataclass(frozen=True)
class Work:
    """One kind of loop. ``arrive``: what happens before a round, not on the clock; ``train``: so many steps, from a
    step of the global order on."""

    train: Callable[[int, int], None]
    arrive: Callable[[], None] = lambda: None


def run_file(options: argparse.Namespace) -> RunFile:
    """A run of one worker."""
    return RunFile.model_validate(
        {
            "model": {"preset": options.preset},
            "data": {"sequence_length": options.length},
            "worker": {"batch_size": options.batch, "max_lr": 1e-4},
            "region": [{"name": "here", "worker_speeds": [1.0]}],
        }
    )


def ours(trainer: Trainer, options: argparse.Namespace) -> dict[str, Work]:
    """A round as a worker does it, on a lease."""
    on_host = received(trainer, trainer.initial())
    arrived = on_host

    def arrive() -> None:
        nonlocal arrived
        arrived = streamed(trainer, on_host)

    def from_device(first: int, steps: int) -> None:
        train(trainer, arrived, first * options.batch, steps * options.batch)

    def from_host(first: int, steps: int) -> None:
        train(trainer, on_host, first * options.batch, steps * options.batch)

    return {"pelago": Work(from_host), "pelago_streamed": Work(from_device, arrive)}


def plain(
    source: LanguageModel, trainer: Trainer, options: argparse.Namespace, *, compiled: bool
) -> Work:
    """The same number of steps in a plain loop."""
    import transformers

    with torch.device(source.device):
        module: Any = transformers.AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
            source.module.config, attn_implementation="sdpa"
        )
    module = module.to(source.device).train()
    forward = torch.compile(module) if compiled else module
    optimiser = torch.optim.AdamW(
        module.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True
    )
    mixed = source.device.type == "cuda"

    def work(begin: int, steps: int) -> None:
        for step in range(begin, begin + steps):
            samples = range(step * options.batch, (step + 1) * options.batch)
            tokens = trainer.corpus.batch(samples).to(source.device)
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

    return Work(work)


def timed(work: Work, first: int, steps: int) -> float:
    """Seconds that a round takes."""
    work.arrive()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    started = time.perf_counter()
    work.train(first, steps)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started


def compared(kinds: dict[str, Work], steps: int, options: argparse.Namespace) -> dict[str, Any]:
    """Rounds of so many steps of each kind, in turn."""
    seconds: dict[str, list[float]] = {name: [] for name in kinds}
    for number in range(options.rounds):
        for name, work in kinds.items():
            seconds[name].append(timed(work, number * steps, steps))
    tokens = options.batch * options.length * steps
    return {
        "tokens_per_second": {
            name: round(tokens / statistics.median(s)) for name, s in seconds.items()
        },
        "seconds": {name: round(statistics.median(s), 4) for name, s in seconds.items()},
        "ratio": {
            f"{name} to {other}": round(
                statistics.median(b / a for a, b in zip(seconds[name], s, strict=True)), 3
            )
            for name in OURS
            for other, s in seconds.items()
            if other not in OURS
        },
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="llama3-tiny")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--length", type=int, default=64)
    parser.add_argument("--steps", default="20", help="steps of a round; several: 48,8")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--no-eager", action="store_true", help="on CUDA the compiled loop alone")
    options = parser.parse_args()
    torch.set_num_threads(1)
    trainer = Trainer(run_file(options))
    cuda = trainer.model.device.type == "cuda"
    kinds = ours(trainer, options)
    if not (cuda and options.no_eager):
        kinds["plain"] = plain(trainer.model, trainer, options, compiled=False)
    if cuda:
        kinds["plain_compiled"] = plain(trainer.model, trainer, options, compiled=True)
    for work in kinds.values():
        timed(work, 0, 4)
    figures = {
        "benchmark": "trainer",
        "preset": options.preset,
        "parameters": trainer.model.elements,
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "torch": torch.__version__,
        "shape": [options.batch, options.length],
        "rounds_of": {
            steps: compared(kinds, int(steps), options) for steps in options.steps.split(",")
        },
        "machine": describe(),
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
