"""A trainer's round, from and to chunks in the memory that a worker receives and sends."""

import threading

import torch

from pelago.core.names import Lease, PushId
from pelago.tensor.manifest import Manifest
from pelago.tensor.payload import ChunkBuffer, Payload
from worker.trainer import Trainer


def received(trainer: Trainer, flat: torch.Tensor) -> Payload:
    """``flat``, shape [elements], as it would have arrived: in chunks of the trainer's own memory."""
    return Payload(
        [
            ChunkBuffer(trainer.slab.take(stop - start).copy_(flat[start:stop]))
            for start, stop in Manifest(trainer.manifest()).chunks
        ]
    )


def streamed(trainer: Trainer, start: Payload) -> Payload:
    """A payload of the same chunks, which the trainer expected while it was still empty."""
    coming = Payload([None] * len(start.chunks))
    trainer.expect(coming)
    for index, chunk in enumerate(start.complete_chunks()):
        coming.fill(index, chunk)
    return coming


def train(trainer: Trainer, start: Payload, first: int, samples: int) -> Payload:
    """Train on so many samples from the global order's sample ``first`` on. Returns the pseudo-gradient, all of it
    on the host."""
    lease = Lease(PushId(first + 1, 1), ((first, first + samples),), first)
    found = trainer.train(lease, start, lambda *so_far: None, threading.Event())
    assert found is not None
    trainer.hand_over()
    delta: Payload = found.delta
    return delta
