"""A real node, over real sockets, whose trainer hangs: its heartbeats go on, and it ends all the same."""

import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from pelago.core.machine import FAILED, PS_PER_MS, Received, Send
from pelago.core.names import Address, Lease, PushId, Version
from pelago.core.ports import LogEvent
from pelago.core.tensor_effects import Pin, Release
from pelago.core.training_effects import Train
from pelago.net.tensors import lane
from pelago.net.tensors.training import TrainingThread
from pelago.tensor.plane import Plane
from pelago.wire.messages import (
    Effect,
    Event,
    Heartbeat,
    Hello,
    Leave,
    Model,
    Pull,
    Welcome,
    WorkerReport,
)
from tests.net.nodes import Nodes, Script, eventually
from worker.client_settings import ClientSettings
from worker.evaluator.state import Evaluator, EvaluatorSettings
from worker.state import Worker, WorkerSettings

CLIENT = ClientSettings(
    server="gps",
    address=Address("eu"),
    incarnation=1,
    fingerprint="model",
    corpus="corpus",
    tick_ps=50 * PS_PER_MS,
    retry_ps=10_000 * PS_PER_MS,
    lost_after_ps=10_000 * PS_PER_MS,
    stuck_after_ps=300 * PS_PER_MS,
)
WORK = Lease(PushId(7, 3), ((0, 4),), 0)


class Hanging:
    """A trainer that does some parts of its work, then waits for a share whose server is gone."""

    def __init__(self) -> None:
        self.back = threading.Event()

    def begin(self, log: LogEvent) -> None:
        """There is nothing to restore."""

    def prepare(self) -> None:
        """There is nothing to prepare."""

    def rebase(self, model: Any) -> None:
        """There are no parameters."""

    def rest(self) -> None:
        """There is nothing to save."""

    def train(
        self, work: Train, flat: Any, on_step: Callable[..., None], cancel: threading.Event
    ) -> None:
        self.validate(flat, on_step)

    def validate(self, flat: Any, on_part: Callable[..., None]) -> tuple[float, int]:
        for part in (1, 2, 3):
            on_part(part)
        self.back.wait()
        return 0.0, 0

    def export(self, flat: Any) -> None:
        raise AssertionError("nothing was measured")


def server(event: Event) -> list[Effect]:
    """Welcomes every peer, and answers each Pull with a model and a lease."""
    match event:
        case Received(peer, Hello()):
            return [Send(peer, Welcome(1, 3, 0, (), "model", "corpus"))]
        case Received(peer, Pull()):
            model = Model(Version(1, 0), 0, WORK, None, final=False)
            return [Pin(1), Send(peer, model, 1), Release(1)]
    return []


@pytest.mark.parametrize(
    ("machine", "what"),
    [
        (Worker(WorkerSettings(CLIENT, round_samples=4)), "the trainer is stuck"),
        (
            Evaluator(EvaluatorSettings(CLIENT, validation_interval_steps=10)),
            "measuring the model is stuck",
        ),
    ],
    ids=["worker", "evaluator"],
)  # fmt: skip
async def test_a_thread_that_hangs_ends_its_node_and_is_not_waited_for(
    nodes: Nodes, machine: Worker | Evaluator, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A process would leave the thread alone and end; here it is freed when its node has gone.
    monkeypatch.setattr(lane, "JOIN_S", 0.05)
    gps, hanging = Script(server), Hanging()
    nodes.server(gps, plane=nodes.plane())
    client = Plane(nodes.manifest, None, exchanges=False)
    nodes.client(machine, "worker", plane=client, executors=(partial(TrainingThread, hanging),))
    leave = await gps.hears(Leave)
    finish = await nodes.finish("worker")
    hanging.back.set()
    await eventually(lambda: not any(each.name == "trainer" for each in threading.enumerate()))
    assert finish.reason == FAILED
    assert f"{what}: no progress" in finish.error
    assert "worker.stuck_minutes" in finish.error
    assert leave.message.reason == "stuck"
    reports = [each.message.report for each in gps.messages(Heartbeat)]
    quiet_ms = [each.quiet_ms for each in reports if isinstance(each, WorkerReport)]
    assert len(quiet_ms) > 3
    assert 0 < max(quiet_ms) <= 20 * 300
