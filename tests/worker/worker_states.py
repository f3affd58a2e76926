"""A worker's settings, messages and states for conversations with its machine; the fixtures are in conftest.py."""

from dataclasses import replace

from pelago.core.machine import (
    PS_PER_MS,
    Send,
)
from pelago.core.names import Address, Lease, PushId, Version
from pelago.core.tensor_effects import Release
from pelago.core.training_effects import Cancel, Trained
from pelago.wire.messages import (
    PROTOCOL_VERSION,
    Effect,
    Hello,
    Model,
    Pull,
    Push,
    Welcome,
    WorkerReport,
)
from worker.client_settings import ClientSettings
from worker.state import WorkerSettings

CLIENT = ClientSettings(
    server="eu",
    address=Address("eu"),
    incarnation=5,
    fingerprint="model",
    corpus="corpus",
    tick_ps=500 * PS_PER_MS,
    retry_ps=1000 * PS_PER_MS,
    lost_after_ps=5000 * PS_PER_MS,
)
SETTINGS = WorkerSettings(CLIENT, round_samples=8)
HELLO = Hello(PROTOCOL_VERSION, "worker", Address("eu"), 5, "model", "corpus")
HELLO_AGAIN = replace(HELLO, address=Address("eu", 2))
WELCOME = Welcome(1, 3, 2, (), "model", "corpus")
PUSH = PushId(11, 3)
LEASE = Lease(PUSH, ((16, 24),), 16)
MODEL = Model(Version(1, 4), 0, LEASE, None, final=False)
TRAINED = Trained(PUSH, -2, 2, 64, 1.5)
UPDATE = Push(PUSH, Version(1, 4), 2, 1, 64, 1.5, ((16, 24),), (), 8)
PULL = Send("eu", Pull(8, 0))
NO_REPORT = WorkerReport(2, 0, 0, 0, 0, 0, 0.0)

DROPPED: dict[str, list[Effect]] = {"training": [Cancel(PUSH)], "uploading": [Release(-2)]}
"""The effects that drop the current round."""
STATES = ["joining", "idle", "training", "uploading", "leaving"]
