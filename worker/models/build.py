"""From the run file's [model] to a model."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError
from torch.nn.modules.module import register_module_parameter_registration_hook

from pelago.config.training import ModelSection
from pelago.core.errors import ConfigError
from pelago.core.prng import derive
from worker.models import weights as files
from worker.models.architecture import architecture, named, summary, transformers
from worker.models.draws import BlockDraws
from worker.models.language import Allocate, LanguageModel
from worker.models.presets import PRESETS
from worker.models.probe import require_causal, require_length

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


def build(
    model: ModelSection,
    vocabulary: int,
    seed: int,
    device: torch.device,
    sequence_length: int = 0,
    allocate: Allocate | None = None,
) -> LanguageModel:
    """Build the model that ``model.preset`` and ``model.overrides`` name, in fp32, in evaluation mode.

    ``vocabulary``: number of token ids of the corpus, 0 if it is unknown. A preset uses it; a Hugging Face
    folder keeps its own. ``sequence_length``: in tokens, that the model must be able to read. If a folder
    holds weights, all parameters are taken from them; if not, and for a preset, they are drawn from ``seed``,
    the same on every device. ``allocate``: gives memory for all parameters. Raises `ConfigError`; uses no network.
    """
    settings = architecture(model, vocabulary)
    found = _weights(model)
    try:
        # Drawn on the CPU, since generators of other devices draw other numbers; the caller's
        # generator is left as it was.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive("model", seed))
            if found is None:
                with BlockDraws(seed):
                    module = _from_config(settings)
                origin = f"random, drawn from seed {seed}"
            else:
                module, origin = _pretrained(model, settings, found)
        module.eval()
        # Some impossible shapes are found only by running the model: better here than in the first lease. On
        # the CPU, since an index out of range makes a CUDA process unusable.
        require_causal(module, named(model))
        require_length(module, named(model), sequence_length, drawn=found is None)
        return LanguageModel(module.to(device), origin, allocate=allocate)
    except FAULTS as error:
        raise _not_built(model, error) from None


def build_empty(
    model: ModelSection,
    vocabulary: int,
    seed: int,
    device: torch.device,
    sequence_length: int = 0,
) -> LanguageModel:
    """The same model for a node that gets the parameters from a server: they are zero, and take no time.

    Buffers have their values. Where a folder holds weights these are read all the same: they may untie the head,
    change the vocabulary, and hold buffers. That a random model is causal and reads ``sequence_length`` tokens was
    found out where it was drawn. Raises `ConfigError`; uses no network.
    """
    if _weights(model) is not None:
        return build(model, vocabulary, seed, device, sequence_length)
    settings = architecture(model, vocabulary)
    try:
        with torch.random.fork_rng(devices=[]), _without_parameters():
            torch.manual_seed(derive("model", seed))
            module = _from_config(settings)
        module.eval()
        return LanguageModel(module, "the server's", device=device)
    except FAULTS as error:
        raise _not_built(model, error) from None


def _weights(model: ModelSection) -> files.Checkpoint | None:
    return None if model.preset in PRESETS else files.find(Path(model.preset), _key(model))


def _from_config(settings: Any) -> Any:
    return transformers().AutoModelForCausalLM.from_config(settings, dtype=torch.float32)


def _not_built(model: ModelSection, error: Exception) -> ConfigError:
    return ConfigError(f"{named(model)}: cannot be built: {summary(error)}")


@contextmanager
def _without_parameters() -> Iterator[None]:
    """Parameters of modules that are made meanwhile are on the meta device; buffers, which follow from the
    configuration, are computed.
    """

    def on_meta(
        _: torch.nn.Module, name: str, parameter: torch.nn.Parameter | None
    ) -> torch.nn.Parameter | None:
        if parameter is None or parameter.is_meta:  # Such as a head that is tied.
            return None
        return torch.nn.Parameter(parameter.detach().to("meta"), parameter.requires_grad)

    hook = register_module_parameter_registration_hook(on_meta)  # type: ignore[arg-type]
    try:
        yield
    finally:
        hook.remove()


def skeleton(settings: Any) -> Any:
    """The module of a configuration, without memory for its parameters."""
    with torch.device("meta"):
        return _from_config(settings)


def _pretrained(model: ModelSection, settings: Any, found: files.Checkpoint) -> tuple[Any, str]:
    """The module with a folder's weights, and where they are from."""
    key = _key(model)
    read = files.read(found, key)
    text = settings.get_text_config()
    wanted, own = text.vocab_size, _own_vocabulary(model)
    if wanted > own:
        text.vocab_size = own
    bare = skeleton(settings)
    files.require_plain(read, bare, key)
    with _Complaints() as complaints:
        try:
            module, info = type(bare).from_pretrained(
                None,
                config=bare.config,
                state_dict=dict(read.tensors),
                ignore_mismatched_sizes=True,
                output_loading_info=True,
                dtype=torch.float32,
            )
        except RuntimeError as error:
            if not complaints.names:
                raise
            raise ConfigError(
                f"{key}: the weights are not those of the model that config.json and model.overrides"
                f" describe; these do not go together: {files.some(complaints.names)}"
            ) from error
    files.require_fit(info, read, len(list(bare.parameters())), key)
    _require_finite(module, key)
    origin = f"pretrained, {len(read.tensors)} tensors from {found.described}"
    if read.prefix:
        origin += f" (their prefix {read.prefix} taken off)"
    blank = {name for name, each in module.named_parameters() if each.dim() > 1 and not each.any()}
    if blank:
        # Some models begin so; or the file was cut short, and the disk returned zeros.
        origin += f", of which {len(blank)} matrices hold zeros only: {files.some(blank)}"
    text = module.config.get_text_config()
    if getattr(text, "tie_word_embeddings", False) and not _is_tied(module):
        # The library unties them, since the weights hold two matrices. An export has to say so.
        text.tie_word_embeddings = module.config.tie_word_embeddings = False
        origin += ", head and embedding not tied, as they differ"
    if wanted > own:
        module.resize_token_embeddings(wanted, mean_resizing=False)
        origin += f", its {own} token ids padded to {wanted} with random rows"
    return module, origin


