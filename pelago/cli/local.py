"""`pelago local`: the whole topology as processes on this machine, with the WAN between regions emulated."""

import asyncio
import json
import math
import os
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvloop

from pelago import atomic_files, children
from pelago.cli.progress import ProgressDisplay
from pelago.config import run_toml
from pelago.config.run_file import RunFile
from pelago.config.servers import ServerSection
from pelago.core.errors import ConfigError, PelagoError
from pelago.emulate.wan import Link, WanProxy
from pelago.net.command import EXIT_FAILED, EXIT_USER
from pelago.net.files import lock_to_read
from pelago.net.signals import listen
from pelago.net.sockets.tcp_ports import free_pairs

POLL_S = 0.1
SETTLE_S = 20.0
"""How long the others may take to end after the GPS has."""
GOOD_END_S = 5.0
"""How long after a node ended in good order the GPS's log may take to tell that the run is over; and how
long after the GPS others may take to end by themselves: who has not joined by then is told by nobody."""
NOW_S = 3.0
"""How long nodes have that must end at once, before they are killed."""
LOG_LINES = 3
RESULTS = ("result.json", "loss.png", "global.safetensors", "global_average.safetensors")
"""What a run leaves in its folder when it ends."""
BEFORE = ".before"
"""Ending of the results of an earlier life, until it is known that the run goes on."""
KILLED_MAX = 100
FAILED_MAX = 3
"""How often a node is started that others can replace: after it was killed, which says nothing about it, and
after it failed by itself."""
ONE_THREAD = {
    name: "1" for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
} | {"TOKENIZERS_PARALLELISM": "false"}
"""Processes share the cores, so each computes on one thread: more would measure the scheduler."""
COMPILE_THREADS = "TORCHINDUCTOR_COMPILE_THREADS"
"""With a GPU each process compiles its model first, by default on as many processes as there are cores."""


def local(run: RunFile, out: Path, *, overwrite: bool, live: bool) -> int:
    """Run the topology to its end. Returns the exit code. Raises `PelagoError`."""
    _prepare(out, overwrite)
    return uvloop.run(_Topology(run, out, live).run())


def resume(run: RunFile, out: Path, source: str, *, live: bool) -> int:
    """As `local`, from where the GPS of an earlier life left off: ``source``, see `gps --resume`. Results of
    that life go when the run goes on; where it cannot, they stay."""
    _require_idle(out)
    earlier = _Earlier(out)
    try:
        out.mkdir(parents=True, exist_ok=True)
        for node in out.glob("*/events.jsonl"):
            # The progress is read from these, and what they tell is over.
            node.replace(node.with_name(f"events-until-{int(time.time())}.jsonl"))
        earlier.put_aside()
    except OSError as error:
        raise ConfigError(f"cannot write results to {out}: {error}") from None
    try:
        return uvloop.run(_Topology(run, out, live, source, earlier).run())
    finally:
        earlier.put_back()


def _prepare(out: Path, overwrite: bool) -> None:
    if (out / "run.toml").exists() and not overwrite:
        raise ConfigError(f"{out} holds an earlier run: choose another --out, or pass --overwrite")
    _require_idle(out)
    try:
        out.mkdir(parents=True, exist_ok=True)
        if overwrite and (out / "run.toml").exists():
            for node in out.glob("*/events.jsonl"):
                shutil.rmtree(node.parent)
            shutil.rmtree(out / "model", ignore_errors=True)
            for name in ("run.toml", *RESULTS):
                (out / name).unlink(missing_ok=True)
            _Earlier(out).remove()
    except OSError as error:
        raise ConfigError(f"cannot write results to {out}: {error}") from None


def _require_idle(out: Path) -> None:
    """Raises `ConfigError` if a server is running on a state in that folder: nothing may be removed there."""
    for path in sorted(out.glob("*/state/lock")):
        try:
            held = lock_to_read(path)
        except BlockingIOError:
            raise ConfigError(
                f"{out} belongs to a run that goes on: {path.parent} is in use; end it first, or choose another"
                " --out"
            ) from None
        except OSError:  # Not every file system has locks.
            continue
        if held is not None:
            held.close()


class _Earlier:
    """The results of a run's earlier life: out of the way of the next one's, and not lost before there is one."""

    def __init__(self, out: Path) -> None:
        self._places = [(out / name, out / (name + BEFORE)) for name in RESULTS]

    def put_aside(self) -> None:
        """Raises `OSError`."""
        for path, before in self._places:
            if path.is_file():
                path.replace(before)

    def put_back(self) -> None:
        """What is still there."""
        for path, before in self._places:
            if before.exists() and not path.exists():
                with suppress(OSError):
                    before.replace(path)

    def remove(self) -> None:
        """The run goes on, and will have other results."""
        for _, before in self._places:
            with suppress(OSError):
                before.unlink(missing_ok=True)


