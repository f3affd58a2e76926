"""A running node: ticks, signals, crashes, the trainer, the event log."""

import json
import os
import signal
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path

import pytest
import torch

from pelago.core.machine import Finish, SetTick, Started, StopRequested, Tick
from pelago.core.names import Version
from pelago.core.notes.common import Draining
from pelago.core.notes.trainer import OptimiserCold
from pelago.core.notes.worker import RoundTrained
from pelago.core.ports import TrainingResult
from pelago.core.tensor_effects import Difference, Loaded, Measure, Measured, Pin, Release
from pelago.core.training_effects import (
    Cancel,
    Progress,
    Rebase,
    Train,
    Trained,
    Validate,
    Validated,
)
from pelago.net.command import EXIT_FAILED
from pelago.net.node import CRASHED, EXIT_CRASHED, exit_code
from pelago.net.tensors.training import TrainingThread
from pelago.tensor.payload import ChunkBuffer, Payload
from pelago.tensor.plane import Plane
from pelago.wire.messages import Event
from tests.net.nodes import Nodes, Script, a_lease, eventually

MS_PS = 10**9


async def test_the_first_events_are_started_and_what_is_loaded(nodes: Nodes) -> None:
    machine = Script()
    nodes.server(machine, plane=nodes.plane(), loaded=Version(3, 0))
    await machine.hears(Loaded)
    assert machine.events == [Started(), Loaded(Version(3, 0))]


async def test_the_clock_of_a_machine_never_goes_back_and_ticks_keep_its_interval(
    nodes: Nodes,
) -> None:
    times: list[int] = []

    class Timed(Script):
        def handle(self, event: Event, now: int) -> list[object]:
            times.append(now)
            return super().handle(event, now)

    machine = Timed(lambda event: [SetTick(10 * MS_PS)] if isinstance(event, Started) else [])
    nodes.server(machine)
    await machine.hears(Tick, 5)
    assert times == sorted(times)
    # A loop may fire late, but five ticks cannot come in less than five intervals (less rounding).
    assert times[5] - times[0] >= 5 * 9 * MS_PS


async def test_set_tick_takes_the_place_of_the_interval_before(nodes: Nodes) -> None:
    def answer(event: Event) -> list[object]:
        match event:
            case Started():
                return [SetTick(3_600_000 * MS_PS), SetTick(5 * MS_PS)]
        return []

    machine = Script(answer)
    nodes.server(machine)
    await machine.hears(Tick, 2)


async def test_finish_ends_the_node_with_its_reason(nodes: Nodes) -> None:
    machine = Script(lambda event: [Finish("budget reached")])
    nodes.server(machine)
    finish = await nodes.finish("gps")
    assert finish == Finish("budget reached")
    assert exit_code(finish) == 0
    assert exit_code(Finish("refused", error="another run")) == EXIT_FAILED


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_becomes_a_stop_request(nodes: Nodes, number: signal.Signals) -> None:
    # The process that runs the tests may ignore it, and this would stay so.
    signal.signal(number, signal.SIG_DFL)
    machine = Script()
    nodes.server(machine, handle_signals=True)
    await machine.hears(Started)
    os.kill(os.getpid(), number)
    finish = await nodes.finish("gps")
    assert machine.of(StopRequested) == [StopRequested(number.name)]
    assert finish.reason == number.name


@pytest.mark.parametrize("ignored", [signal.SIGHUP, signal.SIGINT])
async def test_a_signal_that_was_ignored_at_the_start_stays_so(
    nodes: Nodes, ignored: signal.Signals
) -> None:
    before = {each: signal.getsignal(each) for each in (ignored, signal.SIGTERM)}
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(ignored, signal.SIG_IGN)
    try:
        machine = Script()
        nodes.server(machine, handle_signals=True)
        await machine.hears(Started)
        os.kill(os.getpid(), ignored)
        os.kill(os.getpid(), signal.SIGTERM)
        finish = await nodes.finish("gps")
        assert signal.getsignal(ignored) is signal.SIG_IGN
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
    assert finish.reason == "SIGTERM"
    assert machine.of(StopRequested) == [StopRequested("SIGTERM")]


def test_a_second_signal_ends_the_process_at_once(tmp_path: Path) -> None:
    """A machine that does not obey the first one is not asked again."""
    program = f"""
import pathlib, sys, uvloop
from pelago.core.machine import Started, StopRequested
from pelago.net.node import Node, NodeSettings
from pelago.net.telemetry import Telemetry
class Deaf:
    def handle(self, event, now):
        print(type(event).__name__, flush=True)
        return []
    def check(self): pass
path = pathlib.Path({str(tmp_path)!r})
settings = NodeSettings(run_id="r", name="deaf", crash_file=path / "crash.json")
uvloop.run(Node(Deaf(), settings, Telemetry("deaf", path / "events.jsonl")).run())
"""
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "Started\n"
        process.send_signal(signal.SIGTERM)
        assert process.stdout.readline() == "StopRequested\n"
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 128 + signal.SIGTERM
    assert errors.splitlines()[-1] == "deaf: second SIGTERM: ending at once"
    # What was logged before is on the disk.
    lines = (tmp_path / "events.jsonl").read_text().splitlines()
    assert "stopping" in [json.loads(line)["kind"] for line in lines]


