"""`pelago audit` on histories made by hand: what is right passes, and each fault is named."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pelago.cli.audit import Audit, examine, histories
from pelago.cli.main import main
from pelago.core.dedupe import Outcome
from pelago.core.errors import CheckpointError, ConfigError
from pelago.core.notes.gps import ExchangeArrived
from pelago.core.notes.lps import ExchangeAnswered, ExchangeBegun, Rejoining, UpdateApplied
from pelago.runlog.history import HISTORY, HistoryLine, IncarnationBegun, RunResumed, history_line

Histories = dict[str, list[HistoryLine]]


def update(number: int, version: int, lease: int, *spans: tuple[int, int]) -> HistoryLine:
    return HistoryLine(number, UpdateApplied(version, lease, spans, 1, 0, 1.0, 2.5))


def arrival(
    number: int, version: int, exchange: int, spans: Any, dropped: Any = (), fence: int = 1
) -> HistoryLine:
    arrived = ExchangeArrived(
        region="eu",
        version=version,
        exchange=exchange,
        fence=fence,
        spans=tuple(spans),
        dropped=tuple(dropped),
        steps=1,
        cumulative_steps=1,
        elapsed_ps=0,
        staleness=0,
        norm=1.0,
        loss=2.5,
    )
    return HistoryLine(number, arrived)


def sound() -> Histories:
    """Three updates; two exchanges of them, one with samples that were dropped; one left over."""
    return {
        "gps": [arrival(5, 1, 1, [(0, 8)]), arrival(9, 2, 2, [(16, 24)], [(8, 16)])],
        "lps-eu": [
            update(2, 1, 100, (0, 8)),
            update(3, 2, 101, (8, 16)),
            update(6, 3, 102, (16, 24)),
            update(7, 4, 103, (24, 32)),
        ],
    }


def test_a_sound_run_is_clean() -> None:
    assert examine(sound()) == Audit(
        updates=4, exchanges=2, applied=16, dropped=8, waiting=8, doubled=0, exceptions=[]
    )


FAULTS: dict[str, tuple[Callable[[Histories], object], str]] = {
    "a lease twice": (
        lambda recorded: recorded["lps-eu"].append(update(8, 5, 103, (32, 40))),
        "lps-eu: lease 103 was applied twice",
    ),
    "samples twice in a region": (
        lambda recorded: recorded["lps-eu"].append(update(8, 5, 104, (28, 36))),
        "lps-eu: lease 104 has 4 samples that were applied before",
    ),
    "a version left out": (
        lambda recorded: recorded["lps-eu"].pop(1),
        "lps-eu: version 3 follows 1",
    ),
    "an exchange twice": (
        lambda recorded: recorded["gps"].append(arrival(10, 3, 2, [(24, 32)])),
        "gps: exchange 2 of eu (fence 1) was applied twice",
    ),
    "samples twice in the global model": (
        lambda recorded: recorded["gps"].append(arrival(10, 3, 3, [(0, 8)])),
        "gps: exchange 3 of eu (fence 1) has 8 samples that were applied before",
    ),
    "samples dropped and applied": (
        lambda recorded: recorded["gps"].append(arrival(10, 3, 3, [(8, 16)])),
        "gps: exchange 3 of eu (fence 1) has 8 samples that were applied before",
    ),
    "samples from nowhere": (
        lambda recorded: recorded["gps"].append(arrival(10, 3, 3, [(40, 48)])),
        "gps: exchange 3 of eu (fence 1) has samples that no update of eu has",
    ),
    "a global version left out": (
        lambda recorded: recorded["gps"].pop(0),
        "gps: version 2 follows 0",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_named(fault: str) -> None:
    plant, wanted = FAULTS[fault]
    recorded = sound()
    plant(recorded)
    assert wanted in examine(recorded).exceptions


def test_a_region_that_joined_again_may_train_its_samples_again() -> None:
    recorded = sound()
    recorded["lps-eu"] += [HistoryLine(8, Rejoining()), update(9, 5, 200, (24, 32))]
    assert not examine(recorded).exceptions


def test_a_region_that_began_anew_counts_its_versions_anew() -> None:
    recorded = sound()
    recorded["lps-eu"] += [HistoryLine(0, IncarnationBegun("lps")), update(4, 1, 200, (24, 32))]
    assert not examine(recorded).exceptions


def exchange(number: int, exchange: int, *spans: tuple[int, int]) -> HistoryLine:
    return HistoryLine(number, ExchangeBegun(exchange, 1, 1, 1, spans, ()))


def answered(number: int, exchange: int, outcome: Outcome) -> HistoryLine:
    return HistoryLine(number, ExchangeAnswered(exchange, 1, outcome))


def forgotten() -> Histories:
    """The GPS acknowledged a third exchange, which its history does not have."""
    recorded = sound()
    recorded["lps-eu"] += [
        exchange(8, 3, (24, 32)),
        answered(9, 3, "applied"),
        exchange(10, 4),
        answered(11, 4, "rejected"),
    ]
    return recorded


def resumed(incarnation: int) -> HistoryLine:
    return HistoryLine(9, RunResumed(2, incarnation, 100, "s3://far"))


def test_an_unknown_exchange_of_the_incarnation_that_continued_is_a_fault_and_no_loss() -> None:
    """Its fences begin at that incarnation."""
    recorded = forgotten()
    recorded["gps"].append(resumed(1))
    found = examine(recorded)
    assert len(found.exceptions) == 1
    assert not found.lost


def test_an_acknowledged_exchange_that_the_gps_does_not_know_is_a_fault() -> None:
    [fault] = examine(forgotten()).exceptions
    assert fault == "gps: exchange 3 of eu (fence 1) was acknowledged, and is not in its history"


def test_what_a_gps_lost_that_was_resumed_from_a_snapshot_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Half of it was trained on again since."""
    recorded = forgotten()
    recorded["gps"].append(resumed(999))
    recorded["lps-eu"] += [HistoryLine(12, Rejoining()), update(13, 5, 300, (24, 28))]
    recorded["gps"].append(arrival(12, 3, 1, [(24, 28)], fence=1000))
    found = examine(recorded)
    assert not found.exceptions
    assert found.lost == ["exchange 3 of eu (fence 1): 8 samples, 4 trained on again"]
    write(tmp_path, recorded)
    assert main(["audit", str(tmp_path)]) == 1
    out = capsys.readouterr().out
    assert "8 samples in 1 exchanges; 4 of them were trained on again" in out
    assert "from s3://far at version 2" in out


