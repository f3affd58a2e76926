"""Held-out loss is a property of the parameters, and an export is the model that was measured."""

import os
import stat
from pathlib import Path

import pytest
import torch
import transformers

from pelago.config.run_file import RunFile
from pelago.core.errors import CheckpointError, ConfigError
from tests.small_disk import fill, small_disk
from tests.worker.corpora import run_file, write_texts
from tests.worker.tiny_models import checkpoint_folder, config_folder
from worker.evaluator.held_out_loss import HeldOutLoss, check_export
from worker.trainer import Trainer


@pytest.fixture
def source(tmp_path: Path) -> str:
    return f"text:{write_texts(tmp_path / 'texts')}"


def of_folder(source: str, model: Path, **data: object) -> RunFile:
    """A run of the model of a folder."""
    keys = run_file(source).model_dump()
    return RunFile.model_validate(
        keys | {"model": {"preset": str(model)}, "data": keys["data"] | data}
    )


def word_tokenizer(folder: Path, words: int = 200, eos: str | None = "<end>") -> Path:
    """A tokenizer of the texts' numbers and words; ``words``: its size, ``eos`` among them."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    names = ["<end>", "?", "squared", "is", *(str(number) for number in range(words - 4))]
    tokenizer = Tokenizer(
        models.WordLevel({name: number for number, name in enumerate(names)}, unk_token="?")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=eos, unk_token="?")
    fast.chat_template = "{{ messages }}"
    fast.save_pretrained(folder)
    return folder


def noisy(flat: torch.Tensor, seed: int) -> torch.Tensor:
    return flat + 0.05 * torch.randn(flat.shape, generator=torch.Generator().manual_seed(seed))


def test_the_loss_depends_on_the_parameters_alone(source: str) -> None:
    """Measuring another version in between, or in another process, changes nothing."""
    first, second = HeldOutLoss(run_file(source)), HeldOutLoss(run_file(source))
    flat = noisy(first.initial(), 1)
    loss, tokens = first.validate([flat])
    assert first.validate([noisy(flat, 2)]) != (loss, tokens)
    assert first.validate([flat]) == second.validate([flat]) == (loss, tokens)
    assert tokens == 8 * 16


def test_the_loss_is_the_mean_over_all_held_out_tokens(source: str) -> None:
    """The batches differ in size, 3 and 3 and 2, and each token counts once."""
    evaluator = HeldOutLoss(run_file(source, batch_size=3, global_batch_size=3))
    (everything,) = evaluator.corpus.validation_batches(8, 8)
    expected = evaluator.model.loss(everything).item()
    loss, _ = evaluator.validate([evaluator.initial()])
    assert loss == pytest.approx(expected, abs=1e-6)


def test_random_numbers_of_a_measurement_are_the_same_each_time(
    source: str, tmp_path: Path
) -> None:
    """Reformer hashes by random rotations in evaluation mode too; other random numbers are not changed."""
    settings = transformers.AutoConfig.for_model(
        "reformer",
        **{
            "vocab_size": 256,
            "hidden_size": 32,
            "num_attention_heads": 2,
            "attention_head_size": 16,
        },
        **{"attn_layers": ["lsh"], "num_hashes": 1, "num_buckets": 4, "lsh_attn_chunk_length": 8},
        **{"axial_pos_shape": (8, 8), "axial_pos_embds_dim": (16, 16), "feed_forward_size": 64},
        **{"max_position_embeddings": 64, "is_decoder": True},
    )
    settings.save_pretrained(tmp_path / "reformer")
    evaluator = HeldOutLoss(of_folder(source, tmp_path / "reformer", sequence_length=64))
    flat = noisy(evaluator.initial(), 1)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    assert evaluator.validate([flat]) == evaluator.validate([flat])
    assert torch.equal(torch.get_rng_state(), state)


def test_dropout_has_no_part_in_the_loss(source: str, tmp_path: Path) -> None:
    """The loss is the same in every call and process, whatever mode the model was in."""
    run = of_folder(source, config_folder(tmp_path / "gpt2", "gpt2"))
    first, second = HeldOutLoss(run), HeldOutLoss(run)
    flat = noisy(first.initial(), 1)
    expected = first.validate([flat])
    first.model.module.train()
    assert first.validate([flat]) == second.validate([flat]) == expected
    assert all(each.training for each in first.model.module.modules())


def test_worker_and_evaluator_mean_the_same_model(source: str) -> None:
    """Same manifest, same corpus, same initial parameters: what the handshake compares."""
    run = run_file(source)
    trainer, evaluator = Trainer(run), HeldOutLoss(run)
    assert trainer.manifest() == evaluator.manifest()
    assert trainer.corpus.digest == evaluator.corpus.digest
    assert torch.equal(trainer.initial(), evaluator.initial())


def test_an_export_opens_and_has_the_loss_that_was_measured(source: str, tmp_path: Path) -> None:
    evaluator = HeldOutLoss(run_file(source))
    flat = noisy(evaluator.initial(), 3)
    loss, _ = evaluator.validate([flat])
    evaluator.export([flat], tmp_path / "model")
    module = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    (tokens,) = evaluator.corpus.validation_batches(8, 8)
    with torch.no_grad():
        logits = module(input_ids=tokens[:, :-1]).logits
    opened = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
    assert opened.item() == pytest.approx(loss, abs=1e-5)


def test_an_export_has_the_modes_of_the_umask_and_replaces_the_one_before(
    source: str, tmp_path: Path
) -> None:
    evaluator = HeldOutLoss(run_file(source))
    before = os.umask(0o027)
    try:
        for _ in range(2):
            evaluator.export([evaluator.initial()], tmp_path / "out" / "model")
    finally:
        os.umask(before)
    modes = {stat.S_IMODE(each.stat().st_mode) for each in (tmp_path / "out" / "model").iterdir()}
    assert modes == {0o640}
    assert [each.name for each in (tmp_path / "out").iterdir()] == ["model"]


def test_an_export_to_an_impossible_folder_is_an_error_of_the_disk(
    source: str, tmp_path: Path
) -> None:
    evaluator = HeldOutLoss(run_file(source))
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match=r"cannot write the model to .*file/model: "):
        evaluator.export([evaluator.initial()], tmp_path / "file" / "model")


def test_an_export_without_room_is_an_error_of_the_disk_and_leaves_the_one_before(
    source: str, tmp_path: Path
) -> None:
    """A real disk; the library that writes the weights has an error of its own for that."""
    evaluator = HeldOutLoss(run_file(source))
    with small_disk(tmp_path / "disk", 8 << 20) as disk:
        (disk / "model").mkdir()
        (disk / "model" / "before").touch()
        fill(disk, leave_bytes=1 << 16)
        with pytest.raises(CheckpointError, match=r"cannot write the model to .*: .*No space left"):
            evaluator.export([evaluator.initial()], disk / "model")
        assert {each.name for each in disk.iterdir()} == {"model", "ballast"}
        assert [each.name for each in (disk / "model").iterdir()] == ["before"]


def test_a_damaged_export_is_noticed(source: str, tmp_path: Path) -> None:
    evaluator = HeldOutLoss(run_file(source))
    evaluator.export([evaluator.initial()], tmp_path / "model")
    check_export(evaluator.model, tmp_path / "model")
    evaluator.model.flat[7] += 1
    with pytest.raises(CheckpointError, match="differs in"):
        check_export(evaluator.model, tmp_path / "model")
    weights = tmp_path / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(CheckpointError, match="does not open"):
        check_export(evaluator.model, tmp_path / "model")


COMPANIONS = {
    "generation_config.json": '{"temperature": 0.25, "eos_token_id": 7}',
    "LICENSE.txt": "Thou shalt.",
    "USE_POLICY.md": "Thou shalt not.",
    "emoji.json": "{}",
    "merges.txt": "a b",
    "source.spm": "pieces",
    "target_vocab.json": "{}",
    "tekken.json": "{}",
    "tokenizer.model": "pieces",
}
OTHERS = {"README.md": "a model", "optimizer.bin": "moments", "tokenizer_code.py": "exit()"}


def test_companion_files_of_a_model_are_copied_into_its_export(source: str, tmp_path: Path) -> None:
    """They are read at the start, because the folder may be gone at the end."""
    folder = word_tokenizer(checkpoint_folder(tmp_path / "llama", "llama"))
    for name, content in (COMPANIONS | OTHERS).items():
        (folder / name).write_text(content)
    evaluator = HeldOutLoss(of_folder(source, folder))
    vocabulary = transformers.AutoTokenizer.from_pretrained(folder).get_vocab()
    for each in folder.iterdir():
        each.unlink()
    export = tmp_path / "model"
    evaluator.export([evaluator.initial()], export)
    assert {name: (export / name).read_text() for name in COMPANIONS} == COMPANIONS
    assert not any((export / name).exists() for name in OTHERS)
    opened = transformers.AutoTokenizer.from_pretrained(export)
    assert opened.get_vocab() == vocabulary
    assert opened.chat_template == "{{ messages }}"
    module = transformers.AutoModelForCausalLM.from_pretrained(export)
    assert module.generation_config.temperature == 0.25


def test_the_tokenizer_of_the_corpus_takes_the_place_of_the_models_own(
    source: str, tmp_path: Path
) -> None:
    """The export names its class, so that it opens beside the configuration of any model."""
    model = word_tokenizer(checkpoint_folder(tmp_path / "gpt2", "gpt2"), words=20)
    (model / "LICENSE").write_text("of the model")
    tokenizer = word_tokenizer(tmp_path / "tokenizer")
    (tokenizer / "LICENSE").write_text("of the tokenizer")
    (tokenizer / "tokenizer.model").write_text("pieces")
    run = of_folder(source, model, tokenizer=str(tokenizer))
    evaluator = HeldOutLoss(run)
    export = tmp_path / "model"
    evaluator.export([evaluator.initial()], export)
    assert len(transformers.AutoTokenizer.from_pretrained(export)) == 200
    assert (export / "LICENSE").read_text() == "of the model"
    assert (export / "LICENSE.tokenizer").read_text() == "of the tokenizer"
    assert (export / "tokenizer.model").read_text() == "pieces"


def test_an_export_that_is_not_good_leaves_the_one_before(source: str, tmp_path: Path) -> None:
    tokenizer = word_tokenizer(tmp_path / "tokenizer")
    run = of_folder(source, config_folder(tmp_path / "llama", "llama"), tokenizer=str(tokenizer))
    evaluator = HeldOutLoss(run)
    export = tmp_path / "model"
    evaluator.export([evaluator.initial()], export)
    before = (export / "model.safetensors").read_bytes()
    evaluator._tokenizer.add_tokens(["more"])
    saved = evaluator._tokenizer.save_pretrained
    evaluator._tokenizer.save_pretrained = lambda folder: (
        saved(folder),
        (Path(folder) / "tokenizer.json").write_text("{"),
    )
    with pytest.raises(CheckpointError, match=r"tokenizer in .* does not open"):
        evaluator.export([noisy(evaluator.initial(), 1)], export)
    assert (export / "model.safetensors").read_bytes() == before
    assert {each.name for each in tmp_path.iterdir()} == {"llama", "model", "texts", "tokenizer"}


def test_a_companion_that_git_lfs_did_not_fetch_is_named(source: str, tmp_path: Path) -> None:
    folder = checkpoint_folder(tmp_path / "llama", "llama")
    (folder / "tokenizer.json").write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(ConfigError, match=r"tokenizer\.json is a git-lfs pointer"):
        HeldOutLoss(of_folder(source, folder))
