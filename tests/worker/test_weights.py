"""A folder gives all of its weights, and says so, or is refused with the names of the tensors that do not fit."""

import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers

from pelago.config.training import ModelSection
from pelago.core.errors import ConfigError
from tests.worker.tiny_models import (
    checkpoint_folder,
    config_folder,
    tensors_of,
    write_tensors,
)
from worker.models.build import build
from worker.models.language import LanguageModel

CPU = torch.device("cpu")
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
Tensors = dict[str, torch.Tensor]


def built(folder: Path, **overrides: int) -> LanguageModel:
    return build(ModelSection(preset=str(folder), overrides=overrides), 0, 3, CPU)


def untied(folder: Path) -> Path:
    return checkpoint_folder(folder, "llama", tie_word_embeddings=False)


def as_pytorch(folder: Path, held: object) -> None:
    torch.save(held, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def refused(folder: Path, **overrides: int) -> str:
    with pytest.raises(ConfigError) as caught:
        built(folder, **overrides)
    said = str(caught.value)
    assert f"model.preset = '{folder}'" in said
    assert "\n" not in said
    return said


def test_a_model_says_where_its_parameters_are_from(tmp_path: Path) -> None:
    full = untied(tmp_path / "full")
    bare = config_folder(tmp_path / "bare", "llama")
    assert built(full).origin == f"pretrained, 21 tensors from {full}/model.safetensors"
    assert built(bare).origin == "random, drawn from seed 3"
    assert build(ModelSection(), 256, 3, CPU).origin == "random, drawn from seed 3"


def test_shards_and_pytorch_files_give_the_same_weights(tmp_path: Path) -> None:
    expected = built(untied(tmp_path / "one")).flat
    shards = checkpoint_folder(
        tmp_path / "shards", "llama", shard_size="20KB", tie_word_embeddings=False
    )
    assert torch.equal(built(shards).flat, expected)
    assert "model.safetensors.index.json (" in built(shards).origin
    for number, zipped in enumerate((True, False)):
        folder = untied(tmp_path / f"pytorch{number}")
        tensors = tensors_of(folder)
        (folder / "model.safetensors").unlink()
        torch.save(tensors, folder / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
        assert torch.equal(built(folder).flat, expected)
        assert built(folder).origin.endswith("pytorch_model.bin")


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "module._orig_mod."])
def test_prefixes_of_wrappers_are_removed_from_every_name(tmp_path: Path, prefix: str) -> None:
    folder = untied(tmp_path / "model")
    expected = built(folder).flat
    write_tensors(folder, {prefix + name: each for name, each in tensors_of(folder).items()})
    found = built(folder)
    assert torch.equal(found.flat, expected)
    assert found.origin.endswith(f"(their prefix {prefix} taken off)")


def test_names_without_the_head_before_them_are_found(tmp_path: Path) -> None:
    """As a model without a head saves them; here the head is tied."""
    folder = checkpoint_folder(tmp_path / "model", "gpt2")
    expected = built(folder).flat
    bare = {n.removeprefix("transformer."): each for n, each in tensors_of(folder).items()}
    assert all(name[:2] in ("h.", "wt", "wp", "ln") for name in bare)
    write_tensors(folder, bare)
    assert torch.equal(built(folder).flat, expected)


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("llama", {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}),
        ("gpt2", {"transformer.h.0.attn.bias": torch.ones(1, 1, 64, 64, dtype=torch.uint8)}),
        ("gpt2", {"transformer.h.1.attn.masked_bias": torch.tensor(-1e4)}),
        ("gpt2", {"lm_head.weight": None}),
    ],
    ids=["rotary", "mask", "masked bias", "tied head"],
)
def test_buffers_that_a_model_computes_may_be_missing(
    tmp_path: Path, kind: str, more: dict[str, torch.Tensor | None]
) -> None:
    folder = checkpoint_folder(tmp_path / "model", kind)
    expected = built(folder).flat
    tensors = tensors_of(folder)
    embedding = next(each for name, each in tensors.items() if "wte" in name or "embed" in name)
    extra = {n: embedding.clone() if each is None else each for n, each in more.items()}
    write_tensors(folder, tensors | extra)
    assert torch.equal(built(folder).flat, expected)


