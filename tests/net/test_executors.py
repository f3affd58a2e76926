"""Every effect has an executor in the parts of the real driver."""

from functools import partial
from typing import get_args

from pelago.core import machine
from pelago.core.frozen import frozen
from pelago.core.machine import Started
from pelago.core.training_effects import Train
from pelago.net.context import NodeContext, NodeEffectMethods
from pelago.net.node import CRASHED
from pelago.net.tensors.tensors import Tensors
from pelago.net.tensors.training import TrainingThread
from pelago.wire.messages import Event
from tests.net.nodes import Nodes, Script, a_lease
from tests.net.test_node import Lessons


def effect_types() -> set[type]:
    """All effects of the vocabulary; generic ones without their parameter."""
    return {getattr(each, "__origin__", each) for each in get_args(machine.Effect)}


async def test_a_node_with_a_trainer_can_carry_out_every_effect(nodes: Nodes) -> None:
    script = Script()
    node = nodes.server(
        script, plane=nodes.plane(), executors=(partial(TrainingThread, Lessons()),)
    )
    await script.hears(Started)
    assert effect_types() <= node._methods.keys()
    assert len(effect_types()) > 10


async def test_an_effect_that_no_part_knows_ends_the_node_with_its_name(nodes: Nodes) -> None:
    """A server has no trainer."""
    script = Script(lambda _: [Train(a_lease(), None, 1, 0)])
    nodes.server(script, plane=nodes.plane())
    finish = await nodes.finish("gps")
    assert finish.reason == CRASHED
    assert "cannot carry out Train" in finish.error
    (nodes.folder / "gps.crash.json").unlink()


@frozen
class Reduced:
    """An event that only this test knows: the sum is here."""

    total: int


@frozen
class Reduce:
    """An effect that only this test knows: add up some numbers."""

    numbers: tuple[int, ...]


class Adder:
    """A part of a node that carries out `Reduce`."""

    def __init__(self, context: NodeContext, tensors: Tensors) -> None:
        self._context = context
        self.closed = False

    def methods(self) -> NodeEffectMethods:
        return {Reduce: self._reduce}

    def close(self) -> None:
        self.closed = True

    def _reduce(self, effect: Reduce) -> None:
        self._context.post(Reduced(sum(effect.numbers)))


async def test_a_new_effect_and_its_event_need_a_part_and_nothing_else(nodes: Nodes) -> None:
    """No file outside this one knows `Reduce`, `Reduced` or `Adder`."""

    def answer(event: Event) -> list[object]:
        return [Reduce((1, 2, 3))] if isinstance(event, Started) else []

    script = Script(answer)
    made: list[Adder] = []

    def make(context: NodeContext, tensors: Tensors) -> Adder:
        made.append(Adder(context, tensors))
        return made[0]

    nodes.server(script, executors=(make,))
    assert await script.hears(Reduced) == Reduced(6)
    await nodes.stop("gps")
    assert made[0].closed
