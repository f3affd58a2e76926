"""Work as an unprivileged user, to whom folders can be closed: root may write everywhere."""

import os
import traceback
from collections.abc import Callable
from pathlib import Path

NOBODY = 65534


def as_nobody(folder: Path, work: Callable[[], None]) -> int:
    """Exit code of a forked process, in a folder, that does some work; 0 if it raised nothing."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.chdir(folder)
            if os.geteuid() == 0:
                os.setgid(NOBODY)
                os.setuid(NOBODY)
            work()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
