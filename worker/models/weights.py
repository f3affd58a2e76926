"""The weights of a Hugging Face folder: which files they are, and whether they are usable.

Either all weights of a folder are used or the folder is refused: if a model started from random numbers where
its user meant a checkpoint, it would only look like a model that trains badly.
"""

import json
import os
import re
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import safe_open

from pelago.core.errors import ConfigError, first_line
from worker.git_lfs import is_pointer

SAFETENSORS: Final = "model.safetensors"
PYTORCH: Final = "pytorch_model.bin"
INDEX: Final = ".index.json"
LOADABLE: Final = (SAFETENSORS, SAFETENSORS + INDEX, PYTORCH, PYTORCH + INDEX)
"""Files that are looked for, in the order of `transformers`."""

WEIGHT_ENDINGS: Final = (
    *(".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".ggml", ".h5", ".msgpack"),
    *(".onnx", ".npz", ".distcp", ".pkl", INDEX),
)
"""Endings of files that hold weights in some format, or say where they are."""
UNFINISHED: Final = re.compile(r"\.(safetensors|bin|pth|ckpt|gguf|h5)\.|\.incomplete$")
"""In names of weight files that were not downloaded completely (.part, .lock, .incomplete), or are packed."""
CHECKPOINTS: Final = re.compile(r"checkpoint-\d+|global_step\d+|pytorch_model_fsdp_\d+|original")
"""Names of folders in a model's folder in which trainers and hubs keep weights."""
DOWNLOADS: Final = Path(".cache", "huggingface", "download")
"""Where the hub's client keeps incomplete downloads."""

TRAINING: Final = frozenset({torch.float32, torch.bfloat16, torch.float16, torch.float64})
"""Types that become fp32; everything else is quantised."""

WRAPPERS: Final = ("_orig_mod.", "module.")
"""Prefixes that torch.compile and DistributedDataParallel add to every name."""

COMPUTED: Final = re.compile(
    r"(^|\.)((rotary_emb\.|rotary_pos_emb\.)?inv_freq|position_ids|masked_bias|_extra_state)$"
)
"""Buffers that older checkpoints hold and that every model computes for itself."""
MASK: Final = re.compile(r"(^|\.)attn\.(attention\.)?bias$|(^|\.)attention\.bias$")
"""A causal mask of shape (1, 1, n, n); a bias of that name has one dimension."""

SHOWN: Final = 4
"""Most names in one message."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The files of a folder's weights. ``found``: the file itself, or the index that names them."""

    found: Path
    files: tuple[Path, ...]

    @property
    def described(self) -> str:
        """For messages: the file, and how many shards it names."""
        shards = f" ({len(self.files)} shards)" if self.found.name.endswith(INDEX) else ""
        return f"{self.found}{shards}"


def some(names: Iterable[str]) -> str:
    """A few of many names, and how many more there are."""
    ordered = sorted(names)
    more = f" and {len(ordered) - SHOWN} more" if len(ordered) > SHOWN else ""
    return ", ".join(ordered[:SHOWN]) + more


def require_no_pointer(path: Path, key: str) -> None:
    """Raises `ConfigError` if a file is only a git-lfs pointer, or no regular file; `OSError`."""
    if path.exists() and not path.is_file():
        raise ConfigError(f"{key}: {path.name} is no file")
    if is_pointer(path):
        raise ConfigError(
            f"{key}: {path.name} is a git-lfs pointer, not the file itself: run `git lfs pull`"
            " where it was cloned"
        )


def find(folder: Path, key: str) -> Checkpoint | None:
    """The weights of a folder; None if it holds none, so they are drawn at random.

    ``key``: how errors name the folder. Raises `ConfigError` for an index whose shards are not all there,
    and for weights of a format that is not read here.
    """
    # A broken link counts as a file: its target is missing, which an error should say.
    names = set(os.listdir(folder))
    for name in LOADABLE:
        if name in names:
            path = folder / name
            files = _shards(path, key) if name.endswith(INDEX) else (path,)
            return Checkpoint(path, files)
    others = {name for name in names if _may_hold_weights(name)} or _weights_below(folder, names)
    if others:
        if any(name.startswith("adapter_") for name in others):
            hint = "merge the adapter into its base model and save that"
        elif any(UNFINISHED.search(name) for name in others):
            hint = "load it to its end, or unpack it"
        elif any("/" in name for name in others):
            hint = (
                "name that folder if it has a config.json too, or convert them with save_pretrained"
            )
        else:
            hint = "convert them with save_pretrained"
        raise ConfigError(
            f"{key}: holds {some(others)}, but none of {', '.join(LOADABLE)}: {hint}, or, to start from"
            " random weights, name a folder with the config.json alone"
        )
    return None


def _may_hold_weights(name: str) -> bool:
    return name.lower().endswith(WEIGHT_ENDINGS) or bool(UNFINISHED.search(name.lower()))


def _weights_below(folder: Path, names: set[str]) -> set[str]:
    """Weight files in those folders below that may belong to the model."""
    places = [Path(name) for name in names if CHECKPOINTS.fullmatch(name)]
    return {
        (place / name).as_posix()
        for place in (*places, DOWNLOADS)
        if (folder / place).is_dir()
        for name in os.listdir(folder / place)
        if _may_hold_weights(name)
    }


@dataclass(frozen=True, slots=True)
class Weights:
    """Tensors by name, on the CPU. ``prefix``: that a wrapper had added to every name."""

    tensors: Mapping[str, torch.Tensor]
    prefix: str


def read(checkpoint: Checkpoint, key: str) -> Weights:
    """All tensors of a checkpoint; those of safetensors are mapped and not read yet.

    Raises `ConfigError` for a file that is torn.
    """
    tensors: dict[str, torch.Tensor] = {}
    for path in checkpoint.files:
        found = _tensors(path, key)
        twice = tensors.keys() & found.keys()
        if twice:
            raise ConfigError(f"{key}: more than one shard holds {some(twice)}")
        tensors |= found
    if not tensors:
        raise ConfigError(f"{key}: {checkpoint.found.name} holds no tensors")
    return _unwrapped(tensors)


def require_plain(weights: Weights, module: torch.nn.Module, key: str) -> None:
    """Raises `ConfigError` for weights that are quantised. Integers that are a buffer of the model, such as
    a table of ids, are allowed.
    """
    # By the last part of the name: the library may name the modules around it otherwise than the file.
    buffers = {
        (name.rpartition(".")[2], each.dtype)
        for name, each in module.named_buffers()
        if not each.is_floating_point()
    }
    quantised = {
        f"{name} ({str(each.dtype).removeprefix('torch.')})"
        for name, each in weights.tensors.items()
        if each.dtype not in TRAINING
        and not _is_computed(name, each)
        and (name.rpartition(".")[2], each.dtype) not in buffers
    }
    if quantised:
        raise ConfigError(
            f"{key}: {len(quantised)} of {len(weights.tensors)} tensors are quantised: {some(quantised)}:"
            " training needs weights of float32, bfloat16 or float16; dequantise them and save that"
        )


def require_fit(info: Mapping[str, Any], weights: Weights, expected: int, key: str) -> None:
    """Raises `ConfigError` unless the tensors read were exactly those of the model.

    ``info``: the loading information of ``from_pretrained``; ``expected``: number of parameters of the
    model. Buffers that every model computes may be there or not.
    """
    computed = {name for name, each in weights.tensors.items() if _is_computed(name, each)}
    missing = {name for name in info["missing_keys"] if not COMPUTED.search(name)}
    unexpected = {
        name
        for name in info["unexpected_keys"]
        if not COMPUTED.search(name) and not any(name.endswith(each) for each in computed)
    }
    wrong = {
        f"{name} ({_shape(have)} instead of {_shape(want)})"
        for name, have, want in info["mismatched_keys"]
    }
    faults = []
    if missing:
        faults.append(
            f"{len(missing)} of the model's {expected} parameters are not in them: {some(missing)}"
        )
    if unexpected:
        faults.append(
            f"{len(unexpected)} of their {len(weights.tensors)} tensors are not in the model:"
            f" {some(unexpected)}"
        )
    if wrong:
        faults.append(f"{len(wrong)} have another shape: {some(wrong)}")
    if faults:
        raise ConfigError(
            f"{key}: the weights are not those of the model that config.json and model.overrides"
            f" describe; {'; '.join(faults)}"
        )


def _shards(index: Path, key: str) -> tuple[Path, ...]:
    try:
        require_no_pointer(index, key)
        places = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
        names = sorted({str(place) for place in places})
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"{key}: {index.name} cannot be read as an index of shards: {first_line(error)}"
        ) from None
    if not names:
        raise ConfigError(f"{key}: {index.name} names no shards")
    outside = [name for name in names if Path(name).name != name]
    if outside:
        raise ConfigError(f"{key}: {index.name} names files elsewhere: {some(outside)}")
    missing = [name for name in names if not (index.parent / name).is_file()]
    if missing:
        raise ConfigError(
            f"{key}: {index.name} names {len(names)} shards, and {len(missing)} of them are not there:"
            f" {some(missing)}"
        )
    return tuple(index.parent / name for name in names)


