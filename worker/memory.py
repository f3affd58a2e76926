"""Recognises that a step needed too much memory, and says which key of the run file to change."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import wraps
from typing import Concatenate, Final, ParamSpec, Protocol, TypeVar

import torch

from pelago.config.run_file import RunFile
from pelago.core.errors import ConfigError
from worker import device as devices

SIGNS: Final = (
    "out of memory",
    "can't allocate memory",
    "not enough memory",
    "cannot allocate memory",
    "bad_alloc",
    "bad allocation",
    "_status_alloc_failed",
)
"""Parts of the messages of CUDA, PyTorch's allocators, cuBLAS, cuDNN, the C library and C++, in lower case."""


@dataclass(frozen=True, slots=True)
class Step:
    """How much a model computes at once, and on which device."""

    key: str
    """The key of the run file that decides it, with its value."""
    batch: int
    """Sequences of a local step; a multiple of the micro-batch."""
    sequences: int
    """Sequences of one forward pass."""
    length: int
    """Tokens of one sequence."""
    device: torch.device

    @classmethod
    def of(cls, run: RunFile, device: torch.device, most: int | None = None) -> "Step":
        """The step of a run file; ``most``: the largest number of sequences of a forward pass."""
        micro, batch = run.worker.micro_batch_size, run.worker.batch_size
        sequences = run.worker.sequences_at_once
        key = f"worker.micro_batch_size = {micro!r}"
        key += f" (all {batch} of worker.batch_size)" if sequences == batch != micro else ""
        return cls(key, batch, min(sequences, most or sequences), run.data.sequence_length, device)

    def of_sequences(self, sequences: int) -> "Step":
        """The same step with another number of sequences of a forward pass."""
        return replace(self, sequences=sequences)

    def lack(self) -> str:
        """The error message: there is too little memory, and what to change."""
        many = "sequence" if self.sequences == 1 else "sequences"
        said = (
            f"{self.key}: {self.sequences} {many} of {self.length} tokens at once do not fit into"
        )
        said += f" the memory of {devices.described(self.device)}"
        fewer = self.fewer()
        if fewer:
            return f"{said}; try worker.micro_batch_size = {fewer}"
        return f"{said}; choose a smaller model or data.sequence_length"

    def fewer(self) -> int:
        """The largest micro-batch of at most half as many sequences; 0: there is none."""
        halves = range(self.sequences // 2, 0, -1)
        return next((each for each in halves if self.batch % each == 0), 0)


class HasStep(Protocol):
    """An object that computes with a model."""

    @property
    def memory_step(self) -> Step:
        """How much it computes at once."""
        ...


H = TypeVar("H", bound=HasStep)
P = ParamSpec("P")
T = TypeVar("T")


def is_lack(error: BaseException) -> bool:
    """Whether an error, or one of its causes, means that there was too little memory."""
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        if isinstance(link, MemoryError | torch.OutOfMemoryError):
            return True
        # OSError: no memory for another process, or no address space to map a file.
        if isinstance(link, RuntimeError | OSError) and any(
            sign in str(link).lower() for sign in SIGNS
        ):
            return True
        link = link.__cause__ or link.__context__
    return False


@contextmanager
def explained(step: Step) -> Iterator[None]:
    """Raises `ConfigError` in the place of an error that means too little memory."""
    try:
        yield
    except Exception as error:
        if not is_lack(error):
            raise
        raise ConfigError(step.lack()) from error


def explaining(
    method: Callable[Concatenate[H, P], T],
) -> Callable[Concatenate[H, P], T]:
    """Decorates a method that computes with a model: it raises `ConfigError` if there is too little memory."""

    @wraps(method)
    def guarded(self: H, /, *given: P.args, **named: P.kwargs) -> T:
        try:
            return method(self, *given, **named)
        except Exception as error:
            # The step of now: `micro_batch_size = "auto"` may have changed it meanwhile.
            with explained(self.memory_step):
                raise error

    return guarded
