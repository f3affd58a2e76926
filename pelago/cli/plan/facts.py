"""What a plan must know beside the run file: the model's shape, and the accelerators."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from pelago.core.errors import ConfigError

PARAMETER_BYTES: Final = 4
"""Parameters, gradients and what is sent are fp32."""


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """The shape of a model, as its configuration gives it."""

    parameters: int
    active: int
    """Parameters that compute on one token: fewer than all in a mixture of experts."""
    matrix_parameters: int
    """In tensors of at least two dimensions: they are cast to bf16 for a forward pass on a GPU."""
    layers: int
    hidden: int
    intermediate: int
    """Width of the feed-forward layer that a token passes."""
    key_value: int
    """Width of keys, and of values."""
    vocabulary: int

    @property
    def bytes(self) -> int:
        """Of the parameters, in fp32."""
        return PARAMETER_BYTES * self.parameters

    def step_operations(self, tokens: int, length: int) -> float:
        """Floating-point operations of a local step on ``tokens`` tokens in sequences of ``length``.

        6 a parameter and token for the matrix products, forward and backward, and 6 * layers * hidden * length a
        token for causal attention (Chowdhery et al., "PaLM", arXiv 2204.02311, appendix B, halved for the causal
        mask). What checkpointing computes again is not counted: MFU does not count it either.
        """
        return tokens * (6.0 * self.active + 6.0 * self.layers * self.hidden * length)


@dataclass(frozen=True, slots=True)
class Gpu:
    """An accelerator. ``bytes``: its memory. ``operations``: a second, dense bf16, from the vendor's data sheet; 0:
    unknown."""

    name: str
    bytes: int
    operations: float


GPUS: Final[Mapping[str, Gpu]] = MappingProxyType(
    {
        each.name.lower(): each
        for each in (
            Gpu("A100-40", 40 << 30, 312e12),
            Gpu("A100-80", 80 << 30, 312e12),
            Gpu("H100", 80 << 30, 989e12),
            Gpu("H200", 141 * 10**9, 989e12),
            Gpu("B200", 180 * 10**9, 2250e12),
            Gpu("L40S", 48 << 30, 362e12),
            Gpu("RTX4090", 24 << 30, 165e12),
        )
    }
)
"""GPUs by their names in small letters."""


def gpu_named(name: str) -> Gpu:
    """Raises `ConfigError` for one that is not known."""
    found = GPUS.get(name.lower())
    if found is None:
        raise ConfigError(f"--gpu {name}: not known; there are {', '.join(sorted(GPUS))}")
    return found
