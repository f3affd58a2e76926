"""The price of durability: push + pull of 256 MB through LPSs at each durability. See README.md."""

import argparse
import json
import tempfile
from contextlib import ExitStack
from pathlib import Path

from parts.machine import describe
from push_pull import WARM_UP_ROUNDS, describe_model, report, run_file, start_pelago

from pelago.net.sockets.tcp_ports import free_pairs

LEVELS = ("none", "process", "host")
NEW_FILES_ROUNDS = 20
"""For so many rounds a server writes new files: two journals of eight models and their snapshots, and some more. Then
it writes over old ones."""


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15, help="rounds that count (default 15)")
    parser.add_argument("--levels", default=",".join(LEVELS), help="durabilities to compare")
    parser.add_argument(
        "--keep", type=Path, help="folder of state and logs (default: a temporary one)"
    )
    options = parser.parse_args()
    levels = options.levels.split(",")
    machine = describe()
    ports = free_pairs(2 * len(levels))
    with ExitStack() as stack:
        folder = options.keep or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        sides = []
        for index, level in enumerate(levels):
            own = folder / level
            own.mkdir(parents=True, exist_ok=True)
            run = run_file(ports[2 * index : 2 * index + 2], level)
            manifest = describe_model(run, own / "model.json")
            sides.append(start_pelago(level, own, stack, run, own / "model.json"))
            sides[-1].listen()
        for _ in range(NEW_FILES_ROUNDS + options.rounds):
            for side in sides:
                side.round()
            times = (f"{side.name} {side.rounds[-1]['seconds']:.3f} s" for side in sides)
            print("  ".join(times), flush=True)
    new = report("new files", sides, manifest, machine, slice(WARM_UP_ROUNDS, NEW_FILES_ROUNDS))
    figures = report("durability", sides, manifest, machine, slice(NEW_FILES_ROUNDS, None))
    firsts = {key: value for key, value in new.items() if key in levels or key.startswith("ratio")}
    print(json.dumps({**figures, "while_files_are_new": firsts}))


if __name__ == "__main__":
    main()
