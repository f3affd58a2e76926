"""Follows a local run to its end: starts the nodes, judges the ends of processes, hands on signals."""

import asyncio
import json
import math
import signal
from contextlib import AsyncExitStack, suppress
from typing import Any, Final

from pelago import atomic_files
from pelago.cli.local.processes import NOW_S, NodeProcess, NodeProcesses, terminate
from pelago.cli.local.progress import ProgressDisplay
from pelago.cli.local.results_folder import EarlierResults
from pelago.cli.local.topology import LocalTopology
from pelago.config import run_toml
from pelago.core.errors import ConfigError, PelagoError
from pelago.net.command import EXIT_FAILED, EXIT_USER
from pelago.net.signals import listen
from pelago.runlog.events import ServerConnected
from pelago.runlog.log import LOG_NAME, lines_of, read_log

POLL_S: Final = 0.1
SETTLE_S: Final = 20.0
"""How long the others may take to end after the GPS has."""
GOOD_END_S: Final = 5.0
"""How long after a node ended in good order the GPS's log may take to say that the run is over; and how long after
the GPS other nodes may take to end by themselves: a node that has not joined by then hears of no end."""
KILLED_MAX: Final = 100
"""How often a restartable node is started if it is killed, which is no sign of a fault of its own."""
FAILED_MAX: Final = 3
"""How often a restartable node is started if it fails by itself."""


