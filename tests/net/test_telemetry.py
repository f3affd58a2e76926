"""What people and programs are told."""

import io
import json
from pathlib import Path

from pelago.net.telemetry import Telemetry


def test_what_a_node_waits_for_is_said_once_until_it_changes() -> None:
    console = io.StringIO()
    log = Telemetry("lps-eu", console=console)
    for what in ("gps to answer", "gps to answer", "workers", "workers"):
        log.event("waiting", **{"for": what, "server": "gps at 127.0.0.1:7700"})
    log.event("joined", group=1)
    log.event("waiting", **{"for": "workers"})
    assert console.getvalue().splitlines() == [
        "lps-eu: waiting for gps to answer (gps at 127.0.0.1:7700)",
        "lps-eu: waiting for workers (gps at 127.0.0.1:7700)",
        "lps-eu: joined group=1",
        "lps-eu: waiting for workers",
    ]


def test_a_flood_of_bad_input_is_counted_and_told_once() -> None:
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
        log.event("update", index=index, peer="w", spans=((0, 1),))
    log.close()
    log.close()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["index"] for line in lines] == list(range(5000))
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
