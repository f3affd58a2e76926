"""A GPS that is killed with SIGKILL at a chosen point of its journal's protocol, and continues.

``python -m tests.net.durability.crash_points CASE...`` (default: all of `CASES`) runs cases one after the other and
prints a line of JSON for each; an empty ``fault`` means that the case passed. A case reads::

    ack.before@3:host                       killed just before the third Ack leaves; durability "host"
    write.half@9,handle.after@4:process     killed halfway through the ninth write, and the next process,
                                            while it restores, after the fourth event

Each incarnation of the server is a process, forked from this one, which has imported everything and has no
threads. Another process is the region that pushes the golden arrivals over real sockets, and asks again
until each is acknowledged. At the end the server stops in good order and writes the digest of its model.
"""

import asyncio
import json
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch
import uvloop

from gps.state import Gps
from pelago.config.fields import Durability
from pelago.core.machine import Finish, Started, StopRequested
from pelago.core.tensor_effects import Apply
from pelago.durable import image
from pelago.net import node as nodes
from pelago.net.durability import journal
from pelago.net.durability.journal import Journal
from pelago.net.durability.manager import StateStore
from pelago.net.durability.state_folder import StateFolder
from pelago.net.limits import Limits
from pelago.net.node import Node, NodeSettings
from pelago.net.sockets import pair
from pelago.net.sockets.connections import Connections
from pelago.net.sockets.pair import Bind, Connect
from pelago.net.telemetry import Telemetry
from pelago.net.transfer.incoming import Incoming
from pelago.tensor.plane import Plane
from pelago.wire.codec import decode_frame, decode_message
from tests.net.golden_updates import (
    MANIFEST,
    START,
    GoldenRegion,
    empty_plane,
    global_digest,
    global_plane,
    gps_settings,
    sender_plane,
)
from tests.net.nodes import RUN, Script, eventually, settled
from tests.tcp_ports import pairs

ARRIVALS: Final = 7
SNAPSHOT_EVENTS: Final = 3
CASE_S: Final = 30.0
LIMITS: Final = Limits(retry_ms=50, window_bytes=4 * MANIFEST.chunk_bytes)
"""Payloads take several windows, and are cut in their middle."""
LATE_S: Final = 0.15
"""Enough for what was given to a socket to arrive."""


class CrashCase(NamedTuple):
    """Where each incarnation but the last is killed."""

    kills: tuple[tuple[str, int], ...]
    """(point, at which passage of it)."""
    durability: Durability

    def __str__(self) -> str:
        kills = ",".join(f"{point}@{passage}" for point, passage in self.kills)
        return f"{kills}:{self.durability}"


def parse(text: str) -> CrashCase:
    """The inverse of `CrashCase.__str__`."""
    kills, _, durability = text.partition(":")
    assert durability in ("process", "host")
    found = [each.partition("@") for each in kills.split(",")]
    return CrashCase(tuple((point, int(passage)) for point, _, passage in found), durability)  # type: ignore[arg-type]


