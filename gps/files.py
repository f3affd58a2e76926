"""The files of a finished run: `result.json`, `loss.png` and the last global model.

global.safetensors           the model itself, from which training would go on
global_average.safetensors   its running mean, if one is kept (`gps.average`): what the evaluator
                             measures and exports, here for runs that have no evaluator

Each is written whole or not at all, whether or not the others could be written.
"""

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, TypeAlias

import torch

from pelago import atomic_files
from pelago.tensor import model_file
from pelago.tensor.manifest import Manifest
from pelago.tensor.snapshot import PlaneSnapshot

MODEL: Final = "global.safetensors"
AVERAGE: Final = "global_average.safetensors"
RESULT: Final = "result.json"
PLOT: Final = "loss.png"
NOT_WRITTEN: Final = "not_written"
"""Key of a result that names what could not be written beside it."""

_Jobs: TypeAlias = dict[str, Callable[[Path], None]]
"""By the name of a file: how to write it to a path."""


def write(
    folder: Path,
    result: dict[str, Any],
    manifest: Manifest,
    flat: torch.Tensor | None,
    average: torch.Tensor | None = None,
) -> list[str]:
    """Write all that can be written. Returns what could not be, a line each; the result names it too.

    ``flat``: the global model, fp32, in the manifest's order (None: it is written already); ``average``:
    its mean, if one is kept.
    """
    jobs: _Jobs = {} if flat is None else _models(manifest, flat, average, _facts(result))
    jobs[PLOT] = lambda path: plot_loss(path, result["validation"])
    failures: list[str] = []
    done = False
    try:
        with atomic_files.replacing(folder / RESULT) as new:
            # The smallest is written first, so that the large ones cannot take its room.
            _write_json(new, result)
            failures, done = _write_each(folder, jobs), True
            if failures:
                with suppress(OSError):
                    partial = new.with_suffix(".partial")
                    _write_json(partial, result | {NOT_WRITTEN: failures})
                    os.replace(partial, new)
    except OSError as error:
        failures.append(_failure(folder / RESULT, error))
    return failures if done else [*failures, *_write_each(folder, jobs)]


def write_snapshot(folder: Path, taken: PlaneSnapshot, facts: Mapping[str, int]) -> list[str]:
    """Write the model of a snapshot, and its mean if one is kept, with facts in their heads. Returns as
    `write`."""
    flat = taken.tensor("model")
    assert flat is not None
    return write_models(folder, taken.manifest, flat, taken.tensor("average"), facts)


def write_models(
    folder: Path,
    manifest: Manifest,
    flat: torch.Tensor,
    average: torch.Tensor | None,
    facts: Mapping[str, int],
) -> list[str]:
    """Write the model, and its mean if one is kept, with facts in their heads. Returns as `write`."""
    head = {key: str(value) for key, value in facts.items()}
    return _write_each(folder, _models(manifest, flat, average, head))


def _models(
    manifest: Manifest,
    flat: torch.Tensor,
    average: torch.Tensor | None,
    facts: Mapping[str, str],
) -> _Jobs:
    head = {"fingerprint": manifest.fingerprint, **facts}
    jobs: _Jobs = {MODEL: lambda path: model_file.write(path, manifest, flat, head)}
    if average is not None:
        jobs[AVERAGE] = lambda path: model_file.write(path, manifest, average, head)
    return jobs


def _write_each(folder: Path, jobs: _Jobs) -> list[str]:
    failures = []
    for name, job in jobs.items():
        try:
            with atomic_files.replacing(folder / name) as new:
                job(new)
        except Exception as error:  # Whatever the library that writes it raises.
            failures.append(_failure(folder / name, error))
    if MODEL in jobs and AVERAGE not in jobs:
        # An earlier run into this folder may have kept one.
        try:
            (folder / AVERAGE).unlink(missing_ok=True)
        except OSError as error:
            failures.append(f"cannot remove {folder / AVERAGE}: {error}")
    return failures


def _failure(path: Path, error: Exception) -> str:
    return f"cannot write {path}: {' '.join(str(error).split()) or type(error).__name__}"


def _facts(result: dict[str, Any]) -> dict[str, str]:
    """The facts in the head of a model's file."""
    return {"version": str(result["gps"]["version"]), "counted_steps": str(result["counted_steps"])}


def _write_json(path: Path, result: dict[str, Any]) -> None:
    text = json.dumps(_finite(result), indent=1, allow_nan=False)
    path.write_text(text + "\n", encoding="utf-8")


def _finite(value: Any) -> Any:
    """JSON knows no NaN: a loss that diverged is null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    return [_finite(each) for each in value] if isinstance(value, list) else value


def plot_loss(path: Path, validation: Sequence[Sequence[float]]) -> None:
    """Held-out loss over time; ``validation`` has rows (elapsed ms, counted local steps, nats per token)."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(
        [row[0] / 1e3 for row in validation],
        [row[2] for row in validation],
        marker="o",
        markersize=3,
    )
    axes.set(xlabel="seconds since the first lease", ylabel="held-out loss, nats per token")
    axes.set_title("Global model")
    axes.grid(visible=True, alpha=0.3)
    if validation:
        seconds, _, loss = validation[-1]
        axes.annotate(
            f"{loss:.3f}", (seconds / 1e3, loss), xytext=(-6, 8), textcoords="offset points"
        )
    figure.savefig(path, dpi=120, format="png")