@pytest.mark.parametrize("where", ["handle", "check", "effect", "tensors"])
async def test_a_broken_invariant_ends_the_node_and_is_reported(nodes: Nodes, where: str) -> None:
    class BrokenMachine(Script):
        def handle(self, event: Event, now: int) -> list[object]:
            assert where != "handle" or not isinstance(event, Tick), "seven is not eight"
            return super().handle(event, now)

        def check(self) -> None:
            assert where != "check" or not self.of(Tick), "seven is not eight"

    def answer(event: Event) -> list[object]:
        match event:
            case Started():
                return [SetTick(MS_PS), Draining("enough")]
            case Tick() if where == "effect":
                return [Release(77)]
            case Tick() if where == "tensors" and len(machine.of(Tick)) == 1:
                return [Difference(5)]
        return []

    plane = Plane(nodes.manifest, None, exchanges=False)
    machine = BrokenMachine(answer)
    nodes.server(machine, plane=plane)
    finish = await nodes.finish("gps")
    assert finish.reason == CRASHED
    assert exit_code(finish) == EXIT_CRASHED == 70
    assert "\n" not in finish.error
    said = {"effect": "payload 77", "tensors": "snapshot"}.get(where, "seven is not eight")
    report = nodes.folder / "gps.crash.json"
    story = json.loads(report.read_text())
    report.unlink()
    assert said in story["error"]
    assert said in finish.error
    assert story["events"][0]["event"] == "Started()"
    assert "Draining(why='enough')" in story["events"][0]["effects"]
    assert "Tick()" in [each["event"] for each in story["events"]]
    assert any("handle" in line or "assert" in line for line in story["traceback"])


