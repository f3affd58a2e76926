"""A worker that is started again continues with its optimiser's moments, or warms its learning rate up."""

import errno
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from pelago.config.run_file import RunFile
from pelago.core.names import Lease, PushId, Version
from pelago.core.notes.trainer import (
    OptimiserCold,
    OptimiserNotKept,
    OptimiserRestored,
    TrainerNote,
)
from pelago.core.ports import TrainingResult
from pelago.core.training_effects import Train
from tests.worker.corpora import run_file, write_texts
from tests.worker.flat_training import payload_of, train_flat
from worker import moments
from worker.moments import MomentsFile, MomentsOwner, SavedMoments
from worker.port import WorkerPort
from worker.schedule import begins_late, warmed
from worker.trainer import Trainer

OWNER = MomentsOwner("run", "model", "adamw", "north", 0)
LATE = 1000
"""A clock, in samples, at which the warm-up of these runs is over."""


@pytest.fixture
def source(tmp_path: Path) -> str:
    return f"text:{write_texts(tmp_path / 'texts')}"


class Process:
    """A worker's trainer thread, as the driver uses it."""

    def __init__(self, run: RunFile, folder: Path | None) -> None:
        self.trainer = Trainer(run)
        self.logged: list[TrainerNote] = []
        self.port = WorkerPort(self.trainer, run, "north", folder)
        self.port.begin(self.logged.append)
        self.start = self.trainer.initial()

    def round(self, clock: int, group: int = 0) -> TrainingResult:
        """Eight samples, from the same model every time; its moments are saved when it returns."""
        lease = Lease(PushId(1, 0), ((clock % 512, clock % 512 + 8),), clock)
        work = Train(lease, Version(0, 0), 1, group)
        found = self.port.train(
            work, payload_of(self.trainer, self.start), lambda *_: None, threading.Event()
        )
        self.port.rest()
        if self.port._file is not None:
            self.port._file.wait()
        assert found is not None
        return replace(found, delta=found.delta.tensor())

    def kinds(self) -> list[type]:
        """Classes of the notes that it logged."""
        return [type(each) for each in self.logged]


@pytest.mark.parametrize(
    ("optimiser", "dtype"), [("adamw", "float32"), ("adamw", "bfloat16"), ("muon", "float32")]
)
def test_a_process_that_follows_a_killed_one_trains_as_if_it_were_the_same(
    source: str, tmp_path: Path, optimiser: str, dtype: str
) -> None:
    """To the bit: moments of Adam and of Muon, and the number of steps."""
    run = run_file(source, optimiser=optimiser, moments_dtype=dtype)
    first = Process(run, tmp_path / "optimiser")
    first.round(LATE)
    second = Process(run, tmp_path / "optimiser")
    found, expected = second.round(LATE + 64), first.round(LATE + 64)
    assert torch.equal(found.delta, expected.delta)
    [restored] = second.logged
    assert isinstance(restored, OptimiserRestored)
    assert (restored.samples, restored.steps) == (64, 2)
    assert restored.age_s >= 0
    assert [each.name for each in (tmp_path / "optimiser").iterdir()] == ["north-0.moments"]


def test_a_cold_start_in_the_middle_of_a_run_warms_up_and_one_at_its_beginning_does_not(
    source: str, tmp_path: Path
) -> None:
    """Adam's first step moves every parameter by about its rate: of two steps one at a quarter, one at half."""
    run = run_file(source, cold_start_steps=4, weight_decay=0.0)
    cold = run_file(source, cold_start_steps=0, weight_decay=0.0)
    warming, at_once = Process(run, tmp_path / "a"), Process(cold, None)
    ratio = warming.round(LATE).delta.norm() / at_once.round(LATE).delta.norm()
    assert 0.2 < ratio < 0.5
    assert warming.logged == [OptimiserCold("there are none", 4)]
    assert at_once.logged == [OptimiserCold("worker.keep_optimiser = false", 0)]
    begun, plain = Process(run, None), Trainer(run)
    lease = Lease(PushId(1, 0), ((16, 24),), 16)
    expected = train_flat(plain, lease, plain.initial())
    assert expected is not None
    assert torch.equal(begun.round(16).delta, expected.delta)
    assert begun.logged == []


def test_a_warm_up_that_was_broken_off_goes_on(source: str, tmp_path: Path) -> None:
    run = run_file(source, cold_start_steps=6)
    first = Process(run, tmp_path)
    first.round(LATE)
    second = Process(run, tmp_path)
    found, expected = second.round(LATE + 64), first.round(LATE + 64)
    assert torch.equal(found.delta, expected.delta)


