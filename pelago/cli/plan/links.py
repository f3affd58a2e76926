"""Bytes of a transfer in each encoding, and the seconds that it takes on a link."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from pelago.config.run_file import RunFile
from pelago.tensor.encodings.encoding import Encoding
from pelago.tensor.encodings.registry import ENCODINGS
from pelago.tensor.manifest import CHUNK_BYTES, ELEMENT_BYTES

NODE_BYTES_PER_S: Final = 2.5e9
"""What two nodes move through checksums, copies and the step, on any link: 256 MB there and back in 0.20 s
(bench/push_pull.py, two cores of a Zen 5 EPYC)."""
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
    latency_s: float

    def seconds(self, count: int) -> float:
        """Until all of a payload is there."""
        return count / min(self.bytes_per_s, NODE_BYTES_PER_S) + self.latency_s


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

    def link(source: int, target: int) -> LinkSpeed:
        gbps = network.bandwidth_gbps[source][target] if network.bandwidth_gbps else math.inf
        latency_ms = network.latency_ms[source][target] if network.latency_ms else 0.0
        return LinkSpeed(gbps * 1e9 / BITS, latency_ms / MS_PER_S)

    far = {name: Hop(link(i, home), link(home, i)) for i, name in enumerate(names)}
    near = {name: Hop(link(i, i), link(i, i)) for i, name in enumerate(names)}
    return far, near
