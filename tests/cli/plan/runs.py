"""A run file of a billion parameters on two hosts' worth of settings, for tests of the plan."""

from pelago.cli.plan.facts import ModelFacts
from pelago.config import run_toml
from pelago.config.run_file import RunFile

TEXT = """
[model]
preset = "llama3-1b"
[data]
sequence_length = 1024
[worker]
local_steps = 48
batch_size = 8
[lps]
updates_per_exchange = 1
[[region]]
name = "eu"
worker_speeds = [1.0]
[[region]]
name = "us"
worker_speeds = [1.0, 0.5]
[network]
bandwidth_gbps = [[8.0, 1.0], [1.0, 8.0]]
latency_ms = [[0.0, 40.0], [40.0, 0.0]]
"""

FACTS = ModelFacts(
    parameters=973_670_400,
    active=973_670_400,
    matrix_parameters=973_602_816,
    layers=16,
    hidden=2048,
    intermediate=8192,
    key_value=512,
    vocabulary=256,
)
"""Of llama3-1b over bytes."""


def run_with(**tables: dict[str, object]) -> RunFile:
    """The run file, with keys of some tables changed."""
    keys = run_toml.parse(TEXT).model_dump(mode="json")
    for table, changed in tables.items():
        keys[table] |= changed
    return RunFile.model_validate(keys)
