"""Wrong inputs: each gives one clear line and a non-zero exit, or is dropped and counted. None gives a traceback or
ends a daemon. The first ones are a user's, the others come from peers and unknown programs."""

import re
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq

from pelago.config import run_toml
from pelago.core.names import Address
from pelago.core.notes.lps import LpsJoined
from pelago.net.files import lock
from pelago.runlog.events import OtherEvent
from pelago.wire.codec import decode_message, encode
from pelago.wire.messages import PROTOCOL_VERSION, Heartbeat, Hello, Message, Refuse, Welcome
from tests.e2e.topology import DEADLINE_S, Daemons, run_file
from tests.small_disk import small_disk

pytestmark = pytest.mark.timeout(180)


def one_line(command: list[str], *, code: int = 2) -> str:
    """Run a command that must fail: its one line on stderr."""
    done = subprocess.run(
        [sys.executable, "-m", *command],
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert done.returncode == code, (done.returncode, done.stdout, done.stderr)
    assert "Traceback" not in done.stderr
    lines = [line for line in done.stderr.splitlines() if line]
    assert lines, "it said nothing"
    return lines[-1]


def changed(path: Path, old: str, new: str) -> Path:
    """A copy of a run file with something wrong in it."""
    text = path.read_text(encoding="utf-8")
    assert old in text
    copy = path.with_name("wrong.toml")
    copy.write_text(text.replace(old, new), encoding="utf-8")
    return copy


def test_a_mistyped_key_is_named_with_the_right_one(tmp_path: Path) -> None:
    wrong = changed(run_file(tmp_path), "updates_per_exchange", "update_per_exchange")
    line = one_line(["pelago.cli.main", "check", str(wrong)])
    assert "lps.update_per_exchange" in line
    assert "did you mean 'updates_per_exchange'" in line


def test_a_place_that_takes_no_snapshots_is_reported_before_the_run(tmp_path: Path) -> None:
    (tmp_path / "far").touch()
    wrong = changed(run_file(tmp_path), "[gps]\n", f'[gps]\nsnapshots = "{tmp_path}/far"\n')
    line = one_line(["gps", "--run", str(wrong), "--out", str(tmp_path / "out")])
    assert line.startswith(f"gps: gps.snapshots = '{tmp_path}/far': cannot write there: ")


def test_a_negative_k_is_named_with_its_value(tmp_path: Path) -> None:
    wrong = changed(run_file(tmp_path), "updates_per_exchange = 4", "updates_per_exchange = -4")
    line = one_line(["pelago.cli.main", "check", str(wrong)])
    assert "lps.updates_per_exchange = -4" in line
    assert "greater than or equal to 1" in line


def test_a_matrix_that_is_not_square_is_named(tmp_path: Path) -> None:
    network = "bandwidth_gbps = [[10, 1], [1]]"
    line = one_line(["pelago.cli.main", "check", str(run_file(tmp_path, network=network))])
    assert "network.bandwidth_gbps must be 2 x 2" in line


def test_a_missing_corpus_is_named(tmp_path: Path) -> None:
    path = run_file(tmp_path)
    wrong = changed(path, str(tmp_path / "corpus"), str(tmp_path / "nowhere"))
    line = one_line(["pelago.cli.main", "check", str(wrong)])
    assert "data.source" in line
    assert "nowhere" in line


def test_a_taken_port_is_named(tmp_path: Path) -> None:
    path = run_file(tmp_path)
    host, port = run_toml.load(path).gps_bind()
    with socket.socket() as taken:
        taken.bind((host, port))
        taken.listen()
        for command in (["pelago.cli.main", "check", str(path)], ["gps", "--run", str(path)]):
            line = one_line(
                [*command, *(["--out", str(tmp_path / "out")] if command[0] == "gps" else [])]
            )
            assert "gps.bind" in line
            assert str(port) in line


def test_an_unknown_region_is_named_with_those_there_are(tmp_path: Path) -> None:
    path = run_file(tmp_path)
    for role in ("lps", "worker"):
        line = one_line(
            [role, "--run", str(path), "--region", "mars", "--out", str(tmp_path / "out")]
        )
        assert "'mars'" in line
        assert "['eu', 'us']" in line


def test_results_that_cannot_be_written_are_named(tmp_path: Path) -> None:
    path = run_file(tmp_path)
    (tmp_path / "file").write_text("not a folder", encoding="utf-8")
    for role, *flags in (("gps",), ("lps", "--region", "eu"), ("worker", "--evaluate")):
        line = one_line([role, "--run", str(path), *flags, "--out", str(tmp_path / "file" / "out")])
        assert "cannot write to the folder of results" in line


def test_a_disk_that_is_too_small_is_reported_with_what_is_needed_and_free(tmp_path: Path) -> None:
    """A disk of 64 MiB: even a tiny model needs about 100 MB."""
    with small_disk(tmp_path / "disk", 64 << 20) as disk:
        path = changed(run_file(tmp_path), "[run]\n", f"[run]\nout = '{disk}/out'\n")
        line = one_line(["pelago.cli.main", "check", str(path)])
    assert re.search(r"run\.out = '.*': the disk will get full: .*: up to .* \(gps ", line), line
    assert re.search(r"\), [\d,.]+ MB free: make room", line), line


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemons]:
    """A GPS and the LPS of eu that serve; both must survive everything that follows."""
    folder = tmp_path_factory.mktemp("servers")
    path = run_file(folder, budget=10**6)
    with Daemons(path, folder / "out") as daemons:
        daemons.start_servers("eu")
        daemons.until("the LPS joins", lambda: bool(daemons.events("lps-eu", LpsJoined)))
        yield daemons


