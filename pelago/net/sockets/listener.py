"""Watches a server's two ports: reports clients that reach only one of them, since those can do nothing."""

import math
from collections.abc import Callable
from typing import Final

from pelago.core.machine import PS_PER_MS
from pelago.net.sockets.blocked import Blocked
from pelago.net.sockets.pair import LABELS, Bind, ServerSide
from pelago.net.telemetry import Telemetry
from pelago.runlog.events import ClientBlocked, ClientUnblocked

LOOK_MS: Final = 1_000
TOGETHER_S: Final = 10.0
"""A client connects to both ports at once, and where it can, both are connected within so long."""
HOSTS_MAX: Final = 256
"""Hosts that are watched for blocked ports; no peer can make this server remember more."""


class Listener:
    """Watches the ports of one server side. ``clock``: picoseconds."""

    def __init__(
        self, bind: Bind, side: ServerSide, telemetry: Telemetry, clock: Callable[[], int]
    ) -> None:
        self._bind = bind
        self._channels = (side.control, side.bulk)
        self._telemetry = telemetry
        self._clock = clock
        self._looked_at = clock()
        self._blocked: dict[str, Blocked] = {}
        self._newest: tuple[dict[str, float], dict[str, float]] = ({}, {})
        """By port: when each host's newest connection was made, also if it is gone."""

    def tick(self) -> None:
        """To be called about once a second, or more often."""
        now = self._clock()
        if now - self._looked_at < LOOK_MS * PS_PER_MS:
            return
        self._looked_at = now
        opened = [each.hosts(self._bind.port + place) for place, each in enumerate(self._channels)]
        here = opened[0].keys() | opened[1].keys()
        for host in self._blocked.keys() - here:
            del self._blocked[host]
            for newest in self._newest:
                newest.pop(host, None)
        for host in sorted(here):
            if host in self._blocked or len(self._blocked) < HOSTS_MAX:
                self._tell(host, opened, now)

    def _tell(self, host: str, opened: list[dict[str, float]], now: int) -> None:
        for newest, connections in zip(self._newest, opened, strict=True):
            newest.update({host: connections[host]} if host in connections else {})
        reported = self._blocked.setdefault(host, Blocked())
        for place, label in enumerate(LABELS):
            port, other = self._bind.port + place, opened[1 - place].get(host)
            here = host in opened[place]
            # One that was made together with the other, and has ended, ended for another reason.
            made_at = self._newest[place].get(host, -math.inf)
            blocked = not here and other is not None and made_at < other - TOGETHER_S
            if reported.begins(label, now, blocked=blocked):
                self._telemetry.event(ClientBlocked(host, label, port))
                self._telemetry.line(
                    f"{host} reaches the {LABELS[1 - place]} port {self._bind.port + 1 - place} but not the {label}"
                    f" port {port}, and can do nothing without both: let TCP port {port} through the firewalls"
                    " between"
                )
            elif here and reported.ends(label):
                self._telemetry.event(ClientUnblocked(host, label, port))
                self._telemetry.line(f"{host} reaches the {label} port {port}")
