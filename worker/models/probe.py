"""What can only be known of a model by using it: that it looks back only, and how far its positions reach."""

from typing import Any, Final

import torch

from pelago.core.errors import ConfigError

LIMITS: Final = (
    "max_position_embeddings",
    "n_positions",
    "max_seq_len",
    "max_sequence_length",
    "n_ctx",
    "context_length",
)
"""Keys in which configurations say for how many tokens a model has positions."""

POSITIONS_KEPT_MAX: Final = 4
"""So many of a model's positions may be kept for padding and the like."""

CHEAP_OPERATIONS: Final = 10**12
"""A forward pass of so many products is tried without further reason: some seconds of one core."""
CHEAP_SCORES: Final = 10**8
"""Attention scores that may be in memory for that."""

LEAK: Final = 1e-4
"""Change of an earlier answer, relative to the largest; rounding gives about 1e-7."""


def require_causal(module: Any, key: str) -> None:
    """Raises `ConfigError` if what a token is told depends on the tokens after it.

    Encoders such as BERT have a causal head too, and are decoders only if their configuration says so.
    Training on what it is to predict, such a model would reach a loss of nothing.
    """
    tokens = torch.zeros(2, 3, dtype=torch.int64)
    tokens[1, 2] = 1
    with torch.no_grad():
        logits = module(input_ids=tokens, use_cache=False).logits.float()
    change = (logits[0, :2] - logits[1, :2]).abs().max()
    if change > LEAK * logits.abs().max():
        raise ConfigError(
            f"{key}: the model sees the tokens that it is to predict; if its configuration has"
            " is_decoder, set is_decoder = true in model.overrides"
        )


def require_length(module: Any, key: str, length: int, *, drawn: bool) -> None:
    """Raises `ConfigError` if the model has no positions for ``length`` tokens.

    A limit in the configuration is none for rotary positions, ALiBi or a state space. So the model is tried,
    if the limit is passed or a try is cheap. ``drawn``: its parameters are random, so that it may as
    well have more positions.
    """
    text = module.config.get_text_config()
    keys = text.to_dict()
    named = {name: keys.get(name) for name in LIMITS}
    limits = {name: each for name, each in named.items() if isinstance(each, int) and each > 0}
    passed = any(each < length for each in limits.values())
    rotary = bool(getattr(text, "rope_parameters", None))
    elements = sum(each.numel() for each in module.parameters())
    heads = getattr(text, "num_attention_heads", 1) or 1
    cheap = 2 * elements * length < CHEAP_OPERATIONS and heads * length**2 < CHEAP_SCORES
    if length <= 1 or (not cheap and (rotary or not passed)):
        return
    told = _fault(module, length)
    if not told:
        return
    name, limit = min(limits.items(), key=lambda item: item[1]) if passed else ("", length)
    # Some learned positions are not for tokens: of RoBERTa's 514 two.
    nearest = range(limit, max(0, limit - POSITIONS_KEPT_MAX - 1), -1)
    reach = next((each for each in nearest if not _fault(module, each)), 0)
    if not passed:
        most = f"; use at most {reach}" if reach else ""
        raise ConfigError(
            f"data.sequence_length = {length}: {key} cannot read that many tokens: {told}{most}"
        )
    longer = length + limit - (reach or limit)
    more = f", or set {name} = {longer} in model.overrides" if drawn else ", or take another model"
    raise ConfigError(
        f"data.sequence_length = {length}: {key} has positions for {reach or limit} tokens only ({name} ="
        f" {limit} in its configuration): use at most {reach or limit}{more}"
    )


def _fault(module: Any, length: int) -> str:
    """Why the model cannot read so many tokens; empty: it can."""
    try:
        with torch.no_grad():
            module(input_ids=torch.zeros(1, length, dtype=torch.int64), use_cache=False)
    except (IndexError, RuntimeError, ValueError) as error:
        return (str(error).splitlines() or [""])[0] or type(error).__name__
    return ""
