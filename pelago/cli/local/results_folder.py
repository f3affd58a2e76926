"""The folder of a local run's results: made ready for a run, with or without results of an earlier one."""

import shutil
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

from pelago.core.errors import ConfigError
from pelago.net.files import lock_to_read
from pelago.runlog.log import LOG_NAME

RESULTS: Final = ("result.json", "loss.png", "global.safetensors", "global_average.safetensors")
"""Files and folders that a run writes when it ends."""
BEFORE: Final = ".before"
"""Ending of the results of an earlier incarnation, until it is known that the run goes on."""


class EarlierResults:
    """The results of a run's earlier incarnation: set aside until the next one has its own."""

    def __init__(self, out: Path) -> None:
        self._places = [(out / name, out / (name + BEFORE)) for name in RESULTS]

    def put_aside(self) -> None:
        """Rename them. Raises `OSError`."""
        for path, before in self._places:
            if path.is_file():
                path.replace(before)

    def put_back(self) -> None:
        """Rename those back that are still there and that nothing has replaced."""
        for path, before in self._places:
            if before.exists() and not path.exists():
                with suppress(OSError):
                    before.replace(path)

    def remove(self) -> None:
        """Delete them: the run goes on, and will have other results."""
        for _, before in self._places:
            with suppress(OSError):
                before.unlink(missing_ok=True)


def prepare(out: Path, overwrite: bool) -> None:
    """Make the folder for a new run; ``overwrite``: and remove the results of an earlier one. Raises `ConfigError`."""
    if (out / "run.toml").exists() and not overwrite:
        raise ConfigError(f"{out} holds an earlier run: choose another --out, or pass --overwrite")
    require_idle(out)
    try:
        out.mkdir(parents=True, exist_ok=True)
        if overwrite and (out / "run.toml").exists():
            for node in out.glob(f"*/{LOG_NAME}"):
                shutil.rmtree(node.parent)
            shutil.rmtree(out / "model", ignore_errors=True)
            for name in ("run.toml", *RESULTS):
                (out / name).unlink(missing_ok=True)
            EarlierResults(out).remove()
    except OSError as error:
        raise ConfigError(f"cannot write results to {out}: {error}") from None


def prepare_again(out: Path, earlier: EarlierResults) -> None:
    """Set aside the event logs and results of an earlier incarnation. Raises `ConfigError`."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        for node in out.glob(f"*/{LOG_NAME}"):
            # Progress is read from these logs, and they are of the earlier incarnation.
            node.replace(node.with_name(f"events-until-{int(time.time())}.jsonl"))
        earlier.put_aside()
    except OSError as error:
        raise ConfigError(f"cannot write results to {out}: {error}") from None


def require_idle(out: Path) -> None:
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
