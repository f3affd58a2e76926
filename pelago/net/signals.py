"""Signals as calls on the event loop."""

import asyncio
import signal
from collections.abc import Callable
from typing import Final

ENDING: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""By which a process is asked to end: at the terminal, by whoever manages it, when its terminal is gone."""


def listen(
    loop: asyncio.AbstractEventLoop, heard: Callable[[signal.Signals], None]
) -> Callable[[], None]:
    """Have each signal of `ENDING` call ``heard``; returns what ends that.

    But for those that were ignored when this process began (`nohup`, a shell's background): whoever began
    it meant that.
    """
    numbers = [each for each in ENDING if signal.getsignal(each) is not signal.SIG_IGN]
    for number in numbers:
        loop.add_signal_handler(number, heard, number)

    def stop() -> None:
        for number in numbers:
            loop.remove_signal_handler(number)

    return stop