def cases() -> list[CrashCase]:
    """All cases."""
    found: list[CrashCase] = []

    def add(points: str, passages: tuple[int, ...], only: str = "", before: str = "") -> None:
        """``before``: where the incarnation before was killed; then these are points of a recovery."""
        for durability in ("process", "host"):
            for point in points.split():
                for passage in passages:
                    if only in ("", durability):
                        kills = (*parse(f"{before}:host").kills,) if before else ()
                        found.append(CrashCase((*kills, (point, passage)), durability))  # type: ignore[arg-type]

    add("write.before write.half write.after", (1, 2, 5, 10, 18))
    add("write.late", (4, 9, 15))
    add("sync.before sync.after", (1, 6, 14), only="host")
    add("fsync.before fsync.after", (1, 3), only="host")
    add("open.before open.after", (1, 2, 3))
    add("handle.before handle.after", (1, 9))
    add("event.before event.after", (6, 17))
    add("chunk.before chunk.after", (4, 30))
    add("apply.before apply.after", (1, 4, 7))
    add("grant.before grant.after", (2,))
    add("ack.before ack.after ack.late", (1, 4, 7))
    add("model.before model.after", (3,))
    add("rotate.before rotate.after", (1, 3))
    add("snapshot.before snapshot.after", (1, 3))
    add("piece.before piece.half", (2, 9, 40))
    add("trim.before trim.after", (2,))
    add("rename.before rename.after", (1, 3))
    add("aside.before aside.after", (1, 3))
    add("reuse.before reuse.after", (1, 2))
    add("unlink.before unlink.after", (1,), before="rotate.after@2")
    # In the middle of a recovery.
    add("recovered.before recovered.after", (1,), before="write.half@14")
    add("cut.before cut.after", (1,), before="write.half@14")
    add("image.before image.after plane.before plane.after", (1,), before="rename.after@2")
    add("handle.before handle.after", (3,), before="ack.after@4")
    add("apply.before apply.after", (1,), before="ack.before@1")
    add("open.after write.before write.half write.after", (1,), before="ack.after@5")
    # In the middle of a payload, and of one that goes on where it was.
    add("begin.before begin.after", (1, 5))
    add("have.before have.after have.late", (3, 15))
    add("chunk.before chunk.after have.before have.after", (3,), before="chunk.after@24")
    add("whole.before whole.after", (4,))
    add("whole.before whole.after", (1,), before="have.after@12")
    return found


CASES: Final = tuple(map(str, cases()))


# --- the kill ------------------------------------------------------------------------------------


class Fuse:
    """Kills this process when a point is passed for the ``passage``-th time."""

    def __init__(self, point: str, passage: int) -> None:
        self._point = point
        self._left = passage
        self._lock = threading.Lock()

    def burns(self, point: str) -> bool:
        """Whether now is the time."""
        with self._lock:
            self._left -= point == self._point
            return point == self._point and self._left == 0

    def passes(self, point: str) -> None:
        """At a point."""
        if self.burns(point):
            die()


def die() -> None:
    """As ``kill -9`` does it."""
    os.kill(os.getpid(), signal.SIGKILL)


def around(
    fuse: Fuse, owner: Any, name: str, point: Callable[..., str] | str, late: bool = False
) -> None:
    """Before and after a call of ``owner.name`` are points. ``point``: their name, or what says it from
    the arguments; empty: none. ``late``: so is some time after the call."""
    function = getattr(owner, name)

    def call(*arguments: Any, **more: Any) -> Any:
        where = point if isinstance(point, str) else point(*arguments, **more)
        if not where:
            return function(*arguments, **more)
        fuse.passes(f"{where}.before")
        result = function(*arguments, **more)
        fuse.passes(f"{where}.after")
        if late and fuse.burns(f"{where}.late"):
            time.sleep(LATE_S)
            die()
        return result

    setattr(owner, name, call)


