"""Any causal model of `transformers` is one flat tensor, and goes back to a folder unchanged."""

from pathlib import Path

import pytest
import torch
import transformers

from pelago.config.training import ModelSection
from pelago.core.errors import ConfigError
from tests.worker.corpora import TINY
from tests.worker.tiny_models import ARCHITECTURES, checkpoint_folder, config_folder
from worker.models.architecture import architecture
from worker.models.build import build
from worker.models.language import LanguageModel
from worker.models.presets import PRESETS

CPU = torch.device("cpu")
TOKENS = torch.arange(4 * 17).remainder(251).view(4, 17)


def tiny(seed: int = 0, **keys: object) -> LanguageModel:
    return build(ModelSection(overrides=TINY, **keys), 256, seed, CPU)


def loss_of_folder(folder: Path) -> float:
    """The model that a user gets from the folder with `transformers` alone."""
    module = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    logits = module(input_ids=TOKENS[:, :-1]).logits
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), TOKENS[:, 1:].flatten()).item()


@pytest.mark.parametrize("preset", ["llama3-tiny", "llama4-tiny"])
def test_every_parameter_is_a_view_into_the_flat_tensor(preset: str) -> None:
    """Writing the flat tensor changes the model; tied weights appear once."""
    model = build(ModelSection(preset=preset), 256, 0, CPU)
    named = dict(model.module.named_parameters())
    assert {spec.name for spec in model.manifest()} == set(named)
    offset = 0
    for spec in model.manifest():
        piece = model.flat[offset : offset + named[spec.name].numel()]
        assert tuple(named[spec.name].shape) == spec.shape
        assert torch.equal(piece.view(spec.shape), named[spec.name].data)
        assert piece.data_ptr() == named[spec.name].data_ptr()
        offset += piece.numel()
    assert offset == model.elements


def test_matrices_come_first() -> None:
    """So that weight decay touches one contiguous part."""
    model = tiny()
    dimensions = [len(spec.shape) for spec in model.manifest()]
    assert dimensions == sorted(dimensions, reverse=True)
    norms = [spec.shape[0] for spec in model.manifest() if len(spec.shape) == 1]
    assert model.matrix_elements == model.elements - sum(norms)


def test_a_tied_head_is_trained_through_its_embedding() -> None:
    """The gradient in the flat tensor is the whole one: both uses of the matrix count."""
    model = tiny()
    assert "lm_head.weight" not in {spec.name for spec in model.manifest()}
    model.gradient().zero_()
    torch.autograd.backward(model.loss(TOKENS))
    position = next(s for s in model.manifest() if s.name == "model.embed_tokens.weight")
    embedding = model.module.get_input_embeddings().weight
    assert position.shape == (256, 32)
    unused = embedding.grad[255]  # never an input, but always a wrong answer of the head
    assert unused.abs().sum() > 0


def test_the_gradient_is_that_of_an_ordinary_backward_pass() -> None:
    model, reference = tiny(), tiny()
    model.gradient().zero_()
    torch.autograd.backward(model.loss(TOKENS))
    torch.autograd.backward(reference.loss(TOKENS))
    gradients = {name: p.grad for name, p in reference.module.named_parameters()}
    flat = torch.cat([gradients[spec.name].flatten() for spec in reference.manifest()])
    assert torch.equal(model.gradient(), flat)


def test_a_parameter_outside_the_loss_has_a_zero_gradient() -> None:
    """A plain backward pass would leave None there."""
    model = tiny()
    gradient = model.gradient()
    gradient.fill_(0)
    torch.autograd.backward(model.module.get_input_embeddings().weight.sum())
    norm = next(p for name, p in model.module.named_parameters() if name == "model.norm.weight")
    assert norm.grad is not None
    assert torch.equal(norm.grad, torch.zeros_like(norm))


def test_load_and_read_are_inverse() -> None:
    model = tiny()
    values = torch.randn(model.elements, generator=torch.Generator().manual_seed(3))
    out = torch.empty(model.elements)
    model.load([values[:7], values[7:]])
    model.read_flat(out)
    assert torch.equal(out, values)


