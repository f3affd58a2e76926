"""Which nodes a local run has, and how each is started."""

from itertools import pairwise
from pathlib import Path

from pelago.cli.local.topology import LocalTopology, NodeCommand
from pelago.config import run_toml

TEXT = """
[gps]
durability = "none"
[[region]]
name = "eu"
worker_speeds = [1, 0.5]
[[region]]
name = "us"
worker_speeds = [2]
"""


def topology(tmp_path: Path, source: str | None = None) -> LocalTopology:
    return LocalTopology(run_toml.parse(TEXT), tmp_path, source)


def commands(tmp_path: Path, source: str | None = None) -> dict[str, NodeCommand]:
    connect = {"us": "127.0.0.1:9"}
    return {each.name: each for each in topology(tmp_path, source).commands(connect)}


def test_every_node_is_started_once_and_the_gps_first(tmp_path: Path) -> None:
    assert list(commands(tmp_path)) == [
        "gps",
        "lps-eu",
        "lps-us",
        "evaluator",
        "worker-eu-0",
        "worker-eu-1",
        "worker-us-0",
    ]


def test_a_region_behind_a_link_connects_through_it(tmp_path: Path) -> None:
    found = commands(tmp_path)
    assert found["lps-eu"].flags == ("--region", "eu")
    assert found["lps-us"].flags == ("--region", "us", "--connect", "127.0.0.1:9")


def test_only_servers_are_told_that_a_run_is_resumed(tmp_path: Path) -> None:
    found = commands(tmp_path, source="/earlier")
    assert found["gps"].flags == ("--resume", "/earlier")
    resumed = {name for name, each in found.items() if "--resume" in each.flags}
    assert resumed == {"gps", "lps-eu", "lps-us"}


def test_what_keeps_no_state_is_not_restarted_and_workers_are_not_required(tmp_path: Path) -> None:
    found = commands(tmp_path)
    assert not found["gps"].restartable
    assert found["lps-eu"].restartable
    assert found["evaluator"].restartable
    assert {name for name, each in found.items() if not each.required} == {
        "worker-eu-0",
        "worker-eu-1",
        "worker-us-0",
    }


def test_servers_get_pairs_of_ports_of_their_own_on_this_machine(tmp_path: Path) -> None:
    run = topology(tmp_path).run_file
    servers = [run.gps_bind(), run.lps_bind(0), run.lps_bind(1)]
    assert {host for host, _ in servers} == {"127.0.0.1"}
    ports = sorted(port for _, port in servers)
    assert all(later - earlier >= 2 for earlier, later in pairwise(ports))
    assert run.out == tmp_path
