"""How much a run writes, disk by disk."""

import io
from pathlib import Path

from pelago.config import run_toml
from pelago.net.durability import disk_needs
from pelago.net.durability.disk_needs import Need
from pelago.net.telemetry import Telemetry
from tests.small_disk import small_disk

TEXT = """
[gps]
average = 0.5
[[region]]
name = "eu"
worker_speeds = [1.0]
[[region]]
name = "us"
worker_speeds = [1.0]
connect = "us.example.org:7720"
"""
RUN = run_toml.parse(TEXT, "run.toml")
MODEL_BYTES = 1_000_000_000


def test_each_disk_is_compared_with_the_sum_of_what_comes_to_it(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 1 << 20) as disk:
        there = [Need("gps", disk / "not" / "made", 600_000), Need("lps-eu", disk, 600_000)]
        found = disk_needs.compare([*there, Need("evaluator", tmp_path, 1)])
        first, second = found.lines
        assert first.startswith(
            f"{disk}/not/made: up to 1.2 MB (gps 600.0 kB, lps-eu 600.0 kB), 1.0 MB"
        )
        assert second.startswith(f"{tmp_path}: up to 0.0 kB (evaluator 0.0 kB), ")
        assert first in found.may
        assert second not in found.may
        assert not found.will
        assert f"{disk}: up to 3.0 MB" in disk_needs.compare([Need("gps", disk, 3_000_000)]).will


def test_a_node_says_the_figures_and_begins_all_the_same(tmp_path: Path) -> None:
    console = io.StringIO()
    log = Telemetry("gps", console=console)
    disk_needs.tell(log, [Need("gps", tmp_path, 10**15)])
    figures, short = console.getvalue().splitlines()
    assert figures.startswith(f"gps: disk {tmp_path}: up to 1,000,000.0 GB (gps 1,000,000.0 GB), ")
    assert short.startswith("gps: disk_short why=")


def test_state_results_and_copies_grow_with_the_model(tmp_path: Path) -> None:
    """With a mean: model, mean, momentum and accumulator in a snapshot, and an update of each region."""
    results, state = disk_needs.of_gps(RUN, MODEL_BYTES, tmp_path)
    assert results.bytes == 4 * MODEL_BYTES + disk_needs.LOG_BYTES
    assert state.bytes == (2 * 6 + 2 * 3) * MODEL_BYTES
    (tmp_path / "gps" / "state").mkdir(parents=True)
    (tmp_path / "gps" / "state" / "snapshot-00000001").write_bytes(bytes(1 << 20))
    _, state = disk_needs.of_gps(RUN, MODEL_BYTES, tmp_path)
    assert state.bytes == (2 * 6 + 2 * 3) * MODEL_BYTES - (1 << 20)


def test_an_lps_needs_room_for_what_its_settings_keep(tmp_path: Path) -> None:
    """The model, the last exchange's, the exchange, the GPS's answer, momentum, accumulator, a worker's update."""
    [state] = disk_needs.of_lps(RUN, 0, "lps-eu", MODEL_BYTES, tmp_path)
    assert state.bytes == (2 * 7 + 2 * 3) * MODEL_BYTES + disk_needs.LOG_BYTES
    plain = run_toml.parse(f'{TEXT}[lps]\nmomentum = 0.0\nin_flight = "carry"\n', "run.toml")
    [state] = disk_needs.of_lps(plain, 0, "lps-eu", MODEL_BYTES, tmp_path)
    assert state.bytes == (2 * 6 + 2 * 3) * MODEL_BYTES + disk_needs.LOG_BYTES


def test_servers_elsewhere_use_no_disk_of_this_machine(tmp_path: Path) -> None:
    here, elsewhere = disk_needs.on_this_machine(RUN, MODEL_BYTES, tmp_path)
    assert {each.node for each in here} == {"gps", "evaluator", "lps-eu", "workers of eu"}
    assert {each.node for each in elsewhere} == {"lps-us", "workers of us"}


def test_a_worker_needs_room_for_its_moments_and_those_that_take_their_place(
    tmp_path: Path,
) -> None:
    """Two models with AdamW, unless they are not to be kept."""
    [kept] = disk_needs.of_worker(RUN, "worker-eu-0", MODEL_BYTES, tmp_path)
    assert kept.bytes == 4 * MODEL_BYTES + disk_needs.LOG_BYTES
    plain = run_toml.parse(f"{TEXT}[worker]\nkeep_optimiser = false\n", "run.toml")
    [log] = disk_needs.of_worker(plain, "worker-eu-0", MODEL_BYTES, tmp_path)
    assert log.bytes == disk_needs.LOG_BYTES


def test_a_server_that_keeps_nothing_needs_no_room_for_it(tmp_path: Path) -> None:
    text = TEXT.replace("[gps]\n", '[lps]\ndurability = "none"\n[gps]\ndurability = "none"\n')
    run = run_toml.parse(text, "run.toml")
    assert (
        sum(each.bytes for each in disk_needs.of_lps(run, 0, "lps-eu", MODEL_BYTES, tmp_path))
        < 10**8
    )
    assert len(disk_needs.of_gps(run, MODEL_BYTES, tmp_path)) == 1
