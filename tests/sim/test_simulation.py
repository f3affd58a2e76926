"""The virtual driver with machines that follow a script."""

from collections.abc import Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pelago.core.errors import WireError
from pelago.core.machine import (
    PS_PER_MS,
    Delivered,
    Finish,
    PeerLost,
    Received,
    Send,
    SetTick,
    Started,
    StopRequested,
    Tick,
)
from pelago.core.names import Lease, Peer, PushId, Version
from pelago.core.notes.common import Draining, GivingUp
from pelago.core.notes.gps import RegionSummary, RunStatus
from pelago.core.notes.note import Note
from pelago.core.ports import Payload
from pelago.core.tensor_effects import Difference, Measure, Measured, Pin, Release
from pelago.core.training_effects import Cancel, Train, Trained, Validate, Validated
from pelago.sim.links import Links
from pelago.sim.node import SimulatedNode
from pelago.sim.planes import Round, RoundPlan, TimingPlane
from pelago.sim.simulation import Simulation
from pelago.sim.tensor_executor import TensorExecutor
from pelago.sim.trace import Trace
from pelago.sim.training_executor import TrainingExecutor
from pelago.wire.messages import Effect, Event, Heartbeat, Message, Model, Offer, Wait

EXECUTORS = (TensorExecutor, TrainingExecutor)
MODEL = Model(Version(1, 0), 0, None, None, final=False)
LEASE = Lease(PushId(1, 1), ((0, 192),), 0)
MODEL_BYTES = 1_000_000


class ScriptedNode:
    """Answers each event by the script, and keeps its events and their times."""

    def __init__(self, script: Callable[[Event], Sequence[Effect]] = lambda event: ()) -> None:
        self.script = script
        self.heard: list[tuple[int, Event]] = []

    def handle(self, event: Event, now: int) -> list[Effect]:
        self.heard.append((now, event))
        return list(self.script(event))

    def expects(self, peer: Peer, message: Message) -> bool:
        """Take any message."""
        return True

    def check(self) -> None:
        assert len(self.heard) < 1000

    def kinds(self) -> list[tuple[int, type]]:
        return [(now, type(event)) for now, event in self.heard]


class SteadyTrainer:
    """Plans three steps of 1 ms for every lease."""

    def begin(self, lease: Lease, payload: Payload) -> RoundPlan:
        self.payload = payload
        return RoundPlan(3, 3 * PS_PER_MS)

    def finish(self, lease: Lease) -> Round:
        return Round(self.payload, lease.samples, 0.5)

    def cancel(self, lease: Lease) -> None:
        self.cancelled = lease

    def validate(self, payload: Payload) -> tuple[float, int]:
        return 0.25, 7


def pair(
    one: ScriptedNode, other: ScriptedNode, latency_ms: float = 0.0, trace: Trace | None = None
) -> Simulation:
    """`one` at place 0 and `other` at place 1, with 1 Gbps there and 2 Gbps back."""
    links = Links(MODEL_BYTES, 2, [[100, 1], [2, 100]], [[0, latency_ms], [latency_ms, 0]])
    simulation = Simulation("a-run", links, EXECUTORS, check=True, trace=trace)
    simulation.add(SimulatedNode("one", 0, one, TimingPlane(), SteadyTrainer()))
    simulation.add(SimulatedNode("other", 1, other, TimingPlane()))
    return simulation


def on(kind: type, *effects: Effect) -> Callable[[Event], Sequence[Effect]]:
    """A script of one line: the effects at every event of a kind."""
    return lambda event: effects if isinstance(event, kind) else ()


SEND_MODEL = (Pin(1), Send("other", MODEL, 1), Release(1))


