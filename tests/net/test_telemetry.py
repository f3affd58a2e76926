"""What a node reports to people and programs."""

import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pelago.core.notes.common import Waiting
from pelago.core.notes.lps import UpdateApplied
from pelago.core.notes.worker import WorkerAdmitted
from pelago.net import telemetry
from pelago.net.telemetry import Telemetry
from pelago.runlog.events import WaitingForServer
from tests.small_disk import fill, small_disk


def update(lease: int) -> UpdateApplied:
    return UpdateApplied(1, lease, ((0, 1),), 1, 0, norm=1.0, loss=2.5)


def test_what_a_node_waits_for_is_said_once_until_it_changes() -> None:
    console = io.StringIO()
    log = Telemetry("lps-eu", console=console)
    for what in ("gps to answer", "gps to answer", "workers", "workers"):
        log.event(WaitingForServer(what, "gps at 127.0.0.1:7700"))
    log.event(WorkerAdmitted(1))
    log.event(Waiting("workers"))
    assert console.getvalue().splitlines() == [
        "lps-eu: waiting for gps to answer (gps at 127.0.0.1:7700)",
        "lps-eu: waiting for workers (gps at 127.0.0.1:7700)",
        "lps-eu: joined group=1",
        "lps-eu: waiting for workers",
    ]


def test_a_flood_of_bad_input_is_counted_and_reported_once() -> None:
    console = io.StringIO()
    log = Telemetry("gps", console=console)
    for _ in range(1000):
        log.drop("malformed", "worker-1", "not\nmsgpack")
    assert log.counters["dropped_malformed"] == 1000
    assert len(console.getvalue().splitlines()) == 1


def test_events_are_json_lines_in_order_and_nothing_is_lost_at_close(tmp_path: Path) -> None:
    path = tmp_path / "node" / "events.jsonl"
    log = Telemetry("gps", path, console=None)
    for index in range(5000):
        log.event(update(index))
    log.close()
    log.close()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["lease"] for line in lines] == list(range(5000))
    assert [line["t_ms"] for line in lines] == sorted(line["t_ms"] for line in lines)


def test_counters_are_logged_when_they_change(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    log = Telemetry("gps", path, console=None)
    log.counters["chunks_sent"] += 3
    log.count()
    log.count()
    log.counters["chunks_sent"] += 1
    log.close()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["chunks_sent"] for line in lines] == [3, 4]


def test_a_log_on_a_full_disk_is_written_when_there_is_room_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1. The disk is full before the folder of the log is made. 2. It has room for half of the lines. 3. It
    has room. Nothing is lost, no line is torn, and people hear of each trouble once."""
    monkeypatch.setattr(telemetry, "FLUSH_S", 0.01)
    console = io.StringIO()
    with small_disk(tmp_path / "disk", 1 << 20) as disk:
        ballast = fill(disk)
        log = Telemetry("gps", disk / "gps" / "events.jsonl", console)
        path = disk / "gps" / "events.jsonl"
        for index in range(4000):
            log.event(update(index))
        wait_until(lambda: log.counters["log_faults"] >= 3)
        os.truncate(ballast, ballast.stat().st_size - (1 << 17))
        wait_until(lambda: path.exists() and path.stat().st_size >= 1 << 16)
        ballast.unlink()
        wait_until(lambda: b'"lease": 3999' in path.read_bytes())
        log.close()
        lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [each["lease"] for each in lines if each["kind"] == "update"] == list(range(4000))
    said = console.getvalue().splitlines()
    assert 2 <= len(said) <= 4
    assert said[0].endswith("/gps/events.jsonl: No space left on device; trying again")
    assert said[-1] == "gps: the event log is written again"


def wait_until(holds: Callable[[], bool]) -> None:
    """Look again and again at what another thread does."""
    deadline_s = time.monotonic() + 20.0
    while not holds():
        assert time.monotonic() < deadline_s
        os.sched_yield()


def test_lines_that_never_found_room_are_counted(tmp_path: Path) -> None:
    path, console = tmp_path / "events.jsonl", io.StringIO()
    path.symlink_to("/dev/full")
    log = Telemetry("gps", path, console)
    for index in range(3):
        log.event(update(index))
    log.close()
    assert console.getvalue().splitlines() == [
        f"gps: cannot write the event log {path}: No space left on device; trying again",
        f"gps: 3 lines of the event log {path} could not be written",
    ]


def test_a_line_that_a_killed_process_left_torn_swallows_no_other(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(b'{"kind": "upd')
    log = Telemetry("gps", path, console=None)
    log.event(update(1))
    log.close()
    torn, whole = path.read_bytes().splitlines()
    assert torn == b'{"kind": "upd'
    assert json.loads(whole)["lease"] == 1


def test_a_node_with_a_full_disk_for_console_and_log_goes_on_and_ends_well(tmp_path: Path) -> None:
    """A real process: its output is a file on a full disk, and so is its log."""
    (tmp_path / "events.jsonl").symlink_to("/dev/full")
    program = f"""
import pathlib, sys
from pelago.core.machine import Finish, SetTick, Started, Tick
from pelago.core.notes.common import Draining
import uvloop
from pelago.net import command, daemon
from pelago.net.node import Node, NodeSettings
from pelago.net.telemetry import Telemetry
class Talker:
    ticks = 0
    def handle(self, event, now):
        if isinstance(event, Started):
            return [SetTick(10**10)]
        self.ticks += 1
        return [Finish("done")] if self.ticks == 50 else [Draining("x" * 10_000)]
    def check(self): pass
path = pathlib.Path({str(tmp_path)!r})
def run(options, run_file):
    settings = NodeSettings(run_id="r", name="talker", crash_file=path / "crash.json")
    node = Node(Talker(), settings, Telemetry("talker", path / "events.jsonl"))
    return daemon.outcome(uvloop.run(node.run()))
parser = command.flags("talker", "")
sys.exit(command.main("talker", parser, lambda options, run_file: None, lambda: run))
"""
    run_file = tmp_path / "run.toml"
    run_file.write_text('[[region]]\nname = "eu"\nworker_speeds = [1.0]\n')
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-c", program, "--run", str(run_file)],
            stdout=full,
            stderr=full,
            timeout=60,
            check=False,
        )
    assert done.returncode == 0
    assert not (tmp_path / "crash.json").exists()