def test_a_table_of_whole_numbers_that_the_model_has_is_not_quantised(tmp_path: Path) -> None:
    """DeepSeek V4 looks up experts by token id, in a buffer whose path differs in file and module."""
    settings = transformers.AutoConfig.for_model(
        "deepseek_v4",
        **{"vocab_size": 256, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4},
        **{"num_key_value_heads": 4, "head_dim": 8, "moe_intermediate_size": 32},
        **{"n_routed_experts": 8, "num_experts_per_tok": 2, "q_lora_rank": 16, "layer_types": None},
        **{"qk_rope_head_dim": 8},
    )
    module = transformers.AutoModelForCausalLM.from_config(settings)
    module.save_pretrained(tmp_path)
    tables = {name for name, each in tensors_of(tmp_path).items() if each.dtype == torch.int64}
    assert tables
    model = built(tmp_path)
    assert model.origin.startswith("pretrained, ")
    read = dict(model.module.named_buffers())
    for name, each in module.named_buffers():
        assert torch.equal(read[name], each)


def test_a_configuration_without_a_word_on_tied_matrices_is_read(tmp_path: Path) -> None:
    settings = transformers.AutoConfig.for_model(
        "inkling_text",
        **{"vocab_size": 256, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4},
        **{"num_key_value_heads": 4, "head_dim": 8, "moe_intermediate_size": 32},
        **{"n_routed_experts": 8, "num_experts_per_tok": 2, "layer_types": None},
    )
    assert not hasattr(settings, "tie_word_embeddings")
    transformers.AutoModelForCausalLM.from_config(settings).save_pretrained(tmp_path)
    assert built(tmp_path).origin.startswith("pretrained, ")


def test_two_matrices_where_the_config_ties_them_stay_two(tmp_path: Path) -> None:
    """The weights are right, and an export says so too."""
    folder = untied(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    model = built(folder)
    assert "lm_head.weight" in {spec.name for spec in model.manifest()}
    assert "not tied" in model.origin
    model.export(tmp_path / "export")
    assert not json.loads((tmp_path / "export/config.json").read_text())["tie_word_embeddings"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda t: {n: e for n, e in t.items() if ".layers.1." not in n},
            r"9 of the model's 21 parameters are not in them: model\.layers\.1\..* and 5 more",
        ),
        (
            lambda t: (
                t | {n.replace("rs.1.", "rs.2."): e.clone() for n, e in t.items() if "rs.1." in n}
            ),
            r"9 of their 30 tensors are not in the model: model\.layers\.2\..* and 5 more",
        ),
        (
            lambda t: t | {"lm_head.weight": torch.zeros(257, 32)},
            r"1 have another shape: lm_head\.weight \(257x32 instead of 256x32\)",
        ),
        (
            lambda t: {n: e for n, e in t.items() if "head" not in n},
            r"not in them: lm_head\.weight",
        ),
        (
            lambda t: {("_orig_mod." if "rs.0." in n else "") + n: e for n, e in t.items()},
            r"9 of their 21 tensors are not in the model: _orig_mod\.model\.layers",
        ),
        (
            lambda t: t | {"model.norm.weight": t["model.norm.weight"].to(torch.float8_e4m3fn)},
            r"1 of 21 tensors are quantised: model\.norm\.weight \(float8_e4m3fn\)",
        ),
        (
            lambda t: t | {"model.norm.weight": torch.ones(32, dtype=torch.int8)},
            r"quantised: model\.norm\.weight \(int8\)",
        ),
        (
            lambda t: t | {"model.norm.weight": torch.full((32,), float("nan"))},
            r"not finite: model\.norm\.weight",
        ),
        (lambda t: {}, r"holds no tensors"),
    ],
    ids=["fewer", "more", "shape", "head", "half", "fp8", "int8", "nan", "empty"],
)
def test_weights_of_another_model_are_refused_by_name(
    tmp_path: Path, change: Callable[[Tensors], Tensors], said: str
) -> None:
    folder = untied(tmp_path / "model")
    write_tensors(folder, change(tensors_of(folder)))
    assert re.search(said, refused(folder))


