"""The inner optimiser: AdamW for everything, or Muon for the matrices inside the blocks.

AdamW: Loshchilov and Hutter, arXiv 1711.05101. Muon: Jordan et al. 2024, with the scale of Liu et al.,
"Muon is Scalable for LLM Training", arXiv 2502.16982: an update of root mean square 0.2 * lr, about that
of AdamW, so learning rate, weight decay and schedule that are tuned for one serve the other. Its matrix
products are bf16: made for accelerators, and slow on a CPU without bf16 units (a step of llama3-tiny took
about 0.3 s on one core with AVX2 that other processes used too, a step of AdamW 0.4 ms).
"""

import math
from collections.abc import Iterator
from typing import Final, assert_never

import torch

from pelago.config.training import WorkerSection
from pelago.core.errors import ConfigError
from worker.bfloat16_adamw import Bfloat16AdamW
from worker.models.language import LanguageModel

MUON_MOMENTUM: Final = 0.95
NEWTON_SCHULZ_STEPS: Final = 5


class WorkerOptimiser:
    """Steps a model's flat parameters along its flat gradient, both in place.

    Its state is the worker's own, see `state`. Weight decay on matrices only.
    Raises `ConfigError` if the model or this PyTorch does not suit ``settings.optimiser``.
    """

    def __init__(self, settings: WorkerSection, model: LanguageModel) -> None:
        match settings.optimiser:
            case "adamw":
                # AdamW works on each element, so two long tensors give the same as many short ones,
                # with a fraction of the overhead.
                cut = model.matrix_elements
                decayed, plain = _piece(model, 0, cut), _piece(model, cut, model.elements)
                self._parts: list[torch.optim.Optimizer] = [_adamw(settings, [decayed], [plain])]
            case "muon":
                self._parts = _muon_and_adamw(settings, model)
            case _:
                assert_never(settings.optimiser)

    @property
    def decides_on_device(self) -> bool:
        """Whether `step_on_device` can be used: all parts are fused AdamW on a CUDA device."""
        return all(
            isinstance(part, torch.optim.AdamW | Bfloat16AdamW)
            and all(each.is_cuda for group in part.param_groups for each in group["params"])
            for part in self._parts
        )

    def step(self, rate: float) -> None:
        """One step at a learning rate."""
        for part in self._parts:
            for group in part.param_groups:
                group["lr"] = rate
            part.step()

    def step_on_device(self, rate: float, divisor: torch.Tensor, skip: torch.Tensor) -> None:
        """One step along the gradient over ``divisor``, or none if ``skip`` is 1 and not 0: both are fp32 scalars on
        the device, so that the host need not wait for them. What a skipped step leaves is as before it."""
        for part in self._parts:
            # What torch.amp's GradScaler gives to a fused optimiser.
            part.grad_scale, part.found_inf = divisor, skip  # type: ignore[attr-defined]
        self.step(rate)

    def state(self) -> dict[str, torch.Tensor]:
        """The moments and the other tensors that a step depends on, by name; empty before the first step. No
        copies: the next step changes them."""
        return {
            f"{number}.{place}.{name}": value
            for number, part in enumerate(self._parts)
            for place, held in part.state_dict()["state"].items()
            for name, value in held.items()
            if isinstance(value, torch.Tensor)
        }

    def restore(self, state: dict[str, torch.Tensor]) -> None:
        """Continue from what `state` returned, perhaps in another process. Raises `ValueError`, and changes
        nothing, if it does not fit this optimiser and model."""
        found: list[dict[int, dict[str, torch.Tensor]]] = [{} for _ in self._parts]
        for key, value in state.items():
            owner, index, name = key.split(".")
            if int(owner) >= len(found):
                raise ValueError(f"moments of an optimiser of more than {len(found)} parts")
            found[int(owner)].setdefault(int(index), {})[name] = value
        for part, held in zip(self._parts, found, strict=True):
            sizes = [each.shape for group in part.param_groups for each in group["params"]]
            if sorted(held) != list(range(len(sizes))):
                raise ValueError(
                    f"moments of parameters {sorted(held)}, of which there are {len(sizes)}"
                )
            for place, values in held.items():
                for name, value in values.items():
                    if value.dim() and value.shape != sizes[place]:
                        raise ValueError(
                            f"{name} of shape {tuple(value.shape)}, not {tuple(sizes[place])}"
                        )
        for part, held in zip(self._parts, found, strict=True):
            groups = part.state_dict()["param_groups"]
            part.load_state_dict({"state": held, "param_groups": groups})


