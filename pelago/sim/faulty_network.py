"""A network that loses, repeats and delays messages, and whose links are cut or slow."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from pelago.core.machine import Delivered, PeerLost, Received
from pelago.core.names import BlobId, Peer
from pelago.core.ports import Payload
from pelago.sim.fault_draws import FaultDraws
from pelago.sim.node import SimulatedNode
from pelago.sim.observer import Observer
from pelago.sim.process import DOWN, ProcessState
from pelago.sim.simulation import Simulation
from pelago.wire.messages import Message

TRIES_MAX: Final = 6
"""How long until a payload whose receiver cannot be reached is tried again, in picoseconds."""


@dataclass(slots=True)
class Shipment:
    """A payload on its way."""

    state: ProcessState
    """The sender's process."""
    incarnation: int
    """The sender's incarnation when it sent the payload."""
    peer: Peer
    message: Message
    blob: BlobId
    payload: Payload
    tries: int = 0
    repeated: bool = False


class FaultyNetwork:
    """``states``: of all processes, by name. ``draws``: chances and counts of faults."""

    def __init__(
        self,
        simulation: Simulation,
        states: Mapping[Peer, ProcessState],
        draws: FaultDraws,
        observer: Observer,
    ) -> None:
        self._simulation = simulation
        self._states = states
        self._draws = draws
        self._observer = observer
        self._cuts: dict[tuple[str, str], int] = {}
        """Until when nothing gets from one slot to another."""
        self._slow: dict[str, list[Shipment]] = {}
        """Slots whose payloads to their servers are held back, and these payloads."""

    def cut(self, sender: str, receiver: str, until_ps: int) -> None:
        """Let nothing through from one slot to another for a while."""
        self._draws.count("cuts")
        self._cuts[sender, receiver] = until_ps

    def mend(self) -> None:
        """No link is cut any more."""
        self._cuts.clear()

    def slow(self, slot: str) -> None:
        """Hold back a slot's payloads to its server until `quicken`; everything else arrives as usual."""
        if slot not in self._slow:
            self._draws.count("slow_links")
            self._slow[slot] = []

    def quicken(self, slot: str) -> None:
        """The link is as fast as usual again, also for the payloads that were held back."""
        for shipment in self._slow.pop(slot, []):
            self.ship(shipment)

    # --- control messages ------------------------------------------------------------------------

    def post(self, state: ProcessState, peer: Peer, message: Message) -> None:
        """A control message leaves: it arrives once, twice or never."""
        draws, simulation, copies = self._draws, self._simulation, 1
        profile = draws.profile
        if draws.happens(profile.control_lost):
            draws.count("lost")
            copies = 0
        elif draws.happens(profile.control_repeated):
            draws.count("repeated")
            copies = 2
        for _ in range(copies):
            late_ps = 0
            if draws.happens(profile.control_late):
                late_ps = draws.random.randint(0, profile.late_ps)
            latency_ps = self._latency_ps(state, peer)
            if latency_ps + late_ps:
                at_ps = simulation.now + latency_ps + late_ps
                simulation.call(at_ps, lambda: self._arrive(state, peer, message, 0))
            else:
                self._arrive(state, peer, message, 0)

    def _arrive(self, state: ProcessState, peer: Peer, message: Message, tries: int) -> None:
        simulation = self._simulation
        receiver = simulation.network.find(peer)
        if receiver is None or self._is_cut(state, receiver):
            return
        if receiver.finished is DOWN:
            # It waits in the sender's socket, or was lost on a connection that broke.
            if tries < TRIES_MAX and self._draws.happens(0.5):
                at_ps = simulation.now + self._draws.down_ps()
                simulation.call(at_ps, lambda: self._arrive(state, peer, message, tries + 1))
            return
        if receiver.finished is None:
            self._observer.arrived(receiver, state.node, message)
            simulation.give((receiver, Received(state.node.name_for(receiver), message)))

    # --- payloads --------------------------------------------------------------------------------

    def ship(self, shipment: Shipment, wait_ps: int = 0) -> None:
        """A payload leaves."""
        state, peer, draws = shipment.state, shipment.peer, self._draws
        if state.slot in self._slow and peer == state.node.server:
            self._slow[state.slot].append(shipment)
            return
        duration_ps = self._work_ps(state, peer) + self._latency_ps(state, peer) + wait_ps
        if draws.happens(draws.profile.control_late):
            duration_ps += draws.random.randint(0, draws.profile.late_ps)
        self._simulation.call(
            self._simulation.now + duration_ps, lambda: self._arrive_whole(shipment)
        )

    def _arrive_whole(self, shipment: Shipment) -> None:
        """All of a payload has reached its receiver, unless the receiver cannot be reached."""
        state, simulation, draws = shipment.state, self._simulation, self._draws
        sender = state.node
        if state.incarnation != shipment.incarnation or sender.finished is not None:
            return
        receiver = simulation.network.find(shipment.peer)
        frozen_until = self._frozen_until(state, receiver)
        if frozen_until:
            simulation.call(frozen_until, lambda: self._arrive_whole(shipment))
            return
        reached = receiver is not None and not self._is_cut(state, receiver)
        if receiver is None or not reached or receiver.finished is not None:
            shipment.tries += 1
            if shipment.tries < TRIES_MAX and draws.happens(0.5):
                self.ship(shipment, draws.down_ps())
            else:
                simulation.give((sender, PeerLost(shipment.peer, "out of reach")))
            return
        if draws.happens(draws.profile.payload_lost):
            draws.count("payloads_lost")
            simulation.give((sender, PeerLost(shipment.peer, "cut")))
            return
        # A repeat comes all the same, so that machines need not rely on drivers to turn it away.
        name = sender.name_for(receiver)
        if not shipment.repeated and not receiver.machine.expects(name, shipment.message):
            draws.count("refused")
            simulation.give((sender, PeerLost(shipment.peer, "it is not expected here")))
            return
        self._deliver(shipment, receiver)

    def _deliver(self, shipment: Shipment, receiver: SimulatedNode) -> None:
        """The receiver has a payload; the sender receives `Delivered`, or `PeerLost` all the same."""
        sender, simulation, draws = shipment.state.node, self._simulation, self._draws
        self._observer.arrived(receiver, sender, shipment.message)
        staged = receiver.new_blob()
        receiver.plane.adopt(staged, shipment.payload)
        size = simulation.network.links.payload_bytes
        name = sender.name_for(receiver)
        simulation.give((receiver, Received(name, shipment.message, staged, size)))
        if draws.happens(draws.profile.payload_repeated):
            # The receiver has forgotten that it had it.
            draws.count("payloads_repeated")
            shipment.repeated = True
            self.ship(shipment, draws.random.randint(0, draws.profile.late_ps))
        elif draws.happens(draws.profile.payload_unconfirmed):
            draws.count("unconfirmed")
            simulation.give((sender, PeerLost(shipment.peer, "cut")))
        else:
            simulation.give((sender, Delivered(shipment.peer, shipment.blob, size)))

    # --- the way between two nodes ---------------------------------------------------------------

    def _frozen_until(self, state: ProcessState, receiver: SimulatedNode | None) -> int:
        """Until when nothing moves between two nodes because one of them is frozen; 0: it does."""
        if receiver is None:
            return state.frozen_until
        return max(state.frozen_until, self._states[receiver.name].frozen_until)

    def _is_cut(self, state: ProcessState, receiver: SimulatedNode) -> bool:
        if not self._cuts:
            return False
        until = self._cuts.get((state.slot, self._states[receiver.name].slot), 0)
        return until > self._simulation.now

    def _latency_ps(self, state: ProcessState, peer: Peer) -> int:
        network = self._simulation.network
        receiver = network.find(peer)
        return 0 if receiver is None else network.links.latency_ps[state.node.place][receiver.place]

    def _work_ps(self, state: ProcessState, peer: Peer) -> int:
        network = self._simulation.network
        receiver = network.find(peer)
        return 0 if receiver is None else network.links.work_ps[state.node.place][receiver.place]
