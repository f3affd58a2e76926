"""`python -m convergence.theory`: the table of docs/THEORY.md."""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict

from pelago import children


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table of docs/THEORY.md, progress on stderr, and at last a line of JSON."""
    children.leave_working_folder()
    parser = argparse.ArgumentParser(prog="python -m convergence.theory", description=main.__doc__)
    parser.add_argument("--seeds", type=int, default=3, help="runs to average (default: 3)")
    options = parser.parse_args(arguments)
    if options.seeds < 1:
        parser.error(f"argument --seeds: {options.seeds} must be at least 1")
    # torch takes seconds to import, and a usage error is answered before.
    from convergence.theory.tightness import SETTINGS, compare, example

    seeds = range(options.seeds)
    rows = []
    print(
        "| setting | N | lag | estimated | largest rate | bound | measured | ratio | GPS: bound |"
        " measured | ratio |\n|---|---|---|---|---|---|---|---|---|---|---|"
    )
    for number, (setting, changes) in enumerate(SETTINGS.items(), start=1):
        print(f"{number}/{len(SETTINGS)} {setting}", file=sys.stderr, flush=True)
        row = compare(setting, example(changes), seeds)
        rows.append(row)
        estimate = "" if row.lag_estimated is None else f"{row.lag_estimated:.0f}"
        points, models = row.ratios
        print(
            f"| {setting} | {row.gradients} | {row.lag:.0f} | {estimate} | {row.rate_max:.3g}"
            f" | {row.bound.points:.3g} | {row.measured.points:.3g} | {points:.1f}"
            f" | {row.bound.global_models:.3g} | {row.measured.global_models:.3g} | {models:.1f} |",
            flush=True,
        )
    worst = {
        "points": max(row.ratios[0] for row in rows),
        "global_models": max(row.ratios[1] for row in rows),
    }
    print(json.dumps({"worst_ratio": worst, "rows": [asdict(row) for row in rows]}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