@pytest.mark.parametrize(("latency_ms", "expected_ms"), [(0.0, 8.0), (12.5, 20.5)])
def test_a_payload_takes_its_bytes_at_the_links_rate_and_the_latency(
    latency_ms: float, expected_ms: float
) -> None:
    other = ScriptedNode()
    simulation = pair(ScriptedNode(on(Started, *SEND_MODEL)), other, latency_ms)
    simulation.start("one", Started())
    simulation.run(until_ps=PS_PER_MS * 100)
    assert other.heard == [
        (round(expected_ms * PS_PER_MS), Received("one", MODEL, -1, MODEL_BYTES))
    ]


def test_links_have_a_rate_of_their_own_in_each_direction() -> None:
    links = Links(281_706_496, 2, [[100, 0.537], [0.127, 100]])
    assert links.work_ps[0][0] == 22_536_519_680
    assert links.work_ps[0][1] == round(281_706_496 * 8000 / 0.537)
    assert links.work_ps[1][0] == round(281_706_496 * 8000 / 0.127)


def test_links_without_a_matrix_take_no_time() -> None:
    assert Links(1 << 40, 3).work_ps[0][2] == 0


def test_transfers_do_not_share_a_link() -> None:
    other = ScriptedNode()
    burst = [effect for _ in range(3) for effect in SEND_MODEL]
    simulation = pair(ScriptedNode(on(Started, *burst)), other)
    simulation.start("one", Started())
    simulation.run(until_ps=PS_PER_MS * 100)
    assert [now for now, _ in other.heard] == [8 * PS_PER_MS] * 3


@pytest.mark.parametrize("latency_ms", [0.0, 30.0])
def test_control_messages_take_the_latency_alone_and_keep_their_order(latency_ms: float) -> None:
    other = ScriptedNode()
    words = [Wait("a"), Offer(PushId(4, 2)), Heartbeat(None)]
    sends = [Send("other", word) for word in words]
    simulation = pair(ScriptedNode(on(Started, *sends)), other, latency_ms)
    simulation.start("one", Started())
    simulation.run(until_ps=PS_PER_MS * 100)
    at = round(latency_ms * PS_PER_MS)
    assert other.heard == [(at, Received("one", word)) for word in words]


def test_control_messages_may_be_free_of_the_latency_that_payloads_pay() -> None:
    other = ScriptedNode()
    links = Links(MODEL_BYTES, 2, [[100, 1], [2, 100]], [[0, 30.0]] * 2, control_pays=False)
    simulation = Simulation("a-run", links, EXECUTORS, check=True)
    one = ScriptedNode(on(Started, Send("other", Wait("a")), *SEND_MODEL))
    simulation.add(SimulatedNode("one", 0, one, TimingPlane()))
    simulation.add(SimulatedNode("other", 1, other, TimingPlane()))
    simulation.start("one", Started())
    simulation.run(until_ps=PS_PER_MS * 100)
    assert other.kinds() == [(0, Received), (38 * PS_PER_MS, Received)]


def test_the_receiver_hears_of_a_payload_before_the_sender_and_the_answer_comes_last() -> None:
    order: list[str] = []

    def note(name: str, then: Sequence[Effect] = ()) -> Callable[[Event], Sequence[Effect]]:
        def script(event: Event) -> Sequence[Effect]:
            if isinstance(event, Started):
                return SEND_MODEL
            order.append(f"{name} {type(event).__name__}")
            return then

        return script

    simulation = pair(
        ScriptedNode(note("one")), ScriptedNode(note("other", [Send("one", Wait("x"))]))
    )
    simulation.start("one", Started())
    simulation.run(until_ps=PS_PER_MS * 100)
    assert order == ["other Received", "one Delivered", "one Received"]


def test_what_follows_at_once_comes_before_what_is_due_at_the_same_instant() -> None:
    """Two events are due at 5 ms; the conversation that the first starts ends before the second."""
    one = ScriptedNode(on(StopRequested, Send("other", Wait("x"))))
    other = ScriptedNode(on(Received, Send("one", Wait("y"))))
    simulation = pair(one, other)
    for reason in ("first", "second"):
        simulation.at(5 * PS_PER_MS, "one", StopRequested(reason))
    simulation.run(until_ps=PS_PER_MS * 6)
    assert one.heard == [
        (5 * PS_PER_MS, StopRequested("first")),
        (5 * PS_PER_MS, Received("other", Wait("y"))),
        (5 * PS_PER_MS, StopRequested("second")),
        (5 * PS_PER_MS, Received("other", Wait("y"))),
    ]
    assert simulation.now == 6 * PS_PER_MS


