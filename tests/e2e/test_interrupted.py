"""A command that is interrupted leaves no process and nothing in the temporary directory."""

import signal
from pathlib import Path

import pytest

from tests.e2e.process_tree import BIN, has_loaded, process_tree
from tests.e2e.topology import run_file
from tests.experiments.studies import QUADRATIC, write


@pytest.mark.parametrize(
    ("command", "number"),
    [
        ("pelago check", signal.SIGINT),
        ("pelago check", signal.SIGTERM),
        ("gps", signal.SIGTERM),
        pytest.param("gps", signal.SIGINT, marks=pytest.mark.slow),
    ],
)
def test_what_builds_a_model_leaves_nothing_behind(
    tmp_path: Path, command: str, number: signal.Signals
) -> None:
    """It is interrupted while the worker that builds the model is in the middle of its imports."""
    program, *words = command.split()
    path, temporary = run_file(tmp_path), tmp_path / "temporary"
    temporary.mkdir()
    flags = [*words, path] if words else ["--run", path, "--out", tmp_path / "out"]
    place = {"TMPDIR": str(temporary)}
    with process_tree([BIN / program, *flags], folder=tmp_path, environment=place) as run:
        run.until("its worker begins", lambda: has_loaded(run.one("worker"), "libtorch_cpu"))
        run.process.send_signal(number)
        code, said = run.end()
        run.gone()
    assert code == (130 if number == signal.SIGINT else -number), said
    assert "Traceback" not in said
    assert not list(temporary.iterdir())


@pytest.mark.timeout(240)
@pytest.mark.slow
def test_a_study_on_ray_that_is_killed_leaves_no_process(tmp_path: Path) -> None:
    study = write(tmp_path, f'[study]\nbase = "base.toml"\nseeds = [0]\n[study.set]\n{QUADRATIC}')
    flags = ("--engine", "ray", "--jobs", "1", "--out", tmp_path / "out")
    with process_tree([BIN / "experiments", "replay", study, *flags], folder=tmp_path) as run:
        run.until("Ray has workers", lambda: any("ray::" in str(w) for w in run.members().values()))
        run.process.kill()
        # Ray's own agents notice by themselves, after a minute of asking for the one that is gone.
        run.gone(150.0)
