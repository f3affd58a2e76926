"""Checks that need a run of the model: that it is causal, and for how many tokens it has positions."""

from typing import Any, Final

import torch

from pelago.core.errors import ConfigError, first_line

LIMITS: Final = (
    "max_position_embeddings",
    "n_positions",
    "max_seq_len",
    "max_sequence_length",
    "n_ctx",
    "context_length",
)
"""Keys of configurations that limit the number of positions."""

POSITIONS_KEPT_MAX: Final = 4
"""The most positions of a model that may be reserved for padding and the like."""

CHEAP_OPERATIONS: Final = 10**12
"""A forward pass of fewer multiplications is always tried: some seconds of one core."""
CHEAP_SCORES: Final = 10**8
"""A forward pass with fewer attention scores in memory is always tried."""

LEAK: Final = 1e-4
"""Change of an earlier token's logits, relative to the largest logit; rounding gives about 1e-7."""


def require_causal(module: Any, key: str) -> None:
    """Raises `ConfigError` if the logits of a token depend on the tokens after it.

    Encoders such as BERT have a causal head too, and are decoders only if their configuration says so.
    Such a model sees what it is to predict, so its loss would fall to zero.
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

    With rotary positions, ALiBi or a state space a limit of the configuration does not bind. So the model is
    run, if the limit is exceeded or the run is cheap. ``drawn``: its parameters are random, so the message may
    propose more positions.
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
    fault = _fault(module, length)
    if not fault:
        return
    name, limit = min(limits.items(), key=lambda item: item[1]) if passed else ("", length)
    # Some learned positions are not for tokens: two of RoBERTa's 514.
    nearest = range(limit, max(0, limit - POSITIONS_KEPT_MAX - 1), -1)
    reach = next((each for each in nearest if not _fault(module, each)), 0)
    if not passed:
        most = f"; use at most {reach}" if reach else ""
        raise ConfigError(
            f"data.sequence_length = {length}: {key} cannot read that many tokens: {fault}{most}"
        )
    longer = length + limit - (reach or limit)
    more = f", or set {name} = {longer} in model.overrides" if drawn else ", or take another model"
    raise ConfigError(
        f"data.sequence_length = {length}: {key} has positions for {reach or limit} tokens only ({name} ="
        f" {limit} in its configuration): use at most {reach or limit}{more}"
    )


def _fault(module: Any, length: int) -> str:
    """Why the model cannot read ``length`` tokens; empty: it can."""
    try:
        with torch.no_grad():
            module(input_ids=torch.zeros(1, length, dtype=torch.int64), use_cache=False)
    except (IndexError, RuntimeError, ValueError) as error:
        return first_line(error)
    return ""
