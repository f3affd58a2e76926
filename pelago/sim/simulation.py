"""The virtual driver itself: runs machines on an event heap, under a clock of integer picoseconds.

One run, one order. The heap is ordered by (time, sequence number), so what is due at the same
instant happens in the order in which it was scheduled. What takes no time (control messages over
links that charge them nothing, measurements) does not go through the heap: it waits in a queue, first in
first out, that is emptied before the clock moves. So everything that follows at once from one
occurrence happens before the next occurrence of the same instant, as in HALoS's simulator, where a
server's reaction is one indivisible call.

Messages go through the real codec: all of them in a run that is checked or traced. A payload travels
whole, as one occurrence; when it has arrived, the receiver hears `Received` first, then the sender
`Delivered`, then come the answers. A trainer's round is one occurrence too, without `Progress` in
between.

Nodes may come late, be lost without a word, and come back as another process. What was on its way
from a lost node is lost with it; what was on its way to it is lost to its sender.

Where more than that may go wrong, an `Interceptor` (`pelago.sim.fault_injector`) handles the events instead.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from heapq import heappop, heappush
from typing import Any, Final, Protocol, TypeAlias, Union, assert_never

from pelago.core.machine import (
    Delivered,
    Finish,
    Machine,
    Note,
    PeerLost,
    Received,
    Send,
    SetTick,
    Tick,
)
from pelago.core.names import BlobId, Peer
from pelago.core.tensor_effects import Apply, Difference, Measure, Measured, Pin, Release
from pelago.core.training_effects import Cancel, Train, Trained, Validate, Validated
from pelago.sim.links import Links, SharedLink
from pelago.sim.planes import Payload, PlanePort, VirtualTrainer
from pelago.sim.trace import Trace
from pelago.wire.codec import decode_message, encode
from pelago.wire.messages import Effect, Event, Message

STORY_EVENTS: Final = 20
"""So many of the last events are told when an assertion fails."""
CODED_EVERY: Final = 64
"""One message of so many goes through the codec in a run that is neither checked nor traced: what
comes out is equal to what went in (the codec's own tests say so), and it would be half the time."""
LOST: Final = Finish("lost", error="lost")
"""How a node ends that is lost without a word."""


@dataclass(slots=True, eq=False)
class SimulatedNode:
    """A machine and what it works with: one process. ``place`` is its index for the links.

    ``name``: of this process, never used again. ``serves``: what its clients call it, whichever
    process it is (empty: its name). ``server``: what it calls its own server.
    """

    name: Peer
    place: int
    machine: Machine[Message]
    plane: PlanePort
    trainer: VirtualTrainer | None = None
    serves: Peer = ""
    server: Peer = ""
    finished: Finish | None = None
    training: "TrainingDue | None" = None
    timer: "Timer | None" = None
    blobs: int = 0
    routes: "dict[Peer, Route]" = field(default_factory=dict)
    """To those that it has sent something, by what it calls them."""

    def new_blob(self) -> BlobId:
        """A name for what arrives or is trained: drivers count downwards from -1."""
        self.blobs -= 1
        return self.blobs


@dataclass(slots=True, eq=False)
class Route:
    """From one node to another: all that a message needs to know, looked up once and not for each."""

    sender: SimulatedNode
    receiver: SimulatedNode
    sender_name: Peer
    """What the receiver calls the sender."""
    receiver_name: Peer
    """What the sender calls the receiver."""
    places: tuple[int, int]
    control_ps: int
    """Latency of a control message."""
    latency_ps: int
    work_ps: int
    link: SharedLink | None


@dataclass(slots=True, eq=False)
class Transfer:
    """A message on its way, with a payload or without."""

    route: Route
    message: Message
    blob: BlobId | None
    payload: Payload


@dataclass(slots=True, eq=False)
class LinkDue:
    """A transfer on a shared link has ended, unless the link's generation is a later one by now."""

    link: SharedLink
    latency_ps: int
    generation: int


@dataclass(slots=True, eq=False)
class TrainingDue:
    """A node at work on a lease."""

    node: SimulatedNode
    effect: Train
    steps: int


@dataclass(slots=True, eq=False)
class Timer:
    """The periodic tick of a node."""

    node: SimulatedNode
    interval_ps: int


@dataclass(slots=True, eq=False)
class EventDue:
    """An event that the experiment itself arranged."""

    node: SimulatedNode
    event: Event


@dataclass(slots=True, eq=False)
class CallDue:
    """Something else that the experiment arranged: a node is lost, another one comes."""

    action: Callable[[], None]


Occurrence: TypeAlias = Union[TrainingDue, Transfer, LinkDue, Timer, EventDue, CallDue]


class Interceptor(Protocol):
    """What befalls nodes in a world where not all goes well."""

    def handle(self, node: SimulatedNode, event: Event) -> None:
        """Let a node's machine handle an event, and do of its wishes what comes to be done."""
        ...


class Simulation:
    """Nodes, links and a clock.

    ``run``: the run id in every envelope. ``check``: assert the invariants of a machine after each
    of its events. ``trace``: record everything. ``on_note``: hears (node, note, picoseconds) of
    every note. A node that finished hears nothing any more; payloads sent to it are lost to the
    sender.
    """

    def __init__(
        self,
        run: str,
        links: Links,
        check: bool = False,
        trace: Trace | None = None,
        on_note: Callable[[str, Note, int], None] | None = None,
    ) -> None:
        self.now = 0
        self.events = 0
        """Events that machines have handled."""
        self.nodes: dict[str, SimulatedNode] = {}
        self.interceptor: Interceptor | None = None
        """None: all goes well, but for nodes that the experiment loses."""
        self.arrived: dict[tuple[int, int], int] = {}
        """Payloads that arrived, by (place they left, place they reached)."""
        self._reached: dict[Peer, SimulatedNode] = {}
        self._run = run
        self.links = links
        self._check = check
        self._codes_all = check or trace is not None
        self._messages = 0
        self._trace = trace
        self._on_note = on_note
        self._running = 0
        self._sequence = 0
        self._heap: list[tuple[int, int, Occurrence]] = []
        self._soon: deque[tuple[SimulatedNode, Event]] = deque()
        self._story: deque[tuple[int, str, Event, list[Effect]]] = deque(maxlen=STORY_EVENTS)
        self._performers: dict[type, Callable[[SimulatedNode, Any], None]] = {
            Send: self._send,
            Release: self._release,
            Note: self._note,
            Pin: self._pin,
            Apply: self._apply,
            Measure: self._measure,
            Train: self._train,
            Difference: self._difference,
            Cancel: self._cancel,
            Validate: self._validate,
            SetTick: self._set_tick,
            Finish: self._finish,
        }

    def add(self, node: SimulatedNode) -> None:
        """Make a node known; it hears nothing before `start`, except what others send it. A node that
        serves under the name of an earlier one takes over that one's clients."""
        assert node.name not in self.nodes, node.name
        for called in filter(None, (node.name, node.serves)):
            if called in self._reached:
                for each in self.nodes.values():
                    each.routes.pop(called, None)
            self._reached[called] = node
        self.nodes[node.name] = node
        self._running += 1

    def start(self, name: str, *events: Event) -> None:
        """Give a node its first events now, and let happen all that follows at once."""
        self._soon.extend((self.nodes[name], event) for event in events)
        self._settle()

    def at(self, time_ps: int, name: str, event: Event) -> None:
        """Give a node an event later."""
        assert time_ps >= self.now
        self._schedule(time_ps, EventDue(self.nodes[name], event))

    def call(self, time_ps: int, action: Callable[[], None]) -> None:
        """Have something done later that is no event of a node."""
        assert time_ps >= self.now
        self._schedule(time_ps, CallDue(action))

    def lose(self, name: str) -> None:
        """A node is gone at once and says nothing, as if its machine lost power."""
        node = self.nodes[name]
        if node.finished is None:
            self._finish(node, LOST)

    def find(self, peer: Peer) -> SimulatedNode | None:
        """The process that goes by this name now, or serves under it."""
        return self._reached.get(peer)

    def give(self, node: SimulatedNode, event: Event) -> None:
        """Let a node hear something now, after all that is due already."""
        self._soon.append((node, event))

    def revive(self, node: SimulatedNode, machine: Machine[Message], plane: PlanePort) -> None:
        """A node that was lost is there again: a new process that goes on where the old one was."""
        assert node.finished is not None, node.name
        node.machine, node.plane, node.finished = machine, plane, None
        self._running += 1

    def note(self, now: int, node: SimulatedNode, event: Event, effects: list[Effect]) -> None:
        """Remember what a machine did at an event (for an `Interceptor`)."""
        self._story.append((now, node.name, event, effects))
        self.events += 1
        if self._trace is not None:
            self._trace.record(now, node.name, event, effects)

    def perform(self, node: SimulatedNode, effect: Effect) -> None:
        """Do what a machine wishes."""
        self._performers[type(effect)](node, effect)

    def run(self, until_ps: int | None = None, last: str = "") -> None:
        """Let time pass until every node has finished, or the node ``last`` has, or until the clock
        shows ``until_ps``.

        Without ``until_ps`` it is a fault of the machines if nothing is due while some have not
        finished.
        """
        heap, end = self._heap, self.nodes.get(last)
        self._settle()
        # Where there is an interceptor, somebody may come back when all are gone.
        interceptor = self.interceptor is not None
        while heap and (self._running or interceptor) and (end is None or end.finished is None):
            if until_ps is not None and heap[0][0] > until_ps:
                break
            self.now, _, occurrence = heappop(heap)
            self._occur(occurrence)
            self._settle()
        if self._running and until_ps is not None:
            self.now = until_ps
        elif self._running and (end is None or end.finished is None):
            waiting = [node.name for node in self.nodes.values() if node.finished is None]
            self._fail(AssertionError(f"nothing is due, but these have not finished: {waiting}"))

    # --- occurrences, and the events that they are for machines -----------------------------------

    def _schedule(self, time_ps: int, occurrence: Occurrence) -> None:
        self._sequence += 1
        heappush(self._heap, (time_ps, self._sequence, occurrence))

    def _occur(self, occurrence: Occurrence) -> None:
        match occurrence:
            case TrainingDue():
                self._on_trained(occurrence)
            case Transfer():
                self._on_arrival(occurrence)
            case Timer():
                if occurrence.node.finished is None and occurrence is occurrence.node.timer:
                    self._schedule(self.now + occurrence.interval_ps, occurrence)
                    self._soon.append((occurrence.node, Tick()))
            case LinkDue():
                self._on_link_due(occurrence)
            case EventDue():
                self._soon.append((occurrence.node, occurrence.event))
            case CallDue():
                occurrence.action()
            case _:
                assert_never(occurrence)

    def _on_trained(self, training: TrainingDue) -> None:
        node = training.node
        if node.training is not training:
            return  # It was cancelled, or its node is gone.
        node.training = None
        assert node.trainer is not None
        lease = training.effect.lease
        found = node.trainer.finish(lease)
        blob = node.new_blob()
        node.plane.adopt(blob, found.delta)
        steps, skipped = training.steps, found.skipped
        fact = Trained(lease.push, blob, steps, found.tokens, found.loss, skipped)
        self._soon.append((node, fact))

    def _on_link_due(self, due: LinkDue) -> None:
        if due.generation != due.link.generation:
            return
        for transfer in due.link.take(self.now):
            if due.latency_ps:
                self._schedule(self.now + due.latency_ps, transfer)
            else:
                self._on_arrival(transfer)
        self._expect(due.link, due.latency_ps)

    def _expect(self, link: SharedLink, latency_ps: int) -> None:
        due_ps = link.due_ps()
        if due_ps is not None:
            self._schedule(due_ps, LinkDue(link, latency_ps, link.generation))

    def _on_arrival(self, transfer: Transfer) -> None:
        route, blob = transfer.route, transfer.blob
        sender, receiver = route.sender, route.receiver
        if sender.finished is LOST:
            return
        if blob is None:
            self._soon.append((receiver, Received(route.sender_name, transfer.message)))
            return
        if receiver.finished is not None:
            self._soon.append((sender, PeerLost(route.receiver_name, "has finished")))
            return
        self.arrived[route.places] = self.arrived.get(route.places, 0) + 1
        staged = receiver.new_blob()
        receiver.plane.adopt(staged, transfer.payload)
        self._soon.append((receiver, Received(route.sender_name, transfer.message, staged)))
        self._soon.append((sender, Delivered(route.receiver_name, blob)))

    def _find_route(self, node: SimulatedNode, peer: Peer) -> Route | None:
        """The route from a node to whom it calls ``peer``; None: nobody is there yet."""
        receiver = self._reached.get(peer)
        if receiver is None:
            return None
        start, end = places = node.place, receiver.place
        links = self.links
        route = node.routes[peer] = Route(
            node,
            receiver,
            self.called(node, receiver),
            self.called(receiver, node),
            places,
            links.latency_ps[start][end] if links.control_pays else 0,
            links.latency_ps[start][end],
            links.work_ps[start][end],
            links.shared[start][end],
        )
        return route

    @staticmethod
    def called(node: SimulatedNode, by: SimulatedNode) -> Peer:
        """What a node is to another: a client knows its server by what it serves as."""
        return node.serves if node.serves and by.server == node.serves else node.name

    def _settle(self) -> None:
        """Let the machines handle what is due now, and do what they wish."""
        if self.interceptor is not None:
            self._settle_by(self.interceptor)
            return
        # All on one level, because this is done for every event.
        soon, story, performers, now = self._soon, self._story, self._performers, self.now
        trace, check = self._trace, self._check
        while soon:
            node, event = soon.popleft()
            if node.finished is not None:
                continue
            try:
                effects = node.machine.handle(event, now)
                story.append((now, node.name, event, effects))
                self.events += 1
                if trace is not None:
                    trace.record(now, node.name, event, effects)
                if check:
                    node.machine.check()
                for effect in effects:
                    performers[type(effect)](node, effect)
            except AssertionError as error:
                self._fail(error, node, event)

    def _settle_by(self, interceptor: Interceptor) -> None:
        while self._soon:
            node, event = self._soon.popleft()
            if node.finished is not None:
                continue
            try:
                interceptor.handle(node, event)
            except AssertionError as error:
                self._fail(error, node, event)

    def _fail(
        self, error: AssertionError, node: SimulatedNode | None = None, event: Event | None = None
    ) -> None:
        told = "\n".join(
            f"{now} {name}: {event}\n" + "".join(f"    -> {effect}\n" for effect in effects)
            for now, name, event, effects in self._story
        )
        error.add_note(
            f"the last events:\n{told}\nthen at {self.now} {node and node.name}: {event}"
        )
        raise error

    # --- effects: one method each, found by its type ------------------------------------------------

    def _send(self, node: SimulatedNode, effect: Send[Message]) -> None:
        message, blob = effect.message, effect.blob
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
                transfer = Transfer(route, message, None, None)
                self._schedule(self.now + route.control_ps, transfer)
            else:
                self._soon.append((route.receiver, Received(route.sender_name, message)))
            return
        transfer = Transfer(route, message, blob, node.plane.lend(blob))
        if route.link is None:
            self._schedule(self.now + route.work_ps + route.latency_ps, transfer)
        else:
            route.link.add(transfer, route.work_ps, self.now)
            self._expect(route.link, route.latency_ps)

    def _train(self, node: SimulatedNode, effect: Train) -> None:
        assert node.trainer is not None, f"{node.name} cannot train"
        assert node.training is None, f"{node.name} trains already"
        plan = node.trainer.begin(effect.lease, node.plane.lend(effect.blob))
        node.training = TrainingDue(node, effect, plan.steps)
        self._schedule(self.now + plan.duration_ps, node.training)

    def _cancel(self, node: SimulatedNode, effect: Cancel) -> None:
        if node.training is not None and node.training.effect.lease.push == effect.push:
            self._break_off(node)

    def _break_off(self, node: SimulatedNode) -> None:
        if node.training is not None:
            assert node.trainer is not None
            node.trainer.cancel(node.training.effect.lease)
            node.training = None

    def _finish(self, node: SimulatedNode, effect: Finish) -> None:
        self._break_off(node)
        node.finished, node.timer = effect, None
        self._running -= 1

    def _validate(self, node: SimulatedNode, effect: Validate) -> None:
        assert node.trainer is not None, f"{node.name} cannot validate"
        loss, tokens = node.trainer.validate(node.plane.lend(effect.blob))
        self._soon.append((node, Validated(effect.version, loss, tokens)))

    def _measure(self, node: SimulatedNode, effect: Measure) -> None:
        norm, finite = node.plane.measure(effect.blob)
        self._soon.append((node, Measured(effect.blob, norm, finite)))

    def _set_tick(self, node: SimulatedNode, effect: SetTick) -> None:
        node.timer = Timer(node, effect.interval_ps)
        self._schedule(self.now + effect.interval_ps, node.timer)

    def _note(self, node: SimulatedNode, effect: Note) -> None:
        if self._on_note is not None:
            self._on_note(node.name, effect, self.now)

    def _release(self, node: SimulatedNode, effect: Release) -> None:
        node.plane.release(effect.blob)

    def _pin(self, node: SimulatedNode, effect: Pin) -> None:
        node.plane.pin(effect.blob, effect.average)

    def _apply(self, node: SimulatedNode, effect: Apply) -> None:
        node.plane.apply(effect.operation, effect.blob, effect.weight)

    def _difference(self, node: SimulatedNode, effect: Difference) -> None:
        node.plane.difference(effect.blob)