def test_initial_parameters_follow_from_the_seed_alone() -> None:
    """The caller's own random numbers have no influence and are not changed."""
    torch.manual_seed(1)
    first = tiny(seed=5)
    torch.manual_seed(2)
    state = torch.random.get_rng_state()
    second = tiny(seed=5)
    assert torch.equal(first.flat, second.flat)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not torch.equal(first.flat, tiny(seed=6).flat)


def test_a_fresh_model_has_the_loss_of_a_guess() -> None:
    """Its loss is close to that of guessing among 256 tokens."""
    assert tiny().loss(TOKENS).item() == pytest.approx(5.55, abs=0.2)


@pytest.mark.parametrize("preset", ["llama3-tiny", "llama4-tiny"])
def test_an_exported_model_opens_and_gives_the_same_loss(tmp_path: Path, preset: str) -> None:
    model = build(ModelSection(preset=preset), 256, 0, CPU)
    noise = torch.randn(model.elements, generator=torch.Generator().manual_seed(3))
    flat = model.flat + 0.02 * noise
    folder = tmp_path / "deep" / "model"
    model.load([flat])
    model.export(folder)
    assert loss_of_folder(folder) == pytest.approx(model.loss(TOKENS).item(), abs=1e-6)


def test_a_checkpoint_folder_gives_its_weights(tmp_path: Path) -> None:
    """Also one stored in bf16: training happens in fp32."""
    original = tiny(seed=9)
    original.export(tmp_path / "fp32")
    loaded = build(ModelSection(preset=str(tmp_path / "fp32")), 256, 0, CPU)
    assert torch.equal(loaded.flat, original.flat)
    assert loaded.manifest() == original.manifest()
    original.module.to(torch.bfloat16).save_pretrained(tmp_path / "bf16")
    rounded = build(ModelSection(preset=str(tmp_path / "bf16")), 256, 0, CPU)
    assert rounded.flat.dtype == torch.float32
    assert torch.equal(rounded.flat, loaded.flat.bfloat16().float())


def test_a_torn_checkpoint_is_named(tmp_path: Path) -> None:
    model = tiny()
    model.export(tmp_path / "model")
    weights = tmp_path / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ConfigError, match=r"model\.preset = '.*model': model\.safetensors .* torn"):
        build(ModelSection(preset=str(tmp_path / "model")), 256, 0, CPU)


def test_a_config_folder_is_initialised_from_the_seed(tmp_path: Path) -> None:
    """A family that no preset has, made smaller by an override."""
    transformers.GPT2Config(vocab_size=300, n_embd=32, n_layer=3, n_head=2).save_pretrained(
        tmp_path
    )
    model = build(ModelSection(preset=str(tmp_path)), 256, 4, CPU)
    smaller = build(ModelSection(preset=str(tmp_path), overrides={"n_layer": 1}), 256, 4, CPU)
    assert model.vocabulary == 300
    assert model.loss(TOKENS).item() == pytest.approx(5.7, abs=0.2)
    assert smaller.elements < model.elements


def test_fewer_layers_of_a_folder_shorten_its_lists_per_layer(tmp_path: Path) -> None:
    architecture(ModelSection(preset="llama4-tiny"), 256).save_pretrained(tmp_path)
    model = build(
        ModelSection(preset=str(tmp_path), overrides={"num_hidden_layers": 2}), 256, 0, CPU
    )
    names = {spec.name for spec in model.manifest()}
    assert any(".layers.1." in name for name in names)
    assert not any(".layers.2." in name for name in names)


def test_overrides_reach_the_model_of_texts_inside_one_of_pictures(tmp_path: Path) -> None:
    text = {**ARCHITECTURES["gemma3_text"], "model_type": "gemma3_text"}
    pictures = {"model_type": "siglip_vision_model", "hidden_size": 32, "intermediate_size": 64}
    pictures |= {
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 16,
        "patch_size": 8,
    }
    keys = {"text_config": text, "vision_config": pictures, "mm_tokens_per_image": 4}
    transformers.AutoConfig.for_model("gemma3", **keys).save_pretrained(tmp_path)
    drawn = build(
        ModelSection(preset=str(tmp_path), overrides={"num_hidden_layers": 1}), 256, 0, CPU
    )
    assert drawn.module.config.get_text_config().num_hidden_layers == 1
    assert len(drawn.module.config.get_text_config().layer_types) == 1
    assert drawn.module.config.vision_config.num_hidden_layers == 1
    drawn.module.save_pretrained(tmp_path)

    padded = build(ModelSection(preset=str(tmp_path), overrides={"vocab_size": 300}), 256, 0, CPU)
    assert padded.vocabulary == 300
    assert "its 256 token ids padded to 300" in padded.origin
    padded.export(tmp_path / "model")
    with torch.no_grad():
        assert loss_of_folder(tmp_path / "model") == pytest.approx(padded.loss(TOKENS).item())
    with pytest.raises(ConfigError, match=r"hidden_sise = 64.*did you mean 'hidden_size'"):
        build(ModelSection(preset=str(tmp_path), overrides={"hidden_sise": 64}), 256, 0, CPU)


