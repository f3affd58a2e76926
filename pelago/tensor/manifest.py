"""The layout of a model's flat arena: names, shapes, offsets, and the chunks in which it travels.

The arena is all tensors of the model, flattened and concatenated in the manifest's order. A chunk
is a run of elements inside one tensor, so that any holder of a tensor can send its chunks alone.
"""

import hashlib
import json
import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Final, NamedTuple

from pelago.wire.messages import CHUNK_BYTES_MAX, TensorSpec

if TYPE_CHECKING:
    import torch

ELEMENT_BYTES: Final = 4
"""Bytes of a parameter in a node's memory: fp32. On the wire the encoding of a payload says the size."""
CHUNK_BYTES: Final = 1 << 20
"""Small enough that a chunk stays in the second-level cache between checksum, norm and step; large
enough that the cost per chunk does not matter."""
MODEL_BYTES_MAX: Final = 4 << 40
DIMENSIONS_MAX: Final = 16


class Piece(NamedTuple):
    """Elements start <= i < stop of the flat arena."""

    start: int
    stop: int


@dataclass(frozen=True)
class Manifest:
    """Names and shapes of a model's tensors, in the order in which they lie in the arena.

    A shape of () is a scalar. Two nodes can exchange chunks only if their manifests agree on
    everything here, ``chunk_bytes`` (per fp32 chunk) included. Raises `ValueError` if the specs cannot be
    those of a model: there are none, a name is empty or occurs twice, a dimension is below 1, or a limit
    is exceeded.
    """

    specs: tuple[TensorSpec, ...]
    chunk_bytes: int = CHUNK_BYTES

    def __post_init__(self) -> None:
        if not ELEMENT_BYTES <= self.chunk_bytes <= CHUNK_BYTES_MAX:
            raise ValueError(
                f"chunk_bytes = {self.chunk_bytes}: must be {ELEMENT_BYTES} to {CHUNK_BYTES_MAX}"
            )
        if not self.specs:
            raise ValueError("a model has at least one tensor")
        names: set[str] = set()
        for spec in self.specs:
            if not spec.name or spec.name in names:
                raise ValueError(f"tensor name {spec.name!r}: must be unique and not empty")
            names.add(spec.name)
            if len(spec.shape) > DIMENSIONS_MAX:
                raise ValueError(f"{spec.name!r} has more than {DIMENSIONS_MAX} dimensions")
            if any(dimension < 1 for dimension in spec.shape):
                raise ValueError(f"shape {spec.shape} of {spec.name!r}: must be positive")
        if self.bytes > MODEL_BYTES_MAX:
            raise ValueError(f"the model has more than {MODEL_BYTES_MAX} bytes")

    @cached_property
    def numel(self) -> int:
        """Elements of the arena."""
        return self.offsets[-1]

    @property
    def bytes(self) -> int:
        """Bytes of the arena in memory, in fp32."""
        return self.numel * ELEMENT_BYTES

    @cached_property
    def offsets(self) -> tuple[int, ...]:
        """First element of each tensor in the arena, and behind them the arena's end."""
        ends = [0]
        for spec in self.specs:
            ends.append(ends[-1] + math.prod(spec.shape))
        return tuple(ends)

    @cached_property
    def fingerprint(self) -> str:
        """The model's identity: 32 hexadecimal digits of SHA-256 over names, shapes, order, dtype."""
        tensors = [[spec.name, spec.shape] for spec in self.specs]
        canonical = {"dtype": "float32", "tensors": tensors}
        text = json.dumps(canonical, separators=(",", ":"), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:32]

    @cached_property
    def chunks(self) -> tuple[Piece, ...]:
        """The arena in order, in pieces of at most ``chunk_bytes``, none across two tensors."""
        step = self.chunk_bytes // ELEMENT_BYTES
        return tuple(
            Piece(start, min(start + step, stop))
            for begin, stop in zip(self.offsets, self.offsets[1:], strict=False)
            for start in range(begin, stop, step)
        )

    def named_views(self, flat: "torch.Tensor") -> "dict[str, torch.Tensor]":
        """Each tensor, in its shape, as a view of ``flat`` (shape [numel], any dtype or device)."""
        assert flat.shape == (self.numel,), f"{tuple(flat.shape)} is not the arena of {self.numel}"
        return {
            spec.name: flat[start : start + math.prod(spec.shape)].view(spec.shape)
            for spec, start in zip(self.specs, self.offsets, strict=False)
        }
