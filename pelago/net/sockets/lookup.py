"""Looks up the addresses of a host's name in a thread, since the system may take long to answer.

ZeroMQ would look names up by itself, but in the thread that carries the heartbeats of all its sockets.
"""

import asyncio
import errno
import socket
import threading
from collections.abc import Callable
from contextlib import closing, suppress
from typing import Any

from pelago.core.errors import ConfigError

Found = Callable[[list[str], str], None]
"""Takes the addresses, in the order in which to try them, and why there are none."""


def addresses(host: str, *, passive: bool = False) -> list[str]:
    """The addresses of a host, IPv4 and IPv6, in the order of the system. Raises `OSError`."""
    flags = socket.AI_PASSIVE if passive else 0
    found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, flags=flags)
    # Another family than those two has an address without a text.
    known = [each[4] for each in found if each[0] in (socket.AF_INET, socket.AF_INET6)]
    return list(dict.fromkeys(_text(each) for each in known))


def _text(found: tuple[Any, ...]) -> str:
    """An address as `getaddrinfo` gives it; of one that is of a link only (fe80::...) with the link: without it
    it leads nowhere."""
    host, link = str(found[0]), found[3] if len(found) == 4 else 0
    return f"{host}%{socket.if_indextoname(link)}" if link and "%" not in host else host


def own_addresses(host: str, key: str, shown: str) -> list[str]:
    """The addresses of this machine that a server is to listen on: ``*`` as it is. Raises `ConfigError`, naming
    the key."""
    if host == "*":
        return [host]
    try:
        found = addresses(host, passive=True)
    except OSError as error:
        raise ConfigError(
            f"{key} = {shown}: cannot resolve host {host!r} ({error.strerror})"
        ) from None
    # Of localhost the tables may name an IPv6 address where the machine has none.
    own = [each for each in found if _is_own(each)]
    if not own:
        raise ConfigError(
            f"{key} = {shown}: {', '.join(found)} is no address of this machine; a server behind one that is"
            " translated listens on 0.0.0.0, all its own (IPv6 too: *), and others find it by `connect`"
        )
    return own


def _is_own(host: str) -> bool:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with closing(socket.socket(family, socket.SOCK_STREAM)) as probe:
            probe.bind(socket.getaddrinfo(host, 0, family, socket.SOCK_STREAM)[0][4])
    except OSError as error:
        return error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)
    return True


class Lookup:
    """Looks up one name, again whenever asked to; on the event loop's thread."""

    def __init__(self, host: str, found: Found) -> None:
        self._host = host
        self._found = found
        self._loop = asyncio.get_running_loop()
        self.busy = False

    def begin(self) -> None:
        """Ask, unless an answer is still awaited."""
        if not self.busy:
            self.busy = True
            threading.Thread(target=self._ask, name="lookup", daemon=True).start()

    def _ask(self) -> None:
        try:
            answer, why = addresses(self._host), ""
        except (OSError, UnicodeError) as error:
            answer, why = [], str(getattr(error, "strerror", None) or error)
        with suppress(RuntimeError):  # The loop may be gone.
            self._loop.call_soon_threadsafe(self._answer, answer, why)

    def _answer(self, answer: list[str], why: str) -> None:
        self.busy = False
        self._found(answer, why)
