"""Held-out loss is a property of the parameters, and an export is the model that was measured."""

import os
import stat
from pathlib import Path

import pytest
import torch
import transformers

from pelago.core.errors import CheckpointError
from tests.small_disk import fill, small_disk
from tests.worker.corpora import run_file, write_texts
from worker.evaluator import Evaluator, check_export
from worker.trainer import Trainer


@pytest.fixture
def source(tmp_path: Path) -> str:
    return f"text:{write_texts(tmp_path / 'texts')}"


def noisy(flat: torch.Tensor, seed: int) -> torch.Tensor:
    return flat + 0.05 * torch.randn(flat.shape, generator=torch.Generator().manual_seed(seed))


def test_the_loss_depends_on_the_parameters_alone(source: str) -> None:
    """Measuring another version in between, or in another process, changes nothing."""
    first, second = Evaluator(run_file(source)), Evaluator(run_file(source))
    flat = noisy(first.initial(), 1)
    loss, tokens = first.validate(flat)
    assert first.validate(noisy(flat, 2)) != (loss, tokens)
    assert first.validate(flat) == second.validate(flat) == (loss, tokens)
    assert tokens == 8 * 16


def test_the_loss_is_the_mean_over_all_held_out_tokens(source: str) -> None:
    """The batches differ in size, 3 and 3 and 2, and each token counts once."""
    evaluator = Evaluator(run_file(source, batch_size=3, global_batch_size=3))
    (everything,) = evaluator.corpus.validation_batches(8, 8)
    expected = evaluator.model.loss(everything).item()
    loss, _ = evaluator.validate(evaluator.initial())
    assert loss == pytest.approx(expected, abs=1e-6)


def test_worker_and_evaluator_mean_the_same_model(source: str) -> None:
    """Same manifest, same corpus, same initial parameters: what the handshake compares."""
    run = run_file(source)
    trainer, evaluator = Trainer(run), Evaluator(run)
    assert trainer.manifest() == evaluator.manifest()
    assert trainer.corpus.digest == evaluator.corpus.digest
    assert torch.equal(trainer.initial(), evaluator.initial())


def test_an_export_opens_and_has_the_loss_that_was_measured(source: str, tmp_path: Path) -> None:
    evaluator = Evaluator(run_file(source))
    flat = noisy(evaluator.initial(), 3)
    loss, _ = evaluator.validate(flat)
    evaluator.export(flat, tmp_path / "model")
    module = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    (tokens,) = evaluator.corpus.validation_batches(8, 8)
    with torch.no_grad():
        logits = module(input_ids=tokens[:, :-1]).logits
    opened = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
    assert opened.item() == pytest.approx(loss, abs=1e-5)


def test_an_export_has_the_modes_of_the_umask_and_replaces_the_one_before(
    source: str, tmp_path: Path
) -> None:
    evaluator = Evaluator(run_file(source))
    before = os.umask(0o027)
    try:
        for _ in range(2):
            evaluator.export(evaluator.initial(), tmp_path / "out" / "model")
    finally:
        os.umask(before)
    modes = {stat.S_IMODE(each.stat().st_mode) for each in (tmp_path / "out" / "model").iterdir()}
    assert modes == {0o640}
    assert [each.name for each in (tmp_path / "out").iterdir()] == ["model"]


def test_an_export_to_where_none_can_be_is_an_error_of_the_disk(
    source: str, tmp_path: Path
) -> None:
    evaluator = Evaluator(run_file(source))
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match=r"cannot write the model to .*file/model: "):
        evaluator.export(evaluator.initial(), tmp_path / "file" / "model")


def test_an_export_without_room_is_an_error_of_the_disk_and_leaves_the_one_before(
    source: str, tmp_path: Path
) -> None:
    """A real disk; the library that writes the weights has an error of its own for that."""
    evaluator = Evaluator(run_file(source))
    with small_disk(tmp_path / "disk", 8 << 20) as disk:
        (disk / "model").mkdir()
        (disk / "model" / "before").touch()
        fill(disk, leave_bytes=1 << 16)
        with pytest.raises(CheckpointError, match=r"cannot write the model to .*: .*No space left"):
            evaluator.export(evaluator.initial(), disk / "model")
        assert {each.name for each in disk.iterdir()} == {"model", "ballast"}
        assert [each.name for each in (disk / "model").iterdir()] == ["before"]


def test_a_damaged_export_is_noticed(source: str, tmp_path: Path) -> None:
    evaluator = Evaluator(run_file(source))
    evaluator.export(evaluator.initial(), tmp_path / "model")
    check_export(evaluator.model, tmp_path / "model")
    evaluator.model.flat[7] += 1
    with pytest.raises(CheckpointError, match="differs in"):
        check_export(evaluator.model, tmp_path / "model")
    weights = tmp_path / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(CheckpointError, match="does not open"):
        check_export(evaluator.model, tmp_path / "model")
