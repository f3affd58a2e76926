"""HOST:PORT as people write it: names, IPv4, and IPv6 in brackets.

A name with letters outside ASCII is turned into what the domain name system knows it by (IDNA), so what leaves
this module is ASCII.
"""

import ipaddress
import socket
import string
from typing import Final

PORT_MAX: Final = 65_534
"""A server's bulk data uses the next port, which must exist too."""
ANY: Final = ("*", "0.0.0.0", "::")
"""Hosts that mean all addresses of the machine: of both families, of IPv4, of both families."""
_LABEL: Final = frozenset(string.ascii_letters + string.digits + "-_.")
_FORM: Final = "HOST:PORT, as in gps.example:7700, 10.0.0.7:7700 or [fd00::7]:7700"


def split(text: str, *, listens: bool = False) -> tuple[str, int]:
    """Host, without brackets and in ASCII, and port. Raises `ValueError` that says what would be right.

    ``listens``: a server is to listen there, perhaps at *, all addresses.
    """
    if "/" in text:
        raise ValueError(f"must be {_FORM}, without tcp:// or a path")
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        colon, port = rest[:1], rest[1:]
        if not bracket or colon != ":":
            raise ValueError(f"must be {_FORM}")
        return _one(_ipv6(host), listens), _port(port)
    host, colon, port = text.rpartition(":")
    if not colon or not host:
        raise ValueError(f"must be {_FORM}")
    if ":" in host:
        raise ValueError("an IPv6 address stands in brackets, as in [fd00::7]:7700")
    return _one(host if host == "*" else _name(host), listens), _port(port)


def join(host: str, port: int) -> str:
    """The text that `split` takes apart."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def reached_at(bind_host: str) -> str:
    """Where a server that listens on a host is found from the same machine."""
    return "127.0.0.1" if bind_host in ANY else bind_host


def is_number(host: str) -> bool:
    """Whether it is an address already, and no name that has to be looked up."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _one(host: str, listens: bool) -> str:
    if not listens and (host == "*" or _is_unspecified(host)):
        raise ValueError(
            f"{host} is all addresses of a machine, for a server to listen on; to connect needs one that others"
            " can reach"
        )
    return host


def _is_unspecified(host: str) -> bool:
    """Whether it is 0.0.0.0 or ::, in any spelling that a system takes ("0", "::ffff:0.0.0.0")."""
    if ":" in host:
        parsed = ipaddress.IPv6Address(host)
        return (parsed.ipv4_mapped or parsed).is_unspecified
    try:
        return not any(socket.inet_aton(host))
    except OSError:
        return False


def _port(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 5 and 1 <= int(text) <= PORT_MAX):
        raise ValueError(f"must be {_FORM}, with a port from 1 to {PORT_MAX}")
    return int(text)


def _ipv6(host: str) -> str:
    try:
        ipaddress.IPv6Address(host)
    except ValueError:
        raise ValueError(f"{host!r} in brackets is no IPv6 address") from None
    return host


def _name(host: str) -> str:
    try:
        known = host.encode("idna").decode("ascii")
    except UnicodeError:
        raise ValueError(
            f"{host!r} can be no host's name: between dots stand 1 to 63 characters"
        ) from None
    strange = sorted(set(known) - _LABEL)
    if strange:
        raise ValueError(
            f"{host!r} can be no host's name: it has {', '.join(map(repr, strange))}, and names have letters,"
            " digits, '-', '_' and '.'"
        )
    return known