def _require_finite(module: Any, key: str) -> None:
    broken = {
        name for name, each in module.named_parameters() if not bool(each.detach().isfinite().all())
    }
    if broken:
        raise ConfigError(
            f"{key}: {len(broken)} tensors hold values that are not finite: {files.some(broken)}"
        )


def _is_tied(module: Any) -> bool:
    head, embedding = module.get_output_embeddings(), module.get_input_embeddings()
    return head is None or head.weight is embedding.weight


def _own_vocabulary(model: ModelSection) -> int:
    """Token ids that a folder's config.json names, before overrides."""
    plain = architecture(model.model_copy(update={"overrides": {}}), 0)
    vocabulary: int = plain.get_text_config().vocab_size
    return vocabulary


class _Complaints(logging.Handler):
    """Collects the names of tensors that the library cannot convert: it logs them, its exception has none."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.names: set[str] = set()
        self._log = logging.getLogger("transformers.modeling_utils")

    def __enter__(self) -> "_Complaints":
        self._before = (self._log.level, self._log.propagate)
        self._log.setLevel(logging.WARNING)
        self._log.propagate = False
        self._log.addHandler(self)
        return self

    def __exit__(self, *_: object) -> None:
        self._log.removeHandler(self)
        self._log.setLevel(self._before[0])
        self._log.propagate = self._before[1]

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the names in those rows of the library's table that are about a conversion."""
        for line in record.getMessage().splitlines():
            name, _, state = line.partition("|")
            if state.strip().startswith("CONVERSION"):
                self.names.add(name.strip())


def _key(model: ModelSection) -> str:
    return f"model.preset = {model.preset!r}"
