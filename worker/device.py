"""The processor that a node computes on, and what is free of the machine's memory."""

import os
from pathlib import Path
from typing import Final

import torch

from pelago.core.errors import ConfigError

CGROUPS: Final = (
    ("/sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"),
    (
        "/sys/fs/cgroup/memory",
        "memory.limit_in_bytes",
        "memory.usage_in_bytes",
        "total_inactive_file",
    ),
)
"""Where a container's limit and use of memory are, and what of the use can be given up; versions 2 and 1."""


def cores() -> int:
    """Processors that this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:
        return os.cpu_count() or 1


def free_bytes(proc: Path = Path("/proc/meminfo"), root: Path = Path("/")) -> int | None:
    """Memory that a process can still have here, of the machine and of its container; None where the
    system does not tell.
    """
    free = []
    try:
        lines = proc.read_text(encoding="ascii").splitlines()
        free += [int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:")]
    except (OSError, ValueError, IndexError):
        pass
    for place, limit, use, spare in CGROUPS:
        folder = root / place[1:]
        try:
            most = int((folder / limit).read_text(encoding="ascii"))
            used = int((folder / use).read_text(encoding="ascii"))
            facts = dict(
                line.split()[:2]
                for line in (folder / "memory.stat").read_text(encoding="ascii").splitlines()
            )
        except (OSError, ValueError):
            continue  # There is no such limit: not this version, or "max".
        free.append(max(0, most - used + int(facts.get(spare, "0"))))
    return min(free) if free else None


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
