"""The simulator's stacked Llama: tokens per second of its `train` against a worker's trainer.

    python bench/lm.py [--replicas 1 4 16] [--batch 8] [--length 64] [--steps 8] [--rounds 5] [--device cpu]

The same model, corpus, optimiser and steps on both sides: one `Trainer` that trains on one lease, and
`LanguageModelling` that trains a job of each of R replicas. On CUDA the trainer runs as the daemons' do,
in bf16 and through torch.compile unless --eager; the stack in fp32 with TF32 products. Rounds are
interleaved; the ratio is the median over the rounds.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch
from parts.flat_training import received, train
from parts.machine import describe

from convergence.lm.problem import LanguageModelling
from convergence.problems.problem import Job, Part
from pelago.config.run_file import RunFile
from worker.trainer import Trainer


def run_file(options: argparse.Namespace) -> RunFile:
    """A run of one worker on a model of about 150,000 parameters, unless the options say otherwise."""
    overrides = {
        "hidden_size": options.hidden,
        "intermediate_size": options.intermediate,
        "num_hidden_layers": options.layers,
        "num_attention_heads": options.heads,
        "num_key_value_heads": max(1, options.heads // 2),
    }
    return RunFile.model_validate(
        {
            "model": {"preset": "llama3-tiny", "overrides": overrides},
            "data": {"sequence_length": options.length},
            "worker": {
                "batch_size": options.batch,
                "local_steps": options.steps,
                "optimiser": options.optimiser,
                "device": options.device,
                "compile": not options.eager,
            },
            "region": [{"name": "here", "worker_speeds": [1.0]}],
            "simulation": {"problem": "lm"},
        }
    )


def one(trainer: Trainer, options: argparse.Namespace) -> Callable[[int], None]:
    """A round of a worker."""
    start = received(trainer, trainer.initial())
    samples = options.batch * options.steps

    def work(number: int) -> None:
        train(trainer, start, number * samples, samples)

    return work


def many(
    problem: LanguageModelling, start: torch.Tensor, replicas: int, options: argparse.Namespace
) -> Callable[[int], None]:
    """A round of each of so many replicas."""
    samples = options.batch * options.steps

    def work(number: int) -> None:
        jobs = [
            Job(
                replica=replica,
                steps=options.steps,
                parts=(Part(replica, 0, options.batch),),
                spans=((place * samples, (place + 1) * samples),),
                clock=place * samples,
                start=start,
            )
            for replica in range(replicas)
            for place in (number * replicas + replica,)
        ]
        problem.train(jobs)

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


def options_of_the_command_line() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--replicas", type=int, nargs="+", default=[1, 4, 16])
    for name, value in (
        ("hidden", 64),
        ("intermediate", 172),
        ("layers", 3),
        ("heads", 4),
        ("batch", 8),
        ("length", 64),
        ("steps", 8),
        ("rounds", 5),
    ):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--optimiser", default="adamw")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--eager", action="store_true")
    return parser.parse_args()


def main() -> None:
    """Measure and print."""
    options = options_of_the_command_line()
    run = run_file(options)
    trainer = Trainer(run)
    problem = LanguageModelling(run, max(options.replicas))
    start = trainer.initial()
    kinds = {"trainer": (1, one(trainer, options))}
    for replicas in options.replicas:
        kinds[f"stack_{replicas}"] = (replicas, many(problem, start, replicas, options))
    for _, work in kinds.values():
        work(0)
    tokens = options.batch * options.length * options.steps
    rates: dict[str, list[float]] = {name: [] for name in kinds}
    for number in range(1, options.rounds + 1):
        for name, (replicas, work) in kinds.items():
            rates[name].append(replicas * tokens / timed(work, number))
    figures = {
        "benchmark": "lm",
        "device": torch.cuda.get_device_name() if trainer.model.device.type == "cuda" else "cpu",
        "parameters": trainer.model.elements,
        "shape": [options.batch, options.length],
        "steps": options.steps,
        "optimiser": options.optimiser,
        "tokens_per_second": {name: round(statistics.median(r)) for name, r in rates.items()},
        "ratio": {
            name: round(
                statistics.median(b / a for a, b in zip(rates["trainer"], r, strict=True)), 3
            )
            for name, r in rates.items()
            if name != "trainer"
        },
        "machine": describe(),
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
