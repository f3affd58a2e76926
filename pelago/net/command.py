"""A daemon's command line: flags, the run file, errors, exit codes.

A usage error is answered before anything is imported that takes long, torch above all: what needs it is
in the role's `service` module, imported when flags and run file are known to be sound.
"""

import argparse
import os
import sys
import threading
from collections.abc import Callable
from typing import IO, TYPE_CHECKING, Final, TypeAlias

import pelago
from pelago import children, reading
from pelago.address import split
from pelago.core.errors import ConfigError, PeerRefused, PeerSilent, PelagoError, RunFailed
from pelago.net.telemetry import say
from pelago.net.tensors.malloc import keep_what_is_freed

if TYPE_CHECKING:
    from pelago.config.run_file import RunFile

EXIT_FAILED: Final = 1
"""The node could not go on, the run failed, or a result could not be written."""
EXIT_USER: Final = 2
"""A run file, flag, path or port is wrong (the code that argparse uses as well)."""
EXIT_REFUSED: Final = 3
"""The server refused this node."""
EXIT_UNANSWERED: Final = 4
"""The server did not answer for `network.give_up_after_ms`."""
EXIT_INTERRUPTED: Final = 130
"""Ctrl-C, before there was anything to end in good order."""

Check: TypeAlias = "Callable[[argparse.Namespace, RunFile], None]"
"""Raises `ConfigError` for flags that do not fit the run file."""
Role: TypeAlias = "Callable[[argparse.Namespace, RunFile], int]"
"""Runs a node to its end; returns the exit code. Raises `PelagoError`."""


def flags(role: str, description: str) -> argparse.ArgumentParser:
    """A daemon's parser with the flags that all of them have."""
    parser = argparse.ArgumentParser(prog=role, description=description)
    parser.add_argument(
        "--run",
        required=True,
        metavar="RUN.toml",
        type=reading.expanded,
        help="the run file, the same everywhere",
    )
    parser.add_argument(
        "--out",
        metavar="DIR",
        type=reading.expanded,
        help="folder of the run's results (default: [run] out)",
    )
    parser.add_argument("--version", action="version", version=f"pelago {pelago.__version__}")
    return parser


def address(flag: str | None, default: tuple[str, int], key: str) -> tuple[str, int]:
    """Host and control port of a flag, or else the run file's. Raises `ConfigError` that names the flag."""
    if flag is None:
        return default
    try:
        return split(flag, listens=key.endswith("bind"))
    except ValueError as error:
        raise ConfigError(f"{key} = {flag!r}: {error}") from None


def require_out(flag: str | None, run: "RunFile") -> None:
    """Raises `ConfigError` if results cannot go where the flag, or else the run file, says."""
    reading.require_folder(reading.require_expanded(flag, "--out") if flag else run.out)


def natural(text: str) -> int:
    """The number of a flag: 0, 1, 2, ..."""
    if not (text.isascii() and text.isdigit()) or len(text) > 6:
        raise argparse.ArgumentTypeError(f"{text!r} must be a number from 0 to 999999")
    return int(text)


def main(
    role: str,
    parser: argparse.ArgumentParser,
    check: Check,
    imported: Callable[[], Role],
) -> int:
    """Parse the command line, read the run file, run the node. What a user got wrong is one line.

    ``imported``: imports what runs the node.
    """
    children.leave_working_folder()
    options = parser.parse_args()
    keep_what_is_freed()
    code = _run(role, options, check, imported)
    # A trainer deep in a long step cannot be stopped, and the interpreter must not be taken down around it.
    return ended(code, at_once=any(thread.daemon for thread in threading.enumerate()))


def ended(code: int, *, at_once: bool = False) -> int:
    """What a command returns at its end. ``at_once``: end the process here. A console that takes nothing any more
    ends it here too, since it must not change the exit code. Everything that has to be written was written.
    """
    flushed = [_flush(stream) for stream in (sys.stdout, sys.stderr)]
    if at_once or not all(flushed):
        os._exit(code)
    return code


def _flush(stream: IO[str] | None) -> bool:
    try:
        if stream is not None:
            stream.flush()
    except (OSError, ValueError):
        return False
    return True


def _run(
    role: str,
    options: argparse.Namespace,
    check: Check,
    imported: Callable[[], Role],
) -> int:
    try:
        from pelago.config.run_toml import load

        run = load(options.run)
        check(options, run)
        return imported()(options, run)
    except PeerRefused as error:
        say(f"{role}: refused: {one_line(error)}", sys.stderr)
        return EXIT_REFUSED
    except RunFailed as error:
        say(f"{role}: {one_line(error)}", sys.stderr)
        return EXIT_FAILED
    except PeerSilent as error:
        say(f"{role}: {one_line(error)}", sys.stderr)
        return EXIT_UNANSWERED
    except PelagoError as error:
        say(f"{role}: {one_line(error)}", sys.stderr)
        return EXIT_USER
    except MemoryError:
        say(f"{role}: out of memory", sys.stderr)
        return EXIT_USER
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED


def one_line(error: Exception) -> str:
    """An error's text on one line, whatever libraries put into it."""
    return " ".join(str(error).split())
