"""What the GPS leaves behind: the model itself, and its mean beside it where one is kept."""

from pathlib import Path

import torch
from safetensors.torch import load_file

from gps import files
from pelago.tensor.manifest import Manifest
from pelago.wire.messages import TensorSpec

MANIFEST = Manifest((TensorSpec("matrix", (2, 3)), TensorSpec("vector", (2,))))
RESULT = {"validation": []}


def read(path: Path) -> torch.Tensor:
    """All numbers of a file in the manifest's order."""
    tensors = load_file(path)
    return torch.cat([tensors[spec.name].flatten() for spec in MANIFEST.specs])


def test_a_run_without_a_mean_leaves_the_model_and_no_mean_of_an_earlier_run(
    tmp_path: Path,
) -> None:
    model = torch.arange(8.0)
    (tmp_path / files.AVERAGE).write_bytes(b"an earlier run's")
    files.write(tmp_path, RESULT, MANIFEST, model)
    assert torch.equal(read(tmp_path / "global.safetensors"), model)
    assert {each.name for each in tmp_path.iterdir()} == {
        "global.safetensors",
        "loss.png",
        "result.json",
    }


def test_a_run_with_a_mean_leaves_both(tmp_path: Path) -> None:
    model, average = torch.arange(8.0), torch.arange(8.0) / 2
    files.write(tmp_path, RESULT, MANIFEST, model, average)
    assert torch.equal(read(tmp_path / "global.safetensors"), model)
    assert torch.equal(read(tmp_path / files.AVERAGE), average)
