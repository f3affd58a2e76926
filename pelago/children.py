"""Processes of ours: how one begins another, and that none outlives the one that began it.

A child is this file, run by its path. It asks the kernel to be killed when its parent ends, however that
ends (prctl(2), PR_SET_PDEATHSIG), before it imports anything, and gives up if its parent ended even
earlier. So it goes from child to grandchild, and no process is left behind by a `kill -9`.

Nothing that lies in the working folder is executed by a child, be it called queue.py, torch.py or
worker.py: PYTHONSAFEPATH keeps that folder off its path and off those of whatever its libraries start.
"""

import ctypes
import importlib.util
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Collection, Mapping
from contextlib import ExitStack, suppress
from importlib.machinery import PathFinder
from tempfile import TemporaryFile
from typing import IO, Any, Final

_ROOT: Final = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
"""Where our packages lie."""
_OURS: Final = ("pelago", "gps", "lps", "worker", "convergence", "experiments")
_PR_SET_PDEATHSIG: Final = 1
"""From linux/prctl.h."""


def leave_working_folder() -> None:
    """Take the working folder off this process's path, and off those of all processes that it begins.

    `python -m` put it there, or an empty entry of PYTHONPATH, which hardly anybody means. To be called
    first by every command; what Python itself imported before cannot be helped. Where there is no working
    folder any more it ends the process: half of what a command does, and of its libraries, asks for it.
    """
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    unasked = [] if sys.flags.safe_path or spec is None else [spec.name.partition(".")[0] in _OURS]
    entries = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    if len(entries) > 1:
        unasked += [not entry for entry in entries]
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, entries))
    try:
        here = os.getcwd()
    except OSError as error:
        why = "was removed" if isinstance(error, FileNotFoundError) else f"is not known: {error}"
        name = os.path.basename(sys.argv[0].removesuffix("/__main__.py"))
        with suppress(OSError, ValueError):  # There may be no listener.
            sys.stderr.write(
                f"{name}: the working folder {why}; go to one that is there (cd DIR)\n"
            )
        sys.exit(2)
    for _ in range(sum(unasked)):
        if here in sys.path:
            sys.path.remove(here)
    if _ROOT not in sys.path:
        # A checkout that is not installed, and was found by one of these. Last, it hides nothing.
        sys.path.append(_ROOT)
    os.environ["PYTHONSAFEPATH"] = "1"


def start(
    role: str,
    *flags: str,
    stdin: int | IO[Any] | None = subprocess.DEVNULL,
    stdout: int | IO[Any] | None = None,
    stderr: int | IO[Any] | None = None,
    environment: Mapping[str, str] | None = None,
    pass_fds: Collection[int] = (),
    start_new_session: bool = False,
) -> subprocess.Popen[bytes]:
    """Begin `ROLE FLAGS...` (gps, lps or worker) as a process that ends when this one does.

    ``environment``: variables beside those of this process. To be called from a thread that runs as
    long as the process, best the main one: the kernel takes the end of the thread for the parent's.
    """
    return subprocess.Popen(
        [sys.executable, __file__, str(os.getpid()), role, *flags],
        stdin=stdin,
        stdout=stdout,
        stderr=stderr,
        env={**os.environ, **(environment or {}), "PYTHONSAFEPATH": "1"},
        pass_fds=tuple(pass_fds),
        start_new_session=start_new_session,
    )


def ask(
    role: str,
    *flags: str,
    stdin_text: str,
    pass_fds: Collection[int] = (),
    heard: Callable[[str], bool] = lambda _: False,
) -> str:
    """Run `ROLE FLAGS...` to its end and return what it wrote to stdout. Raises `ConfigError` with its own message.

    ``stdin_text``: what it reads from stdin. ``heard`` is given the lines of its stderr as they come and says
    whether it understood them. If this process is interrupted, the child is killed.
    """
    words: list[str] = []
    with ExitStack() as stack:
        stdin, stdout = _temporary(stack, stdin_text), _temporary(stack, "")
        stderr = subprocess.PIPE
        with start(
            role, *flags, stdin=stdin, stdout=stdout, stderr=stderr, pass_fds=pass_fds
        ) as process:
            assert process.stderr is not None
            try:
                for line in process.stderr:
                    text = line.decode(errors="replace").strip()
                    if text and not heard(text):
                        words.append(text)
            except BaseException:
                process.kill()
                raise
        stdout.seek(0)
        answer = stdout.read().decode(errors="replace")
    if process.returncode:
        # Not above: this file is run by its path, before our packages can be found.
        from pelago.core.errors import ConfigError

        said = words[-1] if words else f"{role} {flags[-1]} ended with {process.returncode}"
        raise ConfigError(said.removeprefix(f"{role}: "))
    return answer


def _temporary(stack: ExitStack, content: str) -> IO[bytes]:
    """A file without a name. Raises `ConfigError` where there is no room for it."""
    try:
        file: IO[bytes] = stack.enter_context(TemporaryFile())  # noqa: SIM115
        file.write(content.encode())
        file.seek(0)
    except OSError as error:
        from pelago.core.errors import ConfigError

        raise ConfigError(f"no room for temporary files (TMPDIR says where): {error}") from None
    return file


def end_with(parent: int) -> None:
    """From now on this process is killed when ``parent``, the process that began it, ends."""
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    if prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL)):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent:
        # It ended before the kernel was asked.
        os._exit(1)


def _load(name: str) -> None:
    """Import one of our packages from where this file lies, whatever else bears its name."""
    spec = PathFinder.find_spec(name, [_ROOT])
    assert spec is not None, f"no {name} in {_ROOT}"
    assert spec.loader is not None
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)


def _be_a_child() -> int:
    parent, role, *flags = sys.argv[1:]
    end_with(int(parent))
    # By SIGTERM the parent asks for the end, whatever it was told to ignore itself.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    for name in ("pelago", role):
        _load(name)
    sys.argv = [role, *flags]
    code: int = importlib.import_module(f"{role}.__main__").main()
    return code


if __name__ == "__main__":
    sys.exit(_be_a_child())
