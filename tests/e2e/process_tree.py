"""A command and all processes that descend from it, also those in other groups and sessions or with other parents."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

DEADLINE_S = 50.0
BIN = Path(sys.executable).parent
MARK = "PELAGO_TEST_PROCESS_TREE"


@dataclass
class ProcessTree:
    """A running command; its descendants are known by a variable of their environment."""

    process: subprocess.Popen[str]
    name: str
    heard: list[str] = field(default_factory=list)

    def members(self) -> dict[int, list[str]]:
        """Process id and command line of all processes that run, the command among them."""
        mark = f"{MARK}={self.name}".encode()
        found: dict[int, list[str]] = {}
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if mark in (folder / "environ").read_bytes().split(b"\0"):
                    line = (folder / "cmdline").read_bytes().decode(errors="replace")
                    found[int(folder.name)] = line.split("\0")
            except OSError:
                continue  # It has ended by now.
        return found

    def one(self, *words: str) -> int:
        """The member whose command line has these words; 0 if there is none."""
        for number, line in self.members().items():
            if all(word in line for word in words):
                return number
        return 0

    def until(self, what: str, true: Callable[[], object], within_s: float = DEADLINE_S) -> None:
        """Wait, with a deadline, for something that no event reports across processes."""
        deadline = time.monotonic() + within_s
        while not true():
            assert time.monotonic() < deadline, f"never happened: {what}; {self.members()}"
            time.sleep(0.005)

    def hears(self, text: str) -> None:
        """Wait until the command prints a line with some text in it."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.heard.append(line)
            if text in line:
                return
        raise AssertionError(f"it never said {text!r}: {self.heard}")

    def end(self) -> tuple[int, str]:
        """Wait for the command: its exit code, and what it printed."""
        output, _ = self.process.communicate(timeout=DEADLINE_S)
        return self.process.returncode, "".join([*self.heard, output])

    def gone(self, within_s: float = DEADLINE_S) -> None:
        """Wait until no process is left."""
        self.until("all are gone", lambda: not self.members(), within_s)


def has_loaded(number: int, library: str) -> bool:
    """Whether a process has loaded a library, which shows how far its imports are."""
    try:
        return library in Path(f"/proc/{number}/maps").read_text(encoding="utf-8")
    except OSError:
        return False


@contextmanager
def process_tree(
    command: Sequence[str | Path],
    *,
    folder: Path,
    ignored: Sequence[signal.Signals] = (),
    environment: dict[str, str] | None = None,
) -> Iterator[ProcessTree]:
    """Start a command in ``folder``, some signals ignored; the processes that still run at the end are killed."""
    name = f"{os.getpid()}-{time.monotonic_ns()}"
    # Python resets nothing that it finds ignored, and a test may run in a shell that ignores SIGINT.
    before = {
        number: signal.signal(number, signal.SIG_IGN if number in ignored else signal.SIG_DFL)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    }
    try:
        process = subprocess.Popen(
            [str(word) for word in command],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, **(environment or {}), MARK: name},
        )
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    found = ProcessTree(process, name)
    try:
        yield found
    finally:
        for number in found.members():
            os.kill(number, signal.SIGKILL)
        process.communicate()
