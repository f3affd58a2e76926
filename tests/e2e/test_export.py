"""The model of a run that is under way, and of one whose GPS was killed, with real processes."""

import shutil
from pathlib import Path

import pytest
import transformers
from safetensors import safe_open

from pelago.cli.main import main
from pelago.core.notes.gps import ExchangeArrived
from pelago.core.notes.worker import Exported
from tests.e2e.topology import Daemons, run_file

pytestmark = pytest.mark.timeout(240)


def test_the_model_is_there_while_the_run_goes_on_and_when_its_gps_was_killed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """1. GPS and evaluator export every few seconds. 2. A command exports from the newest snapshot, beside the
    running GPS. 3. The GPS is killed: the command exports all that it had received. 4. Without the corpus there
    are the weights."""
    path = run_file(tmp_path, budget=10**6, interval=10**6, step_ms=10.0, regions={"eu": [1.0]})
    text = path.read_text(encoding="utf-8").replace("[run]\n", "[run]\nexport_minutes = 0.04\n")
    path.write_text(text, encoding="utf-8")
    out = tmp_path / "out"
    with Daemons(path, out) as daemons:
        daemons.start_servers("eu")
        daemons.start_worker("eu", 0)
        daemons.start("evaluator", "worker", "--evaluate")
        for node in ("gps", "evaluator"):
            daemons.until(f"{node} exports", lambda node=node: _exported(daemons, node) > 0)  # type: ignore[misc]
        with safe_open(out / "global.safetensors", framework="pt") as file:
            assert int(file.metadata()["version"]) > 0
        transformers.AutoModelForCausalLM.from_pretrained(out / "model")
        assert main(["export", str(out), "--out", str(tmp_path / "live")]) == 0
        said = capsys.readouterr().out
        assert "the run goes on" in said
        transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "live" / "model")
        daemons.until("more updates", lambda: len(daemons.events("gps", ExchangeArrived)) >= 20)
        daemons.kill("gps")
        received = daemons.events("gps", ExchangeArrived)[-1].version
    assert main(["export", str(out / "gps" / "state"), "--out", str(tmp_path / "dead")]) == 0
    said = capsys.readouterr().out
    assert "its GPS does not run (serving)" in said
    assert "held-out loss" in said
    assert "no held-out loss" not in said
    assert _version(said) >= received
    transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "dead" / "model")
    shutil.rmtree(tmp_path / "corpus")
    shutil.rmtree(out / "model")
    assert main(["export", str(out)]) == 0
    assert "no model/: " in capsys.readouterr().out
    with safe_open(out / "global.safetensors", framework="pt") as file:
        assert int(file.metadata()["version"]) >= received
    assert not (out / "model").exists()
    assert main(["export", str(out / "lps-eu" / "state")]) == 2
    assert main(["export", str(tmp_path / "live")]) == 2
    assert main(["export", str(out), "--run", str(tmp_path / "mistyped.toml")]) == 2
    lps, nothing, mistyped = capsys.readouterr().err.splitlines()
    assert "mistyped.toml" in mistyped
    assert "not of gps" in lps
    assert "holds no state of a GPS" in nothing


def _exported(daemons: Daemons, node: str) -> int:
    """The newest version that it exported."""
    return max((each.version for each in daemons.events(node, Exported)), default=0)


def _version(said: str) -> int:
    return int(said.split()[1].replace(",", ""))
