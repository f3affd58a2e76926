"""Errors of a user that show only in training: the lease goes back at once, and the worker says why."""

import json
import re
import resource
from pathlib import Path

import numpy as np
import pytest

from pelago.cli.main import main
from pelago.core.notes.lps import WorkerLeft
from pelago.runlog.events import WaitingForServer
from tests.e2e.topology import Daemons, run_file

pytestmark = pytest.mark.timeout(180)


def test_a_worker_that_meets_a_bad_id_hands_its_lease_back_and_ends_with_a_sentence(
    tmp_path: Path,
) -> None:
    """A file that was not checked, with ids in its middle that the model does not know. The server waits
    for ten minutes before it takes a silent worker for lost."""
    tokens = np.arange(400_000, dtype=np.uint16) % 200
    tokens[100_000:300_000] = 300
    tokens.tofile(tmp_path / "a.bin")
    path = run_file(tmp_path, budget=10**6, regions={"eu": [1.0]})
    text = re.sub('source = "text:[^"]*"', f'source = "tokens:{tmp_path}/a.bin"', path.read_text())
    text = text.replace("lost_after_ms = 2000", "lost_after_ms = 600000")
    path.write_text(text, encoding="utf-8")
    with Daemons(path, tmp_path / "out") as daemons:
        daemons.start_servers("eu")
        daemons.start_worker("eu", 0)
        code, output = daemons.wait("worker-eu-0")
        assert code == 2, output
        assert re.search(r"worker: data\.source = .* holds the token id 300, but", output)
        assert "Traceback" not in output
        del daemons.processes["worker-eu-0"]
        daemons.until("its lease is back", lambda: bool(daemons.events("lps-eu", WorkerLeft)))
        (left,) = daemons.events("lps-eu", WorkerLeft)
        assert left.why == "failed"
        assert left.spans
        assert not (tmp_path / "out" / "worker-eu-0" / "crash.json").exists()


def test_the_result_of_a_run_on_this_machine_says_which_worker_ended_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its GPS was only asked to settle."""
    tokens = np.arange(400_000, dtype=np.uint16) % 200
    tokens[100_000:300_000] = 300
    tokens.tofile(tmp_path / "a.bin")
    path = run_file(tmp_path, budget=10**6, regions={"eu": [1.0]})
    text = re.sub('source = "text:[^"]*"', f'source = "tokens:{tmp_path}/a.bin"', path.read_text())
    path.write_text(text, encoding="utf-8")
    assert main(["local", str(path), "--out", str(tmp_path / "out"), "--plain"]) != 0
    said = capsys.readouterr().err
    result = json.loads((tmp_path / "out" / "result.json").read_text(encoding="utf-8"))
    assert result["error"].startswith("worker-eu-0 ended with exit code 2, the last worker: ")
    assert "holds the token id 300" in result["error"]
    assert " ".join(result["error"].split()) in said


@pytest.mark.slow
def test_a_worker_without_enough_memory_hands_its_lease_back_and_names_the_micro_batch(
    tmp_path: Path,
) -> None:
    """The process may have a little more than it has when it joins; a step needs hundreds of megabytes."""
    path = run_file(tmp_path, budget=10**6, regions={"eu": [1.0]})
    text = path.read_text(encoding="utf-8")
    text = text.replace("batch_size = 8\nglobal", "batch_size = 12288\nglobal")
    text = text.replace("lost_after_ms = 2000", "lost_after_ms = 600000")
    path.write_text(text, encoding="utf-8")
    with Daemons(path, tmp_path / "out") as daemons:
        worker = daemons.start_worker("eu", 0)
        daemons.until("it is ready", lambda: bool(daemons.events("worker-eu-0", WaitingForServer)))
        size = (
            int(Path(f"/proc/{worker.pid}/statm").read_text().split()[0]) * resource.getpagesize()
        )
        resource.prlimit(worker.pid, resource.RLIMIT_AS, (size + (256 << 20),) * 2)
        daemons.start_servers("eu")
        code, output = daemons.wait("worker-eu-0")
        assert code == 2, output
        assert "worker.micro_batch_size = 0 (all 12288 of worker.batch_size)" in output
        assert "try worker.micro_batch_size = 6144" in output
        assert "Traceback" not in output
        del daemons.processes["worker-eu-0"]
        daemons.until("its lease is back", lambda: bool(daemons.events("lps-eu", WorkerLeft)))
        (left,) = daemons.events("lps-eu", WorkerLeft)
        assert left.spans
        assert not (tmp_path / "out" / "worker-eu-0" / "crash.json").exists()
