"""Fixtures: a worker's machine in each of its states."""

import pytest

from pelago.core.machine import (
    Send,
    SetTick,
    Started,
    StopRequested,
)
from pelago.core.names import Version
from pelago.core.notes.worker import (
    RoundTrained,
    WorkerAdmitted,
)
from pelago.core.tensor_effects import Release
from pelago.core.training_effects import Train
from pelago.wire.messages import (
    Leave,
    Offer,
)
from tests.machine_driver import MachineDriver
from tests.worker.worker_states import (
    CLIENT,
    HELLO,
    LEASE,
    MODEL,
    NO_REPORT,
    PULL,
    PUSH,
    SETTINGS,
    TRAINED,
    WELCOME,
)
from worker.state import Worker


@pytest.fixture
def joining() -> MachineDriver:
    worker = MachineDriver(Worker(SETTINGS))
    assert worker.happens(Started()) == [SetTick(CLIENT.tick_ps), Send("eu", HELLO)]
    return worker


@pytest.fixture
def idle(joining: MachineDriver) -> MachineDriver:
    assert joining.hears("eu", WELCOME) == [WorkerAdmitted(2), PULL]
    return joining


@pytest.fixture
def training(idle: MachineDriver) -> MachineDriver:
    assert idle.hears("eu", MODEL, -1) == [Train(LEASE, Version(1, 4), -1, 2), Release(-1)]
    return idle


@pytest.fixture
def uploading(training: MachineDriver) -> MachineDriver:
    assert training.after(2).happens(TRAINED) == [
        RoundTrained(2, 1.5, 2000.0),
        Send("eu", Offer(PUSH)),
    ]
    return training


@pytest.fixture
def leaving(idle: MachineDriver) -> MachineDriver:
    assert idle.happens(StopRequested("enough")) == [
        Send("eu", Leave("enough", NO_REPORT, (), (), ()))
    ]
    return idle