TRAIN = (Pin(1), Train(LEASE, Version(1, 0), 1, 0), Release(1))


def test_training_ends_when_its_plan_says() -> None:
    one = ScriptedNode(on(Started, *TRAIN))
    simulation = pair(one, ScriptedNode())
    simulation.start("one", Started())
    simulation.run(until_ps=PS_PER_MS * 100)
    assert one.heard[1:] == [(3 * PS_PER_MS, Trained(LEASE.push, -1, 3, 192, 0.5))]


def test_cancelled_training_answers_nothing_more() -> None:
    """The trainer is cancelled, so that it need not finish a result that is not needed."""

    def script(event: Event) -> Sequence[Effect]:
        match event:
            case Started():
                return TRAIN
            case StopRequested():
                return (Cancel(LEASE.push),)
            case _:
                return ()

    one = ScriptedNode(script)
    simulation = pair(one, ScriptedNode())
    simulation.at(2 * PS_PER_MS, "one", StopRequested("enough"))
    simulation.start("one", Started())
    simulation.run(until_ps=PS_PER_MS * 100)
    assert one.kinds() == [(0, Started), (2 * PS_PER_MS, StopRequested)]
    trainer = simulation.nodes["one"].trainer
    assert isinstance(trainer, SteadyTrainer)
    assert trainer.cancelled == LEASE


def test_a_payload_to_a_node_that_finished_is_lost_to_its_sender() -> None:
    one = ScriptedNode(on(Started, *SEND_MODEL))
    other = ScriptedNode(on(Started, Finish("enough")))
    simulation = pair(one, other)
    simulation.start("one", Started())
    simulation.start("other", Started())
    simulation.run(until_ps=PS_PER_MS * 100)
    assert one.heard[-1] == (8 * PS_PER_MS, PeerLost("other", "has finished"))
    assert other.kinds() == [(0, Started)]