def in_blocks(model: LanguageModel) -> frozenset[str]:
    """Names of the matrices of two dimensions inside the model's blocks, embeddings excepted.

    A block is a module in a `ModuleList`, as the decoder layers of every `transformers` model are. The
    experts of a mixture are one tensor of three dimensions, so they are not included.
    """
    embedded = {
        id(parameter)
        for module in model.module.modules()
        if isinstance(module, torch.nn.Embedding)
        for parameter in module.parameters()
    }
    return frozenset(
        f"{path}.{name}"
        for path, blocks in model.module.named_modules()
        if isinstance(blocks, torch.nn.ModuleList)
        for name, parameter in blocks.named_parameters()
        if parameter.dim() == 2 and id(parameter) not in embedded
    )


def _muon_and_adamw(settings: WorkerSection, model: LanguageModel) -> list[torch.optim.Optimizer]:
    if not hasattr(torch.optim, "Muon"):
        raise ConfigError(
            f"worker.optimiser = 'muon': PyTorch {torch.__version__} has no torch.optim.Muon;"
            " use 'adamw', or PyTorch 2.9 or later"
        )
    inside = in_blocks(model)
    matrices = [
        _piece(model, start, stop, shape)
        for name, start, stop, shape in _places(model)
        if name in inside
    ]
    if not matrices:
        raise ConfigError(
            "worker.optimiser = 'muon': this model has no matrices inside blocks; use 'adamw'"
        )
    muon = torch.optim.Muon(
        matrices,
        lr=settings.max_lr,
        weight_decay=settings.weight_decay,
        momentum=MUON_MOMENTUM,
        nesterov=True,
        ns_steps=NEWTON_SCHULZ_STEPS,
        adjust_lr_fn="match_rms_adamw",
    )
    decayed = [_piece(model, *run) for run in _others(model, inside)]
    plain = _piece(model, model.matrix_elements, model.elements)
    return [muon, _adamw(settings, decayed, [plain])]


def _adamw(
    settings: WorkerSection, decayed: list[torch.nn.Parameter], plain: list[torch.nn.Parameter]
) -> torch.optim.Optimizer:
    groups = [
        {"params": decayed, "weight_decay": settings.weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
    lr, betas, eps = settings.max_lr, (settings.beta1, settings.beta2), settings.epsilon
    if settings.moments_dtype == "bfloat16":
        return Bfloat16AdamW(groups, lr=lr, betas=betas, eps=eps)
    return torch.optim.AdamW(groups, lr=lr, betas=betas, eps=eps, fused=True)


def _places(model: LanguageModel) -> Iterator[tuple[str, int, int, tuple[int, ...]]]:
    """Name, first element, end and shape of every parameter in the flat tensor."""
    start = 0
    for spec in model.manifest():
        stop = start + math.prod(spec.shape)
        yield spec.name, start, stop, spec.shape
        start = stop


def _others(model: LanguageModel, inside: frozenset[str]) -> Iterator[tuple[int, int]]:
    """Start and end of each longest stretch of the matrices' segment without a matrix of ``inside``."""
    first = 0
    for name, start, stop, _ in _places(model):
        if name in inside:
            if first < start:
                yield first, start
            first = stop
    if first < model.matrix_elements:
        yield first, model.matrix_elements


def _piece(
    model: LanguageModel, start: int, stop: int, shape: tuple[int, ...] = (-1,)
) -> torch.nn.Parameter:
    """A stretch of the flat parameters as a parameter; it shares memory with the model, and so does its gradient."""
    piece = torch.nn.Parameter(model.flat[start:stop].view(shape))
    piece.grad = model.gradient()[start:stop].view(shape)
    return piece