def test_a_run_is_late_when_its_warm_up_and_the_first_round_of_all_workers_are_over() -> None:
    run = RunFile.model_validate(
        {
            "worker": {
                "local_steps": 2,
                "batch_size": 4,
                "global_batch_size": 8,
                "warmup_iterations": 3,
            },
            "region": [{"name": "north", "worker_speeds": [1.0, 1.0]}],
        }
    )
    assert [begins_late(run, clock) for clock in (0, 23, 24)] == [False, False, True]
    no_warm_up = run.model_copy(
        update={"worker": run.worker.model_copy(update={"warmup_iterations": 0})}
    )
    assert [begins_late(no_warm_up, clock) for clock in (0, 15, 16)] == [False, False, True]
    assert [warmed(step, 4) for step in (1, 4, 9)] == [0.25, 1.0, 1.0]
    assert warmed(1, 0) == 1.0


def save(folder: Path, owner: MomentsOwner = OWNER, clock: int = 5) -> Path:
    """Save some moments; returns their file."""
    file = MomentsFile(folder, owner, lambda note: None)
    tensors = {"0.0.exp_avg": torch.arange(9.0), "0.0.step": torch.tensor(3.0)}
    file.save(tensors, clock, 3)
    file.wait()
    return file.path


def loaded(folder: Path, owner: MomentsOwner = OWNER, clock: int = 5) -> SavedMoments | str:
    """The saved moments of an owner, or the reason why they cannot be used."""
    return MomentsFile(folder, owner, lambda note: None).load(clock)


def test_saved_moments_are_loaded(tmp_path: Path) -> None:
    save(tmp_path)
    found = loaded(tmp_path, clock=9)
    assert isinstance(found, SavedMoments)
    assert torch.equal(found.tensors["0.0.exp_avg"], torch.arange(9.0))
    assert (found.tensors["0.0.step"].shape, found.clock, found.steps) == (torch.Size([]), 5, 3)


@pytest.mark.parametrize(
    ("owner", "clock", "why"),
    [
        (replace(OWNER, run="other"), 5, "of run 'run', not 'other'"),
        (replace(OWNER, model="other"), 5, "of model 'model', not 'other'"),
        (replace(OWNER, optimiser="muon"), 5, "of optimiser 'adamw', not 'muon'"),
        (replace(OWNER, group=1), 5, "of group 0, not 1"),
        (OWNER, 4, "it is of sample 5 of the run, which is at 4"),
    ],
)
def test_moments_of_something_else_are_refused_with_the_reason(
    tmp_path: Path, owner: MomentsOwner, clock: int, why: str
) -> None:
    path = save(tmp_path)
    path.rename(MomentsFile(tmp_path, owner, lambda note: None).path)
    found = loaded(tmp_path, owner, clock)
    assert isinstance(found, str)
    assert why in found


def test_a_damaged_file_is_refused_whatever_is_damaged(tmp_path: Path) -> None:
    """Each byte in turn, and each length."""
    path = save(tmp_path)
    whole = path.read_bytes()
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :])
        assert isinstance(loaded(tmp_path, clock=10**9), str), place
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        assert isinstance(loaded(tmp_path), str), length
    path.unlink()
    path.mkdir()
    assert isinstance(loaded(tmp_path), str)


def test_moments_that_do_not_fit_the_model_are_refused(source: str, tmp_path: Path) -> None:
    trainer = Trainer(run_file(source))
    for state in ({}, {"1.0.exp_avg": torch.zeros(1)}, {"0.0.exp_avg": torch.zeros(3)}):
        with pytest.raises(ValueError, match=r"moments|shape"):
            trainer.restore(state, 1)
    assert trainer.optimiser.state() == {}