def test_experts_that_do_not_go_together_are_named(tmp_path: Path) -> None:
    folder = checkpoint_folder(tmp_path / "model", "mixtral")
    tensors = tensors_of(folder)
    name = "model.layers.0.block_sparse_moe.experts.0.w2.weight"
    write_tensors(folder, tensors | {name: torch.zeros(31, 64)})
    assert "do not go together: model.layers.0.mlp.experts" in refused(folder)
    write_tensors(folder, {n: each for n, each in tensors.items() if n != name})
    assert "experts.down_proj (3x32x64 instead of 4x32x64)" in refused(folder)


def test_overrides_that_contradict_the_weights_are_refused(tmp_path: Path) -> None:
    folder = untied(tmp_path / "model")
    assert "model.layers.1." in refused(folder, num_hidden_layers=1)
    assert "model.layers.2." in refused(folder, num_hidden_layers=3)
    assert "256x32 instead of 256x64" in refused(folder, hidden_size=64)
    assert "256x32 instead of 200x32" in refused(folder, vocab_size=200)


def test_a_larger_vocabulary_pads_the_weights_with_rows(tmp_path: Path) -> None:
    folder = untied(tmp_path / "model")
    before, model = built(folder), built(folder, vocab_size=260)
    assert model.vocabulary == 260
    assert model.origin.endswith("its 256 token ids padded to 260 with random rows")
    old, new = (dict(each.module.named_parameters()) for each in (before, model))
    for name in ("lm_head.weight", "model.embed_tokens.weight"):
        assert new[name].shape == (260, 32)
        assert torch.equal(new[name][:256], old[name])
    assert torch.equal(model.flat, built(folder, vocab_size=260).flat)


def spoil(folder: Path, name: str, how: str) -> None:
    """Replace a file in the folder by something that users find there."""
    path = folder / name
    match how:
        case "cut":
            path.write_bytes(path.read_bytes()[:-40])
        case "empty":
            path.write_bytes(b"")
        case "pointer":
            path.write_text(POINTER)
        case "dangling":
            path.unlink()
            os.symlink(folder / "nowhere", path)
        case "folder":
            path.unlink()
            path.mkdir()
        case "pipe":
            path.unlink()
            os.mkfifo(path)
        case "gone":
            path.unlink()
        case _:
            (folder / how).parent.mkdir(parents=True, exist_ok=True)
            path.rename(folder / how)


@pytest.mark.parametrize(
    ("name", "how", "said"),
    [
        ("model.safetensors", "cut", "model.safetensors is torn"),
        ("model.safetensors", "empty", "model.safetensors is torn"),
        ("model.safetensors", "pointer", "model.safetensors is a git-lfs pointer"),
        ("model.safetensors", "dangling", "model.safetensors cannot be opened: No such file"),
        ("model.safetensors", "folder", "model.safetensors is no file"),
        ("model.safetensors", "pipe", "model.safetensors is no file"),
        ("model.safetensors", "model-q4.gguf", "holds model-q4.gguf, but none of"),
        ("model.safetensors", "consolidated.00.pth", "holds consolidated.00.pth, but none of"),
        ("model.safetensors", "adapter_model.safetensors", "merge the adapter"),
        ("model.safetensors", "model.safetensors.part", "load it to its end"),
        ("model.safetensors", "pytorch_model.bin.gz", "pytorch_model.bin.gz, but .* unpack it"),
        (
            "model.safetensors",
            ".cache/huggingface/download/aQ3=.4d7a.incomplete",
            r"holds \.cache/.*/aQ3=\.4d7a\.incomplete, but none of .*: load it to its end",
        ),
        (
            "model.safetensors",
            "checkpoint-500/model.safetensors",
            "holds checkpoint-500/model.safetensors, but none of .*: name that folder",
        ),
        ("model.safetensors", "original/consolidated.00.pth", "holds original/consolidated"),
        ("model.safetensors", "global_step10/mp_rank_00_model_states.pt", "holds global_step10/mp"),
        ("config.json", "snapshots/4d7a/config.json", "there is one in snapshots/4d7a"),
        ("config.json", "pointer", "config.json is a git-lfs pointer"),
        ("config.json", "empty", "config.json is no JSON"),
        ("config.json", "cut", "config.json is no JSON"),
        ("config.json", "gone", "the folder has no config.json"),
    ],
)
def test_files_that_are_not_what_they_should_be_are_named(
    tmp_path: Path, name: str, how: str, said: str
) -> None:
    folder = untied(tmp_path / "model")
    spoil(folder, name, how)
    assert re.search(said, refused(folder))


