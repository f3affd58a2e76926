"""The fuzzer: it finds nothing in the code as it is, and every bug that is planted in it."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from convergence.fuzz import __main__ as command
from convergence.fuzz import pool
from convergence.fuzz.fuzzed_cluster import FuzzedCluster
from convergence.fuzz.scenario import draw_scenario
from convergence.fuzz.trial import TrialResult, Verdict, _run, trial
from tests.convergence.planted_bugs import PLANTS

ONCE: Final = {
    56: "a new GPS took an update that was meant for the one before it",
    83: "failed when servers had become durable",
    88: "tensors and restarts",
    2145: "two incarnations of a GPS gave one fence, and samples were lent under both",
    40411: "an evaluator's last finding was lost with it",
    104861: "an LPS ignored the grants of a new GPS",
    202369: "the checker was wrong",
    301203: "samples of a rejected exchange were lent again before the rejection arrived",
    301239: "the trial was wrong",
    508160: "the checker allowed one update a lease, and after a late Rejoin there are two",
    508325: "the trial's disk had a snapshot before its journal",
    509640: "as 508160, with tensors",
    510607: "the trial asked a dead GPS to end",
    703506: "the checker compared answers about an earlier fence",
    801829: "the same of a server that was restarted",
    81002825: "a message during a pause too short to be noticed was counted as received",
    81009836: "the trial's disk forgot the bytes of an old file behind a torn header",
    81010185: "a region that needs more than a turn never delivered its update beside a late one that made no progress",
    81011050: "a worker that took long at first blocked the others for as long",
    85013732: "the trial's disk required a snapshot that it had damaged before",
    73190039: "the trial counted a GPS that was killed while it ended as ended",
}
"""Seeds that once found something."""
FOUND: Final = {
    "an_lps_applies_a_repeated_update_again": 1,
    "a_gps_applies_a_repeated_update_again": 3,
    "a_gps_counts_a_repeated_update_again": 6,
    "answers_leave_before_the_journal_has_their_cause": 19,
    "an_image_forgets_what_no_exchange_holds_yet": 1,
    "an_image_forgets_the_number_of_the_next_lease": 1,
    "an_image_forgets_the_number_of_the_last_request": 1,
    "an_image_forgets_the_number_of_the_last_exchange": 1,
    "lease_numbers_begin_again_with_every_process": 148,
    "a_lease_is_lent_twice": 1,
    "a_gps_checks_no_fence": 444,
    "fences_begin_again_with_every_incarnation": 381,
    "a_restarted_lps_believes_its_models_to_be_on_their_way": 57,
    "a_restarted_gps_believes_its_models_to_be_on_their_way": 29,
    "a_restarted_lps_believes_its_update_to_be_on_its_way": 2,
    "a_restarted_server_does_not_measure_what_it_had": 309,
    "a_lost_workers_lease_is_not_given_back": 1,
    "a_lost_regions_samples_are_not_taken_back": 1,
    "an_evaluators_leave_has_no_finding": 3,
    "a_later_incarnation_takes_no_samples_back": 6,
    "a_later_incarnation_knows_the_processes_of_the_one_before": 6,
    "a_region_that_rejoins_keeps_its_movement": 1,
    "a_rejected_exchange_keeps_its_samples": 89,
    "a_place_is_never_free_again": 1,
    "a_lost_transfer_is_not_noticed": 4,
    "a_snapshot_removes_the_journal_before_it_is_whole": 12,
    "a_damaged_record_ends_a_journal_without_an_error": 32,
    "a_restored_plane_has_forgotten_its_momentum": 88,
    "what_is_lent_again_has_the_clock_of_its_place": 1,
    "failed_rounds_are_not_counted": 85,
    "a_client_waits_without_end": 1,
    "a_pause_counts_as_silence": 4,
    "a_tick_comes_before_what_waited": 150,
    "a_member_that_says_hello_is_not_heard": 2,
    "what_a_worker_waits_for_is_taken_for_in_hand": 2,
    "an_lps_turns_away_the_answer_to_its_exchange": 1,
    "a_slow_client_keeps_its_place": 6,
    "a_snapshot_counts_before_it_is_on_the_disk": 76,
    "only_the_newest_snapshot_is_tried": 172,
    "what_a_peer_made_up_is_taken_for_a_record": 55,
}
"""A seed below a thousand that finds each planted bug."""
SLOW: Final = (
    "a_restarted_gps_believes_its_models_to_be_on_their_way",
    "a_restarted_lps_believes_its_update_to_be_on_its_way",
    "a_restarted_server_does_not_measure_what_it_had",
    "a_lost_transfer_is_not_noticed",
    "an_lps_turns_away_the_answer_to_its_exchange",
    "a_slow_client_keeps_its_place",
)
"""Bugs whose seeds take long."""
QUICK: Final = [name for name in FOUND if name not in SLOW]


@pytest.mark.parametrize("seed", [*range(1, 11), *ONCE])
def test_nothing_is_found_in_the_code_as_it_is(seed: int) -> None:
    found = trial(seed)
    assert found.verdict is Verdict.SOUND, found.story


@pytest.mark.parametrize("seed", [57, 120])
def test_a_run_in_which_nothing_is_learned_any_more_ends_with_an_error(seed: int) -> None:
    """From the end of the faulty phase on no gradient is finite; processes that end are started again."""
    cluster = FuzzedCluster(draw_scenario(seed))
    assert cluster.scenario.hopeless
    _run(cluster)
    assert "no gradient of" in cluster.gps.error
    assert "worker.max_lr" in cluster.gps.error


def test_one_seed_gives_one_course() -> None:
    first, again = trial(5, trace=True), trial(5, trace=True)
    assert first == again
    assert first.digest
    assert first.digest != trial(6, trace=True).digest


def test_a_course_does_not_depend_on_the_hashes_of_strings() -> None:
    digests = set()
    for hash_seed in ("1", "2"):
        done = subprocess.run(
            [
                sys.executable,
                "-c",
                "from convergence.fuzz.trial import trial; print(trial(5, trace=True).digest)",
            ],
            env={"PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            timeout=50,
            check=True,
        )
        digests.add(done.stdout)
    assert len(digests) == 1


def test_draws_differ_and_cover_what_there_is() -> None:
    draws = [draw_scenario(seed) for seed in range(200)]
    assert draws[7] == draw_scenario(7)
    assert {len(each.workers) for each in draws} == {1, 2, 3, 4}
    for name in ("endless", "evaluator", "durable_gps", "durable_lps", "scalar", "skewed"):
        assert {getattr(each, name) for each in draws} == {True, False}
    for mode in ("drop", "carry", "replay"):
        assert any(f'in_flight = "{mode}"' in each.toml for each in draws)


@pytest.mark.parametrize("name", QUICK)
def test_a_planted_bug_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    PLANTS[name](monkeypatch)
    assert trial(FOUND[name]).verdict is not Verdict.SOUND


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", SLOW)
def test_every_planted_bug_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    PLANTS[name](monkeypatch)
    assert trial(FOUND[name]).verdict is not Verdict.SOUND


def test_every_planted_bug_has_a_seed() -> None:
    assert list(FOUND) == list(PLANTS)


@pytest.mark.parametrize("verdict", [Verdict.SOUND, Verdict.WRONG, Verdict.STUCK, Verdict.CRASHED])
def test_the_exit_status_is_the_verdict_and_the_last_line_runs_it_again(
    verdict: Verdict, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def some_trial(seed: int) -> TrialResult:
        bad = verdict if seed == 4 else Verdict.SOUND
        return TrialResult(seed, bad, 100, 10**12, {"crashes": 1}, "what happened")

    monkeypatch.setattr(pool, "trial", some_trial)
    assert command.main(["--seed", "3", "--seeds", "3", "--jobs", "1"]) == verdict
    *before, summary, last = capsys.readouterr().out.splitlines()
    failing = verdict is not Verdict.SOUND
    assert last == f"python -m convergence.fuzz --seed {4 if failing else 5}"
    found = json.loads(summary)
    assert found["seeds"] == (2 if failing else 3)
    assert found["found"] == ([4] if failing else [])
    assert (found["events"], found["crashes"]) == (100 * found["seeds"], found["seeds"])
    assert before == (["what happened", f"seed 4: {verdict.name.lower()}"] if failing else [])


@pytest.mark.parametrize(
    "arguments",
    ["--seeds 0", "--minutes -1", "--seeds 1 --minutes 1", "--seed -1", "--jobs 0", "--seed x"],
)
def test_wrong_arguments_are_usage_errors(
    arguments: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        command.main(arguments.split())
    assert ended.value.code == Verdict.USAGE
    assert "error: " in capsys.readouterr().err


def test_many_seeds_run_in_processes_of_their_own() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "convergence.fuzz", "--seeds", "3", "--jobs", "2"],
        capture_output=True,
        text=True,
        timeout=55,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.fullmatch(r'\{"seeds": 3, "found": \[\], .*\}', done.stdout.splitlines()[-2])


def test_killed_it_leaves_no_processes_behind() -> None:
    command_line = [sys.executable, "-m", "convergence.fuzz", "--minutes", "9", "--jobs", "2"]
    with subprocess.Popen(command_line, stdout=subprocess.PIPE) as running:
        begun = Path(f"/proc/{running.pid}/task/{running.pid}/children")
        while (
            len(begun.read_text(encoding="ascii").split()) < 3
        ):  # Two, and multiprocessing's tracker.
            assert running.poll() is None
        running.kill()
        # Every process that it began has the other end, so that this returns when the last one is gone.
        running.communicate(timeout=30)
