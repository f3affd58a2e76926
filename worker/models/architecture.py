"""From the run file's [model] to a configuration of `transformers`."""

import difflib
import json
from pathlib import Path
from typing import Any, Final

from pelago.config.training import ModelSection
from pelago.core.errors import ConfigError
from worker.models.presets import PRESETS
from worker.models.weights import require_no_pointer, some

ATTENTION: Final = ("eager", "sdpa", "flex_attention")
"""Implementations that compute in fp32, as a validation does, and come with PyTorch."""
PARTS_MAX: Final = 10_000
"""Most layers, or experts, of a model: each is built, if only without memory, to find its shapes."""
FIGURE_MAX: Final = 2**31 - 1
"""Largest value of any other whole number of a configuration; some become 32-bit indices."""


def transformers() -> Any:
    """The library, imported when first needed, without its warnings and progress bars."""
    import transformers as library

    library.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    library.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    return library


def named(model: ModelSection) -> str:
    """How errors name a model."""
    overrides = f" with overrides {model.overrides}" if model.overrides else ""
    return f"model.preset = {model.preset!r}{overrides}"


def summary(error: Exception) -> str:
    """The part of an exception of the library that fits into a message."""
    lines = [each.strip() for each in str(error).splitlines()] or [""]
    # "Validation error for field 'hidden_size':" says nothing yet.
    count = 2 if lines[0].endswith(":") else 1
    return " ".join(lines[:count]) or type(error).__name__


def architecture(model: ModelSection, vocabulary: int) -> Any:
    """A run's model as a `transformers` configuration, overrides applied. Raises `ConfigError`.

    ``vocabulary``: number of token ids of the corpus, 0 if it is unknown; presets use it.
    """
    preset = PRESETS.get(model.preset)
    try:
        if preset is not None:
            settings = _from_preset(dict(preset), model, vocabulary)
        else:
            settings = _from_folder(model)
    except ConfigError:
        raise
    except Exception as error:
        # The library raises exceptions of other libraries too; the user sees the message.
        raise ConfigError(f"{named(model)}: cannot be configured: {summary(error)}") from None
    settings.use_cache = False
    # None: the library takes the best one that it has for the architecture. The one that a file names may have
    # to be fetched from the network.
    settings._attn_implementation = model.overrides.get("attn_implementation")
    return settings


def _from_preset(keys: dict[str, Any], model: ModelSection, vocabulary: int) -> Any:
    kind = keys.pop("model_type")
    keys["vocab_size"] = vocabulary or keys["vocab_size"]
    keys["rope_parameters"] = {"rope_type": "default", "rope_theta": keys.pop("rope_theta")}
    make = transformers().AutoConfig.for_model
    keys.update(_checked_overrides(make(kind, **keys).to_dict(), model))
    # Made again, so that what the library derives from the keys follows the overrides.
    return make(kind, **keys)


def _from_folder(model: ModelSection) -> Any:
    folder = Path(model.preset)
    _require_readable(folder, model.preset)
    settings = transformers().AutoConfig.from_pretrained(
        folder, local_files_only=True, trust_remote_code=False
    )
    if not model.overrides:
        return settings
    text = settings.get_text_config()
    inside = [name for name, each in vars(settings).items() if each is text]
    if not inside:
        return _overridden(settings, model)
    # A model of images, say, with a model of texts inside; the latter is trained here.
    changed = _overridden(text, model)
    for key in model.overrides.keys() & settings.to_dict().keys():
        setattr(settings, key, getattr(changed, key))
    setattr(settings, inside[0], changed)
    return settings


def _overridden(settings: Any, model: ModelSection) -> Any:
    """A configuration with the overrides applied. Raises `ConfigError`."""
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


def _require_readable(folder: Path, preset: str) -> None:
    """Raises `ConfigError` unless the folder has a config.json of a model that the library knows."""
    key = f"model.preset = {preset!r}"
    if not folder.is_dir():
        near = difflib.get_close_matches(preset, list(PRESETS), n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ConfigError(
            f"{key}: neither a preset ({', '.join(PRESETS)}) nor a "
            f"folder with a config.json (seen from {Path.cwd()}){hint}"
        )
    path = folder / "config.json"
    if not path.is_file():
        found = (*folder.glob("*/config.json"), *folder.glob("snapshots/*/config.json"))
        below = {each.parent.relative_to(folder).as_posix() for each in found}
        hint = f"; there is one in {some(below)}" if below else ""
        raise ConfigError(f"{key}: the folder has no config.json: no Hugging Face model{hint}")
    require_no_pointer(path, key)
    try:
        keys = json.loads(path.read_text(encoding="utf-8"))
        kind = keys["model_type"]
    except (OSError, ValueError) as error:
        raise ConfigError(f"{key}: config.json is no JSON: {summary(error)}") from None
    except (KeyError, TypeError):
        raise ConfigError(
            f"{key}: config.json names no model_type: no configuration of a Hugging Face model"
        ) from None
    library = transformers()
    if kind not in library.CONFIG_MAPPING:
        code = "; its auto_map asks to run code from the folder, which is never done"
        raise ConfigError(
            f"{key}: transformers {library.__version__} has no architecture {kind!r}"
            f"{code if keys.get('auto_map') else ''}"
        )
    if library.CONFIG_MAPPING[kind] not in library.MODEL_FOR_CAUSAL_LM_MAPPING:
        raise ConfigError(f"{key}: {kind!r} is no architecture of causal language models")
    if keys.get("quantization_config"):
        raise ConfigError(
            f"{key}: config.json has a quantization_config: training needs weights that are not quantised;"
            " dequantise the model and save that, or strike the key to start from random weights"
        )


def _checked_overrides(keys: dict[str, Any], model: ModelSection) -> dict[str, Any]:
    """The overrides as keys of the configuration. Raises `ConfigError` for one that it lacks."""
    checked: dict[str, Any] = {}
    for key, value in model.overrides.items():
        override = f"model.overrides.{key} = {value!r}"
        if key == "attn_implementation":
            # Not a key of a configuration: it is set beside it.
            if value not in ATTENTION:
                raise ConfigError(f"{override}: must be one of {', '.join(ATTENTION)}")
            continue
        if key == "rope_theta":
            # Versions of the library keep it in a table of its own.
            checked["rope_parameters"] = {**(keys.get("rope_parameters") or {}), key: float(value)}
            continue
        if key not in keys or isinstance(keys[key], dict | list):
            plain = sorted(name for name, old in keys.items() if not isinstance(old, dict | list))
            near = difflib.get_close_matches(key, plain, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(plain)}"
            raise ConfigError(f"{override}: {model.preset!r} has no such key; {hint}")
        old = keys[key]
        if isinstance(old, int) and not isinstance(old, bool):
            if not isinstance(value, int) or isinstance(value, bool) or value < 0:
                raise ConfigError(f"{override}: must be a whole number like {old}, not negative")
            if value == 0 and (key.startswith("num_") or key.endswith("_size")):
                raise ConfigError(f"{override}: must be at least 1")
            most = PARTS_MAX if "layer" in key or "expert" in key else FIGURE_MAX
            if value > most:
                raise ConfigError(f"{override}: must be at most {most:,}")
        checked[key] = value
    return checked
