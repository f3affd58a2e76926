"""What a run leaves behind: `result.json`, `loss.png` and the last global model.

global.safetensors           the model itself, from which training would go on
global_average.safetensors   its running mean, if one is kept (`gps.average`): what the evaluator
                             measures and exports, here for runs that have no evaluator
"""

import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import save_file

from pelago.core.errors import CheckpointError
from pelago.tensor.manifest import Manifest

AVERAGE: Final = "global_average.safetensors"


def write(
    folder: Path,
    result: dict[str, Any],
    manifest: Manifest,
    flat: torch.Tensor,
    average: torch.Tensor | None = None,
) -> None:
    """Write everything. Raises `CheckpointError`.

    ``flat``: the global model, fp32, in the manifest's order; ``average``: its mean, if one is kept.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _save(folder / "global.safetensors", manifest, flat)
        if average is None:
            # An earlier run into this folder may have kept one.
            (folder / AVERAGE).unlink(missing_ok=True)
        else:
            _save(folder / AVERAGE, manifest, average)
        plot_loss(folder / "loss.png", result["validation"])
        partial = folder / ".result.json.part"
        text = json.dumps(_finite(result), indent=1, allow_nan=False)
        partial.write_text(text + "\n", encoding="utf-8")
        os.replace(partial, folder / "result.json")
    except OSError as error:
        raise CheckpointError(f"cannot write the results to {folder}: {error}") from None


def _save(path: Path, manifest: Manifest, flat: torch.Tensor) -> None:
    tensors = {name: view.contiguous() for name, view in manifest.named_views(flat).items()}
    save_file(tensors, path, metadata={"fingerprint": manifest.fingerprint})


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
    figure.savefig(path, dpi=120)
