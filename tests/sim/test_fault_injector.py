"""The virtual driver with faults, and machines that follow a script."""

from random import Random

from pelago.core.durable import durable
from pelago.core.machine import (
    PS_PER_MS,
    Delivered,
    Machine,
    PeerLost,
    Received,
    Restarted,
    Send,
    SetTick,
    Started,
    Tick,
)
from pelago.core.names import Peer, PushId, Version
from pelago.core.notes.gps import Settled
from pelago.core.tensor_effects import Pin, Release
from pelago.sim.disk import Disk
from pelago.sim.fault_injector import FaultInjector
from pelago.sim.fault_profile import Clock, FaultProfile
from pelago.sim.links import Links
from pelago.sim.node import SimulatedNode
from pelago.sim.planes import DurablePlane, TimingPlane
from pelago.sim.process import SimulatedStore
from pelago.sim.recovery import ReplayedServer
from pelago.sim.simulation import Simulation
from pelago.sim.tensor_executor import TensorExecutor
from pelago.sim.training_executor import TrainingExecutor
from pelago.wire.messages import Ack, Effect, Event, Heartbeat, Message, Model, Offer

MODEL = Model(Version(1, 0), 0, None, None, final=False)
SHIP: tuple[Effect, ...] = (Pin(1), Send("other", MODEL, 1), Release(1))
OFFER, ACK = Offer(PushId(3, 1)), Ack(PushId(3, 1), "applied")


@durable(settings=("settings", "script", "heard"))
class ScriptedServer:
    """Answers by the script, and counts and keeps its events."""

    def __init__(self, **script: tuple[Effect, ...]) -> None:
        self.settings = script
        self.script = script
        self.count = 0
        self.heard: list[tuple[int, Event]] = []

    def handle(self, event: Event, now: int) -> list[Effect]:
        self.count += 1
        self.heard.append((now, event))
        answer = list(self.script.get(type(event).__name__, ()))
        return [*answer, Settled(self.count)]

    def expects(self, peer: Peer, message: Message) -> bool:
        """Take any message."""
        return True

    def check(self) -> None:
        assert self.count < 10_000

    def kinds(self) -> list[type]:
        return [type(event) for _, event in self.heard]


class RecordingObserver:
    """Keeps the messages that left and the servers that came back."""

    def __init__(self) -> None:
        self.left: list[Message] = []
        self.back: list[tuple[str, int, ReplayedServer]] = []

    def handled(
        self, node: SimulatedNode, number: int, event: Event, effects: list[Effect]
    ) -> None:
        """Nothing."""

    def departed(self, node: SimulatedNode, peer: str, message: Message) -> None:
        self.left.append(message)

    def arrived(self, node: SimulatedNode, sender: SimulatedNode, message: Message) -> None:
        """Nothing."""

    def restarted(self, node: SimulatedNode, number: int, recovered: ReplayedServer) -> None:
        self.back.append((node.name, number, recovered))


class TwoNodes:
    """`one`, perhaps durable, and `other`, a millisecond apart; a payload takes eight more."""

    def __init__(
        self,
        profile: FaultProfile,
        one: ScriptedServer,
        other: ScriptedServer | None = None,
        is_durable: bool = False,
        clock: Clock | None = None,
        seed: int = 1,
    ) -> None:
        self.one, self.other, self.observer = one, other or ScriptedServer(), RecordingObserver()
        links = Links(1_000_000, 2, [[100, 1], [1, 100]], [[0, 1.0], [1.0, 0]])
        self.simulation = Simulation("a-run", links, (TensorExecutor, TrainingExecutor))
        self.injector = FaultInjector(
            self.simulation, "a-run", Random(seed), profile, self.observer
        )
        plane = TimingPlane()
        store = (
            SimulatedStore(Disk("a-run", "one", "one", 1), plane, self._make)
            if is_durable
            else None
        )
        self.injector.add(SimulatedNode("one", 0, one, plane), "one", clock or Clock(), store)
        self.injector.add(SimulatedNode("other", 1, self.other, TimingPlane()), "other", Clock())
        self.simulation.give((self.injector.states["one"].node, Started()))

    def _make(self) -> tuple[Machine[Message], DurablePlane]:
        self.one = ScriptedServer(**self.one.script)
        return self.one, TimingPlane()

    def run(self, until_ms: float) -> "TwoNodes":
        self.simulation.run(until_ps=round(until_ms * PS_PER_MS))
        return self

    def tells(self, message: Message) -> None:
        """`other` sends a message to `one`, without delay."""
        self.simulation.give((self.injector.states["one"].node, Received("other", message)))