def write(out: Path, recorded: Histories) -> None:
    for node, lines in recorded.items():
        path = out / node / "state" / HISTORY
        path.parent.mkdir(parents=True)
        for line in lines:
            with path.open("ab") as file:
                file.write(history_line(line))


def test_the_command_reads_a_folder_and_compares_the_result(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, sound())
    assert histories(tmp_path) == sound()
    result = {"ledger": {"applied": 16, "duplicated": 0}}
    (tmp_path / "result.json").write_text(json.dumps(result), encoding="utf-8")
    assert main(["audit", str(tmp_path)]) == 0
    assert capsys.readouterr().out.endswith("clean\n")
    result["ledger"]["applied"] = 24
    (tmp_path / "result.json").write_text(json.dumps(result), encoding="utf-8")
    assert main(["audit", str(tmp_path)]) == 1
    assert "result.json: applied = 24, and the histories say 16" in capsys.readouterr().out


def test_a_line_that_was_being_written_is_left_out_and_damage_is_refused(tmp_path: Path) -> None:
    write(tmp_path, sound())
    path = tmp_path / "lps-eu" / "state" / HISTORY
    whole = path.read_bytes()
    path.write_bytes(whole[:-3])
    assert histories(tmp_path)["lps-eu"] == sound()["lps-eu"][:-1]
    path.write_bytes(whole[:80] + bytes([whole[80] ^ 1]) + whole[81:])
    with pytest.raises(CheckpointError, match=r"history: damaged at byte 0, and sound again"):
        histories(tmp_path)


def test_a_folder_without_histories_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="durability = 'none'"):
        histories(tmp_path)
