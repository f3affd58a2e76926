"""In whole clusters, servers that are restored from their images behave like the originals."""

import pytest

from convergence.cluster import Cluster
from gps.state import Gps
from lps.state import Lps
from pelago.config import run_toml
from tests.restored_doubles import Doubles

RUN = """
[run]
budget_local_steps = {}
[worker]
local_steps = 4
batch_size = 2
[lps]
updates_per_exchange = 3
lease_seconds = 1.0
staged_max = 1
[gps]
staged_max = 1
validation_interval_steps = 20
[[region]]
name = "eu"
worker_speeds = [1.0, 0.6]
[[region]]
name = "us"
worker_speeds = [0.8, 0.5]
[network]
bandwidth_gbps = [[10.0, 0.05], [0.02, 10.0]]
heartbeat_ms = 100
lost_after_ms = 500
region_lost_after_ms = 1000
[simulation]
problem = "scalar"
model_bytes = 1000000
step_ms = 20.0
"""
EVENTS = """
daemons = true
event = [
    {at_ms = 650, node = "us/1", kind = "join"},
    {at_ms = 700, node = "eu/0", kind = "lose"},
    {at_ms = 900, node = "lps/us", kind = "lose"},
    {at_ms = 1200, node = "lps/us", kind = "join"},
    {at_ms = 1500, node = "eu/0", kind = "join"},
]
"""


@pytest.mark.parametrize(("steps", "rest"), [(120, ""), (400, EVENTS)], ids=["lossless", "daemons"])
def test_servers_restored_in_the_middle_act_as_the_originals(
    steps: int, rest: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    doubles = [Doubles(monkeypatch, kind, 5, chance=0.05) for kind in (Gps, Lps)]
    found = Cluster(run_toml.parse(RUN.format(steps) + rest)).replay()
    assert found["counted_steps"] >= steps
    for each in doubles:
        each.assert_all_are_alike()
        assert each.count > 5
