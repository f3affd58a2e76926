"""An exported model, opened with `transformers` alone."""

from pathlib import Path

import torch
import transformers

from pelago.config.run_file import RunFile
from worker.data.sources import open_corpus


def held_out_loss(run: RunFile, folder: Path) -> float:
    """The loss of the model in the folder on the run's held-out set, in nats per token."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    total = tokens = 0.0
    corpus = open_corpus(run.data, run.run.seed)
    with torch.no_grad():
        for batch in corpus.validation_batches(run.data.validation_samples, 16):
            logits = model(input_ids=batch[:, :-1], use_cache=False).logits
            total += float(
                torch.nn.functional.cross_entropy(
                    logits.flatten(0, 1), batch[:, 1:].flatten(), reduction="sum"
                )
            )
            tokens += batch[:, 1:].numel()
    return total / tokens