def ports(daemons: Daemons) -> dict[str, int]:
    """The four ports: control and bulk of each server."""
    run = run_toml.load(daemons.path)
    gps, lps = run.gps_bind()[1], run.lps_bind(0)[1]
    return {"gps": gps, "gps bulk": gps + 1, "lps-eu": lps, "lps-eu bulk": lps + 1}


def dropped(daemons: Daemons, node: str) -> int:
    """How much input a node has counted as dropped so far."""
    latest: dict[str, int] = {}
    for event in daemons.events(node, OtherEvent):
        latest |= {key: value for key, value in event.fields.items() if key.startswith("dropped_")}
    return sum(latest.values())


def disconnected(daemons: Daemons, node: str) -> int:
    """How many connections to a node were cut so far; the only trace that ZeroMQ leaves of such a claim."""
    latest: dict[str, int] = {}
    for event in daemons.events(node, OtherEvent):
        latest |= {
            key: value for key, value in event.fields.items() if key.startswith("disconnected_")
        }
    return sum(latest.values())


def ask(port: int, parts: list[bytes], name: bytes) -> list[bytes] | None:
    """Say something to a server's socket as a client of that name; its answer within a second, if any."""
    context = zmq.Context()
    try:
        with context.socket(zmq.DEALER) as dealer:
            dealer.setsockopt(zmq.IDENTITY, name)
            dealer.setsockopt(zmq.LINGER, 1000)
            dealer.connect(f"tcp://127.0.0.1:{port}")
            dealer.send_multipart(parts)
            return dealer.recv_multipart() if dealer.poll(1000) else None
    finally:
        context.term()


def answer(
    daemons: Daemons, node: str, message: Message, run_id: str | None = None
) -> Message | None:
    """What a server answers to a message on its control port."""
    run = run_id or run_toml.load(daemons.path).run_id
    name = f"test-{abs(hash((node, message, run))) % 10**9}".encode()
    parts = ask(ports(daemons)[node], [encode(run, message)], name)
    return decode_message(run, parts[0]) if parts else None


def hello(fingerprint: str, corpus: str) -> Hello:
    """The Hello of a worker of eu."""
    return Hello(PROTOCOL_VERSION, "worker", Address("eu"), 1, fingerprint, corpus)


def truth(daemons: Daemons) -> Welcome:
    """The run's real model and corpus, from the GPS's Welcome to a region."""
    message = Hello(PROTOCOL_VERSION, "lps", Address("us"), 1, "", "")
    welcome = answer(daemons, "gps", message)
    assert isinstance(welcome, Welcome)
    return welcome


def test_a_wrong_fingerprint_is_refused(servers: Daemons) -> None:
    refusal = answer(servers, "lps-eu", hello("0" * 32, truth(servers).corpus))
    assert isinstance(refusal, Refuse)
    assert "model fingerprint" in refusal.detail


def test_a_wrong_corpus_digest_is_refused_and_the_worker_says_so_in_a_line(
    servers: Daemons, tmp_path: Path
) -> None:
    refusal = answer(servers, "lps-eu", hello(truth(servers).fingerprint, "other"))
    assert isinstance(refusal, Refuse)
    assert "corpus digest" in refusal.detail

    text = servers.path.read_text(encoding="utf-8")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "text.txt").write_text("quite another corpus\n" * 2000, encoding="utf-8")
    other = tmp_path / "other.toml"
    other.write_text(
        re.sub(r'source = "text:[^"]*"', f'source = "text:{tmp_path / "other"}"', text)
    )
    flags = ["--run", str(other), "--region", "eu", "--out", str(tmp_path / "out")]
    line = one_line(["worker", *flags], code=3)
    assert "refused" in line
    assert "corpus digest" in line


def test_another_runs_id_is_refused(servers: Daemons) -> None:
    before = dropped(servers, "lps-eu")
    refusal = answer(servers, "lps-eu", hello("", ""), run_id="another-run-000000000000")
    assert isinstance(refusal, Refuse)
    assert "another-run" in refusal.detail
    servers.until("the drop is counted", lambda: dropped(servers, "lps-eu") > before)


