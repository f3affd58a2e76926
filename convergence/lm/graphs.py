"""Steps of many replicas as CUDA graphs: one launch for the several hundred kernels of a step.

Small models are bound by the launch of kernels, not by their work. A graph is recorded once for every
number of rows (rounded up to a few sizes) and batch, and replayed for every step after that. Unused rows,
and rows whose job has ended, take part but are not `alive`: they do not change.
"""

from dataclasses import dataclass
from typing import Any, Final

import torch

from convergence.lm.optimiser import Moments, StackedOptimiser
from convergence.lm.stacked import Stacked

WARM_UPS: Final = 3
"""Steps before a recording, in which libraries allocate what they need."""


def padded(rows: int) -> int:
    """The next of 1, 2, 4, 8, 16, 24, 32, 48, 64, 96, ...: few sizes, since each costs a recording."""
    size = 1
    while size < rows:
        if size >= 16 and 3 * size // 2 >= rows:
            return 3 * size // 2
        size *= 2
    return size


@dataclass(slots=True)
class _Recording:
    """A graph and the tensors that it reads and writes."""

    graph: Any
    flat: torch.Tensor
    grad: torch.Tensor
    """Kept, since the graph writes to its memory for as long as it is replayed."""
    moments: Moments
    windows: torch.Tensor
    rates: torch.Tensor
    alive: torch.Tensor
    losses: torch.Tensor


class Graphs:
    """All recordings for one model, optimiser and corpus on one device."""

    def __init__(
        self, stacked: Stacked, optimiser: StackedOptimiser, tokens: torch.Tensor, length: int
    ) -> None:
        """``tokens``: the whole training part on the device. ``length``: of a sequence."""
        self._stacked, self._optimiser, self._tokens = stacked, optimiser, tokens
        self._length = length
        self._offsets = torch.arange(length + 1, device=tokens.device)
        # Graphs are replayed one at a time and keep nothing in their scratch memory, so they share it.
        self._pool = torch.cuda.graph_pool_handle()
        self._recordings: dict[tuple[int, int, int], _Recording] = {}

    def train(
        self,
        flat: torch.Tensor,
        moments: Moments,
        windows: torch.Tensor,
        rates: torch.Tensor,
        alive: torch.Tensor,
        micro: int,
    ) -> torch.Tensor:
        """Train R rows for S steps, ``flat`` and ``moments`` in place; the losses, [S, R].

        ``windows``: int64, [S, R, batch]. ``rates``: [S, R, 1]. ``alive``: bool, [S, R, 1].
        """
        steps, rows, batch = windows.shape
        key = (padded(rows), batch, micro)
        if key not in self._recordings:
            self._recordings[key] = self._record(*key)
        held = self._recordings[key]
        pairs = [
            (held.flat, flat),
            (held.moments.first, moments.first),
            (held.moments.second, moments.second),
            (held.moments.steps, moments.steps),
        ]
        for inside, outside in pairs:
            inside[:rows].copy_(outside)
        held.alive.zero_()
        losses = torch.empty(steps, rows, device=flat.device)
        for step in range(steps):
            held.windows[:rows].copy_(windows[step])
            held.rates[:rows].copy_(rates[step])
            held.alive[:rows].copy_(alive[step])
            held.graph.replay()
            losses[step].copy_(held.losses[:rows])
        for inside, outside in pairs:
            outside.copy_(inside[:rows])
        return losses * alive.squeeze(2)

    def _record(self, rows: int, batch: int, micro: int) -> _Recording:
        device, elements = self._tokens.device, self._stacked.shape.elements
        flat = torch.zeros(rows, elements, device=device)
        grad = torch.zeros_like(flat)
        moments = Moments(
            torch.zeros_like(flat),
            torch.zeros_like(flat),
            torch.zeros(rows, 1, dtype=torch.float64, device=device),
            torch.zeros_like(flat),
            [],
        )
        windows = torch.zeros(rows, batch, dtype=torch.int64, device=device)
        rates = torch.zeros(rows, 1, device=device)
        alive = torch.zeros(rows, 1, dtype=torch.bool, device=device)
        losses = torch.zeros(rows, device=device)

        def step() -> None:
            first = (windows * self._length).unsqueeze(-1)
            tokens = self._tokens[first + self._offsets].long()
            losses.copy_(self._stacked.gradient(flat, tokens, micro, grad))
            self._optimiser.step(flat, grad, moments, rates, alive)

        # With no row alive a step changes nothing, so warming up has no effect.
        side = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(side):
            for _ in range(WARM_UPS):
                step()
        torch.cuda.current_stream(device).wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            step()
        return _Recording(graph, flat, grad, moments, windows, rates, alive, losses)