def _tensors(path: Path, key: str) -> dict[str, torch.Tensor]:
    try:
        require_no_pointer(path, key)
        return _safetensors(path) if path.suffix == ".safetensors" else _pytorch(path, key)
    except ConfigError:
        raise
    except (FileNotFoundError, PermissionError, IsADirectoryError) as error:
        raise ConfigError(f"{key}: {path.name} cannot be opened: {error.strerror}") from None
    except Exception as error:
        # The file may hold anything, so the parsers may raise anything.
        what = "is torn, or holds no weights"
        if path.suffix != ".safetensors":
            what = "is torn, or a pickle of more than tensors, which could run any code"
        raise ConfigError(
            f"{key}: {path.name} {what}; save the model again with save_pretrained ({first_line(error)})"
        ) from None


def _safetensors(path: Path) -> dict[str, torch.Tensor]:
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def _pytorch(path: Path, key: str) -> dict[str, torch.Tensor]:
    # Only tensors are unpickled: a pickle may name any code to run.
    held = torch.load(path, "cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    if not isinstance(held, dict) or not held:
        raise ConfigError(f"{key}: {path.name} holds no tensors by name")
    others = {str(name) for name, each in held.items() if not isinstance(each, torch.Tensor)}
    if others:
        raise ConfigError(
            f"{key}: {path.name} holds more than tensors by name: {some(others)}: convert the model in it"
            " with save_pretrained"
        )
    return {str(name): each for name, each in held.items()}


def _unwrapped(tensors: dict[str, torch.Tensor]) -> Weights:
    """The tensors without the prefixes that wrappers added to all names."""
    taken = ""
    while True:
        prefix = next((each for each in WRAPPERS if all(n.startswith(each) for n in tensors)), "")
        if not prefix:
            return Weights(tensors, taken)
        taken += prefix
        tensors = {name.removeprefix(prefix): each for name, each in tensors.items()}


def _is_computed(name: str, tensor: torch.Tensor) -> bool:
    return bool(COMPUTED.search(name) or (MASK.search(name) and tensor.dim() == 4))


def _shape(shape: Iterable[int]) -> str:
    return "x".join(str(each) for each in shape) or "scalar"