@pytest.mark.parametrize("name", ["out/model/model.safetensors", "README.pt.md", "a.incomplete.md"])
def test_files_that_are_no_weights_are_no_reason_to_refuse_the_model(
    tmp_path: Path, name: str
) -> None:
    """Results of a run may lie in the folder of its config, and a run goes on after an export."""
    folder = untied(tmp_path / "model")
    spoil(folder, "model.safetensors", name)
    assert built(folder).origin == "random, drawn from seed 3"


def test_matrices_of_zeros_are_reported(tmp_path: Path) -> None:
    """A file that was given its length and not filled reads as zeros."""
    folder = untied(tmp_path / "model")
    tensors = tensors_of(folder)
    for name in ("model.layers.1.mlp.up_proj.weight", "model.layers.1.mlp.down_proj.weight"):
        tensors[name].zero_()
    write_tensors(folder, tensors)
    assert built(folder).origin.endswith(
        ", of which 2 matrices hold zeros only:"
        " model.layers.1.mlp.down_proj.weight, model.layers.1.mlp.up_proj.weight"
    )


def test_an_index_needs_all_of_its_shards(tmp_path: Path) -> None:
    folder = checkpoint_folder(tmp_path / "model", "llama", shard_size="20KB")
    shards = sorted(folder.glob("model-*.safetensors"))
    shards[1].unlink()
    said = refused(folder)
    assert f"names {len(shards)} shards, and 1 of them are not there: {shards[1].name}" in said
    for each in folder.glob("model-*.safetensors"):
        each.unlink()
    assert f"and {len(shards)} of them are not there" in refused(folder)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "../elsewhere.safetensors"}}))
    assert "names files elsewhere: ../elsewhere.safetensors" in refused(folder)
    for content in ("{", "[]", "{}", '{"weight_map": {}}'):
        index.write_text(content)
        assert "model.safetensors.index.json" in refused(folder)


def test_a_pickle_is_never_executed(tmp_path: Path) -> None:
    """Only named tensors are read from a PyTorch file."""

    class Trap:
        """Makes a file when it is unpickled."""

        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(tmp_path / "sprung"),)

    folder = untied(tmp_path / "model")
    tensors = tensors_of(folder)
    as_pytorch(folder, tensors | {"trap": Trap()})
    assert "pytorch_model.bin is torn, or a pickle of more than tensors" in refused(folder)
    assert not (tmp_path / "sprung").exists()
    torch.save({"model": tensors, "step": 3}, folder / "pytorch_model.bin")
    assert "holds more than tensors by name: model, step" in refused(folder)
    (folder / "pytorch_model.bin").write_bytes((folder / "pytorch_model.bin").read_bytes()[:3000])
    assert "pytorch_model.bin is torn" in refused(folder)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"quantization_config": {"quant_method": "fp8"}}, "has a quantization_config"),
        (
            {"model_type": "mine", "auto_map": {"AutoModelForCausalLM": "mine.Model"}},
            "no architecture 'mine'; its auto_map asks to run code from the folder, which is never done",
        ),
        ({"model_type": "t5"}, "'t5' is no architecture of causal language models"),
        ({"model_type": None}, "no architecture None"),
        ({"hidden_size": "32"}, "error for field 'hidden_size': .*str"),
    ],
)
def test_a_config_that_cannot_be_followed_is_refused_with_a_sentence(
    tmp_path: Path, keys: dict[str, object], said: str
) -> None:
    folder = untied(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | keys))
    assert re.search(said, refused(folder))


def test_code_beside_an_architecture_that_the_library_has_is_not_needed(tmp_path: Path) -> None:
    """Many published models still contain their old code."""
    folder = untied(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoConfig": "trap.Config", "AutoModelForCausalLM": "trap.Model"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "trap.py").write_text("raise SystemExit('executed')")
    assert built(folder).origin.startswith("pretrained")


def test_a_model_that_sees_the_tokens_it_is_to_predict_is_refused(tmp_path: Path) -> None:
    keys = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    import transformers

    transformers.BertConfig(vocab_size=256, intermediate_size=32, **keys).save_pretrained(tmp_path)
    assert "set is_decoder = true" in refused(tmp_path)
    assert built(tmp_path, is_decoder=True).elements > 0
