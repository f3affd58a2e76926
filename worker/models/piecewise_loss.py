"""Cross-entropy over long vocabularies without all logits in fp32.

For 8 sequences of 1,024 tokens and 128,256 token ids, the logits are 2.1 GB in bf16, and in fp32 4.2 GB, as are
their gradient and the probabilities. Here a piece of the rows at a time is converted, and once more for its gradient,
as the chunked losses of Hsu et al., "Liger Kernel", arXiv 2410.10989, do.
"""

from typing import Any, Final

import torch
from torch.nn import functional

PIECE_ELEMENTS: Final = 1 << 26
"""Logits of a piece: 256 MiB in fp32."""


def piecewise_cross_entropy(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """The mean over all rows, a scalar in fp32. ``logits``: any float type, shape (rows, vocabulary); ``targets``:
    int64, shape (rows,). Its gradient has the type of the logits."""
    loss: torch.Tensor = _PiecewiseCrossEntropy.apply(logits, targets)  # type: ignore[no-untyped-call]
    return loss


class _PiecewiseCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(logits, targets)
        total = torch.zeros((), dtype=torch.float32, device=logits.device)
        for part, its in zip(_pieces(logits), _rows(logits, targets), strict=True):
            total += functional.cross_entropy(part.float(), its, reduction="sum")
        return total / len(targets)

    @staticmethod
    def backward(ctx: Any, *outputs: torch.Tensor) -> tuple[torch.Tensor, None]:
        logits, targets = ctx.saved_tensors
        share = outputs[0] / len(targets)
        gradient = torch.empty_like(logits)
        parts = zip(_pieces(logits), _rows(logits, targets), _pieces(gradient), strict=True)
        for part, its, out in parts:
            slope = part.float().softmax(dim=1)
            slope[torch.arange(len(its), device=its.device), its] -= 1.0
            out.copy_(slope.mul_(share))
        return gradient, None


def _rows_each(logits: torch.Tensor) -> int:
    return max(1, PIECE_ELEMENTS // logits.shape[1])


def _pieces(logits: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return torch.split(logits, _rows_each(logits))


def _rows(logits: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return torch.split(targets, _rows_each(logits))
