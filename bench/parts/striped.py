"""One end of a payload, for `stripes.py`: a real node with a machine that only sends or only receives, or a bare one.

    striped.py serve PORT MB
    striped.py push PORT MB STRIPES
    striped.py proxy PORT TARGET_PORT
    striped.py bare-serve PORT MB
    striped.py bare-push PORT MB CONNECTIONS

A pushing end answers each line on its standard input with the seconds of one payload, from its sending to the last
acknowledgement.
"""

import asyncio
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final

import torch
import uvloop
import zmq

from pelago.config.topology import NetworkSection
from pelago.core.machine import Delivered, Finish, Machine, Received, StopRequested
from pelago.core.names import Peer, PushId, Version
from pelago.core.tensor_effects import Release
from pelago.emulate.link import Link
from pelago.emulate.wan import WanProxy
from pelago.net.limits import Limits
from pelago.net.node import Node, NodeSettings
from pelago.net.sockets.pair import Bind, Connect
from pelago.net.telemetry import Telemetry
from pelago.net.tensors.malloc import keep_what_is_freed
from pelago.tensor.manifest import Manifest
from pelago.tensor.payload import bytes_of
from pelago.tensor.plane import Plane
from pelago.wire.codec import encode
from pelago.wire.messages import Effect, Event, Message, Push, TensorSpec

OURS: Final = -1
RUN_ID: Final = "stripes"
CONNECT_S: Final = 3.0
"""For control and bulk to be connected over the slow line before the clock runs."""
GBPS: Final = 1.0
ROUND_TRIP_MS: Final = 150.0
FLIGHT_BYTES_MAX: Final = 4 << 20


def manifest_of(mb: int) -> Manifest:
    """One tensor of so many MB in fp32."""
    return Manifest((TensorSpec("w", (mb * 10**6 // 4,)),))


class PushingEnd:
    """A machine that sends its payload when told to, and says how long it took."""

    def __init__(self) -> None:
        self.begun_at = 0.0

    def handle(self, event: Event, now: int) -> list[Effect]:
        """Report what was delivered."""
        match event:
            case Delivered():
                found = {"seconds": time.perf_counter() - self.begun_at}
                print(json.dumps(found), flush=True)
            case StopRequested(reason):
                return [Finish(reason)]
        return []

    def expects(self, peer: Peer, message: Message) -> bool:
        """Nothing comes."""
        return False

    def check(self) -> None:
        """No invariants."""


class TakingEnd:
    """A machine that takes what comes, and lets go of it."""

    def handle(self, event: Event, now: int) -> list[Effect]:
        """Release a payload at once."""
        match event:
            case Received(_, Push(), int(blob)):
                return [Release(blob)]
        return []

    def expects(self, peer: Peer, message: Message) -> bool:
        """Every payload is expected."""
        return True

    def check(self) -> None:
        """No invariants."""


def node_of(machine: Machine[Any], name: str, folder: Path, mb: int, **more: Any) -> Node:
    """A real node."""
    settings = NodeSettings(
        run_id=RUN_ID, name=name, crash_file=folder / "crash.json", handle_signals=False, **more
    )
    log = Telemetry(name, folder / "events.jsonl", console=None)
    return Node(machine, settings, log, plane=Plane(manifest_of(mb), None))


async def push(port: int, mb: int, stripes: int | str, folder: Path) -> None:
    """Push a payload for each line of the standard input."""
    limits = Limits.of(NetworkSection.model_validate({"stripes": stripes}))
    machine, loop = PushingEnd(), asyncio.get_running_loop()
    upstreams = (Connect("127.0.0.1", port, "gps"),)
    node = node_of(machine, "lps-1", folder, mb, upstreams=upstreams, limits=limits)
    running = asyncio.create_task(node.run())
    await asyncio.sleep(CONNECT_S)
    node.tensors.created(OURS)
    generator = torch.Generator().manual_seed(7)
    node.tensors.plane.adopt(OURS, torch.randn(mb * 10**6 // 4, generator=generator))
    pushed = Push(PushId(1, 0), Version(1, 0), 1, 1, 1, 0.0, ((0, 1),), (), 0)
    message = encode(RUN_ID, pushed)
    print(json.dumps({"ready": "push"}), flush=True)
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        assert line
        machine.begun_at = time.perf_counter()
        node.transfers.send("gps", message, OURS)
    node.post(StopRequested("the end"))
    await running


async def serve(port: int, mb: int, folder: Path) -> None:
    """Take payloads until killed."""
    limits = Limits.of(NetworkSection())
    server = Bind("127.0.0.1", port)
    node = node_of(TakingEnd(), "gps", folder, mb, server=server, limits=limits)
    print(json.dumps({"ready": "serve"}), flush=True)
    await node.run()


async def proxy(port: int, target: int) -> None:
    """Both ports of a server at the far end of one line."""
    up, down = (Link(GBPS * 1e9 / 8, ROUND_TRIP_MS / 2, FLIGHT_BYTES_MAX) for _ in range(2))
    async with (
        WanProxy("127.0.0.1", port, "127.0.0.1", target, up, down),
        WanProxy("127.0.0.1", port + 1, "127.0.0.1", target + 1, up, down),
    ):
        print(json.dumps({"ready": "proxy"}), flush=True)
        await asyncio.Event().wait()


def bare_serve(port: int, mb: int) -> None:
    """Receive every chunk, and answer the sender of the last one, again and again."""
    socket = zmq.Context(io_threads=4).socket(zmq.ROUTER)
    socket.set_hwm(0)
    socket.bind(f"tcp://127.0.0.1:{port}")
    chunks = len(manifest_of(mb).chunks)
    print(json.dumps({"ready": "bare-serve"}), flush=True)
    while True:
        for _ in range(chunks):
            sender, _ = socket.recv_multipart(copy=False)
        socket.send_multipart([sender, b""])


def bare_push(port: int, mb: int, connections: int) -> None:
    """Send every chunk, over connections in turn, for each line of the standard input."""
    context = zmq.Context(io_threads=4)
    sockets = [context.socket(zmq.DEALER) for _ in range(connections)]
    for each in sockets:
        each.set_hwm(0)
        each.linger = 0
        each.connect(f"tcp://127.0.0.1:{port}")
    manifest, flat = manifest_of(mb), torch.randn(mb * 10**6 // 4)
    poller = zmq.Poller()
    for each in sockets:
        poller.register(each, zmq.POLLIN)
    print(json.dumps({"ready": "bare-push"}), flush=True)
    while sys.stdin.readline():
        begun_at = time.perf_counter()
        for index, (start, stop) in enumerate(manifest.chunks):
            sockets[index % connections].send(bytes_of(flat[start:stop]), copy=False)
        for found, _ in poller.poll():
            found.recv()
        print(json.dumps({"seconds": time.perf_counter() - begun_at}), flush=True)


def main() -> None:
    """One process."""
    side, port, rest = sys.argv[1], int(sys.argv[2]), sys.argv[3:]
    torch.set_num_threads(1)
    keep_what_is_freed()  # As every daemon does.
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        match side:
            case "serve":
                uvloop.run(serve(port, int(rest[0]), folder))
            case "push":
                stripes = rest[1] if rest[1] == "auto" else int(rest[1])
                uvloop.run(push(port, int(rest[0]), stripes, folder))
            case "proxy":
                uvloop.run(proxy(port, int(rest[0])))
            case "bare-serve":
                bare_serve(port, int(rest[0]))
            case "bare-push":
                bare_push(port, int(rest[0]), int(rest[1]))
            case _:
                raise SystemExit(f"no side {side!r}")


if __name__ == "__main__":
    main()
