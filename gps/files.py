"""What a run leaves behind: `result.json`, `loss.png` and the last global model."""

import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from pelago.core.errors import CheckpointError
from pelago.tensor.manifest import Manifest


def write(folder: Path, result: dict[str, Any], manifest: Manifest, flat: torch.Tensor) -> None:
    """Write everything. ``flat``: the global model, fp32, in the manifest's order. Raises `CheckpointError`."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        model = {name: view.contiguous() for name, view in manifest.named_views(flat).items()}
        save_file(
            model, folder / "global.safetensors", metadata={"fingerprint": manifest.fingerprint}
        )
        plot_loss(folder / "loss.png", result["validation"])
        partial = folder / ".result.json.part"
        text = json.dumps(_finite(result), indent=1, allow_nan=False)
        partial.write_text(text + "\n", encoding="utf-8")
        os.replace(partial, folder / "result.json")
    except OSError as error:
        raise CheckpointError(f"cannot write the results to {folder}: {error}") from None


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
