"""The virtual driver itself: runs machines on an event heap, under a clock of integer picoseconds.

One run, one order. The heap is ordered by (time, sequence number), so what is due at the same
instant happens in the order in which it was scheduled. What takes no time (control messages over
links that charge them nothing, measurements) does not go through the heap: it waits in a queue, first in
first out, that is emptied before the clock moves. So everything that follows at once from one
occurrence happens before the next occurrence of the same instant, as in HALoS's simulator, where a
server's reaction is one indivisible call.

Nodes may join late, be lost without a message, and come back as another process.

Where further faults may happen, an `Interceptor` (`pelago.sim.fault_injector`) handles the events instead.
"""

from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from heapq import heappop, heappush
from typing import Any, Final, Protocol

from pelago.core.machine import Finish, Machine, SetTick, Tick
from pelago.core.notes.note import NOTES, Note
from pelago.core.ports import TensorPort
from pelago.sim.executor import EffectMethods, ExecutorFactory
from pelago.sim.links import Links
from pelago.sim.network import SimulatedNetwork
from pelago.sim.node import LOST, SimulatedNode, Timer
from pelago.sim.trace import Trace
from pelago.wire.messages import Effect, Event, Message

STORY_EVENTS: Final = 20
"""How many of the last events are shown when an assertion fails."""


class Interceptor(Protocol):
    """Handles the events of a simulation in which faults happen."""

    def handle(self, node: SimulatedNode, event: Event) -> None:
        """Let a node's machine handle an event, and carry out those of its effects that the faults leave."""
        ...