def test_ticks_come_at_the_interval_last_set_until_the_node_finishes() -> None:
    def script(event: Event) -> Sequence[Effect]:
        match event:
            case Started():
                return (SetTick(2 * PS_PER_MS),)
            case StopRequested("slower"):
                return (SetTick(3 * PS_PER_MS),)
            case StopRequested():
                return (Finish("enough"),)
            case _:
                return ()

    one = ScriptedNode(script)
    simulation = pair(one, ScriptedNode())
    simulation.at(5 * PS_PER_MS, "one", StopRequested("slower"))
    simulation.at(12 * PS_PER_MS, "one", StopRequested("end"))
    simulation.start("one", Started())
    simulation.run(until_ps=PS_PER_MS * 100)
    ticks = [now // PS_PER_MS for now, event in one.heard if isinstance(event, Tick)]
    assert ticks == [2, 4, 8, 11]


def test_measurement_and_validation_are_answered_at_once() -> None:
    measure = (Pin(1), Measure(1), Validate(Version(1, 3), 1, export=False), Release(1))
    one = ScriptedNode(on(Started, *measure))
    pair(one, ScriptedNode()).start("one", Started())
    assert one.heard[1:] == [
        (0, Measured(1, 0.0, finite=True)),
        (0, Validated(Version(1, 3), 0.25, 7)),
    ]


def crowd(latency_ms: float, starts_ms: Sequence[float]) -> list[int]:
    """When payloads arrive (in picoseconds) that start at these times on one shared link of 8 ms."""
    links = Links(MODEL_BYTES, 2, [[100, 1], [2, 100]], [[0, latency_ms]] * 2, share=True)
    simulation = Simulation("a-run", links, EXECUTORS, check=True)
    other = ScriptedNode()
    simulation.add(SimulatedNode("other", 1, other, TimingPlane()))
    for index, start_ms in enumerate(starts_ms):
        simulation.add(
            SimulatedNode(
                f"n{index}", 0, ScriptedNode(on(StopRequested, *SEND_MODEL)), TimingPlane()
            )
        )
        simulation.at(round(start_ms * PS_PER_MS), f"n{index}", StopRequested("go"))
    simulation.run(until_ps=PS_PER_MS * 1000)
    return [now for now, event in other.heard if isinstance(event, Received)]


@pytest.mark.parametrize(
    ("starts_ms", "arrivals_ms"),
    [
        ([0], [8]),
        ([0, 0], [16, 16]),
        ([0, 0, 0], [24, 24, 24]),
        # Alone for 4 ms, then half the rate: 4 ms of work left take 8; the other has then had 4.
        ([0, 4], [12, 16]),
        ([0, 8], [8, 16]),
        ([0, 9], [8, 17]),
        ([0, 2, 4], [19, 23, 24]),
    ],
)
def test_transfers_that_share_a_link_get_equal_shares_of_it(
    starts_ms: list[float], arrivals_ms: list[float]
) -> None:
    assert crowd(0.0, starts_ms) == [each * PS_PER_MS for each in arrivals_ms]
    assert crowd(5.0, starts_ms) == [(each + 5) * PS_PER_MS for each in arrivals_ms]


@given(st.lists(st.integers(0, 40), min_size=1, max_size=12))
def test_a_shared_link_is_never_idle_while_something_waits(starts_ms: list[int]) -> None:
    """The last arrival is that of one server without pauses, whatever the shares."""
    busy_until = 0
    for start in sorted(starts_ms):
        busy_until = max(busy_until, start) + 8
    last = crowd(0.0, starts_ms)[-1]
    assert abs(last - busy_until * PS_PER_MS) <= 1000  # picoseconds


def test_a_lost_node_neither_receives_nor_sends_anything_more() -> None:
    """The sender of a payload on its way to it gets `PeerLost`; a payload on its way from it is lost with it."""
    one = ScriptedNode(on(StopRequested, *SEND_MODEL))
    other = ScriptedNode(on(StopRequested, Pin(1), Send("one", MODEL, 1), *TRAIN[1:]))
    simulation = pair(one, other)
    simulation.nodes["other"].trainer = SteadyTrainer()
    for name in ("one", "other"):
        simulation.at(0, name, StopRequested("go"))
    simulation.call(2 * PS_PER_MS, lambda: simulation.lose("other"))
    simulation.run(until_ps=PS_PER_MS * 100)
    assert other.kinds() == [(0, StopRequested)]
    assert one.heard[1:] == [(8 * PS_PER_MS, PeerLost("other", "has finished"))]


def test_a_later_process_takes_over_what_an_earlier_one_served() -> None:
    """Clients go on under the name of the service; others know the two processes apart."""
    client, stranger = ScriptedNode(), ScriptedNode()
    simulation = Simulation("a-run", Links(1, 1), EXECUTORS, check=True)
    simulation.add(SimulatedNode("client", 0, client, TimingPlane(), server="service"))
    simulation.add(SimulatedNode("stranger", 0, stranger, TimingPlane()))
    sends = (Send("client", Wait("x")), Send("stranger", Wait("x")))
    for name in ("first", "second"):
        server = ScriptedNode(on(Started, *sends))
        simulation.add(SimulatedNode(name, 0, server, TimingPlane(), serves="service"))
        simulation.start(name, Started())
        simulation.lose(name) if name == "first" else None
    assert [event.peer for _, event in client.heard if isinstance(event, Received)] == [
        "service"
    ] * 2
    seen = [event.peer for _, event in stranger.heard if isinstance(event, Received)]
    assert seen == ["first", "second"]


def test_it_ends_when_every_node_has_finished() -> None:
    simulation = pair(
        ScriptedNode(on(Started, *TRAIN, Finish("done"))), ScriptedNode(on(Started, Finish("done")))
    )
    simulation.start("one", Started())
    simulation.start("other", Started())
    simulation.run()
    assert simulation.now == 0
    assert [node.finished for node in simulation.nodes.values()] == [Finish("done")] * 2


def test_a_simulation_in_which_nothing_is_due_fails_with_its_latest_events() -> None:
    simulation = pair(ScriptedNode(on(Started, Send("other", Wait("for nothing")))), ScriptedNode())
    simulation.start("one", Started())
    with pytest.raises(AssertionError, match="have not finished") as caught:
        simulation.run()
    assert "for nothing" in "".join(caught.value.__notes__)


def test_a_broken_invariant_fails_at_the_event_that_broke_it() -> None:
    one = ScriptedNode(on(Started, SetTick(1)))
    simulation = pair(one, ScriptedNode())
    simulation.start("one", Started())
    with pytest.raises(AssertionError) as caught:
        simulation.run()
    assert simulation.now == 999
    assert "then at 999 one: Tick()" in "".join(caught.value.__notes__)


def test_notes_are_reported_with_their_node_and_time() -> None:
    heard: list[tuple[str, Note, int]] = []
    simulation = Simulation(
        "a-run", Links(1, 1), EXECUTORS, on_note=lambda *each: heard.append(each)
    )
    note = Draining("enough")
    simulation.add(SimulatedNode("one", 0, ScriptedNode(on(StopRequested, note)), TimingPlane()))
    simulation.at(77, "one", StopRequested(""))
    simulation.run(until_ps=100)
    assert heard == [("one", note, 77)]


def digest(*effects: Effect) -> str:
    trace = Trace()
    pair(ScriptedNode(on(Started, *effects)), ScriptedNode(), trace=trace).start("one", Started())
    return trace.digest()


def status(*regions: str) -> RunStatus:
    summary = RegionSummary(True, 0, 0, 0, False, 1, 0, 0, None)
    return RunStatus("serving", 0, 0, 0, 0, dict.fromkeys(regions, summary))


def test_the_digest_tells_courses_apart_and_not_the_order_of_a_dict() -> None:
    same = digest(status("eu", "us"))
    assert same == digest(status("us", "eu"))
    others = [
        digest(),
        digest(status("eu")),
        digest(GivingUp("enough")),
        digest(Draining("enough")),
        digest(Draining("too much")),
        digest(Pin(1)),
        digest(Difference(1)),
        digest(Send("other", Wait("x"))),
        digest(Send("other", Wait("y"))),
    ]
    assert len({same, *others}) == len(others) + 1


def test_a_plane_without_tensors_checks_the_names_of_payloads() -> None:
    plane = TimingPlane()
    plane.pin(1)
    with pytest.raises(AssertionError):
        plane.difference(1)
    plane.apply("step", 1, 1.0)
    assert plane.measure(1) == (0.0, True)
    plane.release(1)
    for forgotten in (plane.lend, plane.measure):
        with pytest.raises(AssertionError):
            forgotten(1)
    with pytest.raises(KeyError):
        plane.release(1)


def test_a_message_that_its_limits_forbid_does_not_pass_the_codec() -> None:
    simulation = pair(
        ScriptedNode(on(Started, Send("other", Wait("x" * 2000)))), ScriptedNode()
    )  # checked
    with pytest.raises(WireError):
        simulation.start("one", Started())


def test_delivered_names_the_receiver_and_the_senders_own_blob() -> None:
    one = ScriptedNode(on(Started, *SEND_MODEL))
    simulation = pair(one, ScriptedNode())
    simulation.start("one", Started())
    simulation.run(until_ps=PS_PER_MS * 9)
    assert one.heard[-1] == (8 * PS_PER_MS, Delivered("other", 1, MODEL_BYTES))
