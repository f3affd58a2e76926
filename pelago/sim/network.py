"""Carries messages from node to node where nothing goes wrong on the way.

Messages go through the real codec: all of them in a run that is checked or traced. A payload travels
whole, as one occurrence. When it has arrived, the receiver gets `Received` first, then the sender gets
`Delivered`, then the answers follow.

Messages on their way from a lost node are lost with it; for payloads on their way to it the sender gets
`PeerLost`.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Final

from pelago.core.machine import Delivered, PeerLost, Received, Send
from pelago.core.names import BlobId, Peer
from pelago.core.ports import Payload
from pelago.sim.executor import EffectMethods, Scheduler
from pelago.sim.links import Links, SharedLink
from pelago.sim.node import LOST, Route, SimulatedNode
from pelago.wire.codec import decode_message, encode
from pelago.wire.messages import Message

CODED_EVERY: Final = 64
"""One message in this many goes through the codec in a run that is neither checked nor traced: decoding gives
what was encoded (the codec's own tests show it), and coding every message would take half of the time."""


@dataclass(slots=True, eq=False)
class PayloadTransfer:
    """A message with a payload on its way."""

    route: Route
    message: Message
    blob: BlobId
    payload: Payload


class SimulatedNetwork:
    """The executor of `Send`. ``run``: the run id in every envelope. ``codes_all``: send every message through
    the codec."""

    def __init__(self, scheduler: Scheduler, run: str, links: Links, codes_all: bool) -> None:
        self.links = links
        self.arrived: dict[tuple[int, int], int] = {}
        """Payloads that arrived, by (place they left, place they reached)."""
        self._scheduler = scheduler
        self._run = run
        self._codes_all = codes_all
        self._messages = 0
        self._reached: dict[Peer, SimulatedNode] = {}

    def methods(self) -> EffectMethods:
        """`Send` alone."""
        return {Send: self._send}

    def node_ended(self, node: SimulatedNode) -> None:
        """Nothing is stopped: whether a message still arrives is decided on its arrival."""

    def add(self, node: SimulatedNode, others: Iterable[SimulatedNode]) -> None:
        """Make a node reachable. A node that serves under the name of an earlier one takes over its clients.
        ``others``: all nodes that may know the earlier one."""
        for called in filter(None, (node.name, node.serves)):
            if called in self._reached:
                for each in others:
                    each.routes.pop(called, None)
            self._reached[called] = node

    def find(self, peer: Peer) -> SimulatedNode | None:
        """The process that has this name now, or serves under it."""
        return self._reached.get(peer)

    def _send(self, node: SimulatedNode, effect: Send[Message]) -> None:
        message, blob, scheduler = effect.message, effect.blob, self._scheduler
        route = node.routes.get(effect.peer) or self._find_route(node, effect.peer)
        if route is None:
            # On a real socket it would wait, and the sender asks again anyway.
            assert blob is None, f"{node.name} sends a payload to {effect.peer}: unknown"
            return
        self._messages += 1
        if self._codes_all or self._messages % CODED_EVERY == 0:
            message = decode_message(self._run, encode(self._run, message))
        if blob is None:
            if route.control_ps:
                arrive = partial(self._on_control, route, message)
                scheduler.call(scheduler.now + route.control_ps, arrive)
            else:
                scheduler.give((route.receiver, Received(route.sender_name, message)))
            return
        transfer = PayloadTransfer(route, message, blob, node.plane.lend(blob))
        if route.link is None:
            due_ps = scheduler.now + route.work_ps + route.latency_ps
            scheduler.call(due_ps, partial(self._on_payload, transfer))
        else:
            route.link.add(transfer, route.work_ps, scheduler.now)
            self._expect(route.link, route.latency_ps)

    def _find_route(self, node: SimulatedNode, peer: Peer) -> Route | None:
        """The route from a node to the node that it calls ``peer``; None: there is no such node yet."""
        receiver = self._reached.get(peer)
        if receiver is None:
            return None
        start, end = places = node.place, receiver.place
        links = self.links
        route = node.routes[peer] = Route(
            node,
            receiver,
            node.name_for(receiver),
            receiver.name_for(node),
            places,
            links.latency_ps[start][end] if links.control_pays else 0,
            links.latency_ps[start][end],
            links.work_ps[start][end],
            links.shared[start][end],
        )
        return route

    def _expect(self, link: SharedLink, latency_ps: int) -> None:
        due_ps = link.due_ps()
        if due_ps is not None:
            self._scheduler.call(
                due_ps, partial(self._on_link_due, link, latency_ps, link.generation)
            )

    def _on_link_due(self, link: SharedLink, latency_ps: int, generation: int) -> None:
        """A transfer on a shared link has ended, unless what is due there has changed since."""
        if generation != link.generation:
            return
        scheduler = self._scheduler
        for transfer in link.take(scheduler.now):
            if latency_ps:
                scheduler.call(scheduler.now + latency_ps, partial(self._on_payload, transfer))
            else:
                self._on_payload(transfer)
        self._expect(link, latency_ps)

    def _on_control(self, route: Route, message: Message) -> None:
        if route.sender.finished is not LOST:
            self._scheduler.give((route.receiver, Received(route.sender_name, message)))

    def _on_payload(self, transfer: PayloadTransfer) -> None:
        route, scheduler = transfer.route, self._scheduler
        sender, receiver = route.sender, route.receiver
        if sender.finished is LOST:
            return
        if receiver.finished is not None:
            scheduler.give((sender, PeerLost(route.receiver_name, "has finished")))
            return
        self.arrived[route.places] = self.arrived.get(route.places, 0) + 1
        staged = receiver.new_blob()
        receiver.plane.adopt(staged, transfer.payload)
        size = self.links.payload_bytes
        scheduler.give((receiver, Received(route.sender_name, transfer.message, staged, size)))
        scheduler.give((sender, Delivered(route.receiver_name, transfer.blob, size)))
