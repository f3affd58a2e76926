"""Studies run on real processes: the same bytes from every engine, failures recorded, resumed after a kill."""

import csv
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from experiments.__main__ import main
from experiments.study.engines import Task, local
from tests.experiments.studies import QUADRATIC, plan, results, write

TWO_BY_TWO = """# Two values of K.
[study]
base = "base.toml"
seeds = [0, 1]
[[study.axis]]
key = "lps.updates_per_exchange"
label = "K"
values = [8, 32]
"""
SEARCHED = f"""# A search and its confirmation.
[study]
base = "base.toml"
targets_from = "drop"
[study.set]
{QUADRATIC}
[[study.variant]]
name = "drop"
[[study.variant]]
name = "carry"
set = {{"lps.in_flight" = "carry"}}
[study.search]
trials = 2
[study.search.space]
"worker.max_lr" = {{low = 1e-3, high = 1e-1, log = true}}
[study.confirm]
seeds = [5, 6]
sets = [{{name = "noisy", set = {{"simulation.noise" = 9.0}}}}]
"""


def table(out: Path) -> list[dict[str, str]]:
    with (out / "table.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def replay(path: Path, *flags: str) -> list[str]:
    return [sys.executable, "-m", "experiments", "replay", str(path), *flags]


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished search, made by one process at a time."""
    folder = tmp_path_factory.mktemp("searched")
    out = folder / "out"
    assert main(["replay", str(write(folder, SEARCHED)), "--jobs", "1", "--out", str(out)]) == 0
    return out


@pytest.mark.parametrize(
    "flags",
    [["--jobs", "2"], ["--jobs", "1", "--together", "3"]],
    ids=["two processes", "three together"],
)
def test_runs_write_the_same_bytes_however_they_share_the_machine(
    flags: list[str], searched: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert main(["replay", str(write(tmp_path, SEARCHED)), *flags, "--out", str(out)]) == 0
    assert results(out) == results(searched)
    for name in ("table.csv", "report.html", "base.toml"):
        assert (out / name).read_bytes() == (searched / name).read_bytes()


def test_the_best_of_a_search_is_confirmed_on_fresh_seeds_and_sets(searched: Path) -> None:
    rows = table(searched)
    assert [row["stage"] for row in rows] == ["search"] * 4 + ["confirm"] * 8
    for variant in ("drop", "carry"):
        mine = [row for row in rows if row["variant"] == variant]
        trials = [row for row in mine if row["stage"] == "search"]
        best = min(trials, key=lambda row: float(row["final_loss"]))
        confirmed = [row for row in mine if row["stage"] == "confirm"]
        assert {(row["trial"], row["drawn"]) for row in confirmed} == {
            (best["trial"], best["drawn"])
        }
        assert [(row["set"], row["seed"]) for row in confirmed] == [
            ("", "5"),
            ("", "6"),
            ("noisy", "5"),
            ("noisy", "6"),
        ]
    targets = {(row["stage"], row["set"]): row["target_loss"] for row in rows}
    assert len(set(targets.values())) == 3


@pytest.mark.timeout(240)
def test_ray_writes_the_same_bytes(searched: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = replay(write(tmp_path, SEARCHED), "--engine", "ray", "--jobs", "2", "--out", str(out))
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    assert results(out) == results(searched)


def test_without_ray_its_engine_says_what_to_install(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    path = write(tmp_path, TWO_BY_TWO)
    assert main(["replay", str(path), "--engine", "ray", "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert "pip install" in said
    assert said.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_failed_run_is_recorded_and_the_others_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(
        tmp_path,
        TWO_BY_TWO.replace("seeds = [0, 1]", "seeds = [0]").replace("[8, 32]", "[32]")
        + """
        [[study.variant]]
        name = "sound"
        [[study.variant]]
        name = "broken"
        [study.variant.set]
        "simulation.daemons" = true
        "simulation.event" = [{at_ms = 5.0, node = "r7/0", kind = "lose"}]
        """,
    )
    out = tmp_path / "out"
    assert main(["replay", str(path), "--out", str(out)]) == 1
    sound, broken = table(out)
    assert (sound["error"], broken["gps_updates"]) == ("", "")
    assert "'r7/0': no such node" in broken["error"]
    left = out / "runs" / broken["folder"]
    assert (left / "error.txt").read_text(encoding="utf-8").splitlines()[0] == broken["error"]
    assert not (left / "result.json").exists()
    assert broken["error"].replace("'", "&#x27;") in (out / "report.html").read_text("utf-8")
    assert f"runs/{broken['folder']} failed" in capsys.readouterr().err


@contextmanager
def first_child_killed() -> Iterator[None]:
    """Kills the first process that is started meanwhile, as soon as it is there."""
    done = threading.Event()

    def kill() -> None:
        while not multiprocessing.active_children():
            done.wait(0.005)
        (child,) = multiprocessing.active_children()
        assert child.pid is not None
        os.kill(child.pid, signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    yield
    killer.join()


def test_a_process_that_dies_fails_its_run_only(tmp_path: Path) -> None:
    tasks = [Task(run.folder, run.text) for run in plan(tmp_path, TWO_BY_TWO).runs[:2]]
    with first_child_killed():
        first, second = local(1)(tasks)
    assert (first.name, second.name) == (tasks[0].name, tasks[1].name)
    assert "SIGKILL" in first.error
    assert not first.files
    assert second.error == ""
    assert not multiprocessing.active_children()


def test_a_process_that_dies_fails_all_runs_that_shared_it(tmp_path: Path) -> None:
    tasks = [Task(run.folder, run.text) for run in plan(tmp_path, TWO_BY_TWO).runs]
    with first_child_killed():
        finished = list(local(1, together=len(tasks))(tasks))
    assert [each.name for each in finished] == [task.name for task in tasks]
    assert all("SIGKILL" in each.error for each in finished)


def test_together_is_for_processes_of_this_machine(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path, TWO_BY_TWO)
    assert main(["replay", str(path), "--engine", "ray", "--together", "2"]) == 2
    assert "--together" in capsys.readouterr().err


def test_a_killed_study_continues_where_it_stopped(tmp_path: Path) -> None:
    path = write(tmp_path, TWO_BY_TWO)
    out = tmp_path / "out"
    command = replay(path, "--jobs", "1", "--out", str(out))
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert [process.stderr.readline().partition(" ")[0] for _ in range(2)] == ["[1/4]", "[2/4]"]
        process.kill()
        # The end of the file comes when the last process has closed it: none is left behind.
        process.stderr.read()
    before = {name: (out / "runs" / name).stat().st_ino for name in results(out)}
    finished = [name for name in before if name.endswith("result.json")]
    assert len(finished) in (2, 3)
    half = out / "runs" / ".part-0003-000000000000"
    half.mkdir()

    # A report of what there is can be made at any time.
    assert main(["report", str(out), "--out", str(tmp_path / "early.html")]) == 0
    assert f"{len(finished)} of 4 runs" in (tmp_path / "early.html").read_text("utf-8")

    done = subprocess.run(command, capture_output=True, text=True, timeout=55, check=False)
    assert done.returncode == 0, done.stderr
    assert f"{len(finished)} runs were done already" in done.stderr
    assert done.stderr.count("steps in") == 4 - len(finished)
    assert all((out / "runs" / name).stat().st_ino == inode for name, inode in before.items())
    assert not half.exists()
    assert [row["error"] for row in table(out)] == [""] * 4


def test_a_changed_study_keeps_the_runs_that_it_still_asks_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    short = TWO_BY_TWO.replace("[8, 32]", "[32]")
    assert main(["replay", str(write(tmp_path, short)), "--jobs", "1", "--out", str(out)]) == 0
    first = {name[5:]: content for name, content in results(out).items()}
    capsys.readouterr()
    # The same runs now have other places; one of them is damaged.
    longer = short.replace("seeds = [0, 1]", "seeds = [1, 0]")
    (out / "runs" / table(out)[1]["folder"] / "result.json").write_text("{}", encoding="utf-8")
    assert main(["replay", str(write(tmp_path, longer)), "--jobs", "1", "--out", str(out)]) == 0
    said = capsys.readouterr().err
    assert "1 runs were done already" in said
    assert {name[5:]: content for name, content in results(out).items()} == first
    assert (
        main(["replay", str(write(tmp_path, longer)), "--jobs", "1", "--fresh", "--out", str(out)])
        == 0
    )
    assert capsys.readouterr().err.count("steps in") == 2


def test_an_interrupted_study_ends_at_once_and_says_how_to_go_on(tmp_path: Path) -> None:
    out = tmp_path / "out"
    # A shell that runs its tests in the background has them ignore it, and their children too.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    command = replay(write(tmp_path, TWO_BY_TWO), "--jobs", "1", "--out", str(out))
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        assert process.stderr is not None
        process.stderr.readline()
        # As a terminal does it: to every process of the group.
        os.killpg(process.pid, signal.SIGINT)
        said = process.stderr.read()
    assert process.returncode == 130
    assert "the same command goes on from there" in said
    assert "Traceback" not in said
    assert len(table(out)) == 4
    assert not list((out / "runs").glob(".part*"))


def test_two_processes_do_not_share_a_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import fcntl

    out = tmp_path / "out"
    out.mkdir()
    with (out / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert main(["replay", str(write(tmp_path, TWO_BY_TWO)), "--out", str(out)]) == 2
    assert "another process runs a study there" in capsys.readouterr().err
    shutil.rmtree(out)


def test_a_terminal_sees_a_bar_with_the_best_loss_and_the_failures(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        f"""
        [study]
        base = "base.toml"
        [study.set]
        {QUADRATIC}
        [[study.variant]]
        name = "sound"
        [[study.variant]]
        name = "broken"
        [study.variant.set]
        "simulation.daemons" = true
        "simulation.event" = [{{at_ms = 5.0, node = "r7/0", kind = "lose"}}]
        """,
    )
    ours, theirs = os.openpty()
    command = replay(path, "--jobs", "1", "--out", str(tmp_path / "out"))
    environment = {**os.environ, "COLUMNS": "120", "TERM": "xterm"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=theirs, env=environment) as child:
        os.close(theirs)
        said = b""
        try:
            while part := os.read(ours, 65536):
                said += part
        except OSError:
            # Linux reports so that no process has the other end any more.
            pass
        os.close(ours)
    assert child.returncode == 1
    assert b"2 of 2 runs, best loss" in said
    assert b"broken, seed 0 failed" in said


def test_a_report_shows_the_best_settings_of_a_search(searched: Path) -> None:
    text = (searched / "report.html").read_text("utf-8")
    best = {row["variant"]: row for row in table(searched) if row["stage"] == "confirm"}
    for row in best.values():
        assert f"<td>{json.loads(row['drawn'])['worker.max_lr']}</td>" in text
    assert "<td>worker.max_lr</td>" in text
    for title in ("Best of the search", "Confirmed on fresh seeds: noisy"):
        assert f"<h3>{title}</h3>" in text