def test_a_full_disk_ends_no_worker_and_leaves_no_partial_file(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1. The disk is full in the middle of a file: the one before stays, and this is logged once. 2. There is room
    again: the next one is written."""
    process = Process(run_file(source), tmp_path)
    monkeypatch.setattr(moments, "INTERVAL_S", 0.0)
    monkeypatch.setattr(moments, "SHARE", 1e9)
    process.round(LATE)
    before = process.port._file.path.read_bytes()  # type: ignore[union-attr]
    with monkeypatch.context() as patch:
        real = moments._Writing._append

        def full(writing: Any, piece: Any) -> None:
            if writing._file.tell() > 1000:
                raise OSError(errno.ENOSPC, "No space left on device")
            real(writing, piece)

        patch.setattr(moments._Writing, "_append", full)
        for clock in (LATE + 8, LATE + 16):
            process.round(clock)
    assert process.kinds() == [OptimiserCold, OptimiserNotKept]
    assert isinstance(process.logged[1], OptimiserNotKept)
    assert "No space left" in process.logged[1].why
    assert [each.name for each in tmp_path.glob("*moments*")] == ["north-0.moments"]
    assert process.port._file.path.read_bytes() == before  # type: ignore[union-attr]
    process.round(LATE + 24)
    found = MomentsFile(tmp_path, process.port._file._owner, lambda *_: None).load(LATE + 24)  # type: ignore[union-attr]
    assert isinstance(found, SavedMoments)
    assert found.clock == LATE + 24


def test_they_are_not_written_all_the_time_nor_by_the_thread_that_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a file is being written, and for a while after it, the next one is not due."""
    going, go, writers = threading.Event(), threading.Event(), []

    def slow(*_: object) -> None:
        writers.append(threading.current_thread())
        going.set()
        assert go.wait(30)

    monkeypatch.setattr(moments._Writing, "write", slow)
    file = MomentsFile(tmp_path, OWNER, lambda note: None)
    assert file.due()
    tensor = torch.zeros(3)
    file.save({"0.0.exp_avg": tensor}, 1, 1)
    assert going.wait(30)
    assert not file.due()
    go.set()
    file.wait()
    assert not file.due()
    assert writers != [threading.current_thread()]


def test_a_worker_that_is_given_another_group_keeps_what_it_has(
    source: str, tmp_path: Path
) -> None:
    process = Process(run_file(source), tmp_path)
    process.round(LATE)
    process.round(LATE + 64, group=1)
    assert process.kinds() == [OptimiserCold]
    assert sorted(each.name for each in tmp_path.glob("*.moments")) == [
        "north-0.moments",
        "north-1.moments",
    ]


def test_a_large_state_is_written_in_parts_each_copied_between_two_rounds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a round changes is in the file as far as it was not copied before. Clock and steps are the newest, and a
    process whose run is not so far gets nothing."""
    monkeypatch.setattr(moments, "BATCH_BYTES", 24)
    file = MomentsFile(tmp_path, OWNER, lambda note: None)
    step, average = torch.tensor(0.0), torch.zeros(9)
    tensors = {"0.0.step": step, "0.0.exp_avg": average, "0.0.none": torch.empty(0)}
    for round_ in (1, 2):
        step.fill_(round_)
        average.fill_(round_)
        assert file.due()
        file.save(tensors, clock=10 * round_, steps=round_)
        file.wait()
        assert file.is_writing == (round_ == 1)
    found = loaded(tmp_path, clock=20)
    assert isinstance(found, SavedMoments)
    assert found.tensors["0.0.step"] == 1.0
    assert found.tensors["0.0.exp_avg"].tolist() == 5 * [1.0] + 4 * [2.0]
    assert (found.clock, found.steps, found.dtype) == (20, 2, "float32")
    assert loaded(tmp_path, clock=19) == (
        f"{file.path} is of no use: it is of sample 20 of the run, which is at 19"
    )
    assert not file.due()


def test_a_file_that_is_given_up_leaves_nothing_and_the_one_before_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save(tmp_path)
    monkeypatch.setattr(moments, "BATCH_BYTES", 8)
    file = MomentsFile(tmp_path, OWNER, lambda note: None)
    file.save({"0.0.exp_avg": torch.zeros(9)}, 7, 7)
    file.wait()
    assert len(list(tmp_path.iterdir())) == 2
    file.give_up()
    assert list(tmp_path.iterdir()) == [path]
    assert isinstance(loaded(tmp_path), SavedMoments)
    assert not file.is_writing


@pytest.mark.parametrize("first", ["float32", "bfloat16"])
def test_moments_of_another_type_are_converted(source: str, tmp_path: Path, first: str) -> None:
    other = "bfloat16" if first == "float32" else "float32"
    before = Process(run_file(source, moments_dtype=first), tmp_path)
    before.round(LATE)
    after = Process(run_file(source, moments_dtype=other), tmp_path)
    after.round(LATE + 64)
    [restored] = after.logged
    assert isinstance(restored, OptimiserRestored)
    assert restored.dtype == first
    types = {str(each.dtype) for each in after.trainer.optimiser.state().values() if each.dim()}
    assert types == {f"torch.{other}"}
