"""`pelago local`: the whole topology as processes on this machine, with the WAN between regions emulated."""

import asyncio
import json
import os
import shutil
import signal
import sys
import time
from collections import Counter
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvloop

from pelago import config
from pelago.cli.progress import Progress
from pelago.config import RunFile
from pelago.core.errors import ConfigError, PelagoError
from pelago.net import whole
from pelago.net.ports import free_pairs
from pelago.net.wan import Link, WanProxy

POLL_S = 0.5
SETTLE_S = 20.0
"""How long the others may take to end after the GPS has."""
GOOD_END_S = 5.0
"""How long after a node ended in good order the GPS's log may take to tell that the run is over."""
LOG_LINES = 3
RESULTS = ("result.json", "loss.png", "global.safetensors", "global_average.safetensors")
"""What a run leaves in its folder when it ends."""
KILLED_MAX = 100
FAILED_MAX = 3
"""How often a node is started that others can replace: after it was killed, which says nothing about it, and
after it failed by itself."""
ONE_THREAD = {
    name: "1" for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
} | {"TOKENIZERS_PARALLELISM": "false"}
"""Processes share the cores, so each computes on one thread: more would measure the scheduler."""


def local(run: RunFile, out: Path, *, overwrite: bool, live: bool) -> int:
    """Run the topology to its end. Returns the exit code. Raises `PelagoError`."""
    _prepare(out, overwrite)
    return uvloop.run(_Topology(run, out, live).run())


