"""The addresses behind a host's name."""

import socket
from typing import Any

import pytest

from pelago.net.sockets import lookup


def test_an_address_of_one_link_comes_with_its_link(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where a name has it, as one of mDNS may: without the link it leads nowhere."""
    link = socket.if_nametoindex("lo")

    def known(*_: Any, **__: Any) -> list[Any]:
        stream = (socket.SOCK_STREAM, 6, "")
        return [
            (socket.AF_INET6, *stream, ("fe80::1", 0, 0, link)),
            (socket.AF_INET6, *stream, ("fd00::7", 0, 0, 0)),
            (socket.AF_INET, *stream, ("10.0.0.7", 0)),
        ]

    monkeypatch.setattr(socket, "getaddrinfo", known)
    assert lookup.addresses("gps.local") == ["fe80::1%lo", "fd00::7", "10.0.0.7"]