@pytest.mark.parametrize("where", ["gps", "gps bulk", "lps-eu", "lps-eu bulk"])
def test_a_truncated_frame_is_counted_and_dropped(servers: Daemons, where: str) -> None:
    node = where.split()[0]
    before = dropped(servers, node)
    whole = encode(run_toml.load(servers.path).run_id, Heartbeat(None))
    ask(ports(servers)[where], [whole[:-2]], b"truncating")
    servers.until("the drop is counted", lambda: dropped(servers, node) > before)


@pytest.mark.parametrize("where", ["gps", "gps bulk", "lps-eu", "lps-eu bulk"])
def test_a_claim_of_ten_gigabytes_is_dropped_before_anything_is_allocated(
    servers: Daemons, where: str
) -> None:
    """A ZMTP peer announces a frame of 10 GB: the connection is cut, the server goes on."""
    node = where.split()[0]
    before = disconnected(servers, node)
    greeting = b"\xff" + bytes(8) + b"\x7f" + b"\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32)
    ready = (
        b"\x05READY\x0bSocket-Type"
        + struct.pack(">I", 6)
        + b"DEALER\x08Identity"
        + struct.pack(">I", 0)
    )
    with socket.create_connection(("127.0.0.1", ports(servers)[where]), timeout=DEADLINE_S) as raw:
        raw.sendall(greeting + b"\x04" + bytes([len(ready)]) + ready)
        raw.sendall(b"\x02" + struct.pack(">Q", 10 * 10**9) + b"x" * 64)
        try:
            while raw.recv(4096):
                pass
        except ConnectionResetError:
            pass  # Cut at once is right as well.
    servers.until("the cut is counted", lambda: disconnected(servers, node) > before)
    assert_alive(servers, node)


@pytest.mark.parametrize("where", ["gps", "gps bulk", "lps-eu", "lps-eu bulk"])
def test_garbage_bytes_on_each_port_are_counted_and_dropped(servers: Daemons, where: str) -> None:
    node = where.split()[0]
    before = dropped(servers, node)
    with socket.create_connection(("127.0.0.1", ports(servers)[where]), timeout=DEADLINE_S) as raw:
        raw.sendall(b"GET / HTTP/1.1\r\nHost: example\r\n\r\n" + bytes(range(256)) * 8)
    ask(ports(servers)[where], [b"\x93\x01garbage" * 40], b"babbling")
    servers.until("the drop is counted", lambda: dropped(servers, node) > before)
    assert_alive(servers, node)


def assert_alive(daemons: Daemons, node: str) -> None:
    """The daemon still answers, and never wrote a traceback or a crash report."""
    assert daemons.processes[node].poll() is None
    role, region = ("lps", "us") if node == "gps" else ("worker", "eu")
    message = Hello(PROTOCOL_VERSION, role, Address(region), 1, "", "")  # type: ignore[arg-type]
    assert answer(daemons, node, message) is not None
    assert not (daemons.out / node / "crash.json").exists()


def test_nodes_without_a_server_end_and_name_the_address_without_an_answer(tmp_path: Path) -> None:
    """A worker, an evaluator and an LPS of a run that is over: no node waits without a limit."""
    path = run_file(tmp_path, network="give_up_after_ms = 2000")
    run = run_toml.load(path)
    with Daemons(path, tmp_path / "out") as daemons:
        daemons.start("lps", "lps", "--region", "eu")
        daemons.start("worker", "worker", "--region", "us")
        daemons.start("evaluator", "worker", "--evaluate")
        servers = {
            "lps": f"gps at 127.0.0.1:{run.gps_bind()[1]}",
            "worker": f"lps at 127.0.0.1:{run.lps_bind(1)[1]}",
            "evaluator": f"gps at 127.0.0.1:{run.gps_bind()[1]}",
        }
        for node, server in servers.items():
            code, output = daemons.wait(node)
            assert code == 4, (node, output)
            assert "Traceback" not in output
            line = f"{server}: no answer for 2 s (network.give_up_after_ms): is the run over?"
            assert line in output.splitlines()[-1], (node, output)


@pytest.mark.parametrize("command", [["local", "--overwrite"], ["resume"]])
def test_the_folder_of_a_run_that_goes_on_is_left_alone(command: list[str], tmp_path: Path) -> None:
    path, out = run_file(tmp_path), tmp_path / "out"
    log = out / "lps-eu" / "events.jsonl"
    with lock(out / "lps-eu" / "state" / "lock"):
        for each in (log, out / "run.toml", out / "result.json"):
            each.touch()
        said = one_line(["pelago.cli.main", *command, str(path), "--out", str(out)])
    assert "belongs to a run that goes on" in said
    assert "lps-eu/state is in use" in said
    assert log.exists()
    assert (out / "result.json").exists()
