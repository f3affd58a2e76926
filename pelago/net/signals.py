"""Signals as calls on the event loop."""

import asyncio
import signal
from collections.abc import Callable
from typing import Final

ENDING: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Signals that ask a process to end: from the terminal, from its manager, and when its terminal is gone."""


def listen(
    loop: asyncio.AbstractEventLoop, heard: Callable[[signal.Signals], None]
) -> Callable[[], None]:
    """Have each signal of `ENDING` call ``heard``; returns a function that ends that.

    Signals that were ignored when this process began stay ignored (`nohup`, a shell's background).
    """
    numbers = [each for each in ENDING if signal.getsignal(each) is not signal.SIG_IGN]
    for number in numbers:
        loop.add_signal_handler(number, heard, number)

    def stop() -> None:
        for number in numbers:
            loop.remove_signal_handler(number)

    return stop
