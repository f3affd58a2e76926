"""Which ports of this machine are free. A server takes two: control, and bulk on the next one."""

import errno
import os
import socket
from contextlib import closing

from pelago import address
from pelago.core.errors import ConfigError
from pelago.net.sockets.lookup import own_addresses

PORT_MAX = 65535
THIS_MACHINE = ("127.0.0.1", "::1", "localhost")


def is_free(host: str, port: int) -> bool:
    """Whether a TCP port of an address (``*``: of all) can be bound now."""
    return _fault(host, port) == 0


def _fault(host: str, port: int) -> int:
    """Number of the error with which it cannot; 0: it can."""
    if host == "*":
        host = "::" if socket.has_dualstack_ipv6() else "0.0.0.0"
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with closing(socket.socket(family, socket.SOCK_STREAM)) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if host == "::":
                probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            probe.bind(socket.getaddrinfo(host, port, family, socket.SOCK_STREAM)[0][4])
    except OSError as error:
        return error.errno or errno.EINVAL
    return 0


def require_free(host: str, port: int, key: str) -> None:
    """Raises `ConfigError`, naming the key, if a server's two ports cannot be bound."""
    shown = address.join(host, port)
    hosts = own_addresses(host, key, shown)
    for each in (port, port + 1):
        for fault in filter(None, (_fault(own, each) for own in hosts)):
            taken = fault == errno.EADDRINUSE
            why = "is taken on this machine" if taken else f"cannot be had: {os.strerror(fault)}"
            raise ConfigError(f"{key} = '{shown}': port {each} {why}")


def free_pairs(count: int, first: int = 0) -> list[int]:
    """Find ``count`` free pairs of ports on the loopback interface, from ``first`` upwards or anywhere; returns the
    first port of each.

    Raises `ConfigError` if there are not as many.
    """
    port = first
    if not port:
        with closing(socket.socket(socket.AF_INET, socket.SOCK_STREAM)) as probe:
            probe.bind(("127.0.0.1", 0))
            # Stay below the range from which the kernel gives out ports to clients, where it can be done.
            port = 10_000 + probe.getsockname()[1] % 20_000
    pairs: list[int] = []
    while len(pairs) < count:
        if port + 1 > PORT_MAX:
            raise ConfigError(f"local.port = {first}: too few free ports above it")
        if is_free("127.0.0.1", port) and is_free("127.0.0.1", port + 1):
            pairs.append(port)
        port += 2
    return pairs