def test_without_faults_all_arrives_once() -> None:
    pair = TwoNodes(FaultProfile(), ScriptedServer(Started=(Send("other", OFFER), *SHIP))).run(20)
    assert pair.other.heard == [
        (PS_PER_MS, Received("one", OFFER)),
        (9 * PS_PER_MS, Received("one", MODEL, -1, 1_000_000)),
    ]
    assert pair.one.kinds() == [Started, Delivered]


def test_control_messages_are_lost_repeated_and_late() -> None:
    offers = tuple(Send("other", Offer(PushId(each, 1))) for each in range(200))
    profile = FaultProfile(
        control_lost=0.2, control_repeated=0.2, control_late=0.5, late_ps=PS_PER_MS
    )
    heard = TwoNodes(profile, ScriptedServer(Started=offers)).run(20).other.heard
    numbers = [event.message.push.lease for _, event in heard]  # type: ignore[union-attr]
    assert 120 < len(set(numbers)) < 190
    assert len(numbers) > len(set(numbers))
    assert numbers != sorted(numbers)
    assert heard[-1][0] <= 2 * PS_PER_MS


def test_the_sender_of_a_lost_payload_gets_peer_lost() -> None:
    pair = TwoNodes(FaultProfile(payload_lost=1.0), ScriptedServer(Started=SHIP)).run(20)
    assert (pair.one.kinds(), pair.other.heard) == ([Started, PeerLost], [])


def test_a_payload_may_arrive_though_its_sender_gets_peer_lost() -> None:
    pair = TwoNodes(FaultProfile(payload_unconfirmed=1.0), ScriptedServer(Started=SHIP)).run(20)
    assert (pair.one.kinds(), pair.other.kinds()) == ([Started, PeerLost], [Received])