def _threads(processes: int) -> dict[str, str]:
    """Variables for each of so many processes that compute on this machine."""
    share = max(1, len(os.sched_getaffinity(0)) // processes)
    return ONE_THREAD | {COMPILE_THREADS: os.environ.get(COMPILE_THREADS, str(share))}


@dataclass
class _Process:
    """One node."""

    name: str
    process: subprocess.Popen[bytes]
    command: list[str]
    vital: bool
    """Whether the run cannot go on without it."""
    lasting: bool
    """Whether another process can take its place: it keeps nothing, or leaves what it knew."""

    @property
    def ended(self) -> bool:
        return self.process.poll() is not None


class _Topology:
    """The processes of a run, and the links between them."""

    def __init__(
        self,
        run: RunFile,
        out: Path,
        live: bool,
        source: str | None = None,
        earlier: _Earlier | None = None,
    ) -> None:
        self.out = out
        self._earlier = earlier
        ports = free_pairs(1 + 2 * len(run.region), run.local.port)
        self._links = ports[1 + len(run.region) :]
        bound = run.model_dump()
        bound["run"]["out"] = str(out)
        bound["gps"] |= {"bind": f"127.0.0.1:{ports[0]}", "connect": ""}
        for region, port in zip(bound["region"], ports[1:], strict=False):
            region |= {"bind": f"127.0.0.1:{port}", "connect": ""}
        self.run_file = RunFile.model_validate(bound)
        self.processes: list[_Process] = []
        self.progress = ProgressDisplay(self.run_file, out, live)
        self._source = source
        self._ending = False
        """Whether the run is to end: from then on nothing is started."""
        self._asked: list[signal.Signals] = []
        """Signals by which somebody asked for the end."""
        self._placed = set(("gps", *(f"lps-{each.name}" for each in run.region)))
        """Nodes of which it is known on which device they compute."""
        self._kill_at = math.inf
        """When whoever lives then is killed, by the loop's clock."""
        self._failure = ""
        self._starts: Counter[str] = Counter()
        self._ends: dict[str, float] = {}
        """When nodes were first seen to have ended in good order, by the loop's clock."""

    async def run(self) -> int:
        async with AsyncExitStack() as stack:
            stack.callback(listen(asyncio.get_running_loop(), self._on_signal))
            path = self.out / "run.toml"
            try:
                atomic_files.write_text(path, run_toml.dump(self.run_file))
            except OSError as error:
                raise ConfigError(f"cannot write {path}: {error}") from None
            stack.callback(self._kill_all)
            with self.progress:
                connect = await self._start_links(stack)
                await self._start_nodes(connect)
                await self._watch()
                await self._end_others()
        return self._summarise()

    async def _start_links(self, stack: AsyncExitStack) -> dict[str, str]:
        """Start the emulated links; returns, by region, where its LPS finds the GPS through one."""
        network, names = self.run_file.network, [each.name for each in self.run_file.region]
        home = names.index(self.run_file.gps_region)
        gps_port = self.run_file.gps_bind()[1]
        connect: dict[str, str] = {}
        if not network.bandwidth_gbps and not network.latency_ms:
            return connect
        for index, name in enumerate(names):
            if index == home:
                continue
            up, down = self._link(index, home), self._link(home, index)
            for offset in (0, 1):
                port = self._links[index] + offset
                proxy = WanProxy("127.0.0.1", port, "127.0.0.1", gps_port + offset, up, down)
                await stack.enter_async_context(proxy)
            connect[name] = f"127.0.0.1:{self._links[index]}"
        return connect

    def _link(self, source: int, target: int) -> Link:
        network = self.run_file.network
        gbps = network.bandwidth_gbps[source][target] if network.bandwidth_gbps else 10.0
        latency_ms = network.latency_ms[source][target] if network.latency_ms else 0.0
        return Link(gbps * 1e9 / 8, latency_ms)

    async def _start_nodes(self, connect: dict[str, str]) -> None:
        for name, command, vital, lasting in self._nodes(connect):
            # Signals are heard in between.
            await asyncio.sleep(0)
            if self._ending:
                return
            self._start(name, command, vital=vital, lasting=lasting)

    def _nodes(self, connect: dict[str, str]) -> Iterator[tuple[str, list[str], bool, bool]]:
        """Name, command, whether it is vital and whether lasting, of every node."""
        run, resumes = self.run_file, self._source is not None
        source = ["--resume", str(self._source)] if resumes else []
        yield "gps", ["gps", *source], True, self._lasting(run.gps)
        for region in run.region:
            route = ["--connect", connect[region.name]] if region.name in connect else []
            flags = ["--region", region.name, *route, *(["--resume"] if resumes else [])]
            yield f"lps-{region.name}", ["lps", *flags], True, self._lasting(run.lps)
        slots = {name: ["--slot", str(slot)] for name, slot in run.slots.items()}
        yield "evaluator", ["worker", "--evaluate", *slots["evaluator"]], True, True
        for region in run.region:
            for group in range(len(region.worker_speeds)):
                flags = ["--region", region.name, "--group", str(group), "--paced"]
                name = f"worker-{region.name}-{group}"
                yield name, ["worker", *flags, *slots[name]], False, False

    @staticmethod
    def _lasting(server: ServerSection) -> bool:
        return server.durability != "none"

    def _start(self, name: str, command: list[str], *, vital: bool, lasting: bool) -> None:
        """Start a node, or another process for one that has ended."""
        self._starts[name] += 1
        folder = self.out / name
        try:
            folder.mkdir(parents=True, exist_ok=True)
            console = (folder / "console.log").open("ab")
        except OSError as error:
            raise ConfigError(f"cannot write results to {folder}: {error}") from None
        role, *flags = command
        with console:
            process = children.start(
                role,
                *("--run", str(self.out / "run.toml"), *flags, "--out", str(self.out)),
                stdout=console,
                stderr=console,
                environment=_threads(len(self.run_file.slots)),
                # A Ctrl-C at the terminal is ours to hand on, in good order.
                start_new_session=True,
            )
        started = _Process(name, process, command, vital, lasting)
        names = [each.name for each in self.processes]
        if name in names:
            self.processes[names.index(name)] = started
        else:
            self.processes.append(started)

    async def _watch(self) -> None:
        """Follow the run until the GPS has ended."""
        told: set[int] = set()
        while self.processes and not (
            self.processes[0].ended and self.processes[0].process.pid in told
        ):
            await self._pause()
            for each in list(self.processes):
                if each.ended and each.process.pid not in told and self._is_clear(each):
                    told.add(each.process.pid)
                    self._judge(each)

    async def _end_others(self) -> None:
        """The GPS has ended: wait for the others, and end who does not end by himself."""
        if not self._is_settled():
            self._terminate(self.processes)
            await self._ends_within(NOW_S)
            return
        if not await self._ends_within(NOW_S if self._ending else GOOD_END_S):
            # They have not joined, or the GPS has given them up. An evaluator may still write the model.
            self._terminate(
                [each for each in self.processes if each.name != "evaluator" or not self._joined()]
            )
        if not await self._ends_within(SETTLE_S):
            slow = ", ".join(each.name for each in self.processes if not each.ended)
            self.progress.say(f"did not end in {SETTLE_S:g} s and will be stopped: {slow}")

    async def _ends_within(self, seconds: float) -> bool:
        """Wait for all nodes to end, but no longer."""
        clock = asyncio.get_running_loop().time
        until = clock() + seconds
        while (running := not all(each.ended for each in self.processes)) and clock() < until:
            await self._pause()
        return not running

    async def _pause(self) -> None:
        await asyncio.sleep(POLL_S)
        self.progress.update()
        if self._earlier is not None and self.progress.phase != "starting":
            self._earlier.remove()
            self._earlier = None
        self._say_devices()
        if asyncio.get_running_loop().time() >= self._kill_at:
            self._kill_all()

    def _say_devices(self) -> None:
        """Say of each process that computes on an accelerator, once, on which."""
        for name in [each.name for each in self.processes if each.name not in self._placed]:
            device = self.progress.device(name)
            if device:
                self._placed.add(name)
                if device != "cpu":
                    self.progress.say(f"{name} computes on {device}")

    def _is_settled(self) -> bool:
        """Whether the GPS has ended the run and told the others so, with or without all results."""
        code = self.processes[0].process.returncode if self.processes else None
        return code == 0 or (code is not None and code > 0 and (self.out / "result.json").exists())

    def _joined(self) -> bool:
        """Whether the evaluator has found the GPS."""
        log = self.out / "evaluator" / "events.jsonl"
        return log.exists() and '"connected"' in log.read_text(encoding="utf-8", errors="replace")

    def _is_clear(self, ended: _Process) -> bool:
        """Whether it can be told what an end means. A node ends in good order most often because the
        run does, and the GPS's log, which is written once a second, says so a moment later."""
        code = ended.process.returncode
        # Of a region that learns nothing any more the GPS makes what there is to be made: it may be the last.
        fails = code and not (ended.vital and code == EXIT_FAILED)
        if ended is self.processes[0] or fails or self._ending:
            return True
        if self._draining():
            return True
        now = asyncio.get_running_loop().time()
        return now - self._ends.setdefault(ended.name, now) >= GOOD_END_S

    def _judge(self, ended: _Process) -> None:
        """A process has ended: go on without it, or have the GPS settle and end what cannot go on."""
        code, gps = ended.process.returncode, self.processes[0]
        said = f"{ended.name} ended with exit code {code}"
        killed = code is not None and code < 0
        again = ended.lasting and self._starts[ended.name] < (KILLED_MAX if killed else FAILED_MAX)
        if self._ending:
            return
        if ended is gps:
            if killed and again:
                self._start_again(ended, said)
            elif code:
                raise PelagoError(f"{said}: {self._log('gps')}")
            return
        if self._draining():
            return
        # What a user got wrong it meets again.
        if again and (killed or (ended.name == "evaluator" and code != EXIT_USER)):
            self._start_again(ended, said)
        elif ended.vital:
            self._fail(f"{said}, and the run cannot go on: {self._log(ended.name)}")
        elif all(each.ended for each in self.processes if not each.vital):
            self._fail(f"{said}, the last worker: {self._log(ended.name)}")
        else:
            self.progress.say(f"{said}; the others go on")

    def _start_again(self, ended: _Process, said: str) -> None:
        self.progress.say(f"{said}; starting it again")
        self._start(ended.name, ended.command, vital=ended.vital, lasting=ended.lasting)

    def _fail(self, why: str) -> None:
        self._failure = why
        self.progress.say(f"{why}; the run is settled")
        self._end_run()

    def _end_run(self) -> None:
        """Ask the GPS to settle the run, once: asked twice it would end at once."""
        if not self._ending:
            self._ending = True
            self._terminate(self.processes[:1])

    def _draining(self) -> bool:
        """Whether the GPS has ended the run, so that the others may go."""
        return self.progress.phase in ("draining", "finished")

    def _log(self, name: str) -> str:
        log = self.out / name / "console.log"
        try:
            lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        except OSError as error:  # Somebody removed the folder of the results, say.
            return f"{log} cannot be read: {error.strerror}"
        return " | ".join(lines[-LOG_LINES:]) or f"see {log}"

    def _on_signal(self, number: signal.Signals) -> None:
        """First the run is settled; the second time all end at once, the third time they are killed."""
        self._asked.append(number)
        match len(self._asked):
            case 1:
                self.progress.say(
                    "stopping: the run is settled and evaluated (again to stop at once)"
                )
                self._end_run()
            case 2:
                self.progress.say("stopping at once (again to kill)")
                self._ending = True
                self._terminate(self.processes)
                self._kill_at = asyncio.get_running_loop().time() + NOW_S
            case _:
                self._kill_all()

    @staticmethod
    def _terminate(processes: list[_Process]) -> None:
        for each in processes:
            if not each.ended:
                each.process.terminate()

    def _kill_all(self) -> None:
        for each in self.processes:
            if not each.ended:
                each.process.kill()
        for each in self.processes:
            with suppress(subprocess.TimeoutExpired):  # It waits for a device; it will end then.
                each.process.wait(NOW_S)

    def _unsettled(self) -> str:
        kept = any((self.out / "gps" / "state").glob("snapshot-*"))
        on = f"; `pelago resume` goes on from {self.out}" if kept else ""
        return f"stopped before the run was settled: there are no results{on}"

    def _name_failure(self) -> None:
        """Put it into the result: of a node that ended the GPS knows no more than that it was asked to settle."""
        path = self.out / "result.json"
        with suppress(OSError, ValueError):
            result = json.loads(path.read_text(encoding="utf-8"))
            if not result["error"]:
                result["error"] = self._failure
                atomic_files.write_text(path, json.dumps(result, indent=1) + "\n")

    def _summarise(self) -> int:
        if self._failure:
            self._name_failure()
            raise PelagoError(self._failure)
        if self._asked and not self._is_settled():
            self.progress.say(self._unsettled())
            return 128 + self._asked[-1]
        path = self.out / "result.json"
        if not path.exists():
            raise PelagoError(f"no result was written: {self._log('gps')}")
        result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        self.progress.summarise(result)
        for each in self.processes:
            code = each.process.returncode or 0
            if each.name in ("gps", "evaluator") and code > 0:
                self.progress.say(
                    f"{each.name} ended with exit code {code}: {self._log(each.name)}"
                )
                return 1
        if not (self.out / "model" / "config.json").exists():
            self.progress.say("no model/: the evaluator was gone before it had the last version")
            return 1
        if result["counted_steps"] == 0:
            self.progress.say("nothing was trained")
            return 1
        return 0 if result["ledger"]["duplicated"] == 0 else 1
