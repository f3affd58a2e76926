"""The processes of a local run: started, asked to end, killed, and what they printed last."""

import os
import subprocess
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pelago import children
from pelago.cli.local.topology import NodeCommand
from pelago.core.errors import ConfigError

NOW_S: Final = 3.0
"""How long nodes that are asked to end at once have before they are killed."""
LOG_LINES: Final = 3
ONE_THREAD: Final = {
    name: "1" for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
} | {"TOKENIZERS_PARALLELISM": "false"}
"""Processes share the cores, so each computes on one thread: more would measure the scheduler."""
COMPILE_THREADS: Final = "TORCHINDUCTOR_COMPILE_THREADS"
"""With a GPU each process compiles its model first, by default on as many processes as there are cores."""


@dataclass(frozen=True, slots=True)
class NodeProcess:
    """A process of one node."""

    command: NodeCommand
    process: subprocess.Popen[bytes]

    @property
    def name(self) -> str:
        """The node's."""
        return self.command.name

    @property
    def ended(self) -> bool:
        """Whether the process is gone."""
        return self.process.poll() is not None

    @property
    def code(self) -> int | None:
        """The exit code, as of the last look at `ended`; negative: minus the signal that killed the process."""
        code: int | None = self.process.returncode
        return code


class NodeProcesses:
    """The latest process of each node, in the order in which the nodes were first started: the GPS's is first.

    ``out``: folder of the results, with the run file. ``computing``: how many nodes share this machine's cores.
    """

    def __init__(self, out: Path, computing: int) -> None:
        self._out = out
        self._computing = computing
        self._latest: dict[str, NodeProcess] = {}
        self._starts: Counter[str] = Counter()

    @property
    def all(self) -> list[NodeProcess]:
        """The latest process of each node."""
        return list(self._latest.values())

    @property
    def gps(self) -> NodeProcess | None:
        """The GPS's, once it was started."""
        return self._latest.get("gps")

    @property
    def all_ended(self) -> bool:
        """Whether no process is left."""
        return all(each.ended for each in self.all)

    def starts(self, name: str) -> int:
        """How often a node was started."""
        return self._starts[name]

    def start(self, command: NodeCommand) -> None:
        """Start a node, or another process for one that has ended. Raises `ConfigError`."""
        self._starts[command.name] += 1
        folder = self._out / command.name
        try:
            folder.mkdir(parents=True, exist_ok=True)
            console = (folder / "console.log").open("ab")
        except OSError as error:
            raise ConfigError(f"cannot write results to {folder}: {error}") from None
        with console:
            process = children.start(
                command.role,
                *("--run", str(self._out / "run.toml"), *command.flags, "--out", str(self._out)),
                stdout=console,
                stderr=console,
                environment=_threads(self._computing),
                # A Ctrl-C at the terminal is handed on by `Supervisor`, in good order.
                start_new_session=True,
            )
        self._latest[command.name] = NodeProcess(command, process)

    def kill_all(self) -> None:
        """Kill the processes that still run, and wait for their ends."""
        for each in self.all:
            if not each.ended:
                each.process.kill()
        for each in self.all:
            with suppress(subprocess.TimeoutExpired):  # It waits for a device, and ends after that.
                each.process.wait(NOW_S)

    def log(self, name: str) -> str:
        """The last lines that a node printed, in one line."""
        log = self._out / name / "console.log"
        try:
            lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        except OSError as error:  # For example, the folder of the results was removed.
            return f"{log} cannot be read: {error.strerror}"
        return " | ".join(lines[-LOG_LINES:]) or f"see {log}"


def terminate(processes: list[NodeProcess]) -> None:
    """Ask processes to end in good order."""
    for each in processes:
        if not each.ended:
            each.process.terminate()


def _threads(processes: int) -> dict[str, str]:
    """Environment variables for each of so many processes that compute on this machine."""
    share = max(1, len(os.sched_getaffinity(0)) // processes)
    return ONE_THREAD | {COMPILE_THREADS: os.environ.get(COMPILE_THREADS, str(share))}
