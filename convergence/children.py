"""Processes that work for another one."""

import multiprocessing
import os
import threading


def end_with_parent() -> None:
    """From now on this process ends when the one that began it does, however that ends: a child that waits
    for work would wait for ever."""
    threading.Thread(target=_wait_for_its_end, name="parent", daemon=True).start()


def _wait_for_its_end() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
