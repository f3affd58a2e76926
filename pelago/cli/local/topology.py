"""The nodes of a run on this machine: their commands, their ports, and the emulated links between regions."""

from collections.abc import Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

from pelago.config.run_file import RunFile
from pelago.config.servers import ServerSection
from pelago.emulate.wan import Link, WanProxy
from pelago.net.sockets.tcp_ports import free_pairs


@dataclass(frozen=True, slots=True)
class NodeCommand:
    """How one node is started."""

    name: str
    role: str
    """"gps", "lps" or "worker"."""
    flags: tuple[str, ...]
    required: bool = True
    """Whether the run cannot go on without it."""
    restartable: bool = True
    """Whether another process can take its place, since it keeps no state or leaves it on disk."""


class LocalTopology:
    """A run file bound to free ports of this machine.

    ``source``: what the GPS is to resume from, see `gps --resume`; None: the run begins.
    """

    def __init__(self, run: RunFile, out: Path, source: str | None = None) -> None:
        self.out = out
        self._source = source
        ports = free_pairs(1 + 2 * len(run.region), run.local.port)
        self._link_ports = ports[1 + len(run.region) :]
        bound = run.model_dump()
        bound["run"]["out"] = str(out)
        bound["gps"] |= {"bind": f"127.0.0.1:{ports[0]}", "connect": ""}
        for region, port in zip(bound["region"], ports[1:], strict=False):
            region |= {"bind": f"127.0.0.1:{port}", "connect": ""}
        self.run_file = RunFile.model_validate(bound)

    async def start_links(self, stack: AsyncExitStack) -> dict[str, str]:
        """Start the emulated links, which end with the stack.

        Returns HOST:PORT by region: where its LPS finds the GPS through a link.
        """
        network, names = self.run_file.network, [each.name for each in self.run_file.region]
        home = names.index(self.run_file.gps_region)
        gps_port = self.run_file.gps_bind()[1]
        connect: dict[str, str] = {}
        if not network.bandwidth_gbps and not network.latency_ms:
            return connect
        for index, name in enumerate(names):
            if index == home:
                continue
            up, down = self._link(index, home), self._link(home, index)
            for offset in (0, 1):
                port = self._link_ports[index] + offset
                proxy = WanProxy("127.0.0.1", port, "127.0.0.1", gps_port + offset, up, down)
                await stack.enter_async_context(proxy)
            connect[name] = f"127.0.0.1:{self._link_ports[index]}"
        return connect

    def _link(self, source: int, target: int) -> Link:
        network = self.run_file.network
        gbps = network.bandwidth_gbps[source][target] if network.bandwidth_gbps else 10.0
        latency_ms = network.latency_ms[source][target] if network.latency_ms else 0.0
        return Link(gbps * 1e9 / 8, latency_ms)

    def commands(self, connect: dict[str, str]) -> Iterator[NodeCommand]:
        """How each node is started, the GPS first. ``connect``: see `start_links`."""
        run, resumes = self.run_file, self._source is not None
        source = ("--resume", str(self._source)) if resumes else ()
        yield NodeCommand("gps", "gps", source, restartable=_keeps_state(run.gps))
        for region in run.region:
            route = ("--connect", connect[region.name]) if region.name in connect else ()
            flags = ("--region", region.name, *route, *(("--resume",) if resumes else ()))
            yield NodeCommand(f"lps-{region.name}", "lps", flags, restartable=_keeps_state(run.lps))
        slots = {name: ("--slot", str(slot)) for name, slot in run.slots.items()}
        yield NodeCommand("evaluator", "worker", ("--evaluate", *slots["evaluator"]))
        for region in run.region:
            for group in range(len(region.worker_speeds)):
                flags = ("--region", region.name, "--group", str(group), "--paced")
                name = f"worker-{region.name}-{group}"
                yield NodeCommand(
                    name, "worker", (*flags, *slots[name]), required=False, restartable=False
                )


def _keeps_state(server: ServerSection) -> bool:
    return server.durability != "none"
