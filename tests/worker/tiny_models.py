"""Tiny models of many architectures, as Hugging Face folders, made without a network."""

from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import torch
import transformers
from safetensors.torch import load_file, save_file

transformers.logging.disable_progress_bar()

_SIZE: Final = {
    "vocab_size": 256,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
_GROUPED: Final = {**_SIZE, "num_key_value_heads": 2}
_OF_GPT: Final = {"vocab_size": 256, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}

ARCHITECTURES: Final = MappingProxyType(
    {
        "bloom": {"vocab_size": 256, "hidden_size": 32, "n_layer": 2, "n_head": 4},
        "cohere": _GROUPED,
        "deepseek_v3": {
            **_SIZE,
            "num_key_value_heads": 4,
            "moe_intermediate_size": 32,
            "n_routed_experts": 8,
            "n_group": 2,
            "topk_group": 1,
            "num_experts_per_tok": 2,
            "q_lora_rank": 16,
            "kv_lora_rank": 16,
            "qk_rope_head_dim": 8,
            "qk_nope_head_dim": 8,
            "v_head_dim": 8,
            "first_k_dense_replace": 1,
            "n_shared_experts": 1,
        },
        "falcon": {
            "vocab_size": 256,
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
        },
        "gemma": {**_GROUPED, "head_dim": 8},
        "gemma2": {**_GROUPED, "head_dim": 8},
        "gemma3_text": {**_GROUPED, "head_dim": 8},
        "gpt2": _OF_GPT,
        "gpt_neo": {
            "vocab_size": 256,
            "hidden_size": 32,
            "num_layers": 2,
            "num_heads": 4,
            "attention_types": [[["global", "local"], 1]],
            "max_position_embeddings": 64,
            "window_size": 16,
        },
        "gpt_neox": _SIZE,
        "gpt_oss": {
            **_GROUPED,
            "head_dim": 8,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
        },
        "gptj": {**_OF_GPT, "rotary_dim": 4},
        "llama": _GROUPED,
        "llama4_text": {
            **_GROUPED,
            "head_dim": 8,
            "num_local_experts": 4,
            "intermediate_size_mlp": 64,
            "interleave_moe_layer_step": 1,
            "attention_chunk_size": 64,
        },
        "mamba": {"vocab_size": 256, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 8},
        "mistral": {**_GROUPED, "head_dim": 8},
        "mixtral": {**_GROUPED, "num_local_experts": 4},
        "olmo2": _GROUPED,
        "opt": {
            "vocab_size": 256,
            "hidden_size": 32,
            "word_embed_proj_dim": 32,
            "ffn_dim": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "max_position_embeddings": 64,
        },
        "phi": _SIZE,
        "phi3": {**_GROUPED, "pad_token_id": 0},
        "qwen2": _GROUPED,
        "qwen3": {**_GROUPED, "head_dim": 8},
        "qwen3_moe": {
            **_GROUPED,
            "head_dim": 8,
            "moe_intermediate_size": 32,
            "num_experts": 4,
            "num_experts_per_tok": 2,
        },
        "stablelm": _GROUPED,
        "starcoder2": _GROUPED,
    }
)
"""Keys of a tiny configuration for each kind of model."""


def config_folder(folder: Path, kind: str, **keys: Any) -> Path:
    """A folder that holds a config.json and nothing else."""
    settings = transformers.AutoConfig.for_model(kind, **{**ARCHITECTURES[kind], **keys})
    settings.save_pretrained(folder)
    return folder


def checkpoint_folder(folder: Path, kind: str, *, shard_size: str = "1GB", **keys: Any) -> Path:
    """A folder with weights, the same ones at every call."""
    settings = transformers.AutoConfig.for_model(kind, **{**ARCHITECTURES[kind], **keys})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        module = transformers.AutoModelForCausalLM.from_config(settings)
    module.save_pretrained(folder, max_shard_size=shard_size)
    return folder


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    """The tensors of a folder's model.safetensors."""
    return load_file(folder / "model.safetensors")


def write_tensors(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Replace the tensors of a folder's model.safetensors."""
    save_file(tensors, folder / "model.safetensors")
