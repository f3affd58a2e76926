"""Carries out the effects on tensors (`pelago.core.tensor_effects`) on a node's plane. They take no time."""

from pelago.core.tensor_effects import Apply, Difference, Measure, Measured, Pin, Release
from pelago.sim.executor import EffectMethods, Scheduler
from pelago.sim.node import SimulatedNode


class TensorExecutor:
    """``scheduler``: takes the answers, `Measured`."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler

    def methods(self) -> EffectMethods:
        """All effects on tensors."""
        return {
            Release: self._release,
            Pin: self._pin,
            Apply: self._apply,
            Measure: self._measure,
            Difference: self._difference,
        }

    def node_ended(self, node: SimulatedNode) -> None:
        """Nothing is under way: every operation is done at once."""

    def _measure(self, node: SimulatedNode, effect: Measure) -> None:
        norm, finite = node.plane.measure(effect.blob)
        self._scheduler.give((node, Measured(effect.blob, norm, finite)))

    def _release(self, node: SimulatedNode, effect: Release) -> None:
        node.plane.release(effect.blob)

    def _pin(self, node: SimulatedNode, effect: Pin) -> None:
        node.plane.pin(effect.blob, effect.average)

    def _apply(self, node: SimulatedNode, effect: Apply) -> None:
        node.plane.apply(effect.operation, effect.blob, effect.weight)

    def _difference(self, node: SimulatedNode, effect: Difference) -> None:
        node.plane.difference(effect.blob)