class Simulation:
    """Nodes, links and a clock.

    ``run``: the run id in every envelope. ``executors``: of the parts beyond the shared one, whose effects this
    class and its network carry out. ``check``: assert the invariants of a machine after each of its events.
    ``trace``: record everything. ``on_note``: is called with (node, note, picoseconds) for every note. A node
    that finished is given no more events; payloads sent to it are lost to the sender.
    """

    def __init__(
        self,
        run: str,
        links: Links,
        executors: Sequence[ExecutorFactory],
        check: bool = False,
        trace: Trace | None = None,
        on_note: Callable[[str, Note, int], None] | None = None,
    ) -> None:
        self.now = 0
        self.events = 0
        """Events that machines have handled."""
        self.nodes: dict[str, SimulatedNode] = {}
        self.interceptor: Interceptor | None = None
        """None: there are no faults except for nodes that the experiment loses."""
        self._check = check
        self._trace = trace
        self._on_note = on_note
        self._running = 0
        self._sequence = 0
        self._heap: list[tuple[int, int, Callable[[], None]]] = []
        self._soon: deque[tuple[SimulatedNode, Event]] = deque()
        # The method itself, without one around it: it is called for every event.
        self.give: Callable[[tuple[SimulatedNode, Event]], None] = self._soon.append
        """Give a node an event now, after all that is due already."""
        self._story: deque[tuple[int, str, Event, list[Effect]]] = deque(maxlen=STORY_EVENTS)
        self.network = SimulatedNetwork(self, run, links, codes_all=check or trace is not None)
        self._executors = [self.network, *(make(self) for make in executors)]
        self._methods: dict[type, Callable[[SimulatedNode, Any], None]] = {
            **dict.fromkeys(NOTES, self._note),
            SetTick: self._set_tick,
            Finish: self._finish,
        }
        for executor in self._executors:
            self._add_methods(executor.methods())

    def _add_methods(self, methods: EffectMethods) -> None:
        assert not methods.keys() & self._methods.keys(), "two executors for one effect"
        self._methods.update(methods)

    def add(self, node: SimulatedNode) -> None:
        """Make a node known; it is given no event before `start`, except what others send it. A node that
        serves under the name of an earlier one takes over that one's clients."""
        assert node.name not in self.nodes, node.name
        self.network.add(node, self.nodes.values())
        self.nodes[node.name] = node
        self._running += 1

    def start(self, name: str, *events: Event) -> None:
        """Give a node its first events now, and let all that follows at once happen."""
        self._soon.extend((self.nodes[name], event) for event in events)
        self._settle()

    def at(self, time_ps: int, name: str, event: Event) -> None:
        """Give a node an event at a time, which is not before now."""
        self.call(time_ps, partial(self.give, (self.nodes[name], event)))

    def call(self, time_ps: int, action: Callable[[], None]) -> None:
        """Do something at a time, which is not before now."""
        assert time_ps >= self.now
        self._sequence += 1
        heappush(self._heap, (time_ps, self._sequence, action))

    def lose(self, name: str) -> None:
        """A node is lost at once and sends nothing, as if its machine lost power."""
        node = self.nodes[name]
        if node.finished is None:
            self._finish(node, LOST)

    def revive(self, node: SimulatedNode, machine: Machine[Message], plane: TensorPort) -> None:
        """A lost node is back: a new process that continues from the state of the old one."""
        assert node.finished is not None, node.name
        node.machine, node.plane, node.finished = machine, plane, None
        self._running += 1

    def record(self, now: int, node: SimulatedNode, event: Event, effects: list[Effect]) -> None:
        """Record what a machine did at an event (for an `Interceptor`)."""
        self._story.append((now, node.name, event, effects))
        self.events += 1
        if self._trace is not None:
            self._trace.record(now, node.name, event, effects)

    def perform(self, node: SimulatedNode, effect: Effect) -> None:
        """Carry out an effect of a node's machine."""
        self._methods[type(effect)](node, effect)

    def run(self, until_ps: int | None = None, last: str = "") -> None:
        """Let time pass until every node has finished, or the node ``last`` has, or until the clock
        shows ``until_ps``.

        Without ``until_ps`` it is a fault of the machines if nothing is due while some have not
        finished: raises `AssertionError`.
        """
        heap, end = self._heap, self.nodes.get(last)
        self._settle()
        # With an interceptor a node may come back after all have ended.
        interceptor = self.interceptor is not None
        while heap and (self._running or interceptor) and (end is None or end.finished is None):
            if until_ps is not None and heap[0][0] > until_ps:
                break
            self.now, _, action = heappop(heap)
            action()
            self._settle()
        if self._running and until_ps is not None:
            self.now = until_ps
        elif self._running and (end is None or end.finished is None):
            waiting = [node.name for node in self.nodes.values() if node.finished is None]
            self._fail(AssertionError(f"nothing is due, but these have not finished: {waiting}"))

    def _settle(self) -> None:
        """Let the machines handle what is due now, and carry out their effects."""
        if self.interceptor is not None:
            self._settle_by(self.interceptor)
            return
        # All on one level, because this is done for every event.
        soon, story, methods, now = self._soon, self._story, self._methods, self.now
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
                    methods[type(effect)](node, effect)
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
        latest = "\n".join(
            f"{now} {name}: {event}\n" + "".join(f"    -> {effect}\n" for effect in effects)
            for now, name, event, effects in self._story
        )
        error.add_note(
            f"the last events:\n{latest}\nthen at {self.now} {node and node.name}: {event}"
        )
        raise error

    # --- effects of the shared part -----------------------------------------------------------------

    def _finish(self, node: SimulatedNode, effect: Finish) -> None:
        for executor in self._executors:
            executor.node_ended(node)
        node.finished, node.timer = effect, None
        self._running -= 1

    def _set_tick(self, node: SimulatedNode, effect: SetTick) -> None:
        node.timer = timer = Timer(node, effect.interval_ps)
        self.call(self.now + timer.interval_ps, partial(self._tick, timer))

    def _tick(self, timer: Timer) -> None:
        node = timer.node
        if node.finished is None and timer is node.timer:
            self.call(self.now + timer.interval_ps, partial(self._tick, timer))
            self._soon.append((node, Tick()))

    def _note(self, node: SimulatedNode, effect: Note) -> None:
        if self._on_note is not None:
            self._on_note(node.name, effect, self.now)
