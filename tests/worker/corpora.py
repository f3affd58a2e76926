"""Small corpora and run files on disk."""

from pathlib import Path

import numpy as np

from pelago.config.run_file import RunFile

TINY = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
"""Overrides that make the smallest preset smaller still."""


def write_texts(folder: Path, files: int = 40) -> Path:
    """A folder of distinct little texts of about 300 bytes each."""
    for number in range(files):
        path = folder / f"part{number % 3}" / f"{number:03}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"{number} squared {i} is {number * i}\n" for i in range(16)))
    return folder


def write_tokens(path: Path, count: int, dtype: str = "uint16", vocabulary: int = 100) -> Path:
    """A raw token file that counts up modulo the vocabulary."""
    (np.arange(count) % vocabulary).astype(dtype).tofile(path)
    return path


def run_file(source: str, **worker: object) -> RunFile:
    """A run of one region with two workers on a tiny model."""
    settings = {
        "batch_size": 4,
        "global_batch_size": 8,
        "max_lr": 3e-3,
        "warmup_iterations": 2,
        "total_iterations": 100,
        "device": "cpu",
    }
    return RunFile.model_validate(
        {
            "model": {"preset": "llama3-tiny", "overrides": TINY},
            "data": {"source": source, "sequence_length": 16, "validation_samples": 8},
            "worker": settings | worker,
            "region": [{"name": "north", "worker_speeds": [1.0, 0.5]}],
        }
    )
