"""Reads the folders of studies, of replays and of daemons' runs."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from experiments.study import study_file as studies
from experiments.study import table
from experiments.study.compare import RunRow
from experiments.study.measure import measure
from experiments.study.plan import Case
from experiments.study.study_file import Study, Variant
from pelago.config import run_toml
from pelago.config.run_file import RunFile
from pelago.core.errors import ConfigError, PelagoError


@dataclass(frozen=True)
class ReportSection:
    """The content of a section of the page: a study, or all runs that belong to none."""

    study: Study
    rows: Sequence[RunRow]
    facts: str
    """What the runs have in common, in one line; empty if it is unknown."""
    loss: str = "held-out loss, nats per token"
    """The name of the loss, and its unit."""


def read_all(folders: Sequence[Path]) -> list[ReportSection]:
    """Studies in their order, then one section of all single runs. Raises `ConfigError`."""
    found, single = [], []
    for folder in folders:
        if (folder / "study.toml").is_file():
            found.append(read(folder))
        elif (folder / "result.json").is_file():
            single.append(folder)
        else:
            raise ConfigError(
                f"{folder}: no folder of a run or study: it has no result.json or table"
            )
    return found + ([_single(single)] if single else [])


def read(folder: Path) -> ReportSection:
    """The folder of a study. Raises `ConfigError` or `CheckpointError`."""
    study = studies.load(folder / "study.toml")
    rows = table.read(folder, study)
    files = [folder / "runs" / row.folder / "run.toml" for row in rows]
    return _found(study, rows, next((each for each in files if each.is_file()), None))


def _single(folders: Sequence[Path]) -> ReportSection:
    short = [folder.resolve().name for folder in folders]
    names = short if len(set(short)) == len(short) else [str(folder) for folder in folders]
    rows = []
    for name, folder in zip(names, folders, strict=True):
        run = _run(folder / "run.toml")
        seed = run.run.seed if run is not None else 0
        rows.append(RunRow(name, "run", Case(name), "", None, {}, seed, measure(folder)))
    # A folder may have any name, so these variants skip the rules for names in files.
    variants = tuple(Variant.model_construct(name=name, set={}, space={}) for name in names)
    title = names[0] if len(names) == 1 else "Single runs"
    study = Study.model_construct(base="", name=title, variant=variants)
    return _found(study, rows, folders[0] / "run.toml" if len(folders) == 1 else None)


def _found(study: Study, rows: Sequence[RunRow], path: Path | None) -> ReportSection:
    """``path``: a run file that may speak for all; None if there is none."""
    run = _run(path) if path is not None else None
    if run is None:
        return ReportSection(study, rows, "")
    toy = run.simulation is not None and run.simulation.problem != "lm"
    return ReportSection(study, rows, _facts(run), "loss" if toy else ReportSection.loss)


def _run(path: Path) -> RunFile | None:
    """A run file that another version may have written: a report goes without what it cannot read."""
    try:
        return run_toml.load(path)
    except PelagoError:
        return None


def _facts(run: RunFile) -> str:
    workers = sum(len(region.worker_speeds) for region in run.region)
    regions = len(run.region)
    said = [
        f"{regions} region{'s' * (regions > 1)} with {workers} worker{'s' * (workers > 1)}",
        f"budget {run.run.budget_local_steps:,} local steps",
    ]
    if run.simulation is not None:
        said += [
            f"problem {run.simulation.problem}",
            f"payload {run.simulation.model_bytes / 1e6:,.1f} MB",
            f"{run.simulation.step_ms:,g} ms per local step at speed 1",
        ]
    return ", ".join(said)
