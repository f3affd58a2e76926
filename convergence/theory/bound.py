"""A convergence bound for every lossless method of the simulator.

Derived in docs/THEORY.md, whose names this module uses. In short: gradient j of N is computed at

    y_j = x_0 - sum_i W_ji g_i

with coefficients W that a run's course fixes (`convergence.theory.coefficients`), and has in the end the gain w_j in
every model. With the virtual sequence z_j = x_0 - sum_{i<j} w_i g_i and the deviation D_ji = W_ji - w_i
(i < j), for f with an L-Lipschitz gradient, gap = f(x_0) - f* and noise of variance s_j^2 at most,

    t^2 = sum_j w_j E|grad f(y_j)|^2    satisfies    m t^2 - L nu t <= gap + L/2 sum_j w_j^2 s_j^2,

    m = 1 - L max_j w_j / 2 - L rho,    rho = |diag(w)^(1/2) D diag(w)^(-1/2)|_2,
    nu^2 = sum_j w_j sum_i D_ji^2 s_i^2,

and any other sequence of models, with coefficients X, has (rho', nu' from X - W in the place of D)

    (sum_j w_j E|grad f(x_j)|^2)^(1/2) <= (1 + L rho') t + L nu'.
"""

from dataclasses import dataclass
from math import isfinite, sqrt
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from convergence.theory.coefficients import Course