class Lessons:
    """A trainer that waits for the test."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.started = threading.Event()
        self.seen: list[torch.Tensor] = []
        self.exported = 0
        self.rested = self.prepared = 0
        self.models: list[torch.Tensor] = []

    def begin(self, log):  # type: ignore[no-untyped-def]
        self.log = log

    def prepare(self):  # type: ignore[no-untyped-def]
        assert not self.seen, "it is prepared before it works"
        self.prepared += 1

    def rebase(self, model):  # type: ignore[no-untyped-def]
        self.models.append(model.tensor().clone())
        self.go.set()

    def rest(self):  # type: ignore[no-untyped-def]
        self.rested += 1
        self.log(OptimiserCold("rested", len(self.seen)))

    def train(self, work, start, on_step, cancel):  # type: ignore[no-untyped-def]
        start = self.left if start is None else start
        self.left = start
        self.seen.append(start.tensor().clone())
        for step in range(1, 4):
            on_step(step, step // 3)
            self.started.set()
            while step == 2 and not self.go.wait(0.005):
                if cancel.is_set():
                    return None
        delta = [ChunkBuffer(chunk.tensor * 0.5) for chunk in start.complete_chunks()]
        return TrainingResult(Payload(delta), 3, 96, 1.25, 1)

    def validate(self, parameters, on_batch):  # type: ignore[no-untyped-def]
        self.seen.append(parameters.tensor().clone())
        return 2.5, 1000

    def export(self, flat):  # type: ignore[no-untyped-def]
        self.exported += 1


def pupil(effects: list[object], and_then: list[object] | None = None) -> Script:
    def answer(event: Event) -> list[object]:
        match event:
            case Started():
                return [Pin(1), *effects, Release(1)]
            case Progress(_, 1):
                return list(and_then or [])
        return []

    return Script(answer)


async def test_training_answers_with_progress_and_the_pseudo_gradient(nodes: Nodes) -> None:
    machine, lessons = pupil([Train(a_lease(4), Version(1, 0), 1, 0)]), Lessons()
    lessons.go.set()
    plane = nodes.plane(seed=9)
    node = nodes.server(machine, plane=plane, executors=(partial(TrainingThread, lessons),))
    trained = await machine.hears(Trained)
    push = a_lease(4).push
    assert machine.of(Progress) == [Progress(push, step, step // 3) for step in (1, 2, 3)]
    assert (trained.push, trained.steps, trained.tokens, trained.loss) == (push, 3, 96, 1.25)
    assert trained.skipped == 1
    await eventually(lambda: lessons.rested == 1)
    assert lessons.prepared == 1
    assert trained.blob < 0
    assert torch.equal(lessons.seen[0], plane.model())
    assert torch.equal(plane.lend(trained.blob), plane.model() * 0.5)
    # The pin was released by the machine, and then by the trainer; the gradient is the machine's.
    assert node.tensors.payloads == 1


async def test_a_round_is_rebased_while_it_is_trained_and_the_next_one_needs_no_payload(
    nodes: Nodes,
) -> None:
    """
    1. In the middle of the first round a model comes; the trainer gets it at once.
    2. The second round begins from what the first one left; nobody holds a payload for it.
    """
    first, second = a_lease(4), a_lease(5)
    lessons = Lessons()

    def answer(event: Event) -> list[object]:
        match event:
            case Started():
                return [Pin(1), Train(first, Version(1, 0), 1, 0), Release(1)]
            case Progress(first.push, 1):
                again = Train(second, Version(1, 0), None, 0)
                return [Pin(2), Rebase(2), Release(2), again]
        return []

    machine = Script(answer)
    plane = nodes.plane(seed=9)
    node = nodes.server(machine, plane=plane, executors=(partial(TrainingThread, lessons),))
    await eventually(lambda: len(machine.of(Trained)) == 2)
    assert torch.equal(lessons.models[0], plane.model())
    assert torch.equal(lessons.seen[1], lessons.seen[0])
    assert [each.push for each in machine.of(Trained)] == [first.push, second.push]
    await eventually(lambda: lessons.rested == 2)
    assert node.tensors.payloads == 2


async def test_a_cancelled_lease_is_not_answered_and_the_next_one_is(nodes: Nodes) -> None:
    first, second = a_lease(4), a_lease(5)
    lessons = Lessons()
    machine = pupil(
        [Train(first, Version(1, 0), 1, 0), Train(second, Version(1, 0), 1, 0)],
        [Cancel(first.push)],
    )
    node = nodes.server(machine, plane=nodes.plane(), executors=(partial(TrainingThread, lessons),))
    await machine.until(lambda: Progress(second.push, 2, 0) in machine.events)
    lessons.go.set()
    trained = await machine.hears(Trained)
    assert trained.push == second.push
    assert [event.push for event in machine.of(Trained)] == [second.push]
    assert node.tensors.payloads == 1


async def test_a_node_that_ends_stops_its_trainer(nodes: Nodes) -> None:
    lessons = Lessons()
    machine = pupil([Train(a_lease(), Version(1, 0), 1, 0)])
    nodes.server(machine, plane=nodes.plane(), executors=(partial(TrainingThread, lessons),))
    await machine.hears(Progress)
    await nodes.stop("gps")
    assert not machine.of(Trained)


async def test_validation_measures_and_exports(nodes: Nodes) -> None:
    machine, lessons = pupil([Validate(Version(1, 7), 1, export=True)]), Lessons()
    plane = nodes.plane(seed=2)
    node = nodes.server(machine, plane=plane, executors=(partial(TrainingThread, lessons),))
    assert await machine.hears(Validated) == Validated(Version(1, 7), 2.5, 1000)
    assert lessons.exported == 1
    assert torch.equal(lessons.seen[0], plane.model())
    await eventually(lambda: node.tensors.payloads == 0)


async def test_a_trainer_that_fails_ends_the_node_with_its_fault(nodes: Nodes) -> None:
    class Failing(Lessons):
        def validate(self, flat, on_batch):  # type: ignore[no-untyped-def]
            raise RuntimeError("out of memory")

    nodes.server(
        pupil([Validate(Version(1, 0), 1, export=False)]),
        plane=nodes.plane(),
        executors=(partial(TrainingThread, Failing()),),
    )
    finish = await nodes.finish("gps")
    assert finish.reason == CRASHED
    assert "RuntimeError: out of memory" in finish.error
    (nodes.folder / "gps.crash.json").unlink()


async def test_notes_and_counters_are_in_the_event_log(nodes: Nodes) -> None:
    machine = Script(
        lambda event: [RoundTrained(3, float("nan"), 2.5)] if isinstance(event, Started) else []
    )
    node = nodes.server(machine)
    await machine.hears(Started)
    node.telemetry.counters["dropped_malformed"] += 2
    await nodes.stop("gps")
    log = nodes.folder / "gps.jsonl"
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    trained = next(line for line in lines if line["kind"] == "round")
    assert (trained["node"], trained["steps"], trained["loss"]) == ("gps", 3, "nan")
    assert trained["t_ms"] >= 0
    assert trained["time"].startswith("20")
    assert [line["kind"] for line in lines][-2:] == ["finished", "counters"]
    assert lines[-1]["dropped_malformed"] == 2


async def test_norm_and_finiteness_are_measured_from_the_payload_itself(nodes: Nodes) -> None:
    machine = Script(
        lambda event: [Pin(1), Measure(1), Release(1)] if isinstance(event, Started) else []
    )
    plane = nodes.plane(seed=6)
    nodes.server(machine, plane=plane)
    measured = await machine.hears(Measured)
    assert measured.norm == pytest.approx(float(plane.model().norm()), rel=1e-6)
    assert measured.finite