@pytest.mark.parametrize(
    ("preset", "parameters"),
    [
        ("llama3-tiny", 395_904),
        ("llama3-8m", 8_975_040),
        ("llama3-125m", 121_329_408),
        ("llama3-350m", 346_342_400),
        ("llama3-1b", 1_235_814_400),
        ("llama3-8b", 8_030_261_248),
        ("llama4-tiny", 558_656),
    ],
)
def test_presets_have_the_sizes_that_their_names_say(preset: str, parameters: int) -> None:
    """The last digits are those of Meta's released models; no memory is used."""
    with torch.device("meta"):
        module = transformers.AutoModelForCausalLM.from_config(
            architecture(ModelSection(preset=preset), 0)
        )
    assert sum(parameter.numel() for parameter in module.parameters()) == parameters


def test_the_embedded_model_is_of_the_llama_3_architecture() -> None:
    settings = architecture(ModelSection(), 256)
    assert settings.model_type == "llama"
    assert settings.num_key_value_heads < settings.num_attention_heads
    assert settings.rope_parameters["rope_theta"] == 500_000.0
    assert settings.vocab_size == 256


def test_rope_theta_can_be_overridden() -> None:
    assert architecture(ModelSection(overrides={"rope_theta": 1e4}), 256).rope_parameters == {
        "rope_type": "default",
        "rope_theta": 1e4,
    }


@pytest.mark.parametrize(
    ("kind", "chosen"),
    [("llama", "sdpa"), ("gemma2", "eager"), ("gpt_neo", "eager"), ("mamba", "eager")],
)
def test_attention_is_what_the_library_chooses_for_the_architecture(
    tmp_path: Path, kind: str, chosen: str
) -> None:
    folders = (config_folder(tmp_path / "config", kind), checkpoint_folder(tmp_path / "all", kind))
    for folder in folders:
        model = build(ModelSection(preset=str(folder)), 256, 0, CPU)
        assert model.module.config._attn_implementation == chosen


def test_overrides_may_choose_the_attention(tmp_path: Path) -> None:
    eager = {"attn_implementation": "eager"}
    model = build(ModelSection(overrides=TINY | eager), 256, 0, CPU)
    assert model.module.config._attn_implementation == "eager"
    assert model.loss(TOKENS).item() == pytest.approx(tiny().loss(TOKENS).item(), abs=1e-6)
    folder = checkpoint_folder(tmp_path / "gpt_neo", "gpt_neo")
    assert build(ModelSection(preset=str(folder), overrides=eager), 256, 0, CPU).elements > 0
    with pytest.raises(ConfigError, match=r"'attn_implementation': 'sdpa'.*does not support"):
        build(
            ModelSection(preset=str(folder), overrides={"attn_implementation": "sdpa"}), 256, 0, CPU
        )


@pytest.mark.parametrize(
    ("kind", "named"),
    [("gpt2", "n_positions"), ("gptj", "n_positions"), ("opt", "max_position_embeddings")],
)
@pytest.mark.parametrize("drawn", [True, False])
def test_sequences_beyond_a_models_positions_are_refused_with_both_figures(
    tmp_path: Path, kind: str, named: str, drawn: bool
) -> None:
    """Learned ones, and those of a table."""
    folder = (config_folder if drawn else checkpoint_folder)(tmp_path, kind)
    assert build(ModelSection(preset=str(folder)), 256, 0, CPU, 64).elements > 0
    hint = rf"set {named} = 65 in model\.overrides" if drawn else "another model"
    said = rf"data\.sequence_length = 65: .* positions for 64 tokens only \({named} = 64 .*{hint}"
    with pytest.raises(ConfigError, match=said):
        build(ModelSection(preset=str(folder)), 256, 0, CPU, 65)
    if drawn:
        longer = ModelSection(preset=str(folder), overrides={named: 65})
        assert build(longer, 256, 0, CPU, 65).elements > 0


