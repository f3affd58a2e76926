"""A causal language model whose parameters are views into one flat fp32 tensor."""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, TypeAlias

import torch
from torch.nn import functional

from pelago.core.errors import ConfigError, first_line
from pelago.wire.messages import TensorSpec
from worker.models.piecewise_loss import piecewise_cross_entropy

Allocate: TypeAlias = Callable[[int], torch.Tensor]
"""Memory for so many parameters: fp32 of shape (count,)."""
EVALUATION_SEED: Final = 0
"""Seed of the random numbers that a model draws while it is measured."""
LOGITS_MAX: Final = 1 << 26
"""Logits that are converted to fp32 at once: 256 MiB. More, of a long vocabulary, are converted in pieces."""


class CompileFault(Exception):
    """torch.compile failed: its cache is on a full disk, say, or there is no compiler."""


class LanguageModel:
    """An adapter: servers see a manifest and a flat tensor, trainers a loss.

    Parameters are named as in ``named_parameters()``, each once (a tied head is not repeated),
    matrices first. So the flat tensor has two segments: weight decay applies to ``flat[:matrix_elements]``,
    and not to the rest (norms, biases); an optimiser step, a norm, a load or a read is one operation on one
    tensor. Buffers are not part of it: those of the supported architectures follow from the configuration or
    stay as they were loaded.
    """

    def __init__(
        self,
        module: torch.nn.Module,
        origin: str = "",
        *,
        device: torch.device | None = None,
        allocate: Allocate | None = None,
    ) -> None:
        """Take over a `transformers` causal model in fp32; its parameters move into the flat
        tensor. ``origin``: for messages, where the parameters are from. ``device``: for a module whose parameters
        are on the meta device: they become zeros there. ``allocate``: gives the flat tensor, on the module's device.
        """
        parameters = sorted(module.named_parameters(), key=lambda pair: pair[1].dim() < 2)
        wrong = [name for name, parameter in parameters if parameter.dtype != torch.float32]
        assert not wrong, f"parameters must be fp32: {wrong[:3]}"
        self.module = module
        self.origin = origin
        self.vocabulary: int = module.config.get_text_config().vocab_size  # type: ignore[union-attr, operator]
        self.device = device or parameters[0][1].device
        self._manifest = tuple(
            TensorSpec(name, tuple(parameter.shape)) for name, parameter in parameters
        )
        self._parameters = [parameter for _, parameter in parameters]
        self.matrix_elements = sum(each.numel() for each in self._parameters if each.dim() >= 2)
        """Length of the segment that weight decay applies to."""
        count = sum(each.numel() for each in self._parameters)
        self.flat = allocate(count) if allocate else torch.zeros(count, device=self.device)
        """All parameters, fp32, shape (elements,); writing to it changes the model."""
        self._gradient: torch.Tensor | None = None
        self._forward: Callable[..., Any] = module
        self.is_compiled = False
        if device is not None:
            self._parameters = _settle(module, self._parameters, self._views(self.flat), device)
            return
        for parameter, view in zip(self._parameters, self._views(self.flat), strict=True):
            view.copy_(parameter.data)
            parameter.data = view

    @property
    def elements(self) -> int:
        """Number of parameters."""
        return self.flat.numel()

    def manifest(self) -> tuple[TensorSpec, ...]:
        """Names and shapes in the order of the flat tensor; all fp32."""
        return self._manifest

    def load(self, pieces: Iterable[torch.Tensor]) -> None:
        """Overwrite all parameters; ``pieces`` are the flat tensor in pieces, one after the other, on any device."""
        start = 0
        for piece in pieces:
            self.flat[start : start + piece.numel()].copy_(piece)
            start += piece.numel()
        assert start == self.elements, f"{start} of {self.elements} elements"

    def read_flat(self, out: torch.Tensor) -> None:
        """Copy all parameters to ``out``, fp32 of shape (elements,), on any device."""
        out.copy_(self.flat)

    def gradient(self) -> torch.Tensor:
        """The flat gradient, shape (elements,), which backward passes add to; zero it before a
        step.

        A parameter that takes no part in a loss (a vision tower on a text batch) keeps its zeros.
        """
        if self._gradient is None:
            self._gradient = torch.zeros_like(self.flat)
            for parameter, view in zip(self._parameters, self._views(self._gradient), strict=True):
                parameter.grad = view
        return self._gradient

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Evaluation mode, without dropout: a loss depends on parameters and tokens alone. Random numbers
        that a model draws even so (Reformer for its hashes) are the same each time.
        """
        with self._mode(training=False):
            self.draw_from(EVALUATION_SEED)
            yield

    @contextmanager
    def training(self) -> Iterator[None]:
        """Training mode. Dropout and the like follow from the last `draw_from`.

        Meant for many steps: changing the mode touches every module, and torch.compile then looks at
        each of them again.
        """
        with self._mode(training=True):
            yield

    def draw_from(self, seed: int) -> None:
        """Seed PyTorch's generators, within `training` or `evaluating`."""
        torch.manual_seed(seed)

    @contextmanager
    def _mode(self, *, training: bool) -> Iterator[None]:
        """Restores the mode, and the state of PyTorch's generators, afterwards."""
        before = self.module.training
        self.module.train(training)
        try:
            with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
                yield
        finally:
            self.module.train(before)

    def compile(self) -> None:
        """Let torch.compile translate the forward and backward pass."""
        self._forward = torch.compile(self.module)
        self.is_compiled = True

    def checkpoint_activations(self) -> None:
        """Keep no activations inside the layers for the backward pass. Raises `ConfigError` if the model's class
        cannot do that."""
        try:
            self.module.gradient_checkpointing_enable({"use_reentrant": False})  # type: ignore[operator]
        except (ValueError, AttributeError) as error:
            raise ConfigError(
                f"worker.checkpoint_activations = true: {type(self.module).__name__} cannot: {first_line(error)}"
            ) from None

    def stop_compiling(self) -> None:
        """Undo `compile`."""
        self._forward = self.module
        self.is_compiled = False

    def loss(self, tokens: torch.Tensor, mixed: bool = False) -> torch.Tensor:
        """Mean next-token loss in nats, a scalar; ``tokens`` is int64 of shape (batch, length + 1).

        In evaluation mode, but inside ``with training()``.
        ``mixed``: matrix products in bf16 (autocast); logits and loss are fp32 always.
        """
        tokens = tokens.to(self.device, non_blocking=True)
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=mixed):
            logits = self._forward(input_ids=tokens[:, :-1], use_cache=False).logits
        logits, targets = logits.flatten(0, 1), tokens[:, 1:].flatten()
        if logits.dtype != torch.float32 and logits.numel() > LOGITS_MAX:
            return piecewise_cross_entropy(logits, targets)
        return functional.cross_entropy(logits.float(), targets)

    def backward(self, tokens: torch.Tensor, share: float, mixed: bool = False) -> torch.Tensor:
        """Add ``share`` times the gradient of `loss` to `gradient`. Returns that share of the loss, detached.

        Raises `ConfigError` if the model cannot be trained on batches of this shape; `CompileFault` if it is
        compiled, since then the compiler may be the cause.
        """
        try:
            loss = self.loss(tokens, mixed) * share
            torch.autograd.backward(loss)
        except (torch.OutOfMemoryError, torch.AcceleratorError):
            raise  # Too little memory, or a broken device: not a matter of the shape.
        except Exception as error:
            if self.is_compiled:
                raise CompileFault(first_line(error)) from error
            if not isinstance(error, RuntimeError | IndexError | ValueError):
                raise
            sequences, length = tokens.shape
            raise ConfigError(
                f"the model cannot be trained on {sequences} sequences of data.sequence_length ="
                f" {length - 1} tokens: {first_line(error)}"
            ) from error
        return loss.detach()

    def export(self, directory: Path) -> None:
        """Write the parameters into a folder, made for it, that ``AutoModelForCausalLM.from_pretrained``
        opens. Raises whatever the library raises.
        """
        self.module.save_pretrained(directory)  # type: ignore[operator]

    def _views(self, flat: torch.Tensor) -> list[torch.Tensor]:
        sizes = [math.prod(spec.shape) for spec in self._manifest]
        pieces = torch.split(flat, sizes)
        return [piece.view(spec.shape) for piece, spec in zip(pieces, self._manifest, strict=True)]


def _settle(
    module: torch.nn.Module,
    parameters: list[torch.nn.Parameter],
    views: list[torch.Tensor],
    device: torch.device,
) -> list[torch.nn.Parameter]:
    """Give a module ``views`` in the place of its parameters on the meta device, wherever it uses them, and move its
    buffers to ``device``. Returns the new parameters."""
    fresh = [
        torch.nn.Parameter(view, each.requires_grad)
        for view, each in zip(views, parameters, strict=True)
    ]
    by_old = {id(old): new for old, new in zip(parameters, fresh, strict=True)}
    for part in module.modules():
        for name, old in part._parameters.items():
            if old is not None:
                part._parameters[name] = by_old[id(old)]
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = buffer.to(device)
    return fresh
