"""A payload over several bulk connections: through a long line that limits each, and over the loopback interface.

    python bench/stripes.py [--wan-mb 256] [--loopback-mb 256] [--rounds 5]

1. Two real nodes with a proxy between them: 1 Gbps, a round trip of 150 ms, 4 MiB in flight for each connection. With
   `stripes = 1` and with "auto", which climbs during the first payloads. Of the line's rate is what the payload took,
   without the one round trip in which its last chunk travels and is acknowledged.
2. Loopback: 1, 2 and 4 stripes beside bare ZeroMQ sockets with as many connections, interleaved.
"""

import argparse
import json
import select
import statistics
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

from parts.machine import describe, summary
from parts.striped import FLIGHT_BYTES_MAX, GBPS, ROUND_TRIP_MS

from pelago.net.sockets.tcp_ports import free_pairs

SCRIPT: Final = Path(__file__).parent / "parts" / "striped.py"
PATIENCE_S: Final = 120
CLIMBING: Final = 6
"""Payloads until "auto" has found its number; the first ones of every side do not count."""
LOOPBACK_STRIPES: Final = (1, 2, 4)


class StripedEnd:
    """One process of `striped.py`. Call `ready` first. All raise `RuntimeError` if it says nothing."""

    def __init__(self, stack: ExitStack, *arguments: object) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(SCRIPT), *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        stack.callback(self._process.wait)
        stack.callback(self._process.kill)
        self.name = " ".join(map(str, arguments))

    def ready(self) -> None:
        """Wait until it has started."""
        self._listen()

    def push(self) -> float:
        """The seconds of one payload."""
        assert self._process.stdin is not None
        self._process.stdin.write("go\n")
        self._process.stdin.flush()
        return float(self._listen()["seconds"])

    def _listen(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        if not select.select([self._process.stdout], [], [], PATIENCE_S)[0]:
            raise RuntimeError(f"{self.name!r} has said nothing in {PATIENCE_S} s")
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.name!r} has ended")
        found: dict[str, Any] = json.loads(line)
        return found


def rounds(ends: dict[str, StripedEnd], warm_up: int, count: int) -> dict[str, list[float]]:
    """Interleaved rounds of all ends: the seconds of those that count."""
    seconds: dict[str, list[float]] = {name: [] for name in ends}
    for number in range(warm_up + count):
        for name, end in ends.items():
            took = end.push()
            if number >= warm_up:
                seconds[name].append(took)
        print(
            number,
            {name: round(found[-1], 3) for name, found in seconds.items() if found},
            flush=True,
        )
    return seconds


def long_line(mb: int, count: int) -> dict[str, Any]:
    """Of the rate of a line, with one connection and with as many as are found worth it."""
    found: dict[str, Any] = {}
    for name in ("1", "auto"):
        with ExitStack() as stack:
            port, through = free_pairs(2)
            client = StripedEnd(stack, "push", through, mb, name)
            for each in (
                StripedEnd(stack, "serve", port, mb),
                StripedEnd(stack, "proxy", through, port),
                client,
            ):
                each.ready()
            took = rounds({name: client}, 1 if name == "1" else CLIMBING, count)[name]
        line_s = mb * 1e6 * 8 / (GBPS * 1e9)
        found[f"stripes_{name}"] = {
            "seconds": summary(took),
            "of_rate": summary([line_s / (each - ROUND_TRIP_MS / 1e3) for each in took], 3),
            "of_rate_with_the_round_trip": summary([line_s / each for each in took], 3),
        }
    window = FLIGHT_BYTES_MAX / (ROUND_TRIP_MS / 1e3) / (GBPS * 1e9 / 8)
    return {
        "mb": mb,
        "gbps": GBPS,
        "round_trip_ms": ROUND_TRIP_MS,
        "one_window_of_rate": round(window, 3),
        **found,
    }


def loopback(mb: int, count: int) -> dict[str, Any]:
    """Seconds of a payload with so many connections, ours and bare."""
    ends: dict[str, StripedEnd] = {}
    servers = []
    with ExitStack() as stack:
        ports = iter(free_pairs(2 * len(LOOPBACK_STRIPES)))
        for stripes in LOOPBACK_STRIPES:
            for name, kind in (("pelago", ""), ("bare", "bare-")):
                port = next(ports)
                servers.append(StripedEnd(stack, f"{kind}serve", port, mb))
                ends[f"{name}_{stripes}"] = StripedEnd(stack, f"{kind}push", port, mb, stripes)
        for each in (*servers, *ends.values()):
            each.ready()
        took = rounds(ends, CLIMBING // 2, count)
    found: dict[str, Any] = {name: summary(each) for name, each in took.items()}
    for stripes in LOOPBACK_STRIPES:
        pairs = zip(took[f"bare_{stripes}"], took[f"pelago_{stripes}"], strict=True)
        ratio = statistics.median(bare / ours for bare, ours in pairs)
        found[f"ratio_to_bare_{stripes}"] = round(ratio, 3)
    return {"mb": mb, **found}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--wan-mb", type=int, default=256)
    parser.add_argument("--loopback-mb", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    machine = describe()
    figures = {
        "benchmark": "stripes",
        "long_line": long_line(options.wan_mb, options.rounds),
        "loopback": loopback(options.loopback_mb, options.rounds),
        "machine": machine,
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
