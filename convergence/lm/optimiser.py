"""AdamW and Muon of many replicas at once, over stacked flat vectors.

AdamW (Loshchilov and Hutter, arXiv 1711.05101) as `worker.trainer` has it: gradients clipped by
their global norm, weight decay on matrices only, and a step whose gradient is not finite is skipped. Each
replica has its own rate, its own clipping factor and its own count of steps, which all stay on the device.

Muon (Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024) for the matrices
inside the blocks: Nesterov momentum, then the nearest orthogonal matrix by Newton-Schulz; the rate is
scaled by 0.2 * sqrt(max(rows, columns)) so that an update is as long as AdamW's (Liu et al., "Muon is
Scalable for LLM Training", arXiv 2502.16982, equation 4). Decay and clipping are the same.
"""

from dataclasses import dataclass
from typing import Final

import torch

from convergence.lm.shape import Shape
from pelago.config.training import WorkerSection

MUON_MOMENTUM: Final = 0.95
NEWTON_SCHULZ_STEPS: Final = 5
NEWTON_SCHULZ: Final = (3.4445, -4.7750, 2.0315)
"""Coefficients of x, x^3, x^5, chosen by Jordan for the steepest slope at 0."""
NORM_MIN: Final = 1e-7


@dataclass(slots=True)
class Moments:
    """The optimiser states of R replicas, in the order in which a batch has them."""

    first: torch.Tensor
    """Mean of gradients, or Muon's momentum, [R, elements]."""
    second: torch.Tensor
    """Mean of squared gradients, [R, elements]; unused where Muon works."""
    steps: torch.Tensor
    """Steps counted so far, [R, 1], float64."""
    scratch: torch.Tensor
    """[R, elements]"""
    rows: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]
    """The states that they were copied from."""

    @classmethod
    def take(cls, rows: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]) -> "Moments":
        """A copy of some replicas' states, which may belong to several optimisers."""
        first, second, steps = (torch.stack(each) for each in zip(*rows, strict=True))
        return cls(first, second, steps, torch.empty_like(first), rows)

    def put(self) -> None:
        """Write the states back to where they came from."""
        for old, new in zip(
            zip(*self.rows, strict=True), (self.first, self.second, self.steps), strict=True
        ):
            torch._foreach_copy_(list(old), list(new.unbind()))