def arm(fuse: Fuse) -> None:
    """Make points of the real functions that a server's durability calls."""
    writev, write = os.writev, os.write

    def journal_write(descriptor: int, parts: list[Any]) -> int:
        fuse.passes("write.before")
        if fuse.burns("write.half"):
            whole = b"".join(parts)
            write(descriptor, whole[: len(whole) // 2])
            die()
        if fuse.burns("write.late"):
            time.sleep(LATE_S)  # A slow disk: messages that do not wait for it have left by now.
            die()
        taken = writev(descriptor, parts)
        fuse.passes("write.after")
        return taken

    def snapshot_write(descriptor: int, piece: memoryview) -> int:
        if threading.current_thread().name != "snapshot":
            return write(descriptor, piece)
        fuse.passes("piece.before")
        if fuse.burns("piece.half"):
            write(descriptor, piece[: len(piece) // 2])
            die()
        return write(descriptor, piece)

    def renamed(path: Path, target: Path) -> str:
        if path.name.startswith("spare-"):
            return "reuse"
        return "aside" if target.name.startswith("spare-") else "rename"

    def sent(_node: Node, _peer: str, encoded: bytes, _blob: int | None) -> str:
        return type(decode_message(RUN, encoded)).__name__.lower()

    def is_step(effect: object) -> bool:
        return isinstance(effect, Apply) and effect.operation == "step"

    def said(_connections: Connections, _peer: str, parts: list[bytes]) -> str:
        return type(decode_frame(RUN, parts[0])).__name__.lower() if len(parts) == 2 else ""

    os.writev, os.write = journal_write, snapshot_write  # type: ignore[assignment]
    around(fuse, os, "fdatasync", "sync")
    around(fuse, os, "fsync", "fsync")
    around(fuse, os, "ftruncate", "trim")
    around(fuse, os, "open", lambda path, *_: "open" if "/journal-" in str(path) else "")
    around(fuse, Path, "rename", renamed)
    around(fuse, Path, "unlink", lambda *_, **__: "unlink")
    around(fuse, Gps, "handle", "handle")
    around(fuse, Journal, "event", "event")
    around(fuse, Journal, "begin", "begin")
    around(fuse, Journal, "chunk", "chunk")
    around(fuse, Journal, "rotate", "rotate")
    around(fuse, Journal, "snapshot", "snapshot")
    around(fuse, Plane, "plan", lambda _, effect: "apply" if is_step(effect) else "")
    around(fuse, Plane, "restore", "plane")
    around(fuse, image, "restore", "image")
    around(fuse, StateFolder, "recovered", "recovered")
    around(fuse, StateFolder, "cut", "cut")
    around(fuse, Node, "_send_now", sent, late=True)
    around(fuse, Connections, "send_control", said, late=True)
    around(fuse, Incoming, "_complete", "whole")


# --- the processes -------------------------------------------------------------------------------


def make_haste() -> None:
    """Shorten the waits, which take most of a case's time."""
    torch.set_num_threads(1)
    journal.SNAPSHOT_EVENTS = SNAPSHOT_EVENTS  # type: ignore[misc]
    nodes.FAREWELL_S = 0.0  # type: ignore[misc]
    nodes.HOUSEKEEPING_S = 0.05  # type: ignore[misc]
    pair.RECONNECT_MS = 10  # type: ignore[misc]
    pair.RECONNECT_MAX_MS = 20  # type: ignore[misc]


async def serve(
    folder: Path, port: int, durability: Durability, stop: int, plane: Plane | None = None
) -> None:
    """An incarnation of the server; ``stop``: a pipe whose other end is closed when the run is over. ``plane``: as
    it is at the first start, if it is not the golden one."""
    store = StateFolder(folder / "state", RUN, "gps")
    recovered = store.recovered()
    plane = global_plane() if plane is None else plane
    gps = Gps(replace(gps_settings(), fingerprint=plane.manifest.fingerprint))
    node = Node(
        gps,
        NodeSettings(
            run_id=RUN,
            name="gps",
            server=Bind("127.0.0.1", port, "gps.bind"),
            loaded=START,
            crash_file=folder / "crash.json",
            check_invariants=True,
            handle_signals=False,
            limits=LIMITS,
        ),
        Telemetry("gps", folder / "events.jsonl", console=None),
        plane=plane,
        plane_factory=empty_plane,
        state_store=StateStore(
            store=store, durability=durability, name="gps", incarnation=1, recovered=recovered
        ),
    )
    loop = asyncio.get_running_loop()
    task = loop.create_task(node.run())
    over = loop.create_future()
    loop.add_reader(stop, lambda: over.done() or over.set_result(None))
    await asyncio.wait((task, over), return_when="FIRST_COMPLETED")
    loop.remove_reader(stop)
    if not task.done():
        await eventually(
            lambda: (node.durability is not None and node.durability._number > 0) or task.done()
        )
        await settled(node)
        node.post(StopRequested("all is acknowledged"))
    finish = await task
    found = {
        "finish": [finish.reason, finish.error],
        "digest": node.tensors.plane.digest(),
        "version": gps.model.version.counter,
        "updates": [region.updates for region in gps.regions.values()],
    }
    (folder / "server.json").write_text(json.dumps(found), encoding="utf-8")


async def push(folder: Path, port: int) -> None:
    """The region."""
    region = GoldenRegion(ARRIVALS, leaves=True)
    machine = Script(region)
    node = Node(
        machine,
        NodeSettings(
            run_id=RUN,
            name="lps-eu",
            upstreams=(Connect("127.0.0.1", port, "gps"),),
            crash_file=folder / "region.crash.json",
            handle_signals=False,
            limits=LIMITS,
        ),
        Telemetry("lps-eu", folder / "region.jsonl", console=None),
        plane=sender_plane(),
    )
    task = asyncio.get_running_loop().create_task(node.run())
    await machine.hears(Started)
    for number in range(1, ARRIVALS + 1):
        node.tensors.created(number)
    finish: Finish = await task
    outcomes = {number: sorted(answers) for number, answers in region.outcomes.items()}
    found = {
        "finish": [finish.reason, finish.error],
        "outcomes": sorted(outcomes.items()),
        "fences": sorted(region.fences),
        "rejoins": region.rejoins,
    }
    (folder / "region.json").write_text(json.dumps(found), encoding="utf-8")


def fork(work: Callable[[], Coroutine[Any, Any, None]], *close: int) -> int:
    """A child process that does some work, without these descriptors."""
    assert threading.active_count() == 1
    child = os.fork()
    if child == 0:
        code = 1
        try:
            for descriptor in close:
                os.close(descriptor)
            make_haste()
            uvloop.run(work())
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    return child


def wait_for(children: list[int], deadline: float) -> tuple[int, int]:
    """A child that ended, and its exit code; a signal's number is negative. Raises `TimeoutError`."""
    while True:
        for child in children:
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                return child, os.waitstatus_to_exitcode(status)
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        signal.sigtimedwait({signal.SIGCHLD}, left)


def run_case(case: CrashCase, folder: Path) -> str:
    """Run a case; returns its fault, or "" if it passed."""
    (port,) = pairs(1)
    stop, running = os.pipe()
    killed = 0

    async def incarnation() -> None:
        if killed < len(case.kills):
            arm(Fuse(*case.kills[killed]))
        await serve(folder, port, case.durability, stop)

    deadline = time.monotonic() + CASE_S
    region = fork(lambda: push(folder, port), running)
    server = fork(incarnation, running)
    children = [region, server]
    try:
        while children:
            child, code = wait_for(children, deadline)
            children.remove(child)
            if child == server and code == -signal.SIGKILL and killed < len(case.kills):
                killed += 1
                server = fork(incarnation, *([running] if running >= 0 else []))
                children.append(server)
            elif code:
                name = "the region" if child == region else f"server process {killed + 1}"
                return f"{name} ended with {code}"
            elif child == region:
                os.close(running)
                running = -1
    except TimeoutError:
        return f"nothing more happened in {CASE_S} s; {killed} times killed"
    finally:
        for child in children:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        os.close(stop)
        if running >= 0:
            os.close(running)
    if killed < len(case.kills):
        return f"{case.kills[killed]} was never passed"
    return verdict(folder)


def verdict(folder: Path) -> str:
    """Compare with the uninterrupted run."""
    server = json.loads((folder / "server.json").read_text(encoding="utf-8"))
    region = json.loads((folder / "region.json").read_text(encoding="utf-8"))
    wanted = {
        "finish": ["all is acknowledged", ""],
        "digest": global_digest(),
        "version": ARRIVALS,
        "updates": [ARRIVALS],
    }
    of_region = {
        "finish": ["all is acknowledged", ""],
        "outcomes": [[number, ["applied"]] for number in range(1, ARRIVALS + 1)],
        "fences": [1],
        "rejoins": 0,
    }
    faults = [
        f"{key} is {server[key]}, not {value}"
        for key, value in wanted.items()
        if server[key] != value
    ]
    faults += [
        f"{key} is {region[key]}, not {value}"
        for key, value in of_region.items()
        if region[key] != value
    ]
    return "; ".join(faults)


def main(names: list[str]) -> int:
    """Run cases; 1 if any was wrong."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
    torch.set_num_threads(1)
    wrong = 0
    for name in names or CASES:
        started = time.monotonic()
        folder = Path(tempfile.mkdtemp(prefix="crash-point-"))
        fault = run_case(parse(name), folder)
        seconds = round(time.monotonic() - started, 2)
        print(json.dumps({"case": name, "fault": fault, "seconds": seconds}), flush=True)
        wrong += bool(fault)
        if not fault:
            shutil.rmtree(folder)
        else:
            print(f"{name}: see {folder}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
