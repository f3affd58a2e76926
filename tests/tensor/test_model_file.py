"""A model as a safetensors file."""

from pathlib import Path

import torch
from safetensors import safe_open

from pelago.tensor import model_file
from pelago.tensor.manifest import Manifest
from pelago.wire.messages import TensorSpec


def test_the_library_reads_what_is_written(tmp_path: Path) -> None:
    manifest = Manifest(
        (TensorSpec("größe", (3, 2)), TensorSpec("scalar", ()), TensorSpec("a", (5,)))
    )
    flat = torch.arange(12, dtype=torch.float32)
    path = tmp_path / "model.safetensors"
    model_file.write(path, manifest, flat, {"fact": "true"})
    with safe_open(path, framework="pt") as file:
        assert file.metadata() == {"fact": "true"}
        read = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    for name, view in manifest.named_views(flat).items():
        assert torch.equal(read[name], view)
    assert set(read) == {"größe", "scalar", "a"}
