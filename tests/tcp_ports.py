"""Free ports for the servers that tests start: a range for each process that runs tests."""

import os
import random

from pelago.net.sockets.tcp_ports import free_pairs

FIRST = 10_000
RANGE = 5_000
PROCESSES_MAX = 4
"""Above that they share; below 32,768 the kernel gives no port to clients."""


def pairs(count: int) -> list[int]:
    """So many first ports of free pairs."""
    process = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    first = FIRST + RANGE * (process % PROCESSES_MAX)
    return free_pairs(count, random.randrange(first, first + RANGE - 200, 2))
