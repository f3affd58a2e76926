"""A run that learns nothing ends by itself, with an error that names what to look at."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from pelago.core.notes.worker import RoundFailed
from tests.e2e.topology import Daemons, run_file

pytestmark = [pytest.mark.timeout(180), pytest.mark.slow]


def hopeless(folder: Path, changes: dict[str, str], **speeds: float) -> Path:
    """A run of one worker a region (default: one region), without a budget of minutes."""
    workers = {name: [speed] for name, speed in speeds.items()} or {"eu": [1.0]}
    step_ms = 50.0 if speeds else 0.0
    path = run_file(folder, budget=10**9, interval=10**6, step_ms=step_ms, regions=workers)
    text = path.read_text(encoding="utf-8")
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    path.write_text(text, encoding="utf-8")
    return path


def ends(path: Path, out: Path, *errors: str) -> None:
    """GPS and LPS end with these messages and exit code 1, and the GPS writes its results nevertheless."""
    with Daemons(path, out) as daemons:
        daemons.start_servers("eu")
        daemons.start_worker("eu", 0)
        for node in ("gps", "lps-eu", "worker-eu-0"):
            code, said = daemons.wait(node)
            if node.startswith("worker"):
                assert code == 0, said
            else:
                assert code == 1, said
                assert "Traceback" not in said
                for error in errors:
                    assert error in said.splitlines()[-1], said
        result = daemons.result()
        assert "worker.max_lr" in result["error"]
        assert result["ledger"]["duplicated"] == 0
        assert result["lps"]["eu"]["rejected"] == 3
        rounds = daemons.events("worker-eu-0", RoundFailed)
        skipped = sum(each.steps for each in rounds)
        assert result["workers"]["eu/0"]["skipped"] >= skipped


def test_a_learning_rate_that_is_far_too_high_ends_the_run(tmp_path: Path) -> None:
    """Every update is larger than any that is allowed, so none would ever be applied."""
    changes = {
        "max_lr = 5e-3": "max_lr = 1e4",
        "[lps]\n": "[lps]\nrejected_max = 3\nupdate_norm_max = 10\n",
    }
    path = hopeless(tmp_path, changes)
    ends(path, tmp_path / "out", "worker.max_lr = 10000", "lps.update_norm_max = 10", "norm ")


def test_a_run_on_one_machine_says_in_its_results_why_it_failed(tmp_path: Path) -> None:
    """The launcher leaves it to the GPS to end the run when its last region has given up, soon after the first."""
    changes = {
        "max_lr = 5e-3": "max_lr = 1e4",
        "[lps]\n": "[lps]\nrejected_max = 3\nupdate_norm_max = 10\n",
    }
    path = hopeless(tmp_path, changes, eu=1.0, us=0.2)
    command = [sys.executable, "-P", "-m", "pelago.cli.main", "local", str(path)]
    out = tmp_path / "local"
    done = subprocess.run(
        [*command, "--out", str(out)], capture_output=True, text=True, timeout=150, check=False
    )
    assert done.returncode != 0
    assert "worker.max_lr = 10000" in done.stderr.splitlines()[-1], done.stderr
    result = json.loads((out / "result.json").read_text(encoding="utf-8"))
    assert "worker.max_lr = 10000" in result["error"]


def test_a_model_that_is_not_finite_ends_the_run(tmp_path: Path) -> None:
    """Its weights are, but its activations overflow: no gradient is finite, and no round gives an update."""
    folder = spoilt_checkpoint(tmp_path)
    tiny = "hidden_size = 32, intermediate_size = 64, num_hidden_layers = 1"
    changes = {
        f'preset = "llama3-tiny"\noverrides = {{{tiny}}}': f'preset = "{folder}"',
        "[lps]\n": "[lps]\nrejected_max = 3\n",
    }
    why = "no gradient of 2 steps was finite"
    ends(hopeless(tmp_path, changes), tmp_path / "out", "worker.max_lr", why)


def spoilt_checkpoint(folder: Path) -> Path:
    """A folder of a model of finite weights that are so large that its numbers overflow."""
    import torch
    import transformers

    config = transformers.LlamaConfig(
        vocab_size=256,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=64,
    )
    model = transformers.LlamaForCausalLM(config)
    with torch.no_grad():
        model.model.norm.weight.fill_(3e38)
    model.save_pretrained(folder / "model")
    return folder / "model"
