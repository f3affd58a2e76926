"""The shape of a run file's model, from its configuration alone: no parameter has memory."""

from typing import Any

from pelago.cli.plan.facts import ModelFacts
from pelago.config.run_file import RunFile
from pelago.core.errors import ConfigError
from worker.data.sources import vocabulary
from worker.models.architecture import architecture, named, summary
from worker.models.build import FAULTS, skeleton


def model_facts(run: RunFile) -> ModelFacts:
    """Raises `ConfigError` if the model's folder or the tokenizer is not there, or describes no model."""
    settings = architecture(run.model, vocabulary(run.data))
    try:
        module = skeleton(settings)
    except FAULTS as error:
        raise ConfigError(f"{named(run.model)}: cannot be built: {summary(error)}") from None
    return facts_of(settings, module)


def facts_of(settings: Any, module: Any) -> ModelFacts:
    """From a configuration of `transformers` and its module, which may be on the meta device."""
    text = settings.get_text_config()
    sizes = {name: (each.numel(), each.dim()) for name, each in module.named_parameters()}
    total = sum(count for count, _ in sizes.values())
    routed = sum(count for name, (count, _) in sizes.items() if ".experts." in name)
    hidden = _figure(text, "hidden_size", default=1)
    heads = _figure(text, "num_attention_heads", default=1)
    head = _figure(text, "head_dim", default=hidden // heads)
    chosen = _figure(text, "num_experts_per_tok", default=1)
    shared = getattr(text, "intermediate_size_mlp", None) if routed == 0 else None
    width = shared or _figure(text, "intermediate_size", default=4 * hidden)
    if routed:
        width *= chosen + any("shared_expert" in name for name in sizes)
    return ModelFacts(
        parameters=total,
        active=total - routed + routed * chosen // _experts(text),
        matrix_parameters=sum(count for count, dimensions in sizes.values() if dimensions >= 2),
        layers=_figure(text, "num_hidden_layers", default=1),
        hidden=hidden,
        intermediate=width,
        key_value=head * _figure(text, "num_key_value_heads", default=heads),
        vocabulary=_figure(text, "vocab_size", default=1),
    )


def _experts(text: Any) -> int:
    """Experts of a layer; families name them differently."""
    names = ("num_local_experts", "num_experts", "n_routed_experts")
    return next((count for name in names if (count := getattr(text, name, None))), 1)


def _figure(text: Any, name: str, *, default: int) -> int:
    """A whole number of a configuration; ``default``: where it has none of that name."""
    found = getattr(text, name, None)
    return found if isinstance(found, int) and found > 0 else default