Matrix = NDArray[np.float64]
Vector = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Statistics:
    """Figures of a run that the bound needs. ``gain_total`` and ``gain_max`` have the unit of a rate."""

    gradients: int
    """N"""
    gain_total: float
    """sum_j w_j"""
    gain_max: float
    """max_j w_j"""
    noise: float
    """sum_j w_j^2 s_j^2"""
    lag: float
    """rho: how far the points of the gradients are from the virtual sequence, at the most."""
    lag_noise: float
    """nu"""
    offset: float
    """rho' of the GPS's models."""
    offset_noise: float
    """nu' of the GPS's models."""

    def __post_init__(self) -> None:
        for name in ("gain_total", "gain_max"):
            if not (isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise ValueError(f"{name} = {getattr(self, name)}: must be finite and above 0")
        for name in ("noise", "lag", "lag_noise", "offset", "offset_noise"):
            if not (isfinite(getattr(self, name)) and getattr(self, name) >= 0):
                raise ValueError(f"{name} = {getattr(self, name)}: must be finite and at least 0")

    @property
    def lag_gradients(self) -> float:
        """rho / mean w: the effective delay, counted in gradients of the whole cluster."""
        return self.lag * self.gradients / self.gain_total


@dataclass(frozen=True, slots=True)
class Conditions:
    """Whether the theorem applies."""

    margin: float
    """m = 1 - L (max w / 2 + rho); the theorem needs m > 0."""
    rate_factor_max: float
    """The factor on all learning rates at which m is 0: 1 / (L (max w / 2 + rho))."""

    @property
    def hold(self) -> bool:
        """m > 0."""
        return self.margin > 0


@dataclass(frozen=True, slots=True)
class Bound:
    """Bounds of averages of E|grad f|^2 with the weights w_j / sum w."""

    points: float
    """Over the points y_j at which gradients are computed."""
    global_models: float
    """Over the GPS's models: of each j the model that is current when gradient j begins."""


def statistics(found: "Course", variances: Vector) -> Statistics:
    """The statistics of a course. ``variances``: s_j^2, the bound on E|noise of g_j|^2, shape [N].

    Raises `ValueError` as `spread` does.
    """
    gains = found.gains
    # Gradients at or after j are in nothing that is compared with z_j, so D is strictly triangular.
    lag, lag_noise = spread(
        gains, found.points - np.tril(np.tile(gains, (len(gains), 1)), -1), variances
    )
    offset, offset_noise = spread(gains, found.global_models - found.points, variances)
    return Statistics(
        gradients=len(gains),
        gain_total=float(gains.sum()),
        gain_max=float(gains.max()),
        noise=float(gains**2 @ variances),
        lag=lag,
        lag_noise=lag_noise,
        offset=offset,
        offset_noise=offset_noise,
    )


def scaled(found: Statistics, factor: float) -> Statistics:
    """The statistics of the same course with all learning rates ``factor`` times as large.

    Coefficients are proportional to the rates. Raises `ValueError` unless ``factor`` is above 0.
    """
    if not (isfinite(factor) and factor > 0):
        raise ValueError(f"factor = {factor}: must be finite and above 0")
    return Statistics(
        gradients=found.gradients,
        gain_total=found.gain_total * factor,
        gain_max=found.gain_max * factor,
        noise=found.noise * factor**2,
        lag=found.lag * factor,
        lag_noise=found.lag_noise * factor**1.5,
        offset=found.offset * factor,
        offset_noise=found.offset_noise * factor**1.5,
    )


def spread(gains: Vector, difference: Matrix, variances: Vector) -> tuple[float, float]:
    """(rho, nu) of sum_i difference[j, i] g_i in the norm |u|^2 = sum_j w_j |u_j|^2.

    Shapes [N], [N, N], [N]. rho = |diag(w)^(1/2) difference diag(w)^(-1/2)|_2, to rounding, and
    nu^2 = sum_j w_j sum_i difference_ji^2 s_i^2. Raises `ValueError` for gains that are not above 0, a
    difference of another shape, variances that are not N numbers >= 0.
    """
    if gains.ndim != 1 or not len(gains) or not (gains > 0).all():
        raise ValueError(f"gains: must be numbers above 0, got {gains!r}")
    if difference.shape != (len(gains), len(gains)):
        raise ValueError(f"difference: must be {len(gains)} x {len(gains)}, is {difference.shape}")
    if variances.shape != gains.shape or not (variances >= 0).all():
        raise ValueError(f"variances: must be {len(gains)} numbers >= 0, got {variances!r}")
    roots = np.sqrt(gains)
    scaled = roots[:, None] * difference / roots
    # The largest singular value from the Gram matrix: several times faster than all of them.
    rho = sqrt(max(0.0, float(np.linalg.eigvalsh(scaled.T @ scaled)[-1])))
    return rho, sqrt(float(gains @ (difference**2 @ variances)))


def conditions(smoothness: float, found: Statistics) -> Conditions:
    """m, and the largest factor on the rates. Raises `ValueError` unless ``smoothness`` (L) is above 0."""
    if not (isfinite(smoothness) and smoothness > 0):
        raise ValueError(f"smoothness = {smoothness}: must be finite and above 0")
    load = smoothness * (found.gain_max / 2 + found.lag)
    return Conditions(1 - load, 1 / load)


def bound(smoothness: float, gap: float, found: Statistics) -> Bound:
    """The theorem. ``smoothness``: L; ``gap``: f(x_0) - f*.

    The greater root of m t^2 - L nu t = gap + L/2 sum w^2 s^2, squared and divided by sum w; for the
    GPS's models ((1 + L rho') t + L nu')^2 / sum w. Raises `ValueError` for arguments out of range, and
    where m <= 0, so that there is no bound.
    """
    if not (isfinite(gap) and gap >= 0):
        raise ValueError(f"gap = {gap}: must be finite and at least 0")
    margin = conditions(smoothness, found).margin
    if margin <= 0:
        raise ValueError(f"found: 1 - L (max w / 2 + rho) = {margin:.3g}, must be above 0")
    linear = smoothness * found.lag_noise
    constant = gap + smoothness / 2 * found.noise
    root = (linear + sqrt(linear**2 + 4 * margin * constant)) / (2 * margin)
    other = (1 + smoothness * found.offset) * root + smoothness * found.offset_noise
    return Bound(root**2 / found.gain_total, other**2 / found.gain_total)


def lag_estimate(
    regions: int,
    units: float,
    steps: float,
    updates: float,
    in_flight: float,
    merge_weight: float,
    lps: tuple[float, int],
    gps: tuple[float, int],
) -> float:
    """The effective delay, in gradients, of a balanced two-level cluster; a rule, not part of the theorem.

        H R (u + delta_l + F + C/alpha + delta_g C/R),    delta(beta, d) = beta (d-1)/2 + d beta^2/(1-beta)

    R regions, u units (workers or groups) in each, H steps a round, C = K + F updates from merge to merge,
    F of them while an exchange is in flight; (beta, d) of each server. Raises `ValueError` unless
    0 < merge_weight <= 1.
    """
    if not 0 < merge_weight <= 1:
        raise ValueError(f"merge_weight = {merge_weight}: must be above 0, at most 1")

    def momentum(beta: float, delay: int) -> float:
        return beta * (delay - 1) / 2 + delay * beta**2 / (1 - beta)

    cycle = updates + in_flight
    return (
        steps
        * regions
        * (
            units
            + momentum(*lps)
            + in_flight
            + cycle / merge_weight
            + momentum(*gps) * cycle / regions
        )
    )
