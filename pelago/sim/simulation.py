"""The virtual driver itself: runs machines on an event heap, under a clock of integer picoseconds.

One run, one order. The heap is ordered by (time, sequence number), so what is due at the same
instant happens in the order in which it was scheduled. What takes no time (control messages,
measurements) does not go through the heap: it waits in a queue, first in first out, that is emptied
before the clock moves. So everything that follows at once from one occurrence happens before the
next occurrence of the same instant, as in HALoS's simulator, where a server's reaction is one
indivisible call.

Every message goes through the real codec. A payload travels whole, as one occurrence; when it has
arrived, the receiver hears `Received` first, then the sender `Delivered`, then come the answers.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from heapq import heappop, heappush
from typing import Final, TypeAlias, Union, assert_never

from pelago.core.machine import (
    Apply,
    Cancel,
    Delivered,
    Difference,
    Finish,
    Machine,
    Measure,
    Measured,
    Note,
    PeerLost,
    Pin,
    Progress,
    Received,
    Release,
    Send,
    SetTick,
    Tick,
    Train,
    Trained,
    Validate,
    Validated,
)
from pelago.core.names import BlobId
from pelago.sim.links import Links
from pelago.sim.ports import Payload, PlanePort, TrainerPort
from pelago.sim.trace import Trace
from pelago.wire.codec import decode_message, encode
from pelago.wire.messages import Effect, Event, Message

STORY_EVENTS: Final = 20
"""So many of the last events are told when an assertion fails."""


@dataclass(slots=True, eq=False)
class Node:
    """A machine and what it works with. ``place`` is its index for the links."""

    name: str
    place: int
    machine: Machine[Message]
    plane: PlanePort
    trainer: TrainerPort | None = None
    finished: Finish | None = None
    training: "Training | None" = None
    timer: "Timer | None" = None
    blobs: int = 0

    def new_blob(self) -> BlobId:
        """A name for what arrives or is trained: drivers count downwards from -1."""
        self.blobs -= 1
        return self.blobs


@dataclass(slots=True, eq=False)
class Transfer:
    """A message on its way with a payload."""

    sender: Node
    receiver: Node
    message: Message
    blob: BlobId
    payload: Payload


@dataclass(slots=True, eq=False)
class Training:
    """A node at work on a lease."""

    node: Node
    effect: Train
    payload: Payload
    started_at: int
    steps: int
    duration_ps: int
    done: int = 0


@dataclass(slots=True, eq=False)
class Timer:
    """The periodic tick of a node."""

    node: Node
    interval_ps: int


@dataclass(slots=True, eq=False)
class Fact:
    """An event that the experiment itself arranged."""

    node: Node
    event: Event


Occurrence: TypeAlias = Union[Training, Transfer, Timer, Fact]


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
        self.nodes: dict[str, Node] = {}
        self._run = run
        self._links = links
        self._check = check
        self._trace = trace
        self._on_note = on_note
        self._running = 0
        self._sequence = 0
        self._heap: list[tuple[int, int, Occurrence]] = []
        self._soon: deque[tuple[Node, Event]] = deque()
        self._story: deque[tuple[int, str, Event, list[Effect]]] = deque(maxlen=STORY_EVENTS)

    def add(self, node: Node) -> None:
        """Make a node known; it hears nothing before `start`, except what others send it."""
        assert node.name not in self.nodes, node.name
        self.nodes[node.name] = node
        self._running += 1

    def start(self, name: str, *events: Event) -> None:
        """Give a node its first events now, and let happen all that follows at once."""
        self._soon.extend((self.nodes[name], event) for event in events)
        self._settle()

    def at(self, time_ps: int, name: str, event: Event) -> None:
        """Give a node an event later."""
        assert time_ps >= self.now
        self._schedule(time_ps, Fact(self.nodes[name], event))

    def run(self, until_ps: int | None = None) -> None:
        """Let time pass until every node has finished, or until the clock shows ``until_ps``.

        Without ``until_ps`` it is a fault of the machines if nothing is due while some have not
        finished.
        """
        heap = self._heap
        while heap and self._running:
            if until_ps is not None and heap[0][0] > until_ps:
                break
            self.now, _, occurrence = heappop(heap)
            self._occur(occurrence)
            self._settle()
        if self._running and until_ps is not None:
            self.now = until_ps
        elif self._running:
            waiting = [node.name for node in self.nodes.values() if node.finished is None]
            self._fail(AssertionError(f"nothing is due, but these have not finished: {waiting}"))

    # --- occurrences, and the events that they are for machines -----------------------------------

    def _schedule(self, time_ps: int, occurrence: Occurrence) -> None:
        self._sequence += 1
        heappush(self._heap, (time_ps, self._sequence, occurrence))

    def _occur(self, occurrence: Occurrence) -> None:
        match occurrence:
            case Training():
                self._on_step(occurrence)
            case Transfer():
                self._on_arrival(occurrence)
            case Timer():
                if occurrence.node.finished is None and occurrence is occurrence.node.timer:
                    self._schedule(self.now + occurrence.interval_ps, occurrence)
                    self._soon.append((occurrence.node, Tick()))
            case Fact():
                self._soon.append((occurrence.node, occurrence.event))
            case _:
                assert_never(occurrence)

    def _on_step(self, training: Training) -> None:
        node = training.node
        if node.training is not training or node.finished is not None:
            return  # It was cancelled.
        training.done += 1
        lease = training.effect.lease
        self._handle(node, Progress(lease.push, training.done))
        if training.done < training.steps:
            self._schedule_step(training)
        elif node.training is training:
            node.training = None
            assert node.trainer is not None
            found = node.trainer.train(lease, training.payload)
            blob = node.new_blob()
            node.plane.adopt(blob, found.delta)
            fact = Trained(lease.push, blob, training.steps, found.tokens, found.loss)
            self._soon.append((node, fact))

    def _schedule_step(self, training: Training) -> None:
        # A division per step, not a sum of rounded steps: the last one ends exactly with the plan.
        passed_ps = training.duration_ps * (training.done + 1) // training.steps
        self._schedule(training.started_at + passed_ps, training)

    def _on_arrival(self, transfer: Transfer) -> None:
        sender, receiver = transfer.sender, transfer.receiver
        if receiver.finished is not None:
            self._soon.append((sender, PeerLost(receiver.name, "has finished")))
            return
        blob = receiver.new_blob()
        receiver.plane.adopt(blob, transfer.payload)
        self._soon.append((receiver, Received(sender.name, transfer.message, blob)))
        self._soon.append((sender, Delivered(receiver.name, transfer.blob)))

    def _settle(self) -> None:
        soon = self._soon
        while soon:
            node, event = soon.popleft()
            self._handle(node, event)

    def _handle(self, node: Node, event: Event) -> None:
        if node.finished is not None:
            return
        try:
            effects = node.machine.handle(event, self.now)
            self._story.append((self.now, node.name, event, effects))
            self.events += 1
            if self._trace is not None:
                self._trace.record(self.now, node.name, event, effects)
            if self._check:
                node.machine.check()
            for effect in effects:
                self._perform(node, effect)
        except AssertionError as error:
            self._fail(error, node, event)

    def _fail(
        self, error: AssertionError, node: Node | None = None, event: Event | None = None
    ) -> None:
        told = "\n".join(
            f"{now} {name}: {event}\n" + "".join(f"    -> {effect}\n" for effect in effects)
            for now, name, event, effects in self._story
        )
        error.add_note(
            f"the last events:\n{told}\nthen at {self.now} {node and node.name}: {event}"
        )
        raise error

    # --- effects ----------------------------------------------------------------------------------

    def _perform(self, node: Node, effect: Effect) -> None:
        # The frequent ones first: classes are tried in order, some ten times a round of a worker.
        match effect:
            case Send():
                self._send(node, effect)
            case Release():
                node.plane.release(effect.blob)
            case Note():
                if self._on_note is not None:
                    self._on_note(node.name, effect, self.now)
            case Pin():
                node.plane.pin(effect.blob)
            case Apply():
                node.plane.apply(effect.operation, effect.blob, effect.weight)
            case Measure():
                norm, finite = node.plane.measure(effect.blob)
                self._soon.append((node, Measured(effect.blob, norm, finite)))
            case Train():
                self._train(node, effect)
            case Difference():
                node.plane.difference(effect.blob)
            case Cancel():
                if node.training is not None and node.training.effect.lease.push == effect.push:
                    node.training = None
            case Validate():
                assert node.trainer is not None, f"{node.name} cannot validate"
                loss, tokens = node.trainer.validate(node.plane.lend(effect.blob))
                self._soon.append((node, Validated(effect.version, loss, tokens)))
            case SetTick():
                node.timer = Timer(node, effect.interval_ps)
                self._schedule(self.now + effect.interval_ps, node.timer)
            case Finish():
                node.finished, node.training = effect, None
                self._running -= 1
            case _:
                assert_never(effect)

    def _send(self, node: Node, effect: Send[Message]) -> None:
        receiver = self.nodes[effect.peer]
        message = decode_message(self._run, encode(self._run, effect.message))
        if effect.blob is None:
            self._soon.append((receiver, Received(node.name, message)))
            return
        payload = node.plane.lend(effect.blob)
        arrival = self.now + self._links.transfer_ps(node.place, receiver.place)
        self._schedule(arrival, Transfer(node, receiver, message, effect.blob, payload))

    def _train(self, node: Node, effect: Train) -> None:
        assert node.trainer is not None, f"{node.name} cannot train"
        assert node.training is None, f"{node.name} trains already"
        plan = node.trainer.plan(effect.lease)
        payload = node.plane.lend(effect.blob)
        node.training = Training(node, effect, payload, self.now, plan.steps, plan.duration_ps)
        self._schedule_step(node.training)
