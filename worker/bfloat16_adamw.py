"""AdamW whose moments are kept in bf16: 4 bytes a parameter instead of 8.

A step converts a piece of the moments to fp32, makes PyTorch's fused step on it, and rounds the new moments to one of
the two nearest bf16 numbers, to each with the probability that makes the mean right (stochastic rounding; Gupta et
al., "Deep Learning with Limited Numerical Precision", arXiv 1502.02551). Rounding to the nearest would leave the
second moment where it is as soon as a step changes it by less than 1/512 of it, as every step does with beta2 = 0.999.
"""

from collections.abc import Iterable
from typing import Any, Final

import torch
from torch.optim.adamw import adamw

from pelago.core.prng import derive

PIECE_ELEMENTS: Final = 1 << 22
"""Elements that are converted at once: 3 x 16 MiB of fp32 and integers."""
MOMENTS: Final = ("exp_avg", "exp_avg_sq")


class Bfloat16AdamW(torch.optim.Optimizer):
    """For parameters that are fp32, contiguous, and in one dimension.

    ``grad_scale``, ``found_inf``: as for PyTorch's fused optimisers; with a ``found_inf`` of 1 a step leaves parameters
    and moments to the bit as they are.
    """

    grad_scale: torch.Tensor | None = None
    found_inf: torch.Tensor | None = None

    def __init__(
        self, groups: Iterable[dict[str, Any]], *, lr: float, betas: tuple[float, float], eps: float
    ) -> None:
        """``groups``: each with its parameters and ``weight_decay``, as for `torch.optim.AdamW`."""
        super().__init__(groups, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": 0.0})
        self._made = 0
        """Steps so far, skipped ones too: the random numbers of a step follow from it."""

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One step of all parameters along their gradients."""
        assert closure is None, "no closure is supported"
        for group in self.param_groups:
            for parameter in group["params"]:
                self._step(parameter, group)
        self._made += 1

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from moments of any floating type."""
        super().load_state_dict(state_dict)
        for parameter, held in self.state.items():
            held["step"] = held["step"].to(parameter.device, torch.float32, copy=True)
            for name in MOMENTS:
                held[name] = held[name].bfloat16()
        self._made = max((int(held["step"]) for held in self.state.values()), default=0)

    def _step(self, parameter: torch.Tensor, group: dict[str, Any]) -> None:
        held = self.state[parameter]
        if not held:
            device = parameter.device
            moments = {
                name: torch.zeros_like(parameter, dtype=torch.bfloat16, device=device)
                for name in MOMENTS
            }
            held.update(moments, step=torch.zeros((), device=device))
        generator = torch.Generator(parameter.device)
        generator.manual_seed(derive("moments", self._made, parameter.numel()))
        assert parameter.grad is not None
        places = range(0, parameter.numel(), PIECE_ELEMENTS)
        counts = [held["step"].clone() for _ in places]
        for count, first in zip(counts, places, strict=True):
            piece = slice(first, first + PIECE_ELEMENTS)
            kept = [held[name][piece] for name in MOMENTS]
            moments32 = [each.float() for each in kept]
            adamw(
                [parameter[piece]],
                [parameter.grad[piece]],
                moments32[:1],
                moments32[1:],
                [],
                [count],
                fused=True,
                grad_scale=self.grad_scale,
                found_inf=self.found_inf,
                amsgrad=False,
                beta1=group["betas"][0],
                beta2=group["betas"][1],
                lr=group["lr"],
                weight_decay=group["weight_decay"],
                eps=group["eps"],
                maximize=False,
            )
            for new, out in zip(moments32, kept, strict=True):
                round_stochastically(new, out, generator)
        held["step"].copy_(counts[0])


def round_stochastically(
    numbers: torch.Tensor, out: torch.Tensor, generator: torch.Generator
) -> None:
    """Write fp32 ``numbers``, finite, shape [n], which are changed, to bf16 ``out``: each becomes one of its two
    neighbours, the nearer the likelier, so that the expected value is the number. A bf16 number stays."""
    bits = numbers.view(torch.int32)
    # bf16 is the upper half of fp32: a carry out of the lower half, a random number added, is the rounding up.
    bits += torch.randint(
        0, 1 << 16, bits.shape, dtype=torch.int32, device=bits.device, generator=generator
    )
    bits &= -1 << 16
    out.copy_(numbers)
