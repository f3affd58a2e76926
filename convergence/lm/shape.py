"""The sizes of a plain Llama, and where each of its tensors lies in the flat vector.

The vector is that of `worker.models.LanguageModel`: all tensors in the order of
``named_parameters()``, matrices first. In it the query, key and value matrices of a layer are
neighbours, and so are gate and up; and layers follow each other at a constant distance. So a few
strided views reach every tensor of all layers of all replicas, and nothing is ever copied.

Source of the architecture: Grattafiori et al., "The Llama 3 Herd of Models", arXiv 2407.21783, as
`transformers` builds it (models/llama/modeling_llama.py).
"""

from dataclasses import dataclass
from typing import Any, Final

import torch

from pelago.config.training import ModelSection
from pelago.core.errors import ConfigError
from pelago.wire.messages import TensorSpec

REQUIRED: Final[tuple[tuple[str, Any], ...]] = (
    ("model_type", "llama"),
    ("attention_bias", False),
    ("mlp_bias", False),
    ("hidden_act", "silu"),
    ("attention_dropout", 0.0),
    ("pretraining_tp", 1),
    ("sliding_window", None),
)
"""What the stack computes; a configuration that lacks a key has the value given here."""


@dataclass(frozen=True, slots=True)
class Views:
    """The tensors of R replicas as views of flat vectors, shape [R, elements]; L layers."""

    embedding: torch.Tensor
    """[R, vocabulary, hidden]"""
    qkv: torch.Tensor
    """[R, L, (heads + 2 * kv_heads) * head, hidden]"""
    out: torch.Tensor
    """[R, L, hidden, heads * head]"""
    gate_up: torch.Tensor
    """[R, L, 2 * intermediate, hidden]"""
    down: torch.Tensor
    """[R, L, hidden, intermediate]"""
    unembedding: torch.Tensor
    """[R, vocabulary, hidden]; the embedding itself where they are tied."""
    norms: torch.Tensor
    """[R, L, 2, hidden]: before the attention, before the feed-forward part."""
    norm: torch.Tensor
    """[R, 1, hidden]: before the head."""


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of a plain Llama."""

    vocabulary: int
    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head: int
    """Dimension of one attention head."""
    tied: bool
    """Whether the head is the embedding."""
    epsilon: float
    """Epsilon of the RMS norms."""
    theta: float
    """Base of the rotary wavelengths."""

    @property
    def turned(self) -> int:
        """Rows of the query and key matrices, whose outputs the rotary embedding turns."""
        return (self.heads + self.kv_heads) * self.head

    @property
    def qkv(self) -> int:
        """Rows of the query, key and value matrices."""
        return (self.heads + 2 * self.kv_heads) * self.head

    @property
    def block(self) -> int:
        """Elements of the matrices of one layer."""
        return self.hidden * (self.qkv + self.heads * self.head + 3 * self.intermediate)

    @property
    def blocks(self) -> tuple[int, int]:
        """First element of the layers' matrices and the one behind the last."""
        start = self.vocabulary * self.hidden
        return start, start + self.layers * self.block

    @property
    def matrices(self) -> int:
        """Elements of all matrices; the vectors lie behind them."""
        return self.blocks[1] + (0 if self.tied else self.vocabulary * self.hidden)

    @property
    def elements(self) -> int:
        """Elements of the model; a multiple of ``hidden``."""
        return self.matrices + (2 * self.layers + 1) * self.hidden

    def specs(self) -> tuple[TensorSpec, ...]:
        """Names and shapes in the order of the flat vector."""
        hidden, wide = self.hidden, self.intermediate
        outer, inner = self.heads * self.head, self.kv_heads * self.head
        layer = (
            ("self_attn.q_proj", (outer, hidden)),
            ("self_attn.k_proj", (inner, hidden)),
            ("self_attn.v_proj", (inner, hidden)),
            ("self_attn.o_proj", (hidden, outer)),
            ("mlp.gate_proj", (wide, hidden)),
            ("mlp.up_proj", (wide, hidden)),
            ("mlp.down_proj", (hidden, wide)),
        )
        matrices = [("model.embed_tokens", (self.vocabulary, hidden))]
        vectors: list[str] = []
        for number in range(self.layers):
            place = f"model.layers.{number}."
            matrices += [(place + name, shape) for name, shape in layer]
            vectors += [place + "input_layernorm", place + "post_attention_layernorm"]
        if not self.tied:
            matrices.append(("lm_head", (self.vocabulary, hidden)))
        named = [*matrices, *((name, (hidden,)) for name in [*vectors, "model.norm"])]
        return tuple(TensorSpec(f"{name}.weight", shape) for name, shape in named)

    def views(self, flat: torch.Tensor) -> Views:
        """The tensors inside ``flat``, shape [R, elements] (rows may lie apart); writable."""
        hidden, outer, wide = self.hidden, self.heads * self.head, self.intermediate
        start, stop = self.blocks
        embedding = torch.unflatten(flat[:, :start], 1, (self.vocabulary, hidden))
        unembedding = torch.unflatten(flat[:, stop : self.matrices], 1, (-1, hidden))
        norms = flat[:, self.matrices : self.elements - hidden]
        sizes = [rows * hidden for rows in (self.qkv, outer, 2 * wide, wide)]
        layers = torch.unflatten(flat[:, start:stop], 1, (self.layers, self.block))
        blocks = torch.split(layers, sizes, dim=2)
        return Views(
            embedding=embedding,
            qkv=torch.unflatten(blocks[0], 2, (self.qkv, hidden)),
            out=torch.unflatten(blocks[1], 2, (hidden, outer)),
            gate_up=torch.unflatten(blocks[2], 2, (2 * wide, hidden)),
            down=torch.unflatten(blocks[3], 2, (hidden, wide)),
            unembedding=embedding if self.tied else unembedding,
            norms=torch.unflatten(norms, 1, (self.layers, 2, hidden)),
            norm=flat[:, self.elements - hidden :].unsqueeze(1),
        )


