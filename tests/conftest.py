"""Settings of every test: the event loop, property profiles, one thread for torch.

torch is not imported here, so that the tests of the pure machines start at once.
"""

import os
from asyncio import AbstractEventLoop
from collections.abc import Callable, Mapping

import pytest
import uvloop
from hypothesis import HealthCheck, settings

from pelago.core import frozen

# Before any of the types is made: here an assignment to a message or an event fails.
frozen.guarded = True

# OpenMP and MKL read these when torch is first imported, here and in the daemons that tests start.
# One thread: the cores are shared by many processes, and a sum over one thread has one order.
for _variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(_variable, "1")
# No test looks anything up: models are made from configurations, corpora lie on this machine.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

settings.register_profile("dev", max_examples=50, deadline=None)
settings.register_profile("ci", max_examples=200, deadline=None, derandomize=True, print_blob=True)
settings.register_profile(
    "nightly",
    max_examples=5_000,
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "dev"))


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, Callable[[], AbstractEventLoop]]:
    """Run every asynchronous test on the loop that the daemons use."""
    return {"uvloop": uvloop.new_event_loop}
