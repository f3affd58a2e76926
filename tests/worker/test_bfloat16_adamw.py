"""AdamW with moments in bf16 against AdamW in fp32."""

import pytest
import torch

from worker import bfloat16_adamw
from worker.bfloat16_adamw import Bfloat16AdamW, round_stochastically

DEVICES = [
    "cpu",
    pytest.param(
        "cuda",
        marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    ),
]
RATES = {"lr": 0.01, "betas": (0.9, 0.999), "eps": 1e-8}


def parameters(device: str, elements: int = 1000) -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(1)
    return [
        torch.nn.Parameter(torch.randn(size, generator=generator).to(device))
        for size in (elements, 3)
    ]


def groups(held: list[torch.nn.Parameter]) -> list[dict[str, object]]:
    return [{"params": held[:1], "weight_decay": 0.1}, {"params": held[1:], "weight_decay": 0.0}]


def give_gradients(held: list[torch.nn.Parameter], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for each in held:
        each.grad = torch.randn(each.shape, generator=generator).to(each.device)


@pytest.mark.parametrize("device", DEVICES)
def test_a_number_becomes_a_neighbour_and_is_right_on_average(device: str) -> None:
    """1 + 1/128 * 0.3 lies between the bf16 numbers 1 and 1 + 1/128; the standard error of the mean is 0.0014 of the
    distance."""
    generator = torch.Generator(device).manual_seed(3)
    for sign in (1.0, -1.0):
        numbers = torch.full((100_000,), sign * (1.0 + 0.3 / 128), device=device)
        out = torch.empty_like(numbers, dtype=torch.bfloat16)
        round_stochastically(numbers, out, generator)
        assert sorted(set(out.tolist())) == sorted({sign, sign * (1.0 + 1 / 128)})
        share = (out.double().mean().item() * sign - 1.0) * 128
        assert share == pytest.approx(0.3, abs=0.008)


@pytest.mark.parametrize("device", DEVICES)
def test_what_is_a_bf16_number_already_stays(device: str) -> None:
    kept = torch.randn(1000, generator=torch.Generator().manual_seed(4)).bfloat16().to(device)
    out = torch.empty_like(kept)
    round_stochastically(kept.float(), out, torch.Generator(device).manual_seed(5))
    assert torch.equal(out, kept)


@pytest.mark.parametrize("device", DEVICES)
def test_the_first_step_is_that_of_fp32(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Moments are rounded after it. Cut into pieces, it is the same."""
    monkeypatch.setattr(bfloat16_adamw, "PIECE_ELEMENTS", 333)
    ours, theirs = parameters(device), parameters(device)
    give_gradients(ours, 7), give_gradients(theirs, 7)
    Bfloat16AdamW(groups(ours), **RATES).step()
    torch.optim.AdamW(groups(theirs), **RATES, fused=True).step()
    for our, their in zip(ours, theirs, strict=True):
        torch.testing.assert_close(our, their, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("device", DEVICES)
def test_many_steps_stay_near_those_of_fp32_because_rounding_has_no_bias(device: str) -> None:
    """300 steps with gradients that have become a tenth: by rounding to the nearest the second moment, which a step
    changes by a thousandth, would stay what it was."""
    ours, theirs = parameters(device, 20_000), parameters(device, 20_000)
    our, their = (
        Bfloat16AdamW(groups(ours), **RATES),
        torch.optim.AdamW(groups(theirs), **RATES, fused=True),
    )
    for step in range(300):
        for held, optimiser in ((ours, our), (theirs, their)):
            give_gradients(held, step)
            if step > 20:
                for each in held:
                    each.grad.mul_(0.1)
            optimiser.step()
    ours_sq, theirs_sq = our.state[ours[0]]["exp_avg_sq"], their.state[theirs[0]]["exp_avg_sq"]
    assert ours_sq.dtype == torch.bfloat16
    ratio = ours_sq.double().sum() / theirs_sq.double().sum()
    assert ratio.item() == pytest.approx(1.0, abs=0.002)
    moved = theirs[0] - parameters(device, 20_000)[0]
    assert (ours[0] - theirs[0]).norm() < 0.02 * moved.norm()


@pytest.mark.parametrize("device", DEVICES)
def test_a_skipped_step_changes_nothing_and_a_divisor_is_obeyed(device: str) -> None:
    ours, theirs = parameters(device), parameters(device)
    our, their = (Bfloat16AdamW(groups(held), **RATES) for held in (ours, theirs))
    for held, optimiser in ((ours, our), (theirs, their)):
        give_gradients(held, 1)
        optimiser.step()
    before = [each.clone() for each in (*ours, *our.state[ours[0]].values())]
    give_gradients(ours, 2)
    ours[0].grad[5] = float("inf")
    our.found_inf, our.grad_scale = torch.ones((), device=device), torch.ones((), device=device)
    our.step()
    after = (*ours, *our.state[ours[0]].values())
    assert all(map(torch.equal, before, after))
    our.found_inf, our.grad_scale = torch.zeros((), device=device), torch.tensor(4.0).to(device)
    give_gradients(ours, 3), give_gradients(theirs, 3)
    for each in theirs:
        each.grad.div_(4.0)
    our.step(), their.step()
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
    assert our.state[ours[0]]["step"] == 2


@pytest.mark.parametrize("device", DEVICES)
def test_an_optimiser_that_is_loaded_goes_on_to_the_bit(device: str) -> None:
    ours, theirs = parameters(device), parameters(device)
    our, their = (Bfloat16AdamW(groups(held), **RATES) for held in (ours, theirs))
    for step in range(3):
        give_gradients(ours, step)
        our.step()
    with torch.no_grad():
        for one, other in zip(theirs, ours, strict=True):
            one.copy_(other)
    their.load_state_dict(our.state_dict())
    for held, optimiser in ((ours, our), (theirs, their)):
        give_gradients(held, 9)
        optimiser.step()
    for one, other in zip(ours, theirs, strict=True):
        assert torch.equal(one, other)
        assert all(map(torch.equal, our.state[one].values(), their.state[other].values()))