class StackedOptimiser:
    """The optimiser states of all replicas, on the device, and the step."""

    def __init__(
        self, settings: WorkerSection, shape: Shape, replicas: int, device: torch.device
    ) -> None:
        self._settings, self._shape = settings, shape
        self._first = torch.zeros(replicas, shape.elements, device=device)
        self._second = torch.zeros(replicas, shape.elements, device=device)
        self._steps = torch.zeros(replicas, 1, dtype=torch.float64, device=device)
        start, stop = shape.blocks
        self._muon = settings.optimiser == "muon"
        self._segments = [(0, start), (stop, shape.elements)] if self._muon else []
        self._segments = self._segments or [(0, shape.elements)]

    def rows(self, replica: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The state of one replica, as views."""
        return self._first[replica], self._second[replica], self._steps[replica]

    @torch.no_grad()
    def step(
        self,
        flat: torch.Tensor,
        grad: torch.Tensor,
        moments: Moments,
        rates: torch.Tensor,
        alive: torch.Tensor | None = None,
    ) -> None:
        """One step of the first r rows of a batch.

        ``flat``, ``grad``: fp32, [r, elements]; the gradient is used up. ``rates``: the learning
        rates, [r, 1]. A row whose gradient is not finite stays as it is, its moments and count too; so does
        one that is not ``alive``, bool, [r, 1].
        """
        settings, active = self._settings, flat.shape[0]
        norm = torch.linalg.vector_norm(grad, dim=1, keepdim=True)
        fine = norm.isfinite()
        if alive is not None:
            fine = fine & alive
        # Zero times infinity is NaN: such rows are set to 0, and then have no effect.
        factor = (settings.clip_norm / (norm + 1e-6)).clamp_(max=1.0)
        grad.masked_fill_(~fine, 0.0).mul_(torch.where(fine, factor, 0.0))
        weight = fine.to(grad.dtype)
        rates = rates * weight
        flat[:, : self._shape.matrices].mul_(1.0 - rates * settings.weight_decay)
        steps = moments.steps[:active].add_(fine)
        # A row that never had a finite gradient needs no bias correction.
        counts = steps.clamp(min=1.0)
        root = (1.0 - settings.beta2**counts).sqrt_()
        pace = (rates * root / (1.0 - settings.beta1**counts)).to(grad.dtype)
        epsilon = (settings.epsilon * root).to(grad.dtype)
        for start, stop in self._segments:
            part = slice(start, stop)
            g, scratch = grad[:, part], moments.scratch[:active, part]
            first, second = moments.first[:active, part], moments.second[:active, part]
            first.lerp_(g, weight * (1.0 - settings.beta1))
            second.lerp_(g.square_(), weight * (1.0 - settings.beta2))
            # m / bc1 / (sqrt(v / bc2) + eps), with both corrections moved into the rate.
            torch.sqrt(second, out=scratch).add_(epsilon)
            flat[:, part].addcmul_(torch.div(first, scratch, out=scratch), pace, value=-1.0)
        if self._muon:
            self._muon_step(flat, grad, moments.first[:active], weight, rates)

    def _muon_step(
        self,
        flat: torch.Tensor,
        grad: torch.Tensor,
        momentum: torch.Tensor,
        weight: torch.Tensor,
        rates: torch.Tensor,
    ) -> None:
        """Step the matrices inside the blocks; decay has been applied."""
        blocks = slice(*self._shape.blocks)
        momentum[:, blocks].lerp_(grad[:, blocks], weight * (1.0 - MUON_MOMENTUM))
        grad[:, blocks].lerp_(momentum[:, blocks], MUON_MOMENTUM)
        groups: dict[tuple[int, int], list[tuple[torch.Tensor, torch.Tensor]]] = {}
        for update, matrix in zip(self._matrices(grad), self._matrices(flat), strict=True):
            # Wide ones, so that the products inside the iteration are small.
            if update.shape[2] > update.shape[3]:
                update, matrix = update.mT, matrix.mT
            groups.setdefault((update.shape[2], update.shape[3]), []).append((update, matrix))
        for (_, columns), members in groups.items():
            stack = torch.cat([update for update, _ in members], dim=1)
            found = orthogonal(stack.flatten(0, 1)).view(stack.shape)
            scale = (rates * (0.2 * columns**0.5)).view(-1, 1, 1, 1)
            pieces = torch.split(found, [update.shape[1] for update, _ in members], dim=1)
            for piece, (_, matrix) in zip(pieces, members, strict=True):
                matrix.addcmul_(piece, scale, value=-1.0)

    def _matrices(self, flat: torch.Tensor) -> list[torch.Tensor]:
        """The matrices inside the blocks, each [r, layers, rows, columns], as views."""
        shape, views = self._shape, self._shape.views(flat)
        inner = shape.kv_heads * shape.head
        return [
            *torch.split(views.qkv, [shape.heads * shape.head, inner, inner], dim=2),
            views.out,
            *torch.split(views.gate_up, shape.intermediate, dim=2),
            views.down,
        ]


def orthogonal(matrices: torch.Tensor) -> torch.Tensor:
    """About U V^T for each U S V^T in ``matrices``, [n, rows, columns] with rows <= columns.

    Five steps of a quintic Newton-Schulz iteration, x <- a x + (b x x^T + c (x x^T)^2) x, after
    division by the Frobenius norm; singular values end between 0.7 and 1.2.
    """
    a, b, c = NEWTON_SCHULZ
    norm = torch.linalg.vector_norm(matrices, dim=(1, 2), keepdim=True)
    x: torch.Tensor = matrices / norm.clamp_(min=NORM_MIN)
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = torch.bmm(x, x.mT)
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x
