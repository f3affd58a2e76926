"""The processor that a node computes on."""

import torch

from pelago.core.errors import ConfigError


def choose(name: str) -> torch.device:
    """The device of ``worker.device``: auto | cpu | cuda. Raises `ConfigError` if it is not there.

    On a CPU this process then computes with one thread: several busy processes share the machine,
    and sums come out bit-equal only if nothing splits them.
    """
    present = torch.cuda.is_available()
    if name == "cuda" and not present:
        raise ConfigError(
            "worker.device = 'cuda': PyTorch sees no CUDA device here; use 'auto' or 'cpu'"
        )
    if name == "cpu" or not present:
        torch.set_num_threads(1)
        return torch.device("cpu")
    return torch.device("cuda", torch.cuda.current_device())
