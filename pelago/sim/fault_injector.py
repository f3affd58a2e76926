"""Injects faults into a simulation: messages are lost, repeated and late, links are cut, clocks differ and processes
die.

`FaultInjector` handles the events of a simulation in place of its own loop. Everything is drawn from one
`Random`, so one seed gives one course. It promises the machines what the real driver promises them:

- A payload's sender receives `Delivered` or `PeerLost`, unless it dies itself; the receiver may have the
  payload all the same, or twice. One that the receiver does not expect is turned away.
- A client's message to its server reaches the process that serves when it arrives. A control message of a
  process that has died since may still arrive, but not its payloads.
- A durable server's messages leave when its disk holds their cause, but for those in `UNCOMMITTED`.
  After a crash it comes back under its name, from what its disk holds, and receives `Restarted`.
- Any other process that dies stays dead; the experiment may add another one.
- A process that is frozen continues later as if nothing had happened: events that arrived meanwhile wait for it,
  but its timer, which is due, comes first.
"""

from random import Random
from typing import Final

from pelago.core.machine import Received, Send, SetTick, Tick
from pelago.core.names import BlobId, Peer
from pelago.core.tensor_effects import Difference, Measure, Measured, Pin, Release
from pelago.durable.replay import UNCOMMITTED
from pelago.sim.durable_servers import DurableServers, SalvagedServer
from pelago.sim.fault_draws import FaultDraws
from pelago.sim.fault_profile import MOMENT_PS, Clock, FaultProfile
from pelago.sim.faulty_network import FaultyNetwork, Shipment
from pelago.sim.node import LOST, SimulatedNode
from pelago.sim.observer import Observer
from pelago.sim.process import DOWN, ProcessState, SimulatedStore
from pelago.sim.simulation import Simulation
from pelago.wire.codec import decode_message, encode
from pelago.wire.messages import Effect, Event, Message

CODED_EVERY: Final = 8
"""One message in this many goes through the codec: the journals code all events of durable servers."""


