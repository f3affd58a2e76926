"""The `experiments` command."""

import csv
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from experiments.__main__ import main
from experiments.replay import FILES, decimal_ms, finite
from experiments.study import study_file
from experiments.study.plan import StudyPlan
from pelago.config import run_toml
from tests.convergence.paper import PAPER, SHIPPED, run_file

SHORT = run_file(replace(PAPER, budget=1_000))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "short.toml"
    path.write_text(run_toml.dump(SHORT), encoding="utf-8")
    return path


def test_replay_writes_the_resolved_run_file_the_result_and_the_arrivals(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "deep" / "out"
    assert main(["replay", str(file), "--out", str(out), "--check", "--trace"]) == 0
    assert sorted(path.name for path in out.iterdir()) == [
        "arrivals.csv",
        "result.json",
        "run.toml",
        "staleness.csv",
    ]
    assert run_toml.load(out / "run.toml") == SHORT
    result = json.loads((out / "result.json").read_text(encoding="utf-8"))
    assert list(result) == [
        "method",
        "clock",
        "seed",
        "elapsed_ms",
        "counted_steps",
        "samples",
        "tokens",
        "model",
        "gps",
        "lps",
        "workers",
        "validation",
        "ledger",
        "bytes",
        "error",
        "final",
    ]
    with (out / "arrivals.csv").open(encoding="utf-8", newline="") as lines:
        rows = list(csv.reader(lines))
    assert rows[0] == ["time_ms", "region", "counted_steps", "cumulative_steps"]
    assert rows[1] == ["19544.546923280", "r0", "198", "198"]
    assert len(rows) == 1 + result["gps"]["updates"]
    assert int(rows[-1][3]) == result["counted_steps"]
    with (out / "staleness.csv").open(encoding="utf-8", newline="") as lines:
        counts = list(csv.DictReader(lines))
    assert list(counts[0]) == ["level", "staleness", "count"]
    for level, updates in (
        ("gps", result["gps"]["updates"]),
        ("lps", sum(region["updates"] for region in result["lps"].values())),
    ):
        assert sum(int(row["count"]) for row in counts if row["level"] == level) == updates
    said = capsys.readouterr().out
    assert "local steps" in said
    assert "trace digest" in said


def test_two_replays_write_the_same_bytes(file: Path, tmp_path: Path) -> None:
    for name in ("one", "other"):
        assert main(["replay", str(file), "--out", str(tmp_path / name)]) == 0
    for name in FILES:
        one, other = (tmp_path / folder / name for folder in ("one", "other"))
        assert one.read_bytes() == other.read_bytes()


def test_times_are_written_in_full() -> None:
    assert decimal_ms(19_544_546_923_280) == "19544.546923280"
    assert decimal_ms(1) == "0.000000001"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('[[region]]\nname = "eu"\nworker_speeds = [1.0]\n', "simulation"),
        ("[simulation]\n", "region"),
        (
            '[[region]]\nname = "eu"\nworker_speeds = [1.0]\n[simulation]\nproblem = "riddle"\n',
            "simulation.problem = 'riddle'",
        ),
        ("[[region\n", "not TOML"),
        (
            '[[region]]\nname = "eu"\nworker_speeds = [1.0]\n'
            "[network]\nbandwidth_gbps = [[1.0, 2.0]]\n[simulation]\n",
            "bandwidth_gbps must be 1 x 1",
        ),
    ],
    ids=["no simulation", "no region", "unknown problem", "no TOML", "matrix not square"],
)
def test_a_wrong_file_gets_one_clear_line(
    text: str, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "wrong.toml"
    path.write_text(text, encoding="utf-8")
    assert main(["replay", str(path), "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("experiments: ")
    assert says in said.err
    assert said.err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_an_unknown_name_is_answered_with_the_known_ones(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["replay", "halos_papre"]) == 2
    said = capsys.readouterr().err
    assert "halos_papre" in said
    assert "halos_paper_scalar" in said


def test_an_impossible_folder_is_refused_before_the_run(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["replay", str(file), "--out", str(file / "out")]) == 2
    assert "cannot write results" in capsys.readouterr().err


def test_a_number_that_diverged_is_null() -> None:
    assert finite({"loss": [math.inf, math.nan, 1.5], "name": "x"}) == {
        "loss": [None, None, 1.5],
        "name": "x",
    }


def test_flags_for_studies_are_refused_for_one_run(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for flag in (["--jobs", "2"], ["--fresh"], ["--engine", "local"]):
        assert main(["replay", str(file), *flag]) == 2
        assert f"{flag[0]}: {file} is one run" in capsys.readouterr().err


def test_list_names_every_shipped_experiment_with_its_kind(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    found = {line.split()[0]: line.split()[1] for line in lines}
    assert found["halos_paper"] == found["halos_paper_scalar"] == "run"
    assert set(found) == {path.stem for path in SHIPPED.glob("*.toml")}
    assert found["gpu_1b"] == "daemons"
    assert set(found.values()) == {"run", "study", "daemons"}
    assert all(len(line.split()) > 5 for line in lines)


def test_every_shipped_study_resolves() -> None:
    for path in SHIPPED.glob("*.toml"):
        if study_file.is_study(path):
            assert StudyPlan(study_file.load(path), path).runs