def test_a_cut_holds_back_one_direction_for_a_while() -> None:
    tick = SetTick(2 * PS_PER_MS)
    one = ScriptedServer(Started=(tick,), Tick=(Send("other", Heartbeat(None)),))
    other = ScriptedServer(Received=(Send("one", ACK),))
    pair = TwoNodes(FaultProfile(), one, other)
    pair.injector.network.cut("other", "one", 7 * PS_PER_MS)
    pair.run(9.5)
    assert [now // PS_PER_MS for now, _ in other.heard] == [3, 5, 7, 9]
    assert [now // PS_PER_MS for now, event in one.heard if type(event) is Received] == [8]


def test_clocks_go_at_their_own_rates_jump_and_never_go_back() -> None:
    clock = Clock()
    clock.set(0, 500)
    clock.permille = 2000
    one = ScriptedServer(Started=(SetTick(2 * PS_PER_MS),))
    pair = TwoNodes(FaultProfile(), one, clock=clock).run(2.5)
    clock.jump(7)
    pair.run(3.5)
    ticks = [now - 500 for now, event in one.heard if type(event) is Tick]
    assert ticks == [2 * PS_PER_MS, 4 * PS_PER_MS, 6 * PS_PER_MS + 7]
    clock.jump(-PS_PER_MS)
    assert clock.read(pair.simulation.now - 1) >= ticks[-1] + 500


def test_a_node_may_die_at_any_of_its_effects_and_the_rest_is_not_done() -> None:
    left = set()
    for seed in range(30):
        offers = tuple(Send("other", Offer(PushId(each, 1))) for each in range(3))
        pair = TwoNodes(FaultProfile(crash=1.0), ScriptedServer(Started=offers), seed=seed).run(20)
        left.add(len(pair.observer.left))
        assert pair.one.kinds() == [Started]
    assert left == {0, 1, 2, 3}


def test_messages_of_a_durable_node_wait_for_its_disk_but_for_those_that_promise_nothing() -> None:
    one = ScriptedServer(Started=(Send("other", ACK), Send("other", Heartbeat(None))))
    pair = TwoNodes(FaultProfile(disk_ps=PS_PER_MS), one, is_durable=True)
    pair.injector.servers.fill_disks(5 * PS_PER_MS)
    pair.run(4.9)
    assert pair.observer.left == [Heartbeat(None)]
    pair.run(6.1)
    assert pair.observer.left == [Heartbeat(None), ACK]


def test_a_durable_node_comes_back_as_it_was_and_gets_restarted() -> None:
    for snapshot in (0.0, 1.0):
        pair = TwoNodes(
            FaultProfile(down_ps=PS_PER_MS, snapshot=snapshot), ScriptedServer(), is_durable=True
        )
        pair.run(1)
        pair.tells(OFFER)
        pair.run(2)
        pair.injector.crash("one")
        pair.run(4)
        ((_, number, recovered),) = pair.observer.back
        assert number == 2
        assert pair.one.count == 3
        assert pair.one.kinds()[-1] is Restarted
        assert len(recovered.replayed) == (0 if snapshot else 2)


def test_what_was_not_durable_was_not_sent() -> None:
    for seed in range(20):
        one = ScriptedServer(Received=(Send("other", ACK),))
        pair = TwoNodes(FaultProfile(disk_ps=PS_PER_MS, down_ps=1), one, is_durable=True, seed=seed)
        pair.run(3)
        pair.tells(OFFER)
        pair.run(3.0001)
        pair.injector.crash("one")
        pair.run(9)
        assert pair.observer.left == []
        assert pair.one.count in (2, 3)


def test_a_frozen_process_handles_later_what_arrived_and_its_tick_last() -> None:
    """1. `one` has a tick every 100 ms, and is frozen at 150 ms. 2. `other` sends it a message at 250 ms.
    3. At 5.03 s it goes on: it handles the message first, then its tick, once. 4. Its clock stood still."""
    pair = TwoNodes(FaultProfile(), ScriptedServer(Started=(SetTick(100 * PS_PER_MS),)))
    pair.run(150)
    pair.injector.freeze("one", 5_030 * PS_PER_MS)
    pair.run(250).tells(OFFER)
    pair.run(4_999)
    assert pair.one.kinds() == [Started, Tick]
    pair.run(5_060)
    assert pair.one.kinds() == [Started, Tick, Received, Tick]
    assert pair.one.heard[-1][0] < 300 * PS_PER_MS


def test_nothing_moves_to_or_from_a_frozen_process_and_all_arrives_later() -> None:
    pair = TwoNodes(FaultProfile(), ScriptedServer(Started=SHIP)).run(1)
    pair.injector.freeze("other", 1_000 * PS_PER_MS)
    pair.run(999)
    assert pair.one.kinds() == [Started]
    pair.run(1_001)
    assert pair.one.kinds() == [Started, Delivered]
    assert [type(each) for _, each in pair.other.heard] == [Received]


def test_a_frozen_process_that_is_killed_handles_nothing_that_arrived() -> None:
    pair = TwoNodes(FaultProfile(down_ps=10 * PS_PER_MS), ScriptedServer(), is_durable=True).run(1)
    pair.injector.freeze("one", 1_000 * PS_PER_MS)
    pair.tells(OFFER)
    pair.run(2)
    pair.injector.crash("one")
    pair.run(2_000)
    assert pair.one.kinds() == [Started, Restarted]
