"""Too little memory is recognised, and the message names the key to change; processes are spread over devices."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pelago.config import run_toml
from pelago.core.errors import ConfigError
from tests.worker.corpora import run_file, write_texts
from tests.worker.test_trainer import train
from worker import device as devices
from worker.evaluator.held_out_loss import HeldOutLoss
from worker.memory import Step, explained, is_lack
from worker.trainer import Trainer

LIMITED = """
import resource, sys, threading
from pathlib import Path
from pelago.config import run_toml
from pelago.core.errors import ConfigError
from pelago.core.names import Lease, PushId
from pelago.tensor.manifest import Manifest
from pelago.tensor.payload import Payload
from worker.trainer import Trainer
trainer = Trainer(run_toml.load(sys.argv[1]))
flat = Payload.of(trainer.initial(), Manifest(trainer.manifest()).chunks)
small = trainer.train(Lease(PushId(1, 0), ((0, 8),), 0), flat, lambda *_: None, threading.Event())
assert small is not None
pages = int(Path("/proc/self/statm").read_text().split()[0])
resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (64 << 20),) * 2)
try:
    trainer.train(Lease(PushId(2, 0), ((0, 8192),), 0), flat, lambda *_: None, threading.Event())
except ConfigError as error:
    print(error)
"""
CPU = torch.device("cpu")


@pytest.fixture
def source(tmp_path: Path) -> str:
    return f"text:{write_texts(tmp_path / 'texts')}"


def test_a_step_for_which_there_is_no_memory_names_the_key_and_a_better_value(
    tmp_path: Path, source: str
) -> None:
    """A real process that may not have more memory, and a real allocation that fails in a step."""
    run = run_file(source, batch_size=8192, micro_batch_size=4096)
    (tmp_path / "run.toml").write_text(run_toml.dump(run), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(tmp_path / "run.toml")],
        capture_output=True,
        text=True,
        timeout=55,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("worker.micro_batch_size = 4096: 4096 sequences of ")
    assert done.stdout.endswith("; try worker.micro_batch_size = 2048\n")


@pytest.mark.parametrize("part", ["train", "validate"])
def test_a_model_that_runs_out_of_an_accelerators_memory_says_the_same(
    part: str, source: str
) -> None:
    run = run_file(source, batch_size=8, micro_batch_size=4)

    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    computes = Trainer(run) if part == "train" else HeldOutLoss(run)
    computes.model.module.register_forward_hook(full)
    flat = computes.initial()
    with pytest.raises(ConfigError, match=r"micro_batch_size = 4: 4 .*; try .* = 2$"):
        _ = (
            train(computes, ((0, 8),), flat)
            if isinstance(computes, Trainer)
            else computes.validate([flat])
        )


@pytest.mark.parametrize("compiled", [False, True])
def test_a_micro_batch_of_auto_becomes_smaller_until_it_fits(source: str, compiled: bool) -> None:
    """To the bit the result of the size that fits, and the log says it once for each size. A compiled model is still
    compiled, also where the compiler hides the kind of error."""
    said: list[str] = []
    trainer = Trainer(run_file(source, batch_size=8, micro_batch_size="auto"), tell=said.append)
    trainer.model.is_compiled = compiled

    def full(module: object, given: object, named: dict[str, torch.Tensor]) -> None:
        if len(named["input_ids"]) > 2:
            raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `x`")

    hook = trainer.model.module.register_forward_pre_hook(full, with_kwargs=True)
    plain = Trainer(run_file(source, batch_size=8, micro_batch_size=2))
    found = train(trainer, ((0, 16),), trainer.initial())
    expected = train(plain, ((0, 16),), plain.initial())
    assert found is not None
    assert expected is not None
    assert torch.equal(found.delta, expected.delta)
    assert [line.partition(" do not fit")[0] for line in said] == [
        "8 sequences at once",
        "4 sequences at once",
    ]
    assert trainer.model.is_compiled == compiled
    hook.remove()
    hook = trainer.model.module.register_forward_pre_hook(
        lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError("CUDA out of memory")),
        with_kwargs=True,
    )
    with pytest.raises(ConfigError, match=r"1 sequence of .* choose a smaller model"):
        train(trainer, ((0, 16),), trainer.initial())


@pytest.mark.parametrize(
    ("batch", "micro", "fewer"), [(64, 0, 32), (60, 20, 10), (7, 0, 1), (9, 9, 3), (8, 1, 0)]
)
def test_half_a_micro_batch_is_proposed_as_far_as_it_divides_the_batch(
    batch: int, micro: int, fewer: int, source: str
) -> None:
    run = run_file(source, batch_size=batch, micro_batch_size=micro)
    step = Step.of(run, CPU)
    assert step.fewer() == fewer
    assert (f"= {fewer}" if fewer else "choose a smaller model") in step.lack().partition(";")[2]


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("HIP out of memory"),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory"
        ),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("std::bad_alloc"),
        OSError(12, "Cannot allocate memory"),
    ],
    ids=lambda error: str(error)[:30],
)
def test_too_little_memory_is_recognised_by_the_messages_of_libraries(error: Exception) -> None:
    assert is_lack(error)
    wrapped = ConfigError("the model cannot be trained")
    wrapped.__cause__ = error
    assert is_lack(wrapped)


def test_other_errors_are_not_changed(source: str) -> None:
    with pytest.raises(RuntimeError, match="shapes"), explained(Step.of(run_file(source), CPU)):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")


def test_processes_are_spread_over_the_devices_that_are_visible(source: str) -> None:
    slots = run_file(source).slots
    assert list(slots)[-1] == "evaluator"
    assert list(slots.values()) == list(range(len(slots)))
    assert [devices.place(slot, 3) for slot in range(5)] == [0, 1, 2, 0, 1]
    assert devices.place(4, 0) is None
    three = {"worker-eu-0": 0, "worker-eu-1": 1, "evaluator": 2}
    assert devices.assigned(three, 2) == "cuda:0 worker-eu-0, evaluator; cuda:1 worker-eu-1"
    assert devices.assigned(three, 8) == "cuda:0 worker-eu-0; cuda:1 worker-eu-1; cuda:2 evaluator"
