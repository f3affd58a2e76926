"""The model that a run starts from.

The GPS builds no models. A worker process on its host, which does, leaves the initial parameters in memory that
both share, and says which corpus it sees; both become the run's, and a node that joins with others is refused.
"""

import json
import mmap
import os
from dataclasses import dataclass
from typing import Final

import torch

from pelago import children
from pelago.config.run_file import RunFile
from pelago.config.run_toml import dump
from pelago.core.errors import CheckpointError
from pelago.tensor.manifest import Manifest
from pelago.tensor.payload import tensor_over
from pelago.wire.messages import TensorSpec

MEMORY: Final = "pelago-initial"
"""Name of the shared memory, for people who look at a process."""


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
    # It has no name in any file system, so that nothing is left behind however this process ends.
    memory = os.memfd_create(MEMORY)
    try:
        flags = ("--run", "/dev/stdin", "--initialise", f"/proc/self/fd/{memory}")
        facts = children.ask("worker", *flags, stdin_text=dump(run), pass_fds=[memory])
        return read(memory, facts)
    finally:
        os.close(memory)


def read(memory: int, facts: str) -> Initial:
    """What `worker --initialise` left. ``memory``: a file descriptor, ``facts``: what it printed. The parameters
    are not copied. Raises `CheckpointError`.
    """
    try:
        found = json.loads(facts)
        specs = tuple(TensorSpec(name, tuple(shape)) for name, shape in found["specs"])
        manifest, corpus, origin = Manifest(specs), found["corpus"], found["origin"]
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"the worker says of the initial model: {facts[:80]!r}") from error
    size = os.fstat(memory).st_size
    if size != manifest.bytes:
        raise CheckpointError(f"the initial model has {size:,} bytes, not {manifest.bytes:,}")
    flat = tensor_over(memoryview(mmap.mmap(memory, size)), torch.float32)
    return Initial(manifest, flat, corpus, origin)
