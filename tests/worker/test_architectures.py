"""Every architecture trains, is measured, and has the measured loss when its export is opened."""

from pathlib import Path

import pytest
import torch

from pelago.config.training import ModelSection
from pelago.core.names import Lease, PushId
from pelago.core.ports import TrainingResult
from tests.worker.corpora import write_texts
from tests.worker.evaluator.test_held_out_loss import of_folder
from tests.worker.exported_model import held_out_loss
from tests.worker.flat_training import train_flat
from tests.worker.tiny_models import ARCHITECTURES, config_folder
from worker.evaluator.held_out_loss import HeldOutLoss
from worker.models.build import build, build_empty
from worker.trainer import Trainer

CPU = torch.device("cpu")

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


@pytest.mark.parametrize(
    "kind",
    [
        kind if kind in NAMED else pytest.param(kind, marks=pytest.mark.slow)
        for kind in sorted(ARCHITECTURES)
    ],
)
def test_an_architecture_that_is_built_empty_is_the_same_model(tmp_path: Path, kind: str) -> None:
    """With the parameters of the one that was drawn it has the same loss, to the bit: its buffers, such as the
    frequencies of rotary positions, have their values."""
    model = ModelSection(preset=str(config_folder(tmp_path, kind)))
    drawn, empty = (make(model, 256, 3, CPU) for make in (build, build_empty))
    assert empty.manifest() == drawn.manifest()
    assert not empty.flat.any()
    assert not [name for name, each in empty.module.named_buffers() if each.is_meta]
    empty.load([drawn.flat])
    tokens = torch.arange(66).view(2, 33)
    with torch.no_grad(), drawn.evaluating():
        loss = drawn.loss(tokens)
    with torch.no_grad(), empty.evaluating():
        assert torch.equal(empty.loss(tokens), loss)
    gradients = []
    for each in (drawn, empty):
        with each.training():
            each.draw_from(0)
            each.backward(tokens, 1.0)
        gradients.append(each.gradient())
    assert torch.equal(*gradients)