def resume(run: RunFile, out: Path, source: str, *, live: bool) -> int:
    """As `local`, from where the GPS of an earlier life left off: ``source``, see `gps --resume`."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        for node in out.glob("*/events.jsonl"):
            # The progress is read from these, and what they tell is over.
            node.replace(node.with_name(f"events-until-{int(time.time())}.jsonl"))
        for name in RESULTS:
            (out / name).unlink(missing_ok=True)
    except OSError as error:
        raise ConfigError(f"cannot write results to {out}: {error}") from None
    return uvloop.run(_Topology(run, out, live, source).run())


def _prepare(out: Path, overwrite: bool) -> None:
    if (out / "run.toml").exists() and not overwrite:
        raise ConfigError(f"{out} holds an earlier run: choose another --out, or pass --overwrite")
    try:
        out.mkdir(parents=True, exist_ok=True)
        if overwrite and (out / "run.toml").exists():
            for node in out.glob("*/events.jsonl"):
                shutil.rmtree(node.parent)
            shutil.rmtree(out / "model", ignore_errors=True)
            for name in ("run.toml", *RESULTS):
                (out / name).unlink(missing_ok=True)
    except OSError as error:
        raise ConfigError(f"cannot write results to {out}: {error}") from None


@dataclass
class _Process:
    """One node."""

    name: str
    process: asyncio.subprocess.Process
    command: list[str]
    vital: bool
    """Whether the run cannot go on without it."""
    lasting: bool
    """Whether another process can take its place: it keeps nothing, or leaves what it knew."""
    end: asyncio.Task[int]
    """Done when the process has ended."""

    @property
    def ended(self) -> bool:
        return self.process.returncode is not None


class _Topology:
    """The processes of a run, and the links between them."""

    def __init__(self, run: RunFile, out: Path, live: bool, source: str | None = None) -> None:
        self.out = out
        ports = free_pairs(1 + 2 * len(run.region), run.local.port)
        self._links = ports[1 + len(run.region) :]
        bound = run.model_dump()
        bound["run"]["out"] = str(out)
        bound["gps"] |= {"bind": f"127.0.0.1:{ports[0]}", "connect": ""}
        for region, port in zip(bound["region"], ports[1:], strict=False):
            region |= {"bind": f"127.0.0.1:{port}", "connect": ""}
        self.run_file = RunFile.model_validate(bound)
        self.processes: list[_Process] = []
        self.progress = Progress(self.run_file, out, live)
        self._source = source
        self._stopping = False
        self._failure = ""
        self._starts: Counter[str] = Counter()
        self._ends: dict[str, float] = {}
        """When nodes were first seen to have ended in good order, by the loop's clock."""

    async def run(self) -> int:
        path = self.out / "run.toml"
        try:
            whole.write_text(path, config.dump(self.run_file))
        except OSError as error:
            raise ConfigError(f"cannot write {path}: {error}") from None
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._stop)
        async with AsyncExitStack() as stack:
            stack.push_async_callback(self._end_all)
            with self.progress:
                connect = await self._start_links(stack)
                await self._start_nodes(connect)
                await self._watch()
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
        resumes = self._source is not None
        await self._start(
            "gps",
            ["gps", *(["--resume", str(self._source)] if resumes else [])],
            vital=True,
            lasting=self._lasting(self.run_file.gps),
        )
        for region in self.run_file.region:
            route = ["--connect", connect[region.name]] if region.name in connect else []
            flags = ["--region", region.name, *route, *(["--resume"] if resumes else [])]
            await self._start(
                f"lps-{region.name}",
                ["lps", *flags],
                vital=True,
                lasting=self._lasting(self.run_file.lps),
            )
        await self._start("evaluator", ["worker", "--evaluate"], vital=True, lasting=True)
        for region in self.run_file.region:
            for group in range(len(region.worker_speeds)):
                flags = ["--region", region.name, "--group", str(group), "--paced"]
                await self._start(
                    f"worker-{region.name}-{group}", ["worker", *flags], vital=False, lasting=False
                )

    @staticmethod
    def _lasting(server: config.Server) -> bool:
        return server.durability != "none"

    async def _start(self, name: str, command: list[str], *, vital: bool, lasting: bool) -> None:
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
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                role,
                "--run",
                str(self.out / "run.toml"),
                *flags,
                "--out",
                str(self.out),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=console,
                stderr=console,
                env=os.environ | ONE_THREAD,
                # A Ctrl-C at the terminal is ours to hand on, in good order.
                start_new_session=True,
            )
        end = asyncio.create_task(process.wait())
        started = _Process(name, process, command, vital, lasting, end)
        names = [each.name for each in self.processes]
        if name in names:
            self.processes[names.index(name)] = started
        else:
            self.processes.append(started)

    async def _watch(self) -> None:
        """Follow the run until the GPS has ended and the others with it."""
        told: set[int] = set()
        while not (self.processes[0].ended and self.processes[0].process.pid in told):
            running = [each.end for each in self.processes if not each.ended]
            if running:
                await asyncio.wait(running, timeout=POLL_S, return_when=asyncio.FIRST_COMPLETED)
            self.progress.update()
            for each in self.processes:
                if each.ended and each.process.pid not in told and self._is_clear(each):
                    told.add(each.process.pid)
                    await self._judge(each)
        _, slow_ends = await asyncio.wait([each.end for each in self.processes], timeout=SETTLE_S)
        if slow_ends:
            slow = [each.name for each in self.processes if each.end in slow_ends]
            self.progress.say(
                f"did not end in {SETTLE_S:g} s and will be stopped: {', '.join(slow)}"
            )
        self.progress.update()

    def _is_clear(self, ended: _Process) -> bool:
        """Whether it can be told what an end means. A node ends in good order most often because the
        run does, and the GPS's log, which is written once a second, says so a moment later."""
        if ended is self.processes[0] or ended.process.returncode or self._stopping:
            return True
        if self._draining():
            return True
        now = asyncio.get_running_loop().time()
        return now - self._ends.setdefault(ended.name, now) >= GOOD_END_S

    async def _judge(self, ended: _Process) -> None:
        """A process has ended: go on without it, or have the GPS settle and end what cannot go on."""
        code, gps = ended.process.returncode, self.processes[0]
        said = f"{ended.name} ended with exit code {code}"
        killed = code is not None and code < 0
        again = ended.lasting and self._starts[ended.name] < (KILLED_MAX if killed else FAILED_MAX)
        if ended is gps:
            if killed and again:
                await self._start_again(ended, said)
            elif code:
                raise PelagoError(f"{said}: {self._log('gps')}")
            return
        if self._stopping or self._draining():
            return
        if again and (killed or ended.name == "evaluator"):
            await self._start_again(ended, said)
        elif ended.vital:
            self._fail(f"{said}, and the run cannot go on: {self._log(ended.name)}")
        elif all(each.ended for each in self.processes if not each.vital):
            self._fail(f"{said}, the last worker: {self._log(ended.name)}")
        else:
            self.progress.say(f"{said}; the others go on")

    async def _start_again(self, ended: _Process, said: str) -> None:
        self.progress.say(f"{said}; starting it again")
        await self._start(ended.name, ended.command, vital=ended.vital, lasting=ended.lasting)

    def _fail(self, why: str) -> None:
        self._failure, self._stopping = why, True
        self.progress.say(f"{why}; the run is settled")
        self.processes[0].process.terminate()

    def _draining(self) -> bool:
        """Whether the GPS has ended the run, so that the others may go."""
        return self.progress.phase in ("draining", "finished")

    def _log(self, name: str) -> str:
        log = self.out / name / "console.log"
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return " | ".join(lines[-LOG_LINES:]) or f"see {log}"

    def _stop(self) -> None:
        """Ask the GPS to end the run in good order; the second time, ask everybody to go at once."""
        waiting = [each.process for each in self.processes if not each.ended]
        if self._stopping:
            for process in waiting:
                process.kill()
        elif waiting:
            self.progress.say("stopping: the run is settled and evaluated (again to stop at once)")
            waiting[0].terminate()
        self._stopping = True

    async def _end_all(self) -> None:
        for each in self.processes:
            if not each.ended:
                each.process.kill()
        await asyncio.gather(*(each.end for each in self.processes))

    def _summarise(self) -> int:
        if self._failure:
            raise PelagoError(self._failure)
        path = self.out / "result.json"
        if not path.exists():
            raise PelagoError(f"no result was written: {self._log('gps')}")
        result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        self.progress.summarise(result)
        evaluator = next(each for each in self.processes if each.name == "evaluator")
        if (code := evaluator.process.returncode or 0) > 0:
            self.progress.say(f"evaluator ended with exit code {code}: {self._log('evaluator')}")
            return 1
        if not (self.out / "model" / "config.json").exists():
            self.progress.say("no model/: the evaluator was gone before it had the last version")
            return 1
        if result["counted_steps"] == 0:
            self.progress.say("nothing was trained")
            return 1
        return 0 if result["ledger"]["duplicated"] == 0 else 1
