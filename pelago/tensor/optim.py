"""The servers' optimiser and merge: functions over flat tensors, in place, piece by piece.

Every pass of a step runs on one block before the next block is touched, so that memory is read and
written once. Every operation is elementwise, so the same updates in the same order give the same
bits however the arena is cut. ``x + alpha * y`` is rounded once where torch uses a fused
multiply-add (x86 since AVX2), and twice where there is none: there the last bits differ.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import Final, NamedTuple, Self

import torch

BLOCK_ELEMENTS: Final = 1 << 18
"""1 MiB of fp32: all tensors of a step stay in the last-level cache from its first pass to the
last. Measured on 256 MB, smaller blocks (64 to 512 KiB) lose more to the calls than they gain."""


class Slots(NamedTuple):
    """The part of the state that belongs to one piece; None where the settings need none."""

    momentum: torch.Tensor | None
    accumulator: torch.Tensor | None


@dataclass(slots=True)
class OptimiserState:
    """m, D and t of delayed Nesterov. Tensors are flat, shape [numel]; None where not needed."""

    momentum: torch.Tensor | None
    accumulator: torch.Tensor | None
    counter: int = 0

    def piece(self, start: int, stop: int) -> Slots:
        """The state of the elements start <= i < stop, as views."""
        return Slots(
            None if self.momentum is None else self.momentum[start:stop],
            None if self.accumulator is None else self.accumulator[start:stop],
        )


@dataclass(frozen=True, slots=True)
class Factors:
    """The scalars of one step, the same for all of its pieces."""

    absorbs: bool
    """This step closes a period: m takes in D/d, and D starts again from 0."""
    gradient_rate: float
    """lr / d"""
    momentum_rate: float
    """lr * beta * (1 - c*d + c) if the step closes a period, else lr * beta * c."""


@dataclass(frozen=True, slots=True)
class DelayedNesterov:
    """Delayed Nesterov, DN(lr, beta, d, c): Liu et al. 2024, arXiv 2401.09135, Algorithm 3.

    On a pseudo-gradient g, which points downhill (start of the training minus its end)::

        D <- D + g
        if (t + 1) mod d == 0:
            m <- beta*m + D/d;  th <- th - lr*((1 - c*d + c)*beta*m + g/d);  D <- 0
        else:
            th <- th - lr*(c*beta*m + g/d)
        t <- t + 1

    Over d steps this is one Nesterov step on the mean of d pseudo-gradients. With d = 1 it is SGD
    with Nesterov momentum, c cancels and D is not kept; with beta = 0 it is SGD and neither is m.
    Raises `ValueError` for settings outside lr > 0, 0 <= beta < 1, d >= 1, 0 <= c <= 1.
    """

    lr: float
    momentum: float
    delay: int
    activation: float = 0.0

    def __post_init__(self) -> None:
        if not self.lr > 0 or not 0 <= self.momentum < 1:
            raise ValueError(f"lr {self.lr}, momentum {self.momentum}: must be > 0, in [0, 1)")
        if self.delay < 1 or not 0 <= self.activation <= 1:
            raise ValueError(
                f"delay {self.delay}, activation {self.activation}: must be >= 1, in [0, 1]"
            )

    @classmethod
    def from_eta(cls, eta: float, momentum: float, delay: int, activation: float = 0.0) -> Self:
        """From a run file's ``lr``, which is eta: each g is divided by d, so lr = eta * d."""
        return cls(eta * delay, momentum, delay, activation)

    @property
    def keeps_momentum(self) -> bool:
        """Whether these settings need m."""
        return self.momentum > 0

    @property
    def keeps_accumulator(self) -> bool:
        """Whether these settings need D."""
        return self.keeps_momentum and self.delay > 1

    def init(self, numel: int, dtype: torch.dtype) -> OptimiserState:
        """m = 0, D = 0, t = 0 for an arena of ``numel`` elements, without what is not needed."""
        return OptimiserState(
            torch.zeros(numel, dtype=dtype) if self.keeps_momentum else None,
            torch.zeros(numel, dtype=dtype) if self.keeps_accumulator else None,
        )

    def factors(self, t: int) -> Factors:
        """The scalars of step t = 0, 1, ...; the caller counts t, once for all pieces of a step."""
        absorbs = (t + 1) % self.delay == 0
        share = 1 - self.activation * self.delay + self.activation if absorbs else self.activation
        return Factors(absorbs, self.lr / self.delay, self.lr * self.momentum * share)

    def step_piece(
        self,
        parameters: torch.Tensor,
        gradient: torch.Tensor,
        slots: Slots,
        factors: Factors,
        weight: float = 1.0,
        out: torch.Tensor | None = None,
        out_slots: Slots | None = None,
    ) -> None:
        """One step along ``weight * gradient`` on a piece: flat tensors of one shape and dtype.

        The new parameters are written to ``out``, the new state to ``out_slots`` (default: over the
        old ones). D is new after every step, m after those that absorb it; others leave the m of
        ``out_slots`` as it is.
        """
        new_slots = slots if out_slots is None else out_slots
        rows = zip(
            _blocks(parameters),
            _blocks(gradient),
            _blocks_or_none(slots.momentum),
            _blocks_or_none(slots.accumulator),
            _blocks(parameters if out is None else out),
            _blocks_or_none(new_slots.momentum),
            _blocks_or_none(new_slots.accumulator),
            strict=False,
        )
        for old, g, m, accumulator, new, new_m, new_accumulator in rows:
            if accumulator is not None:
                accumulator = torch.add(accumulator, g, alpha=weight, out=new_accumulator)
            if factors.absorbs and m is not None:
                m = torch.mul(m, self.momentum, out=new_m)
                if accumulator is None:
                    m.add_(g, alpha=weight)  # d = 1, so D/d is g
                else:
                    m.add_(accumulator, alpha=1 / self.delay)
                    accumulator.zero_()
            torch.add(old, g, alpha=-factors.gradient_rate * weight, out=new)
            if factors.momentum_rate and m is not None:
                new.add_(m, alpha=-factors.momentum_rate)

    def step(
        self,
        parameters: torch.Tensor,
        gradient: torch.Tensor,
        state: OptimiserState,
        weight: float = 1.0,
    ) -> None:
        """One whole step along ``weight * gradient``, in place; t advances by one."""
        slots = Slots(state.momentum, state.accumulator)
        self.step_piece(parameters, gradient, slots, self.factors(state.counter), weight)
        state.counter += 1


def merge(
    model: torch.Tensor, other: torch.Tensor, weight: float, out: torch.Tensor | None = None
) -> None:
    """``(1 - weight) * model + weight * other`` into ``out`` (default: over the model).

    Flat tensors of one shape and dtype. The merge of HALoS (Kim et al. 2025, arXiv 2506.04531),
    with ``other`` the global model and ``weight`` its alpha.
    """
    targets = _blocks(model if out is None else out)
    for ours, theirs, new in zip(_blocks(model), _blocks(other), targets, strict=True):
        torch.mul(ours, 1 - weight, out=new)
        new.add_(theirs, alpha=weight)


def _blocks(flat: torch.Tensor) -> Sequence[torch.Tensor]:
    if flat.numel() <= BLOCK_ELEMENTS:
        return (flat,)
    return flat.split(BLOCK_ELEMENTS)  # type: ignore[no-untyped-call, no-any-return]


def _blocks_or_none(flat: torch.Tensor | None) -> Iterable[torch.Tensor | None]:
    return repeat(None) if flat is None else _blocks(flat)
