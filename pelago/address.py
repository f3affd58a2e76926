"""HOST:PORT as people write it: names, IPv4, and IPv6 in brackets.

A name with letters outside ASCII is turned into what the domain name system knows it by (IDNA), so what leaves
this module is ASCII.
"""

import ipaddress
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
        return _ipv6(host), _port(port)
    host, colon, port = text.rpartition(":")
    if not colon or not host:
        raise ValueError(f"must be {_FORM}")
    if ":" in host:
        raise ValueError("an IPv6 address stands in brackets, as in [fd00::7]:7700")
    if host == "*" and not listens:
        raise ValueError("* is all addresses of a machine, and one is needed to connect to")
    return host if host == "*" else _name(host), _port(port)


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
