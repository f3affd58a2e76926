"""`pelago local` is stopped, loses its terminal, is killed: at any moment, no process is left, and none is started
again."""

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from pelago.core.notes.lps import UpdateApplied
from pelago.runlog.log import LOG_NAME, lines_of, read_log
from tests.e2e.process_tree import BIN, ProcessTree, has_loaded, process_tree
from tests.e2e.topology import run_file

Moment = Callable[[ProcessTree, Path], object]


def local(folder: Path, **keys: object) -> tuple[tuple[Path | str, ...], Path]:
    """The command and its folder of results, for a run that would take very long."""
    path = run_file(folder, budget=10**6, regions={"eu": [1.0, 0.5]}, **keys)  # type: ignore[arg-type]
    return (BIN / "pelago", "local", path, "--out", folder / "out"), folder / "out"


def first_child(run: ProcessTree, _: Path) -> bool:
    """The launcher has begun its first child, which has not imported anything yet."""
    return len(run.members()) > 1


def builder(run: ProcessTree, _: Path) -> int:
    """The GPS has begun the worker that builds the initial model."""
    return run.one("worker", "--initialise")


def imports(run: ProcessTree, _: Path) -> bool:
    """The GPS is in the middle of its imports."""
    return has_loaded(run.one("gps"), "libtorch_cpu")


def updates(out: Path) -> int:
    """How many updates the LPS has applied."""
    return len([*lines_of(UpdateApplied, read_log(out / "lps-eu" / LOG_NAME))])


def trains(_: ProcessTree, out: Path) -> bool:
    return updates(out) > 0


@pytest.mark.parametrize(
    ("moment", "number"),
    [
        (first_child, signal.SIGKILL),
        (imports, signal.SIGHUP),
        (builder, signal.SIGKILL),
    ],
)
def test_nothing_outlives_a_launcher_that_is_hung_up_on_or_killed(
    tmp_path: Path, moment: Moment, number: signal.Signals
) -> None:
    command, out = local(tmp_path)
    with process_tree(command, folder=tmp_path) as run:
        run.until(moment.__name__, lambda: moment(run, out))
        run.process.send_signal(number)
        code, said = run.end()
        run.gone()
    assert code == (-number if number == signal.SIGKILL else 128 + number), said
    assert "starting it again" not in said


@pytest.mark.parametrize(
    "moment", [first_child, imports, pytest.param(builder, marks=pytest.mark.slow)]
)
def test_ctrl_c_while_nodes_start_ends_them_and_starts_none_again(
    tmp_path: Path, moment: Moment
) -> None:
    command, out = local(tmp_path)
    with process_tree(command, folder=tmp_path) as run:
        run.until(moment.__name__, lambda: moment(run, out))
        run.process.send_signal(signal.SIGINT)
        code, said = run.end()
        run.gone()
    assert code == 128 + signal.SIGINT, said
    assert "starting it again" not in said
    assert "Traceback" not in said
    assert "stopped before the run was settled: there are no results" in said
    assert "pelago resume" not in said, "the GPS has written no snapshot yet"


def test_what_was_ignored_at_the_start_stays_so_and_no_server_is_started_again_while_stopping(
    tmp_path: Path,
) -> None:
    """1. As `nohup` does it, the launcher begins with SIGHUP ignored. SIGHUP to each process ends none.
    2. Ctrl-C, while the GPS can do nothing; then the GPS is killed: it is not started again."""
    command, out = local(tmp_path)
    with process_tree(command, folder=tmp_path, ignored=[signal.SIGHUP]) as run:
        run.until("it trains", lambda: trains(run, out))
        before = run.members()
        assert run.one("worker", "--group", "1", "--slot", "1")
        for member in before:
            os.kill(member, signal.SIGHUP)
        known = updates(out)
        run.until("it trains on", lambda: updates(out) > known)
        assert run.members() == before
        gps = run.one("gps")
        os.kill(gps, signal.SIGSTOP)
        run.process.send_signal(signal.SIGINT)
        run.hears("stopping: ")
        os.kill(gps, signal.SIGKILL)
        code, said = run.end()
        run.gone()
    assert code == 128 + signal.SIGINT, said
    assert "starting it again" not in said
    assert f"`pelago resume` goes on from {out}" in said


@pytest.mark.slow
def test_a_server_is_not_started_again_while_a_run_fails(tmp_path: Path) -> None:
    command, out = local(tmp_path)
    with process_tree(command, folder=tmp_path) as run:
        run.until("it trains", lambda: trains(run, out))
        gps = run.one("gps")
        os.kill(gps, signal.SIGSTOP)
        for group in ("0", "1"):
            os.kill(run.one("worker", "--group", group), signal.SIGKILL)
        run.hears("the last worker")
        os.kill(gps, signal.SIGKILL)
        code, said = run.end()
        run.gone()
    assert code == 2, said
    assert "gps ended with exit code -9; starting it again" not in said


@pytest.mark.slow
def test_ctrl_c_settles_the_second_is_faster_and_the_third_kills(tmp_path: Path) -> None:
    command, out = local(tmp_path)
    with process_tree(command, folder=tmp_path) as run:
        run.until("it trains", lambda: trains(run, out))
        # No node can obey.
        for member in run.members():
            if member != run.process.pid:
                os.kill(member, signal.SIGSTOP)
        for said in ("stopping: the run is settled", "stopping at once"):
            run.process.send_signal(signal.SIGINT)
            run.hears(said)
        run.process.send_signal(signal.SIGINT)
        code, _ = run.end()
        run.gone()
    assert code == 128 + signal.SIGINT


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_run_that_is_stopped_is_settled(tmp_path: Path, number: signal.Signals) -> None:
    command, out = local(tmp_path)
    with process_tree(command, folder=tmp_path) as run:
        run.until("it trains", lambda: trains(run, out))
        run.process.send_signal(number)
        code, said = run.end()
        run.gone()
    assert code == 0, said
    assert json.loads((out / "result.json").read_text(encoding="utf-8"))["counted_steps"] >= 0
    assert (out / "model" / "config.json").exists()


def test_a_folder_of_results_that_is_gone_is_named_in_a_message(tmp_path: Path) -> None:
    """1. The run trains. 2. Its folder is removed. 3. The last worker dies; its console log is gone too."""
    path = run_file(tmp_path, budget=10**6, regions={"eu": [1.0]})
    out = tmp_path / "out"
    with process_tree((BIN / "pelago", "local", path, "--out", out), folder=tmp_path) as run:
        run.until("it trains", lambda: trains(run, out))
        shutil.rmtree(out)
        os.kill(run.one("worker", "--region"), signal.SIGKILL)
        run.hears("the last worker")
        run.process.send_signal(signal.SIGTERM)
        code, said = run.end()
        assert code
        assert "Traceback" not in said
        assert "console.log cannot be read" in said
        run.gone()
