"""Every architecture trains, is measured, and has the measured loss when its export is opened."""

from pathlib import Path

import pytest
import torch

from pelago.core.names import Lease, PushId
from pelago.core.ports import TrainingResult
from tests.worker.corpora import write_texts
from tests.worker.evaluator.test_held_out_loss import of_folder
from tests.worker.exported_model import held_out_loss
from tests.worker.flat_training import train_flat
from tests.worker.tiny_models import ARCHITECTURES, config_folder
from worker.evaluator.held_out_loss import HeldOutLoss
from worker.trainer import Trainer

NAMED = frozenset({"bloom", "gemma2", "gpt_neo", "gpt_oss", "gptj", "mamba", "opt"})
"""Architectures that need special treatment; the others are tried with the slow tests."""


@pytest.mark.parametrize(
    "kind",
    [
        kind if kind in NAMED else pytest.param(kind, marks=pytest.mark.slow)
        for kind in sorted(ARCHITECTURES)
    ],
)
def test_an_architecture_trains_and_its_export_has_the_loss_that_was_measured(
    tmp_path: Path, kind: str
) -> None:
    """The library's own attention, experts, states, and positions of every kind."""
    source = f"text:{write_texts(tmp_path / 'texts')}"
    run = of_folder(source, config_folder(tmp_path / "config", kind))
    trainer, evaluator = Trainer(run), HeldOutLoss(run)
    start = trainer.initial()
    assert torch.equal(start, evaluator.initial())
    lease = Lease(PushId(1, 0), ((0, 64),), 80)
    result = train_flat(trainer, lease, start)
    assert isinstance(result, TrainingResult)
    trained = start - result.delta
    before, after = (evaluator.validate([flat])[0] for flat in (start, trained))
    assert after < before
    assert evaluator.validate([trained])[0] == after
    evaluator.export([trained], tmp_path / "model")
    assert held_out_loss(run, tmp_path / "model") == pytest.approx(after, abs=1e-5)
