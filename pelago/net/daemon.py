"""Functions of all daemons: folder and name, log, end of the process. command.py has the command line."""

import os
import platform
import time
from pathlib import Path

from pelago import reading
from pelago.config.fields import Durability
from pelago.config.run_file import RunFile
from pelago.core.errors import ConfigError, PeerRefused, PeerSilent, PelagoError, RunFailed
from pelago.core.machine import FAILED, Finish
from pelago.net.durability.file_header import boot_id
from pelago.net.durability.state_folder import StateFolder
from pelago.net.durability.state_reader import RecoveredState
from pelago.net.node import CRASHED, exit_code
from pelago.net.telemetry import Telemetry
from pelago.protocol.client_session import UNANSWERED
from pelago.runlog.events import NodeStarted
from pelago.runlog.log import LOG_NAME


def out_folder(run: RunFile, flag: str | None) -> Path:
    """The folder of the results. Raises `ConfigError` for a ``~user`` that this host does not know."""
    return reading.require_expanded(flag, "--out") if flag else run.out


def random_bits() -> str:
    """64 random bits, in hexadecimal: what tells this process from every other one.

    Host, process id and time do not: containers of one image have one host name, in each of them the first
    process is number 1, and they are started together.
    """
    return os.urandom(8).hex()


def process_name(role: str, bits: str) -> str:
    """A name for this process that no other process of a run has or had. ``bits``: see `random_bits`."""
    host = "".join(
        c if c.isascii() and (c.isalnum() or c in "-.") else "-" for c in platform.node()
    )
    return f"{role[:20]}@{host[:16]}:{os.getpid()}:{bits}"


def worker_folder(region: str, group: int, bits: str) -> str:
    """A worker's folder among the run's results: by its group, or, if its server chooses one, its own."""
    return f"worker-{region}-{group if group >= 0 else bits}"


def process_age_s() -> float:
    """How long ago this process was started, its imports included; 0 where the system does not tell."""
    try:
        fields = Path("/proc/self/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    except OSError:
        return 0.0
    ticks = int(fields[19]) / os.sysconf("SC_CLK_TCK")
    return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks


def incarnation() -> int:
    """Seconds since 1970: later for a process that is started later."""
    return int(time.time())


def state_folder(folder: Path, name: str) -> Path:
    """Where a server keeps its state."""
    return folder / name / "state"


def is_certain(recovered: RecoveredState, durability: Durability) -> bool:
    """Whether the end of a recovered state is surely complete. With durability ``process`` it may be missing if the
    host was restarted."""
    return durability == "host" or recovered.header.boot == boot_id()


def may_be_torn(store: StateFolder, durability: Durability) -> bool:
    """Whether a crash of the host may have damaged a folder at this durability: no sound file in the folder was
    written since the host was started."""
    return durability != "host" and boot_id() not in store.boots()


def telemetry(folder: Path, node: str) -> Telemetry:
    """The node's event log in the run's folder. Raises `ConfigError` if it cannot be written."""
    try:
        log = Telemetry(node, folder / node / LOG_NAME)
    except OSError as error:
        raise ConfigError(f"cannot write to the folder of results {folder}: {error}") from None
    log.event(NodeStarted(round(process_age_s(), 3)))
    return log


def outcome(finish: Finish) -> int:
    """The exit code that a finished node deserves. Raises `PeerRefused`, `PeerSilent`, `RunFailed`."""
    if finish.reason == "refused":
        raise PeerRefused(finish.error)
    if finish.reason == UNANSWERED:
        raise PeerSilent(finish.error)
    if finish.reason == FAILED:
        raise PelagoError(finish.error)
    if finish.error and finish.reason != CRASHED:
        raise RunFailed(finish.error)
    return exit_code(finish)
