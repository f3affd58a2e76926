"""`pelago export`: the global model of a run that is under way, or that ended early."""

from pathlib import Path

import torch

from gps import files
from gps.export import FoundState, find
from pelago.config import run_toml
from pelago.config.run_file import RunFile
from pelago.core.errors import CheckpointError, PelagoError
from pelago.net.telemetry import say
from pelago.tensor.manifest import Manifest


def export(source: Path, out: Path | None, run_file: str | None) -> int:
    """Write ``model/`` as an evaluator does; where it cannot be built, write the weights alone. Returns the exit
    code. Raises `PelagoError`.

    ``run_file``: says where the model and the corpus are, if not where the GPS found them.
    """
    other = None if run_file is None else run_toml.load(run_file)
    found = find(source)
    folder = found.folder if out is None else out
    say(_said(found))
    try:
        _export_model(found, other or found.run, folder)
    except PelagoError as error:
        say(f"no model/: {' '.join(str(error).split())}; the weights are written alone")
    else:
        say(f"{folder / 'model'}")
        return 0
    gps = found.machine
    facts = {"version": gps.model.version.counter, "counted_steps": gps.model.counted_steps}
    failures = files.write_models(folder, found.manifest, found.flat, found.average, facts)
    if failures:
        raise CheckpointError("; ".join(failures))
    say(f"{folder / files.MODEL}")
    return 0


def _said(found: FoundState) -> str:
    gps = found.machine
    steps = f"version {gps.model.version.counter:,} of {found.run.run_id}, {gps.model.counted_steps:,} local steps"
    what = "mean of the models up to " if found.average is not None else ""
    loss = "no held-out loss is known yet"
    if gps.evaluators.validations:
        _, measured, value = gps.evaluators.validations[-1]
        loss = f"held-out loss {value:.4f} at {measured:,} local steps"
    state = "the run goes on" if found.is_running else f"its GPS does not run ({gps.phase})"
    said = f"{what}{steps}; {loss}; {state}"
    return said + (f"; passed over: {'; '.join(found.passed_over)}" if found.passed_over else "")


def _export_model(found: FoundState, run: RunFile, folder: Path) -> None:
    from worker.evaluator.held_out_loss import HeldOutLoss

    # A worker of the run may have the accelerator to itself.
    worker = run.worker.model_copy(update={"device": "cpu"})
    evaluator = HeldOutLoss(run.model_copy(update={"worker": worker}))
    if Manifest(evaluator.manifest()).fingerprint != found.manifest.fingerprint:
        raise CheckpointError("the model that the run file describes is another")
    flat: torch.Tensor = found.flat if found.average is None else found.average
    evaluator.export([flat], folder / "model")
