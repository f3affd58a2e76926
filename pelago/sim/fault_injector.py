"""A world in which messages are lost, repeated and late, links are cut, clocks differ and processes die.

`FaultInjector` handles the events of a simulation in place of its own loop. Everything is drawn from one
`Random`, so one seed gives one course. What it promises the machines is what the real driver does:

- A payload's sender hears `Delivered` or `PeerLost`, unless it dies itself; the receiver may have it
  all the same, or twice. One that the receiver does not expect is turned away.
- What a client says to its server reaches whoever serves when it arrives. What a process that is dead
  by now said may still arrive, but not its payloads.
- A durable server's messages leave when its disk holds their cause, but for those in `UNCOMMITTED`.
  After a crash it comes back under its name, from what its disk holds, and hears `Restarted`.
- Any other process that dies stays dead; who supervises it may add another one.
- A process that is frozen goes on later as if nothing had been: what came meanwhile waits for it, but its
  timer, which is due, comes first.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Final, Protocol

from pelago.core.errors import CheckpointError
from pelago.core.machine import (
    Delivered,
    Finish,
    Machine,
    PeerLost,
    Received,
    Restarted,
    Send,
    SetTick,
    Tick,
)
from pelago.core.names import BlobId, Peer
from pelago.core.tensor_effects import Difference, Measure, Measured, Pin, Release
from pelago.durable import image
from pelago.durable.replay import UNCOMMITTED
from pelago.sim.disk import Disk
from pelago.sim.fault_profile import MOMENT_PS, Clock, FaultProfile
from pelago.sim.planes import DurablePlane, Payload
from pelago.sim.recovery import ReplayedServer, recover
from pelago.sim.simulation import LOST, SimulatedNode, Simulation
from pelago.wire.codec import decode_message, encode
from pelago.wire.messages import Effect, Event, Message

CODED_EVERY: Final = 8
"""One message of so many goes through the codec: the journals code all that a durable server hears."""
DOWN: Final = Finish("down", error="down")
"""How a durable server ends that will be back."""
TRIES_MAX: Final = 6
"""So often a payload is tried again whose receiver cannot be reached."""


class Observer(Protocol):
    """Who watches everything, and says what was wrong by `AssertionError`."""

    def handled(
        self, node: SimulatedNode, number: int, event: Event, effects: list[Effect]
    ) -> None:
        """A machine handled an event; ``number``: of its record, 0 where none is kept."""
        ...

    def departed(self, node: SimulatedNode, peer: Peer, message: Message) -> None:
        """A message left a node."""
        ...

    def arrived(self, node: SimulatedNode, sender: SimulatedNode, message: Message) -> None:
        """A node is about to hear a message."""
        ...

    def restarted(self, node: SimulatedNode, number: int, recovered: ReplayedServer) -> None:
        """A durable server is back, with all that was recorded up to a number."""
        ...


@dataclass(slots=True)
class SimulatedStore:
    """What a durable server has besides its machine."""

    disk: Disk
    plane: DurablePlane
    make: Callable[[], tuple[Machine[Message], DurablePlane]]
    """A fresh machine and its plane, as at the very start."""
    first: tuple[Event, ...] = ()
    """What it hears after `Started` or `Restarted`."""


@dataclass(frozen=True, slots=True)
class Salvaged:
    """What a loss of power left of a server."""

    machine: image.Plain
    plane: object
    number: int
    """Of the last event in it."""
    recovered: ReplayedServer


@dataclass(slots=True)
class ProcessState:
    """What befell a process so far. ``slot``: whose place it takes in the run, process after process."""

    node: SimulatedNode
    slot: str
    clock: Clock
    store: SimulatedStore | None = None
    incarnation: int = 0
    """Grows when it dies."""
    held: deque[tuple[int, Callable[[], None]]] = field(default_factory=deque)
    """What waits for the disk: (number of its cause, how to send it)."""
    writing: bool = False
    blobs: dict[BlobId, None] = field(default_factory=dict)
    """Payloads that the machine of a durable server holds."""
    frozen_until: int = 0
    """When it goes on; 0: it runs."""
    tick_is_late: bool = False
    """Its tick was put off, so that it first listens."""
    waiting: deque[Event] = field(default_factory=deque)
    """What came while it was frozen; its tick first."""
    deferred: list[Callable[[], None]] = field(default_factory=list)
    """What it would have done while it was frozen."""

    def run_again(self) -> None:
        """It is not frozen any more, or another process is in its place."""
        self.frozen_until, self.tick_is_late = 0, False
        self.waiting.clear()
        self.deferred.clear()


class FaultInjector:
    """Injects faults into a simulation. ``run``: its run id. ``decay``: chance of what happens to snapshots."""

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
        self.profile = profile
        self.states: dict[Peer, ProcessState] = {}
        self.counts: dict[str, int] = {}
        """How often what happened."""
        self._run = run
        self._random, self._decay = random, decay
        self._observer = observer
        self._cuts: dict[tuple[str, str], int] = {}
        """Until when nothing gets from one slot to another."""
        self._full_until = 0
        self._slow: dict[str, list[_Shipment]] = {}
        """Slots from which payloads crawl to their servers, and those that do."""
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

    def cut(self, sender: str, receiver: str, until_ps: int) -> None:
        """Let nothing through from one slot to another for a while."""
        self._count("cuts")
        self._cuts[sender, receiver] = until_ps

    def fill_disks(self, until_ps: int) -> None:
        """No disk takes anything for a while."""
        self._count("full_disks")
        self._full_until = until_ps

    def slow(self, slot: str) -> None:
        """Let a slot's payloads crawl to its server until `quicken`; all else comes as ever."""
        if slot not in self._slow:
            self._count("slow_links")
            self._slow[slot] = []

    def quicken(self, slot: str) -> None:
        """The link carries as ever, also what is on its way."""
        for shipment in self._slow.pop(slot, []):
            self._ship(shipment)

    def freeze(self, name: Peer, until_ps: int) -> None:
        """A process is stopped for a while, as with SIGSTOP, and hears and does nothing."""
        state = self.states[name]
        if state.node.finished is not None or state.frozen_until:
            return
        self._count("freezes")
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
        state.run_again()
        for event in events:
            self.simulation.give(state.node, event)
        for action in actions:
            action()

    def heal(self) -> None:
        """From now on all goes well."""
        for state in self.states.values():
            self._thaw(state)
        self.profile = FaultProfile(late_ps=0)
        self._cuts.clear()
        self._full_until = 0

    def lose_host(self, name: Peer) -> None:
        """A process is gone, and what it wrote with it."""
        state = self.states[name]
        if state.node.finished in (None, DOWN):
            self._count("hosts_lost")
            self._lose(state)

    def lose_power(self, name: Peer, random: Random) -> "Salvaged | None":
        """A durable server's machine is gone, and what nobody had synced there. Returns the state up to the
        last sound record after a snapshot, for another life to go on from; None: there is none."""
        state = self.states[name]
        store = state.store
        if store is None or state.node.finished not in (None, DOWN):
            return None
        self._count("powers_lost")
        self._lose(state)
        disk = store.disk
        disk.lose_power(random)
        contents = disk.salvage()
        if contents is None:
            assert not disk.promised, (
                "no snapshot is sound after a loss of power, and one was whole"
            )
            return None
        assert contents.snapshot is not None
        found = contents.snapshot.number
        assert found >= disk.promised, (
            f"snapshot {disk.promised} was whole, and {found} is gone on from"
        )
        self._count("salvages")
        machine, plane = store.make()
        recovered = recover(contents, self._run, machine, plane)
        return Salvaged(image.take(machine), plane.image(()), contents.number, recovered)

    def _lose(self, state: ProcessState) -> None:
        state.store = None
        if state.node.finished is DOWN:
            state.incarnation += 1
            state.node.finished = LOST
        else:
            self.crash(state.node.name)

    def crash(self, name: Peer) -> None:
        """A process is gone at once, as with kill -9."""
        state = self.states[name]
        node = state.node
        if node.finished is not None:
            return
        self._count("crashes")
        state.incarnation += 1
        state.held.clear()
        state.run_again()
        self.simulation.lose(name)
        if state.store is None:
            return
        node.finished, state.writing = DOWN, False
        state.store.disk.crash(self._random)
        after_ps = self._random.randint(1, max(1, self.profile.down_ps))
        incarnation = state.incarnation
        self.simulation.call(
            self.simulation.now + after_ps, lambda: self._restart(state, incarnation)
        )

    # --- events and effects ----------------------------------------------------------------------

    def handle(self, node: SimulatedNode, event: Event) -> None:
        """As the real driver does: handle, write down, do."""
        simulation, state = self.simulation, self.states[node.name]
        if state.frozen_until:
            self._keep_waiting(state, event)
            return
        if type(event) is Tick and self._listens_first(state):
            return
        now, store = state.clock.read(simulation.now), state.store
        payload = None
        if store is not None and isinstance(event, Received) and event.blob is not None:
            payload = node.plane.lend(event.blob)
            state.blobs[event.blob] = None
        effects = node.machine.handle(event, now)
        simulation.note(now, node, event, effects)
        node.machine.check()
        number = 0 if store is None else store.disk.event(event, now, payload)
        self._observer.handled(node, number, event, effects)
        stop = len(effects) + 1
        if self.profile.crash and self._random.random() < self.profile.crash:
            stop = self._random.randrange(len(effects) + 1)
        for done, effect in enumerate(effects):
            if done == stop:
                break
            self._do(state, effect, number)
            _track(state.blobs, effect)
        if stop <= len(effects):
            self.crash(node.name)
        elif store is not None:
            self._keep(state, store, now)

    @staticmethod
    def _keep_waiting(state: ProcessState, event: Event) -> None:
        if type(event) is not Tick:
            state.waiting.append(event)
        elif not state.waiting or type(state.waiting[0]) is not Tick:
            state.waiting.appendleft(event)  # A timer fires once, however late.

    def _listens_first(self, state: ProcessState) -> bool:
        """Put a tick off that comes right after a pause, once; see `pelago.core.listening`."""
        put_off = not state.tick_is_late and not state.clock.has_listened(self.simulation.now)
        state.tick_is_late = put_off
        if put_off:
            incarnation, at_ps = (
                state.incarnation,
                self.simulation.now + state.clock.last(MOMENT_PS),
            )

            def tick() -> None:
                if state.incarnation == incarnation:
                    self.simulation.give(state.node, Tick())

            self.simulation.call(at_ps, tick)
        return put_off

    def _do(self, state: ProcessState, effect: Effect, number: int) -> None:
        match effect:
            case Send():
                self._send(state, effect, number)
            case SetTick(interval_ps):
                self.simulation.perform(state.node, SetTick(state.clock.last(interval_ps)))
            case Measure(blob) if self._happens(self.profile.unfit):
                self._count("unfit")
                self.simulation.give(state.node, Measured(blob, float("inf"), False))
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
                self._post(state, effect.peer, message)
            else:
                self._ship(_Shipment(state, state.incarnation, effect.peer, message, blob, payload))

        if store is None or isinstance(message, UNCOMMITTED) or store.disk.durable >= number:
            depart()
        else:
            state.held.append((number, depart))

    # --- the disk --------------------------------------------------------------------------------

    def _keep(self, state: ProcessState, store: SimulatedStore, now: int) -> None:
        """Write down what was queued; begin a snapshot now and then."""
        disk = store.disk
        if self._happens(self.profile.snapshot) and not disk.snapshotting:
            self._count("snapshots")
            taken = [image.take(state.node.machine), state.node.blobs]
            disk.snapshot(taken, store.plane.image(state.blobs), tuple(state.blobs), now)
            self._later(self.profile.disk_ps, state, disk.finish_snapshot)
        if not state.writing:
            self._write(state, store)

    def _write(self, state: ProcessState, store: SimulatedStore) -> None:
        disk, through = store.disk, store.disk.last
        state.writing = disk.durable < through
        if not state.writing:
            return

        def written() -> None:
            disk.written(through)
            while state.held and state.held[0][0] <= through:
                state.held.popleft()[1]()
            self._write(state, store)

        full_ps = max(0, self._full_until - self.simulation.now)
        if not self.profile.disk_ps and not full_ps:
            written()
        else:
            self._later(self.profile.disk_ps, state, written, full_ps)

    def _restart(self, state: ProcessState, incarnation: int) -> None:
        """A durable server comes back, unless its host was lost meanwhile."""
        node, store = state.node, state.store
        if state.incarnation != incarnation:
            return
        assert store is not None
        if self._happens(self.profile.damage):
            self._damage(store.disk)
        decays = self._decay is not None and self._decay.random() < self.profile.damage
        if self._decay is not None and decays and store.disk.rot(self._decay):
            self._count("snapshots_rotten")
        contents = store.disk.read()
        machine, store.plane = store.make()
        recovered = recover(contents, self._run, machine, store.plane)
        state.blobs = recovered.blobs
        machine.check()
        self._count("restarts")
        self.simulation.revive(node, machine, store.plane)
        node.blobs = recovered.last_blob
        gone_ps = self._random.randint(0, max(1, self.profile.down_ps))
        state.clock.set(self.simulation.now, recovered.now + gone_ps)
        self._observer.restarted(node, contents.number, recovered)
        for event in (Restarted(), *store.first):
            self.simulation.give(node, event)

    def _damage(self, disk: Disk) -> None:
        mend = disk.damage(self._random)
        if mend is None:
            return
        self._count("damages")
        try:
            disk.read()
        except CheckpointError:
            mend()
        else:
            raise AssertionError("a damaged journal was taken for a sound one")

    # --- on the way ------------------------------------------------------------------------------

    def _post(self, state: ProcessState, peer: Peer, message: Message) -> None:
        """A control message leaves: it comes once, several times or never."""
        profile, copies = self.profile, 1
        if self._happens(profile.control_lost):
            self._count("lost")
            copies = 0
        elif self._happens(profile.control_repeated):
            self._count("repeated")
            copies = 2
        for _ in range(copies):
            late_ps = 0
            if self._happens(profile.control_late):
                late_ps = self._random.randint(0, profile.late_ps)
            latency_ps = self._latency_ps(state, peer)
            if latency_ps + late_ps:
                at_ps = self.simulation.now + latency_ps + late_ps
                self.simulation.call(at_ps, lambda: self._arrive(state, peer, message, 0))
            else:
                self._arrive(state, peer, message, 0)

    def _arrive(self, state: ProcessState, peer: Peer, message: Message, tries: int) -> None:
        receiver = self.simulation.find(peer)
        if receiver is None or self._is_cut(state, receiver):
            return
        if receiver.finished is DOWN:
            # It waits in the sender's socket, or was lost on a connection that broke.
            if tries < TRIES_MAX and self._happens(0.5):
                at_ps = self.simulation.now + self._random.randint(1, max(1, self.profile.down_ps))
                self.simulation.call(at_ps, lambda: self._arrive(state, peer, message, tries + 1))
            return
        if receiver.finished is None:
            self._observer.arrived(receiver, state.node, message)
            called = self.simulation.called(state.node, receiver)
            self.simulation.give(receiver, Received(called, message))

    def _ship(self, shipment: "_Shipment", wait_ps: int = 0) -> None:
        """A payload leaves."""
        state, peer = shipment.state, shipment.peer
        if state.slot in self._slow and peer == state.node.server:
            self._slow[state.slot].append(shipment)
            return
        duration_ps = self._work_ps(state, peer) + self._latency_ps(state, peer) + wait_ps
        if self._happens(self.profile.control_late):
            duration_ps += self._random.randint(0, self.profile.late_ps)
        self.simulation.call(self.simulation.now + duration_ps, lambda: self._unload(shipment))

    def _unload(self, shipment: "_Shipment") -> None:
        state, profile = shipment.state, self.profile
        sender = state.node
        if state.incarnation != shipment.incarnation or sender.finished is not None:
            return
        receiver = self.simulation.find(shipment.peer)
        stands_until = self._stands_until(state, receiver)
        if stands_until:
            self.simulation.call(stands_until, lambda: self._unload(shipment))
            return
        reached = receiver is not None and not self._is_cut(state, receiver)
        if receiver is None or not reached or receiver.finished is not None:
            shipment.tries += 1
            if shipment.tries < TRIES_MAX and self._happens(0.5):
                self._ship(shipment, self._random.randint(1, max(1, profile.down_ps)))
            else:
                self.simulation.give(sender, PeerLost(shipment.peer, "out of reach"))
            return
        if self._happens(profile.payload_lost):
            self._count("payloads_lost")
            self.simulation.give(sender, PeerLost(shipment.peer, "cut"))
            return
        called = self.simulation.called(sender, receiver)
        # A repeat comes all the same, so that machines need not rest on what drivers turn away.
        if not shipment.repeated and not receiver.machine.expects(called, shipment.message):
            self._count("refused")
            self.simulation.give(sender, PeerLost(shipment.peer, "nobody asked for it"))
            return
        self._observer.arrived(receiver, sender, shipment.message)
        staged = receiver.new_blob()
        receiver.plane.adopt(staged, shipment.payload)
        self.simulation.give(receiver, Received(called, shipment.message, staged))
        if self._happens(profile.payload_repeated):
            # The receiver did not know any more that it had it.
            self._count("payloads_repeated")
            shipment.repeated = True
            self._ship(shipment, self._random.randint(0, profile.late_ps))
        elif self._happens(profile.payload_unconfirmed):
            self._count("unconfirmed")
            self.simulation.give(sender, PeerLost(shipment.peer, "cut"))
        else:
            self.simulation.give(sender, Delivered(shipment.peer, shipment.blob))

    def _stands_until(self, state: ProcessState, receiver: SimulatedNode | None) -> int:
        """Until when nothing moves between two nodes because one of them is frozen; 0: it does."""
        if receiver is None:
            return state.frozen_until
        return max(state.frozen_until, self.states[receiver.name].frozen_until)

    def _is_cut(self, state: ProcessState, receiver: SimulatedNode) -> bool:
        if not self._cuts:
            return False
        until = self._cuts.get((state.slot, self.states[receiver.name].slot), 0)
        return until > self.simulation.now

    def _latency_ps(self, state: ProcessState, peer: Peer) -> int:
        receiver = self.simulation.find(peer)
        if receiver is None:
            return 0
        return self.simulation.links.latency_ps[state.node.place][receiver.place]

    def _work_ps(self, state: ProcessState, peer: Peer) -> int:
        receiver = self.simulation.find(peer)
        if receiver is None:
            return 0
        return self.simulation.links.work_ps[state.node.place][receiver.place]

    # --- chance ----------------------------------------------------------------------------------

    def _happens(self, chance: float) -> bool:
        return chance > 0.0 and self._random.random() < chance

    def _later(
        self, within_ps: int, state: ProcessState, action: Callable[[], None], after_ps: int = 0
    ) -> None:
        """Do something after a while, unless the process is gone by then."""
        incarnation = state.incarnation
        at_ps = self.simulation.now + after_ps + self._random.randint(0, max(0, within_ps))

        def act() -> None:
            if state.incarnation != incarnation:
                return
            if state.frozen_until:
                state.deferred.append(act)
            else:
                action()

        self.simulation.call(at_ps, act)

    def _count(self, what: str) -> None:
        self.counts[what] = self.counts.get(what, 0) + 1


@dataclass(slots=True)
class _Shipment:
    """A payload on its way."""

    state: ProcessState
    incarnation: int
    peer: Peer
    message: Message
    blob: BlobId
    payload: Payload
    tries: int = 0
    repeated: bool = False


def _track(blobs: dict[BlobId, None], effect: Effect) -> None:
    match effect:
        case Pin() | Difference():
            blobs[effect.blob] = None
        case Release(blob):
            blobs.pop(blob, None)
        case _:
            pass