@pytest.mark.parametrize("length", [63, 64, 65])
def test_positions_that_are_not_for_tokens_do_not_count(tmp_path: Path, length: int) -> None:
    """RoBERTa's begin after that of its padding: 62 of 64 are left."""
    settings = transformers.AutoConfig.for_model(
        "roberta",
        **{"vocab_size": 256, "hidden_size": 32, "intermediate_size": 64, "is_decoder": True},
        **{"num_hidden_layers": 1, "num_attention_heads": 4, "max_position_embeddings": 64},
    )
    settings.save_pretrained(tmp_path)
    model = ModelSection(preset=str(tmp_path))
    with pytest.raises(
        ConfigError, match=rf"sequence_length = {length}: .* use at most 62"
    ) as caught:
        build(model, 256, 0, CPU, length)
    assert build(model, 256, 0, CPU, 62).elements > 0
    if length > 64:
        assert "set max_position_embeddings = 67 in model.overrides" in str(caught.value)
        more = {"max_position_embeddings": 67}
        longer = ModelSection(preset=str(tmp_path), overrides=more)
        assert build(longer, 256, 0, CPU, length).elements > 0


@pytest.mark.parametrize("kind", ["llama", "bloom", "mamba"])
def test_models_without_learned_positions_read_any_length(tmp_path: Path, kind: str) -> None:
    """Rotary, ALiBi, and a state: what their configuration names is no limit."""
    keys = {"max_position_embeddings": 16} if kind == "llama" else {"seq_length": 16}
    folder = config_folder(tmp_path, kind, **keys)
    assert build(ModelSection(preset=str(folder)), 256, 0, CPU, 100).elements > 0


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ({"preset": "llama3-tinny"}, r"model\.preset = 'llama3-tinny'.*did you mean 'llama3-tiny'"),
        ({"preset": "bare"}, r"model\.preset = 'bare': the folder has no config\.json"),
        ({"preset": "broken"}, r"model\.preset = 'broken'"),
        ({"preset": "alien"}, r"model\.preset = 'alien'.*martian"),
        ({"overrides": {"hidden_sise": 64}}, r"hidden_sise = 64.*did you mean 'hidden_size'"),
        ({"overrides": {"hidden_size": "big"}}, r"hidden_size = 'big': must be a whole number"),
        ({"overrides": {"num_hidden_layers": -1}}, r"num_hidden_layers = -1: must be a whole"),
        ({"overrides": {"num_attention_heads": 0}}, r"num_attention_heads = 0: must be at least 1"),
        ({"overrides": {"num_hidden_layers": 10**9}}, r"1000000000: must be at most 10,000"),
        ({"overrides": {"hidden_size": 10**20}}, r"0: must be at most 2,147,483,647"),
        ({"overrides": {"num_key_value_heads": 3}}, r"overrides .*3.*cannot be"),
        ({"overrides": {"num_attention_heads": 5}}, r"overrides .*5.*cannot be"),
        (
            {"overrides": {"attn_implementation": "fast"}},
            r"attn_implementation = 'fast': must be one",
        ),
    ],
)
def test_an_impossible_model_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: dict[str, object], said: str
) -> None:
    """Key, value, and what would be right, in one line."""
    monkeypatch.chdir(tmp_path)
    for name, content in (("bare", None), ("broken", "{"), ("alien", '{"model_type": "martian"}')):
        Path(name).mkdir()
        if content is not None:
            Path(name, "config.json").write_text(content)
    with pytest.raises(ConfigError, match=said) as caught:
        build(ModelSection(**model), 256, 0, CPU)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_every_preset_is_a_known_architecture() -> None:
    for preset in PRESETS:
        assert architecture(ModelSection(preset=preset), 0).model_type in {"llama", "llama4_text"}
