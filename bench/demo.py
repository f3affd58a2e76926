"""The demo, against one of its regions alone for the same wall time.

    python bench/demo.py

Runs demo.toml for real through `pelago local`, then its first region alone, with budget and schedule cut in
proportion to the workers' speeds, so that both end after about the same time. Exits with 1 if the demo
misses its targets: at most 2.0 nats per byte within 3 minutes, every sample accounted for once.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from parts.machine import describe

from pelago.config import run_toml
from pelago.config.run_file import RunFile

DEMO = Path(__file__).parent.parent / "demo.toml"
LOSS_MAX = 2.0
TIME_MS_MAX = 180_000


def one_region(run: RunFile) -> RunFile:
    """The first region alone."""
    speeds = [sum(region.worker_speeds) for region in run.region]
    share = speeds[0] / sum(speeds)
    tables = run.model_dump()
    tables["region"] = tables["region"][:1]
    tables["network"] |= {"bandwidth_gbps": (), "latency_ms": ()}
    tables["run"]["budget_local_steps"] = round(run.run.budget_local_steps * share)
    tables["worker"]["total_iterations"] = round(run.worker.total_iterations * share)
    return RunFile.model_validate(tables)


def trained(run: RunFile, folder: Path) -> dict[str, Any]:
    """Run a run file. Returns figures of its result."""
    folder.mkdir()
    path = folder / "run.toml"
    path.write_text(run_toml.dump(run), encoding="utf-8")
    out = folder / "out"
    command = [sys.executable, "-m", "pelago.cli.main", "local", str(path), "--out", str(out)]
    subprocess.run([*command, "--plain"], check=True)
    result = json.loads((out / "result.json").read_text(encoding="utf-8"))
    validation = result["validation"]
    return {
        "loss": validation[-1][2],
        "elapsed_ms": result["elapsed_ms"],
        "loss_max_reached_at_ms": next(
            (at for at, _, loss in validation if loss <= LOSS_MAX), None
        ),
        "counted_steps": result["counted_steps"],
        "tokens": result["tokens"],
        "ledger": result["ledger"],
    }


def main() -> int:
    """Measure and print. Returns 1 if the demo misses its targets."""
    run = run_toml.load(DEMO)
    with tempfile.TemporaryDirectory() as folder:
        demo = trained(run, Path(folder) / "demo")
        alone = trained(one_region(run), Path(folder) / "alone")
    figures = {"benchmark": "demo", "demo": demo, "one_region": alone, "machine": describe()}
    print(json.dumps(figures))
    ledger = demo["ledger"]
    parts = ("applied", "dropped_in_flight", "unexchanged", "returned")
    balanced = ledger["issued"] == sum(ledger[part] for part in parts) and not ledger["duplicated"]
    return int(not balanced or demo["loss"] > LOSS_MAX or demo["elapsed_ms"] > TIME_MS_MAX)


if __name__ == "__main__":
    sys.exit(main())
