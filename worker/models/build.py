"""From the run file's [model] to a model; `transformers` is imported here, when first needed."""

import difflib
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError

from pelago import config
from pelago.core.errors import ConfigError
from pelago.core.prng import derive
from worker.models.language import LanguageModel
from worker.models.presets import PRESETS

FAULTS: Final = (
    OSError,
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    RuntimeError,
    IndexError,
    SafetensorError,
)
"""What `transformers` raises for a folder or a configuration that no model can be built from."""


def build(model: config.Model, vocabulary: int, seed: int, device: torch.device) -> LanguageModel:
    """Build the model that ``model.preset`` and ``model.overrides`` name, in fp32.

    ``vocabulary``: token ids of the corpus, 0 if it does not tell. A preset takes it as its own;
    the vocabulary of a Hugging Face folder stays as it is and must be large enough. A folder that
    holds safetensors gives its weights; otherwise the parameters are drawn from ``seed``, the same
    on every device. Raises `ConfigError`; asks no network.
    """
    transformers = _transformers()
    settings = architecture(model, vocabulary)
    loader = transformers.AutoModelForCausalLM
    options = {"attn_implementation": "sdpa", "dtype": torch.float32}
    try:
        # Drawn on the CPU, since generators of other devices draw other numbers; the caller's
        # generator is left as it was.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive("model", seed))
            if model.preset not in PRESETS and any(Path(model.preset).glob("*.safetensors")):
                module = loader.from_pretrained(
                    model.preset,
                    config=settings,
                    local_files_only=True,
                    use_safetensors=True,
                    **options,
                )
            else:
                module = loader.from_config(settings, **options)
        module.train()
        language_model = LanguageModel(module.to(device))
        # Some impossible shapes show only when used: better here than in the first lease.
        with torch.no_grad():
            language_model.loss(torch.zeros(1, 3, dtype=torch.int64))
    except FAULTS as error:
        raise ConfigError(f"{_named(model)}: cannot be built: {_first_line(error)}") from None
    return language_model


def architecture(model: config.Model, vocabulary: int) -> Any:
    """A run's model as a `transformers` configuration, overrides applied. Raises `ConfigError`."""
    preset = PRESETS.get(model.preset)
    try:
        if preset is not None:
            settings = _from_preset(dict(preset), model, vocabulary)
        else:
            settings = _from_folder(model)
    except ConfigError:
        raise
    except Exception as error:
        # The library checks configurations with exceptions of yet other libraries; whatever it says of
        # them is the user's to hear.
        raise ConfigError(f"{_named(model)}: cannot be configured: {_first_line(error)}") from None
    settings.use_cache = False
    known = settings.get_text_config().vocab_size
    if vocabulary > known:
        raise ConfigError(
            f"{_named(model)}: the model's vocabulary of {known} is smaller than the corpus's of "
            f"{vocabulary}: choose another model or tokenizer"
        )
    return settings


def _from_preset(keys: dict[str, Any], model: config.Model, vocabulary: int) -> Any:
    kind = keys.pop("model_type")
    keys["vocab_size"] = vocabulary or keys["vocab_size"]
    keys["rope_parameters"] = {"rope_type": "default", "rope_theta": keys.pop("rope_theta")}
    make = _transformers().AutoConfig.for_model
    keys.update(_checked_overrides(make(kind, **keys).to_dict(), model))
    # Made anew, so that whatever the library derives from the keys follows the overrides.
    return make(kind, **keys)


def _from_folder(model: config.Model) -> Any:
    folder = Path(model.preset)
    if not folder.is_dir():
        near = difflib.get_close_matches(model.preset, list(PRESETS), n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ConfigError(
            f"model.preset = {model.preset!r}: neither a preset ({', '.join(PRESETS)}) nor a "
            f"folder with a config.json (seen from {Path.cwd()}){hint}"
        )
    if not (folder / "config.json").is_file():
        raise ConfigError(
            f"model.preset = {model.preset!r}: the folder has no config.json: no Hugging Face model"
        )
    settings = _transformers().AutoConfig.from_pretrained(folder, local_files_only=True)
    if not model.overrides:
        return settings
    keys = settings.to_dict()
    overrides = _checked_overrides(keys, model)
    if "num_hidden_layers" in overrides:
        # Lists with an entry per layer are derived again.
        layers = keys["num_hidden_layers"]
        keys = {
            key: value
            for key, value in keys.items()
            if not (isinstance(value, list) and len(value) == layers)
        }
    return type(settings).from_dict({**keys, **overrides})


def _checked_overrides(keys: dict[str, Any], model: config.Model) -> dict[str, Any]:
    """The overrides as keys of the configuration. Raises `ConfigError` for one that it lacks."""
    checked: dict[str, Any] = {}
    for key, value in model.overrides.items():
        named = f"model.overrides.{key} = {value!r}"
        if key == "rope_theta":
            # Versions of the library keep it in a table of its own.
            checked["rope_parameters"] = {**(keys.get("rope_parameters") or {}), key: float(value)}
            continue
        if key not in keys or isinstance(keys[key], dict | list):
            plain = sorted(name for name, old in keys.items() if not isinstance(old, dict | list))
            near = difflib.get_close_matches(key, plain, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(plain)}"
            raise ConfigError(f"{named}: {model.preset!r} has no such key; {hint}")
        old = keys[key]
        if isinstance(old, int) and not isinstance(old, bool):
            if not isinstance(value, int) or isinstance(value, bool) or value < 0:
                raise ConfigError(f"{named}: must be a whole number like {old}, not negative")
            if value == 0 and (key.startswith("num_") or key.endswith("_size")):
                raise ConfigError(f"{named}: must be at least 1")
        checked[key] = value
    return checked


def _transformers() -> Any:
    import transformers

    transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    return transformers


def _named(model: config.Model) -> str:
    overrides = f" with overrides {model.overrides}" if model.overrides else ""
    return f"model.preset = {model.preset!r}{overrides}"


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0] or type(error).__name__
