"""A GPS killed at any point of its journal's protocol goes on with the bits of a run without a kill."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.net.durability.crash_points import CASES

ROOT = Path(__file__).parents[3]
SHARE = CASES[::11]
"""Every so many cases, in their order: all parts of the protocol and both durabilities are among them."""


def run(cases: tuple[str, ...], limit_s: float) -> list[dict[str, Any]]:
    """Run cases in a process without other threads, which forks the incarnations; returns its lines, one a case."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.net.durability.crash_points", *cases],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=limit_s,
        check=False,
    )
    found = [json.loads(line) for line in done.stdout.splitlines()]
    faults = [each for each in found if each["fault"]]
    assert not faults, f"{faults}\n{done.stderr}"
    assert [each["case"] for each in found] == list(cases), done.stderr
    assert done.returncode == 0, done.stderr
    return found


def test_there_are_enough_points_and_a_share_of_every_part() -> None:
    assert len(set(CASES)) == len(CASES) >= 100
    parts = (
        "write",
        "sync",
        "apply",
        "ack",
        "rotate",
        "piece",
        "rename",
        "aside",
        "cut",
        "process",
        "host",
    )
    for part in parts:
        assert any(part in case for case in SHARE), part


def test_a_server_killed_at_some_points_has_the_bits_of_an_uninterrupted_run() -> None:
    """1. The server dies at the point, halfway through a write or between two steps, and is started again.
    2. Each of seven updates is acknowledged and applied once. 3. The digest is that of no interruption."""
    run(SHARE, limit_s=55.0)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_server_killed_at_any_point_has_the_bits_of_an_uninterrupted_run() -> None:
    """The same at all of them."""
    run(CASES, limit_s=580.0)
