"""`pelago plan` as a command: tables, JSON and exit codes."""

import json
from pathlib import Path

import pytest

from pelago.cli import main
from pelago.cli.plan import command
from pelago.net.durability import disk_needs
from pelago.net.durability.disk_needs import Comparison
from tests.cli.plan.runs import TEXT

SMALL = """
[[region]]
name = "eu"
worker_speeds = [1.0]
[run]
out = "OUT"
"""


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A run file of the smallest model."""
    path = tmp_path / "run.toml"
    path.write_text(SMALL.replace("OUT", str(tmp_path / "out")), encoding="utf-8")
    return path


def test_a_run_that_can_work_exits_with_0_and_starts_nothing(
    small: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--step-seconds", "0.5", "--host-memory", "16"]
    assert main.main(["plan", str(small), *flags]) == 0
    shown = capsys.readouterr().out
    assert "llama3-tiny: 395,904 parameters, 1.6 MB in fp32" in shown
    assert "Nothing stands against it." in shown
    for name in ("gps", "lps-eu", "worker-eu-0", "evaluator", "workers of eu"):
        assert name in shown
    assert not (small.parent / "out").exists()


def test_json_has_the_figures_the_disks_and_the_verdicts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "run.toml"
    path.write_text(TEXT, encoding="utf-8")
    flags = ["--json", "--gpu", "H100", "--host-memory", "1000"]
    assert main.main(["plan", str(path), *flags]) == command.EXIT_IMPOSSIBLE
    found = json.loads(capsys.readouterr().out)
    assert found["step"]["origin"] == "0.4 of the peak of a H100"
    assert found["model"]["parameters"] == 973_670_400
    assert {each["node"] for each in found["disks"]} >= {"gps", "lps-eu", "lps-us", "evaluator"}
    assert any("link of us" in each["what"] for each in found["verdicts"])


def test_a_disk_that_will_get_full_is_a_verdict(
    small: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    full = Comparison(
        ["line"], "", "the disk will get full: /data: up to 9 GB, 1 GB free: make room"
    )
    monkeypatch.setattr(disk_needs, "compare", lambda needs: full)
    assert main.main(["plan", str(small), "--host-memory", "16"]) == command.EXIT_IMPOSSIBLE
    shown = capsys.readouterr().out
    assert "impossible the disk will get full: /data: up to 9 GB, 1 GB free\n" in shown


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--step-seconds", "0"], "--step-seconds: '0': must be a number above 0"),
        (["--mfu", "1.5"], "--mfu: '1.5': must be at most 1"),
        (["--gpus", "two"], "--gpus: 'two': must be a whole number above 0"),
    ],
)
def test_a_wrong_flag_is_a_usage_error(
    small: Path, capsys: pytest.CaptureFixture[str], flags: list[str], said: str
) -> None:
    with pytest.raises(SystemExit):
        main.main(["plan", str(small), *flags])
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("keys", "flags", "said"),
    [
        ('[worker]\ndevice = "cpu"\n', ["--gpu", "H100"], "--gpu H100: worker.device = 'cpu'"),
        ("", ["--gpu", "H1"], "--gpu H1: not known"),
        ('[simulation]\nproblem = "timing"\n', [], "simulation: a run file with this table"),
    ],
)
def test_what_does_not_go_together_is_said_in_one_line(
    small: Path, capsys: pytest.CaptureFixture[str], keys: str, flags: list[str], said: str
) -> None:
    small.write_text(small.read_text(encoding="utf-8") + keys, encoding="utf-8")
    assert main.main(["plan", str(small), *flags]) != 0
    assert said in capsys.readouterr().err
