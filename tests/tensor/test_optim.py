"""Delayed Nesterov and merge against published values, torch, closed forms and plain Python."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pelago.tensor import optim
from pelago.tensor.optim import DelayedNesterov, merge

settings_of_dn = st.builds(
    DelayedNesterov,
    lr=st.floats(0.01, 4),
    momentum=st.sampled_from([0.0, 0.5, 0.9]),
    delay=st.integers(1, 5),
    activation=st.sampled_from([0.0, 0.25, 1.0]),
)


def trajectory(outer, gradients, weights=None):
    """Parameters after each step of the scalar problem that starts at 0, in float64."""
    parameters = torch.zeros(1, dtype=torch.float64)
    state = outer.init(1, torch.float64)
    seen = []
    for gradient, weight in zip(gradients, weights or [1.0] * len(gradients), strict=True):
        outer.step(parameters, torch.tensor([gradient], dtype=torch.float64), state, weight)
        seen.append(float(parameters))
    assert state.counter == len(seen)
    return seen


def algorithm_3(outer, gradients):
    """The same in plain Python, line by line as in the paper."""
    lr, beta, d, c = outer.lr, outer.momentum, outer.delay, outer.activation
    th = m = accumulated = 0.0
    seen = []
    for t, g in enumerate(gradients):
        accumulated = accumulated + g
        if (t + 1) % d == 0:
            m = beta * m + accumulated / d
            th = th - lr * ((1 - c * d + c) * beta * m + g / d)
            accumulated = 0.0
        else:
            th = th - lr * (c * beta * m + g / d)
        seen.append(th)
    return seen


def random_steps(outer, numel, steps, step):
    """Run ``step(parameters, gradient, state)`` on seeded fp32 gradients; parameters and state."""
    generator = torch.Generator().manual_seed(5)
    parameters = torch.rand(numel, generator=generator) - 0.5
    state = outer.init(numel, torch.float32)
    for _ in range(steps):
        step(parameters, torch.rand(numel, generator=generator) - 0.5, state)
    return parameters, state


def same_bits(one, other):
    return one.numpy().tobytes() == other.numpy().tobytes()


# --- values of the paper -------------------------------------------------------------------------


def test_unit_values_of_the_global_server():
    outer = DelayedNesterov.from_eta(0.15, 0.5, 2)
    expected = [-0.15, -0.45, -0.6, -0.975, -1.125, -1.5375]
    assert trajectory(outer, [1.0] * 6) == pytest.approx(expected, rel=0, abs=1e-12)


def test_unit_values_of_growing_gradients():
    outer = DelayedNesterov(0.3, 0.5, 2)
    expected = [-0.15, -0.675, -1.125, -2.3625]
    assert trajectory(outer, [1.0, 2.0, 3.0, 4.0]) == pytest.approx(expected, rel=0, abs=1e-12)


def test_unit_values_of_a_local_server():
    seen = trajectory(DelayedNesterov.from_eta(0.2, 0.9, 16), [1.0] * 32)
    found = [seen[t - 1] for t in (1, 15, 16, 17, 32)]
    assert found == pytest.approx([-0.2, -3.0, -6.08, -6.28, -14.752], rel=0, abs=1e-12)


def test_from_eta_multiplies_by_the_delay():
    assert DelayedNesterov.from_eta(0.2, 0.9, 16, 0.5) == DelayedNesterov(3.2, 0.9, 16, 0.5)


@given(outer=settings_of_dn, gradients=st.lists(st.floats(-10, 10), min_size=1, max_size=20))
def test_every_setting_follows_algorithm_3(outer, gradients):
    expected = algorithm_3(outer, gradients)
    assert trajectory(outer, gradients) == pytest.approx(expected, rel=1e-12, abs=1e-11)


@given(
    outer=settings_of_dn, pairs=st.lists(st.tuples(st.floats(-9, 9), st.floats(0, 2)), max_size=9)
)
def test_a_weight_scales_the_gradient(outer, pairs):
    gradients, weights = [g for g, _ in pairs], [w for _, w in pairs]
    scaled = trajectory(outer, [g * w for g, w in pairs])
    assert trajectory(outer, gradients, weights) == pytest.approx(scaled, rel=1e-12, abs=1e-11)


# --- closed forms and torch.optim ----------------------------------------------------------------


@pytest.mark.parametrize("momentum", [0.5, 0.9])
def test_delay_one_is_nesterov_of_torch(momentum):
    generator = torch.Generator().manual_seed(1)
    ours = torch.rand(1000, dtype=torch.float64, generator=generator)
    theirs = torch.nn.Parameter(ours.clone())
    outer = DelayedNesterov(0.7, momentum, 1)
    state = outer.init(1000, torch.float64)
    sgd = torch.optim.SGD([theirs], lr=0.7, momentum=momentum, nesterov=True)
    for _ in range(30):
        gradient = torch.rand(1000, dtype=torch.float64, generator=generator) - 0.5
        outer.step(ours, gradient, state)
        theirs.grad = gradient
        sgd.step()
        torch.testing.assert_close(ours, theirs.detach(), rtol=1e-13, atol=1e-13)


def test_without_momentum_it_is_sgd_of_torch_to_the_last_bit():
    generator = torch.Generator().manual_seed(2)
    ours = torch.rand(1000, generator=generator)
    theirs = torch.nn.Parameter(ours.clone())
    outer = DelayedNesterov.from_eta(0.25, 0.0, 4)
    state = outer.init(1000, torch.float32)
    sgd = torch.optim.SGD([theirs], lr=0.25)
    for _ in range(9):
        gradient = torch.rand(1000, generator=generator) - 0.5
        outer.step(ours, gradient, state)
        theirs.grad = gradient
        sgd.step()
        assert same_bits(ours, theirs.detach())


def test_constant_gradients_have_a_closed_form():
    """After n periods of g = 1: m = (1 - beta**n)/(1 - beta), th = -lr*(n + beta * sum of m)."""
    lr, beta, delay, periods = 0.8, 0.9, 4, 25
    momenta = [(1 - beta**n) / (1 - beta) for n in range(1, periods + 1)]
    expected = -lr * (periods + beta * sum(momenta))
    seen = trajectory(DelayedNesterov(lr, beta, delay), [1.0] * (delay * periods))
    assert seen[-1] == pytest.approx(expected, rel=1e-12)


@given(st.lists(st.floats(-5, 5), min_size=3, max_size=3), st.integers(1, 4))
def test_a_period_is_one_nesterov_step_on_the_mean(gradients, periods):
    delayed = trajectory(DelayedNesterov(0.9, 0.5, 3), gradients * periods)
    whole = trajectory(DelayedNesterov(0.9, 0.5, 1), [sum(gradients) / 3] * periods)
    assert delayed[2::3] == pytest.approx(whole, rel=1e-12, abs=1e-12)


# --- pieces, state and memory --------------------------------------------------------------------


@pytest.mark.parametrize("delay", [1, 3])
@pytest.mark.parametrize("weight", [1.0, 0.3])
@settings(max_examples=10)
@given(cuts=st.lists(st.integers(1, 1999), max_size=6))
def test_pieces_give_the_bits_of_the_whole(delay, weight, cuts):
    outer = DelayedNesterov(0.37, 0.9, delay, 0.1)
    edges = [0, *sorted(set(cuts)), 2000]

    def in_pieces(parameters, gradient, state):
        factors = outer.factors(state.counter)
        for start, stop in pairwise(edges):
            span, slots = slice(start, stop), state.piece(start, stop)
            outer.step_piece(parameters[span], gradient[span], slots, factors, weight)
        state.counter += 1

    def at_once(parameters, gradient, state):
        outer.step(parameters, gradient, state, weight)

    pieces, pieces_state = random_steps(outer, 2000, 7, in_pieces)
    whole, whole_state = random_steps(outer, 2000, 7, at_once)
    assert same_bits(pieces, whole)
    assert same_bits(pieces_state.momentum, whole_state.momentum)
    assert pieces_state.counter == whole_state.counter == 7


def test_blocks_give_the_bits_of_the_whole(monkeypatch):
    outer = DelayedNesterov(0.37, 0.9, 2)
    whole, _ = random_steps(outer, 1003, 5, outer.step)
    monkeypatch.setattr(optim, "BLOCK_ELEMENTS", 64)
    blocks, _ = random_steps(outer, 1003, 5, outer.step)
    assert same_bits(blocks, whole)


def test_a_step_into_other_memory_gives_the_same_bits_and_leaves_the_old_ones():
    outer = DelayedNesterov(0.37, 0.9, 2)
    expected, _ = random_steps(outer, 100, 4, outer.step)

    def elsewhere(parameters, gradient, state):
        before, new = parameters.clone(), torch.empty_like(parameters)
        factors, slots = outer.factors(state.counter), state.piece(0, 100)
        outer.step_piece(parameters, gradient, slots, factors, out=new)
        state.counter += 1
        assert same_bits(parameters, before)
        parameters.copy_(new)

    found, _ = random_steps(outer, 100, 4, elsewhere)
    assert same_bits(found, expected)


def test_delay_one_skips_the_accumulator_and_changes_no_bit():
    outer = DelayedNesterov(0.7, 0.9, 1)
    short, state = random_steps(outer, 500, 6, outer.step)
    assert state.accumulator is None

    def with_accumulator(parameters, gradient, state):
        if state.accumulator is None:
            state.accumulator = torch.zeros(500)
        outer.step(parameters, gradient, state)

    long, _ = random_steps(outer, 500, 6, with_accumulator)
    assert same_bits(short, long)


def test_without_momentum_no_state_is_kept():
    state = DelayedNesterov(0.5, 0.0, 8).init(10, torch.float32)
    assert (state.momentum, state.accumulator, state.counter) == (None, None, 0)


@pytest.mark.parametrize(
    "wrong",
    [
        (0.0, 0.5, 1, 0.0),
        (1.0, 1.0, 1, 0.0),
        (1.0, -0.1, 1, 0.0),
        (1.0, 0.5, 0, 0.0),
        (1, 0.5, 1, 2),
    ],
)
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(ValueError, match="must be"):
        DelayedNesterov(*wrong)


# --- merge ---------------------------------------------------------------------------------------


@given(weight=st.floats(0, 1), ours=st.floats(-5, 5), theirs=st.floats(-5, 5))
def test_merge_is_the_weighted_mean(weight, ours, theirs):
    model = torch.tensor([ours], dtype=torch.float64)
    merge(model, torch.tensor([theirs], dtype=torch.float64), weight)
    assert float(model) == pytest.approx((1 - weight) * ours + weight * theirs, abs=1e-14)


def test_merge_at_the_ends_takes_one_side_exactly():
    ours, theirs = torch.rand(100), torch.rand(100)
    model = ours.clone()
    merge(model, theirs, 0.0)
    assert same_bits(model, ours)
    merge(model, theirs, 1.0)
    assert same_bits(model, theirs)


def test_merge_in_blocks_gives_the_bits_of_the_whole(monkeypatch):
    ours, theirs, new = torch.rand(1003), torch.rand(1003), torch.empty(1003)
    whole = ours.clone()
    merge(whole, theirs, 0.3)
    monkeypatch.setattr(optim, "BLOCK_ELEMENTS", 64)
    merge(ours, theirs, 0.3, out=new)
    assert same_bits(new, whole)
