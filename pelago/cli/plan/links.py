"""Bytes of a transfer in each encoding, and the seconds that it takes on a link."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from pelago.config.fields import Durability
from pelago.config.run_file import RunFile
from pelago.tensor.encodings.encoding import Encoding
from pelago.tensor.encodings.registry import ENCODINGS
from pelago.tensor.manifest import CHUNK_BYTES, ELEMENT_BYTES

NODE_BYTES_PER_S: Final[Mapping[Durability, float]] = MappingProxyType(
    {"none": 2.5e9, "process": 1.07e9, "host": 1.07e9}
)
"""What two nodes move through checksums, copies, journal and the step on any link, by the durability of the server.
none: 256 MB there and back in 0.20 s (bench/push_pull.py, two cores). process: 3.9 GB there and back in 7.26 s
(bench/round.py, 16 cores beside an H200); host: the same, if the disk keeps up."""
ASK_TRIPS: Final = 2
"""One-way trips before an update is sent: Offer and Grant."""
BITS: Final = 8
MS_PER_S: Final = 1000


def encodings() -> tuple[Encoding, ...]:
    """The encodings in which payloads can travel, the widest first."""
    return tuple(ENCODINGS.values())


def payload_bytes(encoding: Encoding, elements: int) -> int:
    """Bytes of a model in an encoding, cut in chunks as if it were one tensor."""
    chunk = CHUNK_BYTES // ELEMENT_BYTES
    whole, rest = divmod(elements, chunk)
    return whole * encoding.chunk_bytes(chunk) + (encoding.chunk_bytes(rest) if rest else 0)


@dataclass(frozen=True, slots=True)
class LinkSpeed:
    """One direction between two places."""

    bytes_per_s: float
    """Of the line, or of the nodes at its ends if they are slower."""
    latency_s: float

    def seconds(self, count: int) -> float:
        """Until all of a payload is there."""
        return count / self.bytes_per_s + self.latency_s


@dataclass(frozen=True, slots=True)
class Hop:
    """Both directions between a client and its server."""

    up: LinkSpeed
    down: LinkSpeed

    def push_s(self, count: int) -> float:
        """From the offer until the update is there."""
        ask = (self.up.latency_s + self.down.latency_s) * ASK_TRIPS / 2
        return ask + self.up.seconds(count)

    def pull_s(self, count: int) -> float:
        """Until the model that answers is there."""
        return self.down.seconds(count)


def hops(run: RunFile) -> tuple[Mapping[str, Hop], Mapping[str, Hop]]:
    """By region: from its LPS to the GPS, and from its workers to its LPS, as [network] gives the links. Where it gives
    none, nodes exchange as if they shared a host."""
    network = run.network
    names = [each.name for each in run.region]
    home = names.index(run.gps_region)

    def link(source: int, target: int, durability: Durability) -> LinkSpeed:
        gbps = network.bandwidth_gbps[source][target] if network.bandwidth_gbps else math.inf
        latency_ms = network.latency_ms[source][target] if network.latency_ms else 0.0
        rate = min(gbps * 1e9 / BITS, NODE_BYTES_PER_S[durability])
        return LinkSpeed(rate, latency_ms / MS_PER_S)

    gps, lps = run.gps.durability, run.lps.durability
    far = {name: Hop(link(i, home, gps), link(home, i, lps)) for i, name in enumerate(names)}
    near = {name: Hop(link(i, i, lps), link(i, i, lps)) for i, name in enumerate(names)}
    return far, near
