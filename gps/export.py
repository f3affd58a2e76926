"""The global model of a run that is not at its end: from the state that its GPS keeps."""

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch

from gps.resume import NODE, local_state, restored_state
from gps.state import Gps
from pelago.config.run_file import RunFile
from pelago.core.errors import CheckpointError, ConfigError
from pelago.net.durability.state_folder import StateFolder
from pelago.tensor.manifest import Manifest


@dataclass(frozen=True, slots=True)
class FoundState:
    """A GPS's state, as far as it is known."""

    folder: Path
    """The folder of results, as far as it is known."""
    is_running: bool
    """A GPS has the state: what is here is its newest snapshot. Otherwise the journal was read as well."""
    run: RunFile
    machine: Gps
    manifest: Manifest
    flat: torch.Tensor
    """The model, fp32, in the manifest's order."""
    average: torch.Tensor | None
    """Its mean, if one is kept."""
    passed_over: tuple[str, ...]
    """What is wrong with newer snapshots."""


def find(source: Path) -> FoundState:
    """Read the state in a folder of results or of state, whether its GPS runs or not; a GPS can start meanwhile.
    Raises `ConfigError`, `CheckpointError`."""
    place = local_state(str(source))
    if place is None:
        raise ConfigError(
            f"{source}: holds no state of a GPS: name a folder of results or of state, of a run whose"
            " gps.durability is not 'none', on the GPS's host"
        )
    with ExitStack() as stack:
        store = StateFolder(place, None, NODE, read=True, beside=True)
        stack.callback(store.close)
        recovered = store.newest() if store.is_running else store.recovered(salvage=True)
        if recovered is None or recovered.snapshot is None:
            why = "; ".join(recovered.passed_over) if recovered is not None else ""
            raise CheckpointError(
                f"{source}: the GPS has written no {'sound ' if why else ''}snapshot{': ' if why else ''}{why}"
            )
        kept, run, machine, restored = restored_state(recovered, recovered.snapshot, str(source))
        assert kept.manifest is not None
        plane = restored.plane
        assert plane is not None
        results = place.parent.parent if place.name == "state" else place
        return FoundState(
            folder=results,
            is_running=store.is_running,
            run=run,
            machine=machine,
            manifest=kept.manifest,
            flat=plane.model(),
            average=plane.average(),
            passed_over=recovered.passed_over,
        )
