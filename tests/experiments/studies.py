"""Small studies, written as their users would write them."""

from dataclasses import replace
from pathlib import Path

from experiments.study import study_file
from experiments.study.plan import StudyPlan
from pelago.config import run_toml
from tests.convergence.paper import PAPER, run_file

SCALAR = run_file(replace(PAPER, budget=1_000), name="short")
QUADRATIC = """
"run.budget_local_steps" = 400
"simulation.problem" = "quadratic"
"simulation.dimension" = 8
"simulation.step_jitter" = 0.1
"gps.validation_interval_steps" = 100
"worker.total_iterations" = 100
"worker.warmup_iterations" = 5
"worker.min_lr" = 0.0
"worker.max_lr" = 0.05
"""
"""A [study.set] that gives losses, differently for different seeds, in a fraction of a second."""


def write(folder: Path, text: str, name: str = "study.toml") -> Path:
    """A study file beside its base, base.toml, which gives no losses."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "base.toml").write_text(run_toml.dump(SCALAR), encoding="utf-8")
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def plan(folder: Path, text: str) -> StudyPlan:
    """The same, resolved."""
    path = write(folder, text)
    return StudyPlan(study_file.load(path), path)


def results(out: Path) -> dict[str, bytes]:
    """Every file below runs/, by its path."""
    runs = out / "runs"
    return {
        path.relative_to(runs).as_posix(): path.read_bytes()
        for path in sorted(runs.rglob("*"))
        if path.is_file()
    }
