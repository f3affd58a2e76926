"""Tiny models of 26 architectures through `pelago check` and `pelago local`, as a user runs them."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from pelago.config import run_toml
from tests.e2e.topology import assert_ledger_balances, run_file
from tests.worker.exported_model import held_out_loss
from tests.worker.tiny_models import ARCHITECTURES, checkpoint_folder

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def pelago(*arguments: object) -> str:
    """Run the command; what it printed. It must end well."""
    command = [sys.executable, "-m", "pelago.cli.main", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("kind", sorted(ARCHITECTURES))
def test_an_architecture_passes_check_and_a_run_and_its_export_has_the_loss_of_the_last_validation(
    tmp_path: Path, kind: str
) -> None:
    """A line of a table is printed for each: pytest -s."""
    folder = checkpoint_folder(tmp_path / "model", kind)
    path = run_file(tmp_path, budget=24, interval=12, step_ms=1.0, regions={"eu": [1.0, 1.0]})
    text = re.sub(
        r'preset = "llama3-tiny"\noverrides = .*', f'preset = "{folder}"', path.read_text()
    )
    path.write_text(text, encoding="utf-8")
    checked = pelago("check", path)
    assert "weights    pretrained" in checked
    assert "step       8 sequences of 32 tokens, forward and backward" in checked

    out = tmp_path / "out"
    pelago("local", path, "--out", out)
    result = json.loads((out / "result.json").read_text(encoding="utf-8"))
    assert_ledger_balances(result)
    measured = result["validation"][-1][-1]
    reopened = held_out_loss(run_toml.load(out / "run.toml"), out / "model")
    untrained = re.search(r"step .* loss (\S+)", checked)
    assert untrained is not None
    first = float(untrained[1])
    print(
        f"\n{kind:12} {first:8.5f} {measured:8.5f} {reopened:8.5f} {abs(reopened - measured):.1e}"
    )
    assert measured < first
    assert abs(reopened - measured) < 1e-4
