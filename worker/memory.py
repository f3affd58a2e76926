"""Too little memory for a step: recognised, whoever says it and how, and told in the words of the run file."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
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
"""What CUDA, PyTorch's allocators, cuBLAS and cuDNN, the C library and C++ say, in small letters."""


@dataclass(frozen=True, slots=True)
class Step:
    """What is done at once with a model, and where."""

    key: str
    """The run file's, with its value."""
    batch: int
    """Sequences of a local step; a micro-batch divides them."""
    sequences: int
    """Of one forward pass."""
    length: int
    """Tokens of a sequence."""
    device: torch.device

    @classmethod
    def of(cls, run: RunFile, device: torch.device, most: int | None = None) -> "Step":
        """The run's, of at most so many sequences."""
        micro, batch = run.worker.micro_batch_size, run.worker.batch_size
        key = f"worker.micro_batch_size = {micro}"
        key += "" if micro else f" (all {batch} of worker.batch_size)"
        sequences = micro or batch
        return cls(key, batch, min(sequences, most or sequences), run.data.sequence_length, device)

    def lack(self) -> str:
        """That the memory does not suffice, and what to do about it."""
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
        """The largest micro-batch of at most half as many; 0: there is none."""
        halves = range(self.sequences // 2, 0, -1)
        return next((each for each in halves if self.batch % each == 0), 0)


class HasStep(Protocol):
    """Whoever computes with a model."""

    @property
    def memory_step(self) -> Step:
        """What it does at once."""
        ...


H = TypeVar("H", bound=HasStep)
P = ParamSpec("P")
T = TypeVar("T")


def is_lack(error: BaseException) -> bool:
    """Whether an error, or what it came from, is a want of memory."""
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        if isinstance(link, MemoryError | torch.OutOfMemoryError):
            return True
        # OSError: a want of memory for a process, or of address space for a file.
        if isinstance(link, RuntimeError | OSError) and any(
            sign in str(link).lower() for sign in SIGNS
        ):
            return True
        link = link.__cause__ or link.__context__
    return False


@contextmanager
def explained(step: Step) -> Iterator[None]:
    """Raises `ConfigError` where there was too little memory."""
    try:
        yield
    except Exception as error:
        if not is_lack(error):
            raise
        raise ConfigError(step.lack()) from error


def explaining(
    method: Callable[Concatenate[H, P], T],
) -> Callable[Concatenate[H, P], T]:
    """A method that computes with a model, its want of memory told by `ConfigError`."""

    @wraps(method)
    def told(self: H, /, *given: P.args, **named: P.kwargs) -> T:
        with explained(self.memory_step):
            return method(self, *given, **named)

    return told
