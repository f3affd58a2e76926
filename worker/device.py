"""The processor that a node computes on, and what is free of the machine's memory."""

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


def choose(name: str, slot: int = 0) -> torch.device:
    """The device of ``worker.device``: auto | cpu | cuda. Raises `ConfigError` if it is not there.

    ``slot``: which of this machine's processes that compute this one is; they are spread over the
    devices that PyTorch sees (CUDA_VISIBLE_DEVICES). On a CPU this process then computes with one thread:
    several busy processes share the machine, and sums come out bit-equal only if nothing splits them.
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
    """The device of a process, of so many; None: the CPU. One after the other, and around again."""
    return slot % count if count else None


def use(device: torch.device) -> None:
    """Make it the calling thread's own: what names no device must not begin to use the first one."""
    if device.type == "cuda":
        torch.cuda.set_device(device)


def told(device: torch.device) -> str:
    """Its name, with what it is."""
    return f"{device} ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else "cpu"


def described(device: torch.device) -> str:
    """For people: which it is, and what memory it has and has free."""
    if device.type != "cuda":
        free = free_bytes()
        return "this machine" + ("" if free is None else f" ({free / 1e9:,.1f} GB are free)")
    said = f"{device} ({torch.cuda.get_device_name(device)}"
    try:
        free, total = torch.cuda.mem_get_info(device)
    except RuntimeError:  # Of a device that has failed.
        return f"{said})"
    held = torch.cuda.memory_reserved(device)
    others = max(0, total - free - held)
    return f"{said}, {total / 1e9:,.1f} GB, of which others hold {others / 1e9:,.1f} GB)"


def spread(slots: Mapping[str, int], name: str) -> str:
    """For people: where each process of a machine computes; ``slots``: by its name."""
    count = torch.cuda.device_count() if name != "cpu" and torch.cuda.is_available() else 0
    if not count:
        return f"CPU, one thread for each of {len(slots)} processes"
    kinds = sorted({torch.cuda.get_device_name(index) for index in range(count)})
    return f"{count} x {' and '.join(kinds)}: {assigned(slots, count)}"


def assigned(slots: Mapping[str, int], count: int) -> str:
    """Each of ``count`` devices with the processes that it has."""
    by_device: dict[int, list[str]] = {}
    for each, slot in slots.items():
        by_device.setdefault(slot % count, []).append(each)
    return "; ".join(f"cuda:{i} {', '.join(by_device[i])}" for i in sorted(by_device))
