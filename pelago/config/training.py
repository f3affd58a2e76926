"""Tables of the run file about what is trained: run, model, data, worker."""

from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from pelago import reading
from pelago.config.fields import (
    ROUND_SAMPLES_MAX,
    Minutes,
    Momentum,
    Name,
    Natural,
    NonNegativeFloat,
    Positive,
    PositiveFloat,
    PositiveMinutes,
    Section,
    Seed,
    UserPath,
)


class RunSection(Section):
    """The run: its budget, and where its results go."""

    name: Name = "run"
    seed: Seed = 0
    budget_local_steps: Positive = 98_304
    """Local steps counted at the GPS after which the run ends."""
    budget_minutes: Minutes = 0.0
    """Minutes after the first lease at which the run ends, without those in which no GPS ran; 0: no limit."""
    export_minutes: Minutes = 0.0
    """Minutes between exports of the global model while the run goes on; 0: at its end only."""
    out: UserPath = ""
    """Folder of the results; empty: runs/NAME."""


class ModelSection(Section):
    """The model, as Hugging Face `transformers` builds it."""

    preset: UserPath = "llama3-tiny"
    """A preset's name, or the path of a Hugging Face config or checkpoint folder."""
    overrides: dict[str, int | float | bool | str] = Field(default={})
    """Keys of the architecture's config to change, e.g. hidden_size."""


class DataSection(Section):
    """The corpus: one global order that every worker reconstructs from the seed."""

    source: str = "stdlib"
    """stdlib | text:DIR | tokens:FILE (ids and nothing else, .npy, llm.c's, or Megatron's .bin with .idx)"""
    sequence_length: Positive = 128
    tokenizer: UserPath = "bytes"
    """bytes, or the path of a Hugging Face tokenizer (source text:DIR)."""
    token_dtype: Literal["uint16", "uint32", "uint64"] = "uint16"
    """Type of the ids, little-endian, in a tokens:FILE that does not name it: no header and no .idx beside it."""
    validation_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.05
    validation_samples: Positive = 128
    """Held-out sequences per validation."""

    @field_validator("source")
    @classmethod
    def _known_source(cls, value: str) -> str:
        if value != "stdlib" and not value.startswith(("text:", "tokens:")):
            raise ValueError("must be 'stdlib', 'text:DIR' or 'tokens:FILE.bin'")
        kind, colon, place = value.partition(":")
        return kind + colon + reading.expanded(place)


class WorkerSection(Section):
    """The inner loop."""

    local_steps: Positive = 8
    """H: local steps of the fastest worker in a round."""
    rescale: bool = True
    """Give a worker of relative speed s max(1, ceil(H * s)) steps instead of H."""
    batch_size: Positive = 64
    """Sequences per local step."""
    micro_batch_size: Natural | Literal["auto"] = 0
    """Sequences per forward pass; 0: the whole batch; auto: the whole batch, or as large a part as fits into memory."""
    checkpoint_activations: bool = False
    """Compute each layer's activations again in the backward pass instead of keeping them: less memory, about a third
    more computing."""
    global_batch_size: Positive = 1024
    """Samples handed out per tick of the learning-rate clock."""
    max_lr: PositiveFloat = 1e-3
    min_lr: NonNegativeFloat = 1e-4
    warmup_iterations: Natural = 300
    total_iterations: Positive = 6144
    weight_decay: NonNegativeFloat = 0.1
    clip_norm: PositiveFloat = 1.0
    optimiser: Literal["adamw", "muon"] = "adamw"
    """muon: Muon for the matrices inside the blocks, AdamW for embeddings, head and vectors."""
    beta1: Momentum = 0.9
    beta2: Momentum = 0.95
    epsilon: PositiveFloat = 1e-8
    moments_dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of AdamW's moments; bfloat16: half the memory, with stochastic rounding, at some time for each step."""
    overlap: bool = False
    """Begin the next round at once from the local parameters, and rebase it when the LPS's model comes, instead of
    waiting for that model."""
    keep_optimiser: bool = True
    """Keep the optimiser's moments on the worker's disk, for the process that takes its place."""
    cold_start_steps: Natural = 40
    """Local steps over which a worker that begins without moments when the run is past its warm-up raises its
    learning rate to the run's; 0: at once."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    compile: bool = True
    """torch.compile, where CUDA is used."""
    stuck_minutes: PositiveMinutes = 10.0
    """A worker whose trainer finishes no micro-batch for so long, and for twenty times as long as its slowest
    one so far, ends with an error; so does an evaluator. The first one, and an export, may take six times as
    long."""

    @property
    def sequences_at_once(self) -> int:
        """Sequences per forward pass; of ``auto`` the number to begin with."""
        return (
            self.batch_size if self.micro_batch_size in (0, "auto") else int(self.micro_batch_size)
        )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.min_lr > self.max_lr:
            raise ValueError(f"min_lr = {self.min_lr} must not exceed max_lr = {self.max_lr}")
        if self.optimiser == "muon" and self.moments_dtype != "float32":
            raise ValueError(
                f"moments_dtype = {self.moments_dtype!r} needs optimiser = 'adamw', not 'muon'"
            )
        if self.batch_size % self.sequences_at_once:
            raise ValueError(
                f"micro_batch_size = {self.micro_batch_size} must divide batch_size = {self.batch_size}"
            )
        if self.local_steps * self.batch_size > ROUND_SAMPLES_MAX:
            raise ValueError(
                f"local_steps = {self.local_steps} times batch_size = {self.batch_size} must not exceed"
                f" {ROUND_SAMPLES_MAX:,}: no more samples are lent for a round"
            )
        return self
