"""The cost for a worker of losing its optimiser's moments in the middle of a run.

One worker of the demo's model trains alone until its warm-up is over. From there it continues with its moments, without
them at the full rate, and without them with warm-ups of several lengths (`worker.cold_start_steps`), each on
the same samples. Prints the held-out loss after so many steps less that before, and how far eight steps moved.
"""

import argparse
import json
from pathlib import Path

import torch
from parts.flat_training import received, train

from pelago.config import run_toml
from pelago.config.run_file import RunFile
from worker.evaluator.held_out_loss import HeldOutLoss
from worker.trainer import Trainer

DEMO = Path(__file__).parents[1] / "demo.toml"
BATCH = 16
AFTER = (1, 4, 8, 16, 32, 64, 128)
"""Steps after which the loss is measured."""
MOVED_AFTER = 8
WARM_UPS = (0, 10, 20, 40, 80)


def run_file(seed: int, cold_start_steps: int, optimiser: str) -> RunFile:
    """The demo's, with a clock that ticks once a step of this one worker."""
    tables = run_toml.load(DEMO).model_dump(mode="json")
    tables["run"]["seed"] = seed
    tables["worker"] |= {
        "cold_start_steps": cold_start_steps,
        "batch_size": BATCH,
        "global_batch_size": BATCH,
        "warmup_iterations": 40,
        "total_iterations": 4000,
        "optimiser": optimiser,
    }
    return RunFile.model_validate(tables)


def trained(trainer: Trainer, flat: torch.Tensor, first: int, steps: int) -> torch.Tensor:
    """Parameters after so many more steps, from sample ``first`` on."""
    return flat - train(trainer, received(trainer, flat), first, steps * BATCH).tensor()


def loss_changes(
    trainer: Trainer, evaluator: HeldOutLoss, flat: torch.Tensor, base: int
) -> dict[str, float]:
    """Changes of the held-out loss after more steps, from step ``base`` on; ``moved``: L2 norm of the change of the
    parameters after `MOVED_AFTER` steps."""
    begun, before, done = flat, evaluator.validate([flat])[0], 0
    found: dict[str, float] = {}
    for after in AFTER:
        flat = trained(trainer, flat, (base + done) * BATCH, after - done)
        done = after
        found[str(after)] = evaluator.validate([flat])[0] - before
        if after == MOVED_AFTER:
            found["moved"] = float((flat - begun).norm())
    return found


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--base", type=int, default=300, help="steps before the loss of the moments"
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--optimiser", choices=("adamw", "muon"), default="adamw")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows: dict[str, list[dict[str, float]]] = {}
    for seed in range(options.seeds):
        run = run_file(seed, 0, options.optimiser)
        worker, evaluator = Trainer(run), HeldOutLoss(run)
        flat = trained(worker, worker.initial(), 0, options.base)
        moments = {name: each.clone() for name, each in worker.optimiser.state().items()}
        for warm_up in (None, *WARM_UPS):
            trainer = Trainer(run_file(seed, warm_up or 0, options.optimiser))
            if warm_up is None:
                copies = {name: each.clone() for name, each in moments.items()}
                trainer.restore(copies, options.base)
            else:
                trainer.warm_up()
            name = "kept" if warm_up is None else f"lost, warm-up of {warm_up}"
            rows.setdefault(name, []).append(loss_changes(trainer, evaluator, flat, options.base))
    for name, each in rows.items():
        means = {key: round(sum(row[key] for row in each) / len(each), 4) for key in each[0]}
        print(json.dumps({"moments": name} | means), flush=True)


if __name__ == "__main__":
    main()
