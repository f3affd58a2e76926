"""The machine on which figures were measured, and summaries of figures."""

import os
import platform
import statistics
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import zmq

PACKAGES = ("torch", "pyzmq", "numpy", "xxhash", "uvloop")


def describe() -> dict[str, Any]:
    """Processor, cores, memory, kernel and versions; ``load``: shows whether other programs used the machine."""
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(memory_bytes / 2**30, 1),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "libzmq": zmq.zmq_version(),
        **{package: version(package) for package in PACKAGES},
        "load": [round(each, 2) for each in os.getloadavg()],
    }


def _processor() -> str:
    wanted = ("model name", "cpu family", "model")
    found: dict[str, str] = {}
    for line in Path("/proc/cpuinfo").read_text(encoding="ascii").splitlines():
        key, _, value = line.partition(":")
        if key.strip() in wanted:
            found.setdefault(key.strip(), value.strip())
    return " ".join(
        f"{key} {found[key]}".removeprefix("model name ") for key in wanted if key in found
    )


def usage(process_id: int) -> tuple[float, int]:
    """Processor seconds and minor page faults of all threads of a process so far."""
    text = Path(f"/proc/{process_id}/stat").read_text(encoding="ascii", errors="replace")
    fields = text.rpartition(")")[2].split()
    ticks = int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK"), int(fields[7])


def summary(values: Sequence[float], digits: int = 4) -> dict[str, float]:
    """Median, minimum and maximum."""
    found = {"median": statistics.median(values), "min": min(values), "max": max(values)}
    return {key: round(value, digits) for key, value in found.items()}
