"""The loss over a long vocabulary in pieces is the loss, and so is its gradient."""

import pytest
import torch
from torch.nn import functional

from worker.models import piecewise_loss
from worker.models.piecewise_loss import piecewise_cross_entropy


@pytest.mark.parametrize("rows_each", [1, 3, 7, 100])
def test_pieces_of_any_size_give_the_loss_and_the_gradient_of_the_whole(
    rows_each: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(piecewise_loss, "PIECE_ELEMENTS", rows_each * 11)
    generator = torch.Generator().manual_seed(2)
    logits = (5 * torch.randn(17, 11, generator=generator)).requires_grad_()
    targets = torch.randint(11, (17,), generator=generator)
    whole = functional.cross_entropy(logits, targets)
    (expected,) = torch.autograd.grad(3 * whole, logits)
    found = piecewise_cross_entropy(logits, targets)
    (gradient,) = torch.autograd.grad(3 * found, logits)
    assert torch.allclose(found, whole, rtol=1e-6, atol=0)
    assert torch.allclose(gradient, expected, rtol=0, atol=1e-7)


def test_bf16_logits_give_a_bf16_gradient_of_their_fp32_loss() -> None:
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(6, 9, generator=generator).bfloat16().requires_grad_()
    targets = torch.randint(9, (6,), generator=generator)
    found = piecewise_cross_entropy(logits, targets)
    (gradient,) = torch.autograd.grad(found, logits)
    exact = logits.detach().float().requires_grad_()
    (expected,) = torch.autograd.grad(functional.cross_entropy(exact, targets), exact)
    assert (found.dtype, gradient.dtype) == (torch.float32, torch.bfloat16)
    assert torch.allclose(gradient.float(), expected, rtol=1e-2, atol=1e-4)