def shape_of(model: ModelSection, architecture: Any) -> Shape:
    """The sizes of a `transformers` configuration (``worker.models.build.architecture``).

    Raises `ConfigError` naming the first key that makes it more than a plain Llama.
    """
    for key, value in REQUIRED:
        found = getattr(architecture, key, value)
        if found != value:
            raise ConfigError(_refusal(model, key, found, f"must be {value!r}"))
    rope = dict(architecture.rope_parameters or {})
    if rope.get("rope_type", "default") != "default":
        raise ConfigError(_refusal(model, "rope_type", rope["rope_type"], "must be 'default'"))
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        found = rope["partial_rotary_factor"]
        raise ConfigError(_refusal(model, "partial_rotary_factor", found, "must be 1.0"))
    shape = Shape(
        vocabulary=architecture.vocab_size,
        hidden=architecture.hidden_size,
        intermediate=architecture.intermediate_size,
        layers=architecture.num_hidden_layers,
        heads=architecture.num_attention_heads,
        kv_heads=architecture.num_key_value_heads,
        head=architecture.head_dim,
        tied=architecture.tie_word_embeddings,
        epsilon=architecture.rms_norm_eps,
        theta=rope["rope_theta"],
    )
    if shape.heads % shape.kv_heads:
        raise ConfigError(
            _refusal(
                model,
                "num_key_value_heads",
                shape.kv_heads,
                f"must divide num_attention_heads = {shape.heads}",
            )
        )
    return shape


def check_layout(model: ModelSection, shape: Shape, specs: tuple[TensorSpec, ...]) -> None:
    """Whether ``specs``, those of the built model, are what ``shape`` promises.

    Raises `ConfigError` naming the first tensor that differs: the configuration then has a feature
    that `shape_of` does not know.
    """
    expected = shape.specs()
    if specs == expected:
        return
    pairs = zip(specs, expected, strict=False)
    odd = next((each for each, wanted in pairs if each != wanted), specs[-1])
    raise ConfigError(_refusal(model, odd.name, odd.shape, "is not a tensor of a plain Llama"))


def _refusal(model: ModelSection, key: str, value: object, wanted: str) -> str:
    overrides = f" with overrides {model.overrides}" if model.overrides else ""
    return (
        f"model.preset = {model.preset!r}{overrides}: simulation.problem = 'lm' trains plain Llama"
        f" models only: {key} = {value!r} {wanted}"
    )