class Supervisor:
    """Runs the processes of a topology. ``earlier``: results to remove once the run goes on."""

    def __init__(
        self, topology: LocalTopology, live: bool, earlier: EarlierResults | None = None
    ) -> None:
        self.out = topology.out
        self._topology = topology
        self._earlier = earlier
        run = topology.run_file
        self.processes = NodeProcesses(self.out, len(run.slots))
        self.progress = ProgressDisplay(run, self.out, live)
        self._ending = False
        """Whether the run is to end: from then on nothing is started."""
        self._signals: list[signal.Signals] = []
        """Signals that asked for the end so far."""
        self._placed = set(("gps", *(f"lps-{each.name}" for each in run.region)))
        """Nodes whose device was reported."""
        self._kill_at = math.inf
        """When the processes that still run are killed, by the loop's clock."""
        self._failure = ""
        self._ended_at: dict[str, float] = {}
        """When nodes were first seen to have ended in good order, by the loop's clock."""

    async def run(self) -> int:
        """Run to the end. Returns the exit code. Raises `PelagoError`."""
        async with AsyncExitStack() as stack:
            stack.callback(listen(asyncio.get_running_loop(), self._on_signal))
            path = self.out / "run.toml"
            try:
                atomic_files.write_text(path, run_toml.dump(self._topology.run_file))
            except OSError as error:
                raise ConfigError(f"cannot write {path}: {error}") from None
            stack.callback(self.processes.kill_all)
            with self.progress:
                connect = await self._topology.start_links(stack)
                await self._start_nodes(connect)
                await self._watch()
                await self._end_others()
        return self._summarise()

    async def _start_nodes(self, connect: dict[str, str]) -> None:
        for command in self._topology.commands(connect):
            # Signals are heard in between.
            await asyncio.sleep(0)
            if self._ending:
                return
            self.processes.start(command)

    async def _watch(self) -> None:
        """Follow the run until the GPS has ended."""
        judged: set[int] = set()
        while (gps := self.processes.gps) and not (gps.ended and gps.process.pid in judged):
            await self._pause()
            for each in self.processes.all:
                if each.ended and each.process.pid not in judged and self._can_judge(each):
                    judged.add(each.process.pid)
                    self._judge(each)

    async def _end_others(self) -> None:
        """The GPS has ended: wait for the others, and end those that do not end by themselves."""
        if not self._is_settled():
            terminate(self.processes.all)
            await self._ends_within(NOW_S)
            return
        if not await self._ends_within(NOW_S if self._ending else GOOD_END_S):
            # They have not joined, or the GPS has given them up. An evaluator may still write the model.
            terminate(
                [
                    each
                    for each in self.processes.all
                    if each.name != "evaluator" or not self._evaluator_joined()
                ]
            )
        if not await self._ends_within(SETTLE_S):
            slow = ", ".join(each.name for each in self.processes.all if not each.ended)
            self.progress.say(f"did not end in {SETTLE_S:g} s and will be stopped: {slow}")

    async def _ends_within(self, seconds: float) -> bool:
        """Wait for all nodes to end, but no longer."""
        clock = asyncio.get_running_loop().time
        until = clock() + seconds
        while (running := not self.processes.all_ended) and clock() < until:
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
            self.processes.kill_all()

    def _say_devices(self) -> None:
        """Say of each process that computes on an accelerator, once, on which."""
        for name in [each.name for each in self.processes.all if each.name not in self._placed]:
            device = self.progress.device(name)
            if device:
                self._placed.add(name)
                if device != "cpu":
                    self.progress.say(f"{name} computes on {device}")

    def _is_settled(self) -> bool:
        """Whether the GPS has ended the run and informed the other nodes, with or without all results."""
        code = self.processes.gps.code if self.processes.gps else None
        return code == 0 or (code is not None and code > 0 and (self.out / "result.json").exists())

    def _evaluator_joined(self) -> bool:
        lines = read_log(self.out / "evaluator" / LOG_NAME)
        return any(lines_of(ServerConnected, lines))

    def _can_judge(self, ended: NodeProcess) -> bool:
        """Whether the reason for a node's end can be known by now.

        A node ends in good order most often because the run does. The GPS's log, which is written once a second,
        says so a moment later.
        """
        code = ended.code
        # When a region learns nothing any more, the GPS decides what follows: it may be the last region.
        fails = code and not (ended.command.required and code == EXIT_FAILED)
        if ended is self.processes.gps or fails or self._ending or self._is_draining():
            return True
        now = asyncio.get_running_loop().time()
        return now - self._ended_at.setdefault(ended.name, now) >= GOOD_END_S

    def _judge(self, ended: NodeProcess) -> None:
        """A process has ended: go on without it, start another, or have the GPS settle a run that cannot go on."""
        code, command = ended.code, ended.command
        said = f"{ended.name} ended with exit code {code}"
        killed = code is not None and code < 0
        starts_max = KILLED_MAX if killed else FAILED_MAX
        again = command.restartable and self.processes.starts(ended.name) < starts_max
        if self._ending:
            return
        if ended is self.processes.gps:
            if killed and again:
                self._start_again(ended, said)
            elif code:
                raise PelagoError(f"{said}: {self.processes.log('gps')}")
            return
        if self._is_draining():
            return
        # A fault of the user would meet the next process too.
        if again and (killed or (ended.name == "evaluator" and code != EXIT_USER)):
            self._start_again(ended, said)
        elif command.required:
            self._fail(f"{said}, and the run cannot go on: {self.processes.log(ended.name)}")
        elif all(each.ended for each in self.processes.all if not each.command.required):
            self._fail(f"{said}, the last worker: {self.processes.log(ended.name)}")
        else:
            self.progress.say(f"{said}; the others go on")

    def _start_again(self, ended: NodeProcess, said: str) -> None:
        self.progress.say(f"{said}; starting it again")
        self.processes.start(ended.command)

    def _fail(self, why: str) -> None:
        self._failure = why
        self.progress.say(f"{why}; the run is settled")
        self._end_run()

    def _end_run(self) -> None:
        """Ask the GPS to settle the run, once: asked twice it would end at once."""
        if not self._ending:
            self._ending = True
            terminate([self.processes.gps] if self.processes.gps else [])

    def _is_draining(self) -> bool:
        """Whether the GPS has ended the run, so that the others may go."""
        return self.progress.phase in ("draining", "finished")

    def _on_signal(self, number: signal.Signals) -> None:
        """First the run is settled; the second time all end at once, the third time they are killed."""
        self._signals.append(number)
        match len(self._signals):
            case 1:
                self.progress.say(
                    "stopping: the run is settled and evaluated (again to stop at once)"
                )
                self._end_run()
            case 2:
                self.progress.say("stopping at once (again to kill)")
                self._ending = True
                terminate(self.processes.all)
                self._kill_at = asyncio.get_running_loop().time() + NOW_S
            case _:
                self.processes.kill_all()

    def _unsettled(self) -> str:
        kept = any((self.out / "gps" / "state").glob("snapshot-*"))
        on = f"; `pelago resume` goes on from {self.out}" if kept else ""
        return f"stopped before the run was settled: there are no results{on}"

    def _record_failure(self) -> None:
        """Write the failure into the result: the GPS knows only that it was asked to settle."""
        path = self.out / "result.json"
        with suppress(OSError, ValueError):
            result = json.loads(path.read_text(encoding="utf-8"))
            if not result["error"]:
                result["error"] = self._failure
                atomic_files.write_text(path, json.dumps(result, indent=1) + "\n")

    def _summarise(self) -> int:
        if self._failure:
            self._record_failure()
            raise PelagoError(self._failure)
        if self._signals and not self._is_settled():
            self.progress.say(self._unsettled())
            return 128 + self._signals[-1]
        path = self.out / "result.json"
        if not path.exists():
            raise PelagoError(f"no result was written: {self.processes.log('gps')}")
        result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        self.progress.summarise(result)
        for each in self.processes.all:
            code = each.code or 0
            if each.name in ("gps", "evaluator") and code > 0:
                self.progress.say(
                    f"{each.name} ended with exit code {code}: {self.processes.log(each.name)}"
                )
                return 1
        if not (self.out / "model" / "config.json").exists():
            self.progress.say("no model/: the evaluator was gone before it had the last version")
            return 1
        if result["counted_steps"] == 0:
            self.progress.say("nothing was trained")
            return 1
        return 0 if result["ledger"]["duplicated"] == 0 else 1
