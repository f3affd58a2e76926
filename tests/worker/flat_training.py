"""A round of a trainer from and to flat tensors."""

import threading
from collections.abc import Callable
from dataclasses import replace

import torch

from pelago.core.names import Lease
from pelago.core.ports import TrainingResult
from pelago.tensor.manifest import Manifest
from pelago.tensor.payload import Payload
from worker.trainer import Trainer


def payload_of(trainer: Trainer, flat: torch.Tensor) -> Payload:
    """A flat tensor in the chunks of the trainer's model."""
    return Payload.of(flat, Manifest(trainer.manifest()).chunks)


def train_flat(
    trainer: Trainer,
    lease: Lease,
    flat: torch.Tensor,
    on_step: Callable[[int, int], None] = lambda steps, skipped: None,
    cancel: threading.Event | None = None,
) -> TrainingResult | None:
    """The result has its pseudo-gradient as one tensor."""
    found = trainer.train(lease, payload_of(trainer, flat), on_step, cancel or threading.Event())
    if found is None:
        return None
    trainer.hand_over()
    return replace(found, delta=found.delta.tensor())
