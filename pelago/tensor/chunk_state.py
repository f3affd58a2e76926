"""One chunk of a plane: its part of the parameters and of the optimiser's state, and the operations on it.

Every operation on parameters is elementwise, so it is done chunk by chunk, and the bits do not depend on the order of
the chunks or on the threads. An operation reads old slots and writes new ones, and then drops the old ones: nobody
writes to memory that anything refers to.
"""

from dataclasses import dataclass, replace
from typing import Final, Self

import torch

from pelago.tensor.optim import DelayedNesterov, Factors, Slots, merge
from pelago.tensor.payload import ChunkBuffer
from pelago.tensor.slab import Slab

ARENAS: Final = ("model", "snapshot", "sent", "average", "momentum", "accumulator")
"""All that a plane may keep besides payloads, in the order in which a snapshot names it."""


@dataclass(slots=True)
class ChunkState:
    """What a plane keeps of one chunk, None where it keeps nothing; the fields are `ARENAS`."""

    model: ChunkBuffer | None = None
    snapshot: ChunkBuffer | None = None
    sent: ChunkBuffer | None = None
    average: ChunkBuffer | None = None
    momentum: ChunkBuffer | None = None
    accumulator: ChunkBuffer | None = None

    def copy(self) -> Self:
        """The same chunks, under other names: later operations do not change it."""
        return replace(self)

    @property
    def parameters(self) -> ChunkBuffer:
        """The model, which is loaded."""
        assert self.model is not None, "no parameters yet: `load` some"
        return self.model


@dataclass(frozen=True, slots=True)
class StepSettings:
    """The scalars of one step, the same for all chunks.

    ``decay``: that of the running mean in this step; None: no mean is kept.
    """

    outer: DelayedNesterov
    factors: Factors
    weight: float
    decay: float | None


def load(state: ChunkState, chunk: ChunkBuffer, *, exchanges: bool, averages: bool) -> None:
    """The model, its snapshot (``exchanges``) and its mean (``averages``) become a chunk."""
    state.model, state.sent = chunk, None
    if exchanges:
        state.snapshot = chunk
    if averages:
        state.average = chunk


def step(state: ChunkState, gradient: ChunkBuffer, settings: StepSettings, slab: Slab) -> None:
    """One step of the outer optimiser along ``weight * gradient``, and one of the running mean."""
    outer, factors, old = settings.outer, settings.factors, state.parameters
    new = _like(old, slab)
    momentum = _or_zeros(state.momentum, old, slab) if outer.keeps_momentum else None
    accumulator = _or_zeros(state.accumulator, old, slab) if outer.keeps_accumulator else None
    # A step that does not absorb writes no momentum.
    new_momentum = momentum
    if momentum is not None and factors.absorbs:
        new_momentum = _like(old, slab)
    new_accumulator = None if accumulator is None else _like(old, slab)
    outer.step_piece(
        old.tensor,
        gradient.tensor,
        Slots(_tensor(momentum), _tensor(accumulator)),
        factors,
        settings.weight,
        new.tensor,
        Slots(_tensor(new_momentum), _tensor(new_accumulator)),
    )
    if settings.decay is not None:  # At once, while the chunk is in the cache.
        assert state.average is not None
        mean = _like(old, slab)
        merge(state.average.tensor, new.tensor, 1 - settings.decay, mean.tensor)
        state.average = mean
    state.model = new
    state.momentum, state.accumulator = new_momentum, new_accumulator


def merge_model(
    state: ChunkState, other: ChunkBuffer, weight: float, slab: Slab, *, exchanges: bool
) -> None:
    """model <- (1 - weight) * model + weight * other; the snapshot (``exchanges``) is this model."""
    old = state.parameters
    new = _like(old, slab)
    merge(old.tensor, other.tensor, weight, new.tensor)
    state.model = new
    if exchanges:
        state.snapshot = new


def merge_and_keep(
    state: ChunkState, other: ChunkBuffer, weight: float, slab: Slab, *, replay: bool
) -> None:
    """Merge, and keep the movement since the last `difference` for the next one.

    carry: the region's model is merged as it is now. replay: as it was when it was sent, and the
    movement since goes on top, undiminished.
    """
    old = state.parameters
    sent = old if state.sent is None else state.sent
    moved, new = _like(old, slab), _like(old, slab)
    torch.sub(sent.tensor, old.tensor, out=moved.tensor)
    if replay:
        merged = _like(old, slab)
        merge(sent.tensor, other.tensor, weight, merged.tensor)
        torch.sub(merged.tensor, moved.tensor, out=new.tensor)
        state.snapshot = merged
    else:
        merge(old.tensor, other.tensor, weight, new.tensor)
        moved.tensor.add_(new.tensor)
        state.snapshot = moved
    state.model = new


def difference(state: ChunkState, slab: Slab, *, remember: bool) -> ChunkBuffer:
    """snapshot - model; ``remember``: keep this model as the one that was sent."""
    ours = state.parameters
    assert state.snapshot is not None, "this plane keeps no snapshot"
    change = _like(ours, slab)
    torch.sub(state.snapshot.tensor, ours.tensor, out=change.tensor)
    if remember:
        state.sent = ours
    return change


def _like(chunk: ChunkBuffer, slab: Slab) -> ChunkBuffer:
    return ChunkBuffer(slab.take(chunk.tensor.numel()))


def _or_zeros(chunk: ChunkBuffer | None, like: ChunkBuffer, slab: Slab) -> ChunkBuffer:
    if chunk is not None:
        return chunk
    zeros = _like(like, slab)
    zeros.tensor.zero_()
    return zeros


def _tensor(chunk: ChunkBuffer | None) -> torch.Tensor | None:
    return None if chunk is None else chunk.tensor
