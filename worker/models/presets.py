"""Named architectures, as keys of a `transformers` configuration."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

_LLAMA3: Final = {
    "model_type": "llama",
    "rope_theta": 500_000.0,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 8192,
}

PRESETS: Final[Mapping[str, Mapping[str, Any]]] = MappingProxyType(
    {
        # 395,904 parameters with 256 tokens. Two wide layers instead of more narrow ones: on one
        # core of a CPU this shape trains 1.3 times as many tokens a second as four layers of 96.
        "llama3-tiny": {
            **_LLAMA3,
            "vocab_size": 256,
            "hidden_size": 128,
            "intermediate_size": 344,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "tie_word_embeddings": True,
        },
        "llama3-8m": {
            **_LLAMA3,
            "vocab_size": 256,
            "hidden_size": 320,
            "intermediate_size": 896,
            "num_hidden_layers": 7,
            "num_attention_heads": 5,
            "num_key_value_heads": 5,
            "tie_word_embeddings": True,
        },
        # The usual sizes of small models. The names say the parameters without a vocabulary, so that they hold
        # for bytes: 121,329,408 and 346,342,400 parameters with 256 tokens. The 128,256 tokens of Llama 3 add 98.3
        # and 131.1 million to them.
        "llama3-125m": {
            **_LLAMA3,
            "vocab_size": 256,
            "hidden_size": 768,
            "intermediate_size": 3072,
            "num_hidden_layers": 14,
            "num_attention_heads": 12,
            "num_key_value_heads": 4,
            "tie_word_embeddings": True,
        },
        "llama3-350m": {
            **_LLAMA3,
            "vocab_size": 256,
            "hidden_size": 1024,
            "intermediate_size": 3840,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
            "num_key_value_heads": 4,
            "tie_word_embeddings": True,
        },
        # The shapes of Meta's Llama 3.2 1B and Llama 3 8B; to train from the released weights name
        # their folder.
        "llama3-1b": {
            **_LLAMA3,
            "vocab_size": 128_256,
            "hidden_size": 2048,
            "intermediate_size": 8192,
            "num_hidden_layers": 16,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "head_dim": 64,
            "tie_word_embeddings": True,
        },
        "llama3-8b": {
            **_LLAMA3,
            "vocab_size": 128_256,
            "hidden_size": 4096,
            "intermediate_size": 14_336,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "tie_word_embeddings": False,
        },
        # A mixture of experts in Llama 4's manner: one routed expert of four per token beside a
        # shared one, every fourth layer without rotary positions.
        "llama4-tiny": {
            "model_type": "llama4_text",
            "vocab_size": 256,
            "hidden_size": 64,
            "intermediate_size": 128,
            "intermediate_size_mlp": 256,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "num_local_experts": 4,
            "num_experts_per_tok": 1,
            "interleave_moe_layer_step": 1,
            "attention_chunk_size": 8192,
            "max_position_embeddings": 8192,
            "rope_theta": 500_000.0,
            "attn_temperature_tuning": False,
            "tie_word_embeddings": True,
        },
    }
)
