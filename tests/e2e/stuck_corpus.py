"""A worker whose corpus stops answering, as on a share whose server is gone.

Usage: `python -m tests.e2e.stuck_corpus FILE ARGUMENT...`, the arguments being a worker's. The corpus is read as usual
while FILE does not exist. From then on every read blocks without end, and blocks nothing else.
"""

import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from worker.__main__ import main
from worker.data.corpus import Corpus

GONE = Path(sys.argv.pop(1))


def until_gone(read: Callable[..., Any]) -> Callable[..., Any]:
    """As ``read``, until the share is gone."""

    def reading(*arguments: Any) -> Any:
        if GONE.exists():
            threading.Event().wait()
        return read(*arguments)

    return reading


if __name__ == "__main__":
    Corpus._windows = until_gone(Corpus._windows)  # type: ignore[method-assign]
    sys.exit(main())
