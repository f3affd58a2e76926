"""A whole run, its consoles included, on a disk that gets full: it waits, loses nothing, and goes on."""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pelago.cli.audit import examine, histories
from pelago.core.notes.gps import ExchangeArrived
from pelago.runlog.events import JournalBlocked, JournalUnblocked, NodeCrashed, NodeStarted
from pelago.runlog.log import LOG_NAME, lines_of, read_log
from tests.e2e.topology import DEADLINE_S, assert_ledger_balances, run_file
from tests.small_disk import fill, small_disk

pytestmark = pytest.mark.timeout(240)

PAGE_BYTES = 4096
SILENT_S = 2.5
"""Seconds without a line in any log; logs are written each second where there is room."""


def test_a_full_disk_ends_no_node_of_a_run(tmp_path: Path) -> None:
    """1. In the middle of the run the disk gets full, to the last byte: every node is still there when none
    has written its log for longer than it ever is silent. 2. There is room: the run ends well, no node was
    started again, and the ledger balances."""
    path = run_file(tmp_path, budget=160, interval=80, step_ms=10.0, regions={"eu": [1.0]})
    with small_disk(tmp_path / "disk", 64 << 20) as disk:
        out = disk / "out"
        command = [sys.executable, "-m", "pelago.cli.main", "local", str(path), "--out", str(out)]
        with (disk / "local.log").open("wb") as output:
            local = subprocess.Popen(command, stdout=output, stderr=output)
        try:
            logs = [out / node / LOG_NAME for node in ("gps", "lps-eu", "worker-eu-0")]
            until(lambda: any(lines_of(ExchangeArrived, read_log(logs[0]))))
            ballast = fill(disk)
            for console in out.glob("*/console.log"):
                # The rest of its last page would take a line.
                with console.open("ab") as file:
                    file.write(b"\n" * (-console.stat().st_size % PAGE_BYTES))
            silence = LogSilence(logs)
            until(lambda: not grows(ballast) and silence.is_long())
            assert local.poll() is None
            ballast.unlink()
            assert local.wait(DEADLINE_S) == 0, (disk / "local.log").read_text()
        finally:
            local.kill()
            local.wait()
        said = (disk / "local.log").read_text()
        assert "starting it again" not in said
        result = json.loads((out / "result.json").read_text())
        assert result["counted_steps"] >= 160
        assert_ledger_balances(result)
        assert not examine(histories(out)).exceptions
        for log in logs:
            lines = read_log(log)
            assert len([*lines_of(NodeStarted, lines)]) == 1, log
            assert not [*lines_of(NodeCrashed, lines)], log
        servers = [line for log in logs[:2] for line in read_log(log)]
        assert [*lines_of(JournalBlocked, servers)]
        assert [*lines_of(JournalUnblocked, servers)]


def until(holds: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + DEADLINE_S
    while not holds():
        assert time.monotonic() < deadline_s
        time.sleep(0.05)  # Other processes write files: there is no event to wait for.


def grows(ballast: Path) -> bool:
    """Take what room there may be again, since files were removed."""
    with ballast.open("ab", buffering=0) as file:
        try:
            while file.write(bytes(1 << 12)):
                pass
        except OSError:
            return False
    return True


class LogSilence:
    """Since when the logs have not grown."""

    def __init__(self, logs: list[Path]) -> None:
        self._logs = logs
        self._sizes: list[int] = []
        self._since_s = time.monotonic()

    def is_long(self) -> bool:
        sizes = [log.stat().st_size for log in self._logs]
        if sizes != self._sizes:
            self._sizes, self._since_s = sizes, time.monotonic()
        return time.monotonic() - self._since_s >= SILENT_S
