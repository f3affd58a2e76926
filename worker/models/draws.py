"""Random draws of a model's initial parameters, of large tensors on all cores.

The first `BLOCK` numbers of a tensor come from PyTorch's generator, one tensor after the other as the library draws
them. The numbers beyond come in blocks, each from a generator of its own, whose seed follows from the run's, from how
many large tensors were drawn before and from the block's place. So the values depend neither on the number of threads
nor on the device, and a model of small tensors has those that PyTorch alone gives.
"""

import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from pelago.core.prng import derive

BLOCK: Final = 1 << 20
"""Elements that are drawn in one go."""
_DRAWS: Final = (torch.ops.aten.normal_.default, torch.ops.aten.uniform_.default)
"""What initialisations are made of; the Xavier, Kaiming and truncated ones too."""


class BlockDraws(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While it is entered, draws on the CPU are made as above. ``seed``: of the run."""

    def __init__(self, seed: int, threads: int | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._seed = seed
        self._number = 0
        self._threads = threads or len(os.sched_getaffinity(0))

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Perform an operation of PyTorch."""
        named = dict(kwargs or {})
        target: Any = args[0] if args else None
        if func not in _DRAWS or not _is_large(target) or named.get("generator") is not None:
            return func(*args, **named)
        self._number += 1
        first, *others = torch.split(target.view(-1), BLOCK)
        func(first, *args[1:], **named)
        named.pop("generator", None)

        def draw(place: int) -> None:
            generator = torch.Generator()
            generator.manual_seed(derive("draw", self._seed, self._number, place))
            func(others[place], *args[1:], generator=generator, **named)

        with ThreadPoolExecutor(self._threads) as pool:
            list(pool.map(draw, range(len(others))))
        return target


def _is_large(target: Any) -> bool:
    return (
        isinstance(target, torch.Tensor)
        and target.device.type == "cpu"
        and target.numel() > BLOCK
        and target.is_contiguous()
    )
