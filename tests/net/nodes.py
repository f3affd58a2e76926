"""Real nodes with small machines, all in the process of the test."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import zmq

from pelago.config.fields import Durability
from pelago.core.machine import Finish, Machine, Received, StopRequested
from pelago.core.names import Lease, Peer, PushId, Version
from pelago.net.durability.manager import StateStore
from pelago.net.durability.state_folder import StateFolder
from pelago.net.limits import Limits
from pelago.net.node import Node, NodeSettings
from pelago.net.sockets.pair import Bind, Connect
from pelago.net.telemetry import Telemetry
from pelago.tensor.manifest import Manifest
from pelago.tensor.optim import DelayedNesterov
from pelago.tensor.plane import Plane
from pelago.wire.messages import Effect, Event, Message, Model, Push

DEADLINE_S = 20.0
RUN = "run-0123456789ab"

Answer = Callable[[Event], list[Effect]]


class Script:
    """A machine that records its events and answers from a function; stops when asked to."""

    def __init__(self, answer: Answer | None = None) -> None:
        self.events: list[Event] = []
        self._answer = answer
        self._heard = asyncio.Event()

    def handle(self, event: Event, now: int) -> list[Effect]:
        self.events.append(event)
        self._heard.set()
        effects = [] if self._answer is None else self._answer(event)
        if isinstance(event, StopRequested):
            effects = [*effects, Finish(event.reason)]
        return effects

    def expects(self, peer: Peer, message: Message) -> bool:
        """Every message is expected."""
        return True

    def check(self) -> None:
        """It has no invariants."""

    def of(self, kind: type) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]

    def messages(self, kind: type) -> list[Any]:
        return [event for event in self.of(Received) if isinstance(event.message, kind)]

    async def until(self, holds: Callable[[], bool], deadline_s: float = DEADLINE_S) -> None:
        """Wait until something holds, looking again whenever an event comes."""
        async with asyncio.timeout(deadline_s):
            while not holds():
                self._heard.clear()
                await self._heard.wait()

    async def hears(self, kind: type, count: int = 1) -> Any:
        """The ``count``-th event of a kind, or message of a kind."""

        def found() -> list[Any]:
            return self.messages(kind) or self.of(kind)

        await self.until(lambda: len(found()) >= count)
        return found()[count - 1]


async def eventually(holds: Callable[[], bool], deadline_s: float = DEADLINE_S) -> None:
    """Wait for something that no event announces, such as a counter."""
    async with asyncio.timeout(deadline_s):
        while not holds():  # noqa: ASYNC110 - nothing announces it
            await asyncio.sleep(0.01)


async def settled(node: Node) -> None:
    """Wait until the tensor lane has performed all effects so far."""
    async with asyncio.timeout(DEADLINE_S):
        await node.tensors.idle()


@contextmanager
def raw_client(port: int, identity: bytes) -> Iterator["zmq.Socket[bytes]"]:
    """A ZeroMQ client that may say anything."""
    with zmq.Context() as context, context.socket(zmq.DEALER) as dealer:
        dealer.setsockopt(zmq.LINGER, 0)
        if identity:
            dealer.setsockopt(zmq.ROUTING_ID, identity)
        dealer.connect(f"tcp://127.0.0.1:{port}")
        yield dealer


def a_model(counter: int = 1) -> Model:
    return Model(Version(1, counter), 0, None, None, False)


def a_push(lease: int = 1) -> Push:
    return Push(PushId(lease, 0), Version(1, 0), 1, 1, 1, 0.0, ((0, 1),), (), 0)


def a_lease(number: int = 1) -> Lease:
    return Lease(PushId(number, 0), ((0, 4),), 0)


@dataclass
class Nodes:
    """What the nodes of one test share."""

    folder: Path
    nodes: dict[str, tuple[Node, asyncio.Task[Finish]]]
    ports: list[int]
    """First ports of free pairs; the server of most tests has the first."""
    manifest: Manifest

    def plane(self, seed: int = 0, average: float = 0.0) -> Plane:
        """A server's plane, its parameters drawn from a seed."""
        plane = Plane(self.manifest, DelayedNesterov(0.5, 0.9, 1), average=average)
        plane.adopt(-1_000_000, self.flat(seed))
        plane.apply("load", -1_000_000)
        plane.release(-1_000_000)
        return plane

    def flat(self, seed: int) -> torch.Tensor:
        return torch.randn(self.manifest.numel, generator=torch.Generator().manual_seed(seed))

    def server(self, machine: Machine[Any], name: str = "gps", **more: Any) -> Node:
        """Start a node that listens."""
        return self.start(machine, name, server=self.bind(), **more)

    def client(
        self, machine: Machine[Any], name: str = "lps-1", port: int | None = None, **more: Any
    ) -> Node:
        """Start a node that connects to the server, or to what stands at ``port``."""
        return self.start(machine, name, upstreams=(self.connect(port or self.ports[0]),), **more)

    def bind(self, port: int | None = None) -> Bind:
        return Bind("127.0.0.1", port or self.ports[0], "gps.bind")

    def connect(self, port: int) -> Connect:
        return Connect("127.0.0.1", port, "gps")

    def start(self, machine: Machine[Any], name: str, **more: Any) -> Node:
        """Start a node; what `Node` does not take itself is a setting."""
        taken = ("plane", "plane_factory", "state_store")
        own = {key: more.pop(key) for key in taken if key in more}
        settings = NodeSettings(
            run_id=RUN,
            name=name,
            crash_file=self.folder / f"{name}.crash.json",
            check_invariants=True,
            handle_signals=False,
            limits=Limits(retry_ms=100),
        )
        node = Node(
            machine,
            replace(settings, **more),
            Telemetry(name, self.folder / f"{name}.jsonl", console=None),
            **own,
        )
        self.nodes[name] = (node, asyncio.create_task(node.run()))
        return node

    def state_store(self, name: str = "gps", durability: Durability = "process") -> StateStore:
        """The state folder of a node of this name, with its recovered state."""
        store = StateFolder(self.folder / name / "state", RUN, name)
        recovered = store.recovered()
        incarnation = 1 if recovered is None else recovered.header.incarnation
        return StateStore(
            store=store,
            durability=durability,
            name=name,
            incarnation=incarnation,
            recovered=recovered,
            is_read=name == "gps",
        )

    async def kill(self, name: str) -> None:
        """End a node at once, as far as that is possible inside a process: what its journal did not write
        yet is never written, and nothing leaves any more."""
        node, task = self.nodes.pop(name)
        if node.durability is not None:
            node.durability.journal._write = lambda *_: None  # type: ignore[method-assign]
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task

    async def finish(self, name: str) -> Finish:
        """Wait for a node's end."""
        _, task = self.nodes.pop(name)
        async with asyncio.timeout(DEADLINE_S):
            return await task

    async def stop(self, name: str) -> Finish:
        """Ask a node to stop, and wait for its end."""
        node, task = self.nodes[name]
        if not task.done():
            node.post(StopRequested("the test is over"))
        return await self.finish(name)

    def crashes(self) -> list[str]:
        """The reports of nodes that broke an invariant."""
        return [path.read_text() for path in self.folder.glob("*.crash.json")]
