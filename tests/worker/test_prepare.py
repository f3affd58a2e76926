"""A worker gets ready while its first parameters are on their way."""

from pathlib import Path
from typing import Any

import pytest
import torch

from pelago.core.names import Lease, PushId
from tests.worker.corpora import write_texts
from tests.worker.flat_training import train_flat
from tests.worker.test_trainer import run_file
from worker.trainer import Trainer


@pytest.fixture
def source(tmp_path: Path) -> str:
    return f"text:{write_texts(tmp_path)}"


def test_a_compiled_model_is_run_once_before_the_first_round_and_the_round_is_the_same(
    source: str,
) -> None:
    """With the shape of a micro-batch. A model that is not compiled has nothing to prepare."""
    run = run_file(source)
    plain, prepared = Trainer(run), Trainer(run, empty=True)
    shapes: list[torch.Size] = []

    def forward(**named: Any) -> Any:
        shapes.append(named["input_ids"].shape)
        return prepared.model.module(**named)

    prepared.prepare()
    assert not shapes
    # In the place of torch.compile, which takes a minute.
    prepared.model._forward, prepared.model.is_compiled = forward, True
    prepared.prepare()
    assert shapes == [(run.worker.sequences_at_once, run.data.sequence_length)]
    start, lease = plain.initial(), Lease(PushId(1, 0), ((0, 16),), 16)
    found, wanted = train_flat(prepared, lease, start), train_flat(plain, lease, start)
    assert found is not None
    assert wanted is not None
    assert torch.equal(found.delta, wanted.delta)  # type: ignore[arg-type]


def test_a_fault_while_getting_ready_is_left_to_the_first_round(source: str) -> None:
    trainer = Trainer(run_file(source), empty=True)
    trainer.model.is_compiled = True

    def broken(**_: Any) -> Any:
        raise RuntimeError("no compiler")

    trainer.model._forward = broken
    trainer.prepare()
    assert trainer.model.is_compiled
