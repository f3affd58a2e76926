"""The device that a node computes on, and how much of the machine's memory is free."""

import os
from collections.abc import Mapping
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
"""Folder, limit, use, and the reclaimable part of the use, of a container's memory: control groups 2 and 1."""


def cores() -> int:
    """Processors that this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:
        return os.cpu_count() or 1


def free_bytes(proc: Path = Path("/proc/meminfo"), root: Path = Path("/")) -> int | None:
    """Bytes of memory that a process can still get, from the machine and in its container; None where the
    system does not say.
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
            counts = dict(
                line.split()[:2]
                for line in (folder / "memory.stat").read_text(encoding="ascii").splitlines()
            )
        except (OSError, ValueError):
            continue  # There is no such limit: not this version, or "max".
        free.append(max(0, most - used + int(counts.get(spare, "0"))))
    return min(free) if free else None


def choose(name: str, slot: int = 0) -> torch.device:
    """The device of ``worker.device``: auto | cpu | cuda. Raises `ConfigError` if it is not there.

    ``slot``: the number of this process among those that compute on this machine; they are spread over the
    devices that PyTorch sees (CUDA_VISIBLE_DEVICES). On a CPU the process computes with one thread, since
    several busy processes share the machine, and since sums are bit-equal only if they are not split.
    """
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "cuda" and not count:
        raise ConfigError(
            "worker.device = 'cuda': PyTorch sees no CUDA device here; use 'auto' or 'cpu'"
        )
    index = place(slot, 0 if name == "cpu" else count)
    if index is None:
        torch.set_num_threads(1)
        return torch.device("cpu")
    device = torch.device("cuda", index)
    use(device)
    return device


def place(slot: int, count: int) -> int | None:
    """The device of a process among ``count`` devices, in turn; None: the CPU."""
    return slot % count if count else None


def use(device: torch.device) -> None:
    """Make a device the default of the calling thread, so that no operation uses the first device by mistake."""
    if device.type == "cuda":
        torch.cuda.set_device(device)


def name(device: torch.device) -> str:
    """The device's name in PyTorch, and its model."""
    return f"{device} ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else "cpu"


def described(device: torch.device) -> str:
    """For messages: which device it is, its memory, and how much of it is free."""
    if device.type != "cuda":
        free = free_bytes()
        return "this machine" + ("" if free is None else f" ({free / 1e9:,.1f} GB are free)")
    said = f"{device} ({torch.cuda.get_device_name(device)}"
    try:
        free, total = torch.cuda.mem_get_info(device)
    except RuntimeError:  # The device has failed.
        return f"{said})"
    held = torch.cuda.memory_reserved(device)
    others = max(0, total - free - held)
    return f"{said}, {total / 1e9:,.1f} GB, of which others hold {others / 1e9:,.1f} GB)"


def spread(slots: Mapping[str, int], name: str) -> str:
    """For messages: on which device each process of a machine computes; ``slots``: by its name."""
    count = torch.cuda.device_count() if name != "cpu" and torch.cuda.is_available() else 0
    if not count:
        return f"CPU, one thread for each of {len(slots)} processes"
    kinds = sorted({torch.cuda.get_device_name(index) for index in range(count)})
    return f"{count} x {' and '.join(kinds)}: {assigned(slots, count)}"


def assigned(slots: Mapping[str, int], count: int) -> str:
    """For messages: the processes of each of ``count`` devices."""
    by_device: dict[int, list[str]] = {}
    for each, slot in slots.items():
        by_device.setdefault(slot % count, []).append(each)
    return "; ".join(f"cuda:{i} {', '.join(by_device[i])}" for i in sorted(by_device))