class FaultInjector:
    """``run``: the simulation's run id. ``profile``: chances of faults. ``observer``: checks everything that
    happens. ``decay``: chance of damaged snapshots; None: there are none."""

    def __init__(
        self,
        simulation: Simulation,
        run: str,
        random: Random,
        profile: FaultProfile,
        observer: Observer,
        decay: Random | None = None,
    ) -> None:
        self.simulation = simulation
        self.states: dict[Peer, ProcessState] = {}
        self.draws = FaultDraws(random, profile)
        self.network = FaultyNetwork(simulation, self.states, self.draws, observer)
        self.servers = DurableServers(simulation, run, self.draws, observer, decay)
        self._run = run
        self._observer = observer
        self._sent = 0
        simulation.interceptor = self

    # --- what the experiment arranges ------------------------------------------------------------

    def add(
        self, node: SimulatedNode, slot: str, clock: Clock, store: SimulatedStore | None = None
    ) -> None:
        """Make a node known, with a clock of its own."""
        self.simulation.add(node)
        self.states[node.name] = ProcessState(node, slot, clock, store)
        if store is not None:
            store.disk.begin()

    def freeze(self, name: Peer, until_ps: int) -> None:
        """A process is stopped for a while, as with SIGSTOP: it handles no events and does nothing."""
        state = self.states[name]
        if state.node.finished is not None or state.frozen_until:
            return
        self.draws.count("freezes")
        state.frozen_until = until_ps
        state.clock.freeze(self.simulation.now)
        incarnation = state.incarnation

        def go_on() -> None:
            if state.incarnation == incarnation:
                self._thaw(state)

        self.simulation.call(until_ps, go_on)

    def _thaw(self, state: ProcessState) -> None:
        if not state.frozen_until:
            return
        state.clock.thaw(self.simulation.now)
        events, actions = list(state.waiting), list(state.deferred)
        state.unfreeze()
        for event in events:
            self.simulation.give((state.node, event))
        for action in actions:
            action()

    def heal(self) -> None:
        """No more faults happen from now on."""
        for state in self.states.values():
            self._thaw(state)
        self.draws.profile = FaultProfile(late_ps=0)
        self.network.mend()
        self.servers.empty_disks()

    def lose_host(self, name: Peer) -> None:
        """A process is killed, and its disk is lost with it."""
        state = self.states[name]
        if state.node.finished in (None, DOWN):
            self.draws.count("hosts_lost")
            self._lose(state)

    def lose_power(self, name: Peer, random: Random) -> SalvagedServer | None:
        """A durable server's machine has lost its power, and whatever was not synced. Returns the state up to the
        last sound record after a snapshot, from which another incarnation of the run can continue; None: there
        is none. Raises `AssertionError` if a snapshot is lost that was on the disk."""
        state = self.states[name]
        store = state.store
        if store is None or state.node.finished not in (None, DOWN):
            return None
        self.draws.count("powers_lost")
        self._lose(state)
        return self.servers.salvage(store, random)

    def _lose(self, state: ProcessState) -> None:
        state.store = None
        if state.node.finished is DOWN:
            state.incarnation += 1
            state.node.finished = LOST
        else:
            self.crash(state.node.name)

    def crash(self, name: Peer) -> None:
        """A process is killed at once, as with kill -9."""
        state = self.states[name]
        node = state.node
        if node.finished is not None:
            return
        self.draws.count("crashes")
        state.incarnation += 1
        state.held.clear()
        state.unfreeze()
        self.simulation.lose(name)
        if state.store is not None:
            node.finished = DOWN
            self.servers.restart_later(state, state.store)

    # --- events and effects ----------------------------------------------------------------------

    def handle(self, node: SimulatedNode, event: Event) -> None:
        """Do as the real driver does: let the machine handle the event, record it, carry out the effects."""
        simulation, state, draws = self.simulation, self.states[node.name], self.draws
        if state.frozen_until:
            state.keep_waiting(event)
            return
        if type(event) is Tick and self._listens_first(state):
            return
        now, store = state.clock.read(simulation.now), state.store
        payload = None
        if store is not None and isinstance(event, Received) and event.blob is not None:
            payload = node.plane.lend(event.blob)
            state.blobs[event.blob] = None
        effects = node.machine.handle(event, now)
        simulation.record(now, node, event, effects)
        node.machine.check()
        number = 0 if store is None else store.disk.event(event, now, payload)
        self._observer.handled(node, number, event, effects)
        stop = len(effects) + 1
        if draws.happens(draws.profile.crash):
            stop = draws.random.randrange(len(effects) + 1)
        for done, effect in enumerate(effects):
            if done == stop:
                break
            self._do(state, effect, number)
            _track(state.blobs, effect)
        if stop <= len(effects):
            self.crash(node.name)
        elif store is not None:
            self.servers.keep(state, store, now)

    def _listens_first(self, state: ProcessState) -> bool:
        """Postpone, once, a tick that comes right after a pause; see `pelago.core.listening`."""
        put_off = not state.tick_is_late and not state.clock.has_listened(self.simulation.now)
        state.tick_is_late = put_off
        if put_off:
            incarnation = state.incarnation
            at_ps = self.simulation.now + state.clock.last(MOMENT_PS)

            def tick() -> None:
                if state.incarnation == incarnation:
                    self.simulation.give((state.node, Tick()))

            self.simulation.call(at_ps, tick)
        return put_off

    def _do(self, state: ProcessState, effect: Effect, number: int) -> None:
        match effect:
            case Send():
                self._send(state, effect, number)
            case SetTick(interval_ps):
                self.simulation.perform(state.node, SetTick(state.clock.last(interval_ps)))
            case Measure(blob) if self.draws.happens(self.draws.profile.unfit):
                self.draws.count("unfit")
                self.simulation.give((state.node, Measured(blob, float("inf"), False)))
            case _:
                self.simulation.perform(state.node, effect)

    def _send(self, state: ProcessState, effect: Send[Message], number: int) -> None:
        message, blob, store = effect.message, effect.blob, state.store
        self._sent += 1
        if self._sent % CODED_EVERY == 0:
            message = decode_message(self._run, encode(self._run, message))
        payload = None if blob is None else state.node.plane.lend(blob)

        def depart() -> None:
            self._observer.departed(state.node, effect.peer, message)
            if blob is None:
                self.network.post(state, effect.peer, message)
            else:
                self.network.ship(
                    Shipment(state, state.incarnation, effect.peer, message, blob, payload)
                )

        if store is None or isinstance(message, UNCOMMITTED) or store.disk.durable >= number:
            depart()
        else:
            state.held.append((number, depart))


def _track(blobs: dict[BlobId, None], effect: Effect) -> None:
    """Keep the set of payloads that a machine holds."""
    match effect:
        case Pin() | Difference():
            blobs[effect.blob] = None
        case Release(blob):
            blobs.pop(blob, None)
        case _:
            pass
