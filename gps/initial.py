"""The model that a run starts from.

The GPS builds no models. A worker process on its host, which does, writes the initial parameters and
says which corpus it sees; both become the run's, and a node that joins with others is refused.
"""

import json
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from pelago import children
from pelago.config.run_file import RunFile
from pelago.config.run_toml import dump
from pelago.core.errors import CheckpointError, ConfigError
from pelago.tensor.manifest import Manifest
from pelago.wire.messages import TensorSpec


@dataclass(frozen=True, slots=True)
class Initial:
    """What a run starts from. ``flat``: all parameters, fp32, in the manifest's order. ``origin``: for
    people, where they are from: a checkpoint, or a seed.
    """

    manifest: Manifest
    flat: torch.Tensor
    corpus: str
    origin: str


def build(run: RunFile) -> Initial:
    """Have a worker build the initial model. Raises `ConfigError` with the worker's own words."""
    # The file has no name, so that nothing is left behind however this process ends.
    with ExitStack() as stack:
        try:
            model = stack.enter_context(tempfile.TemporaryFile(prefix="pelago-initial-"))
        except OSError as error:
            raise ConfigError(f"no room for temporary files (TMPDIR says where): {error}") from None
        path, number = Path(f"/proc/self/fd/{model.fileno()}"), model.fileno()
        flags = ("--run", "/dev/stdin", "--initialise", str(path))
        children.ask("worker", *flags, stdin_text=dump(run), pass_fds=[number])
        return read(path)


def read(path: Path) -> Initial:
    """Read what `worker --initialise` wrote. Raises `CheckpointError`."""
    try:
        with safe_open(path, framework="pt") as file:
            facts = file.metadata()
            order = json.loads(facts["order"])
            tensors = [file.get_tensor(name) for name in order]
            corpus, origin = facts["corpus"], facts["origin"]
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} holds no initial model: {error}") from None
    specs = tuple(TensorSpec(name, tuple(t.shape)) for name, t in zip(order, tensors, strict=True))
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    return Initial(Manifest(specs), flat, corpus, origin)
