"""Carries out the effects of training (`pelago.core.training_effects`) with a node's trainer.

A round takes the time that the trainer plans. It ends with `Trained`, without `Progress` in between. The
held-out loss takes no time.
"""

from functools import partial

from pelago.core.training_effects import Cancel, Train, Trained, Validate, Validated
from pelago.sim.executor import EffectMethods, Scheduler
from pelago.sim.node import SimulatedNode, TrainingTask


class TrainingExecutor:
    """``scheduler``: takes the answers, `Trained` and `Validated`."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler

    def methods(self) -> EffectMethods:
        """All effects of training."""
        return {Train: self._train, Cancel: self._cancel, Validate: self._validate}

    def node_ended(self, node: SimulatedNode) -> None:
        """Cancel the round under way."""
        if node.training is not None:
            assert node.trainer is not None
            node.trainer.cancel(node.training.lease)
            node.training = None

    def _train(self, node: SimulatedNode, effect: Train) -> None:
        assert node.trainer is not None, f"{node.name} cannot train"
        assert node.training is None, f"{node.name} trains already"
        plan = node.trainer.begin(effect.lease, node.plane.lend(effect.blob))
        node.training = task = TrainingTask(effect.lease, plan.steps)
        scheduler = self._scheduler
        scheduler.call(scheduler.now + plan.duration_ps, partial(self._end, node, task))

    def _end(self, node: SimulatedNode, task: TrainingTask) -> None:
        if node.training is not task:
            return  # It was cancelled, or its node is gone.
        node.training = None
        assert node.trainer is not None
        lease = task.lease
        found = node.trainer.finish(lease)
        blob = node.new_blob()
        node.plane.adopt(blob, found.delta)
        event = Trained(lease.push, blob, task.steps, found.tokens, found.loss, found.skipped)
        self._scheduler.give((node, event))

    def _cancel(self, node: SimulatedNode, effect: Cancel) -> None:
        if node.training is not None and node.training.lease.push == effect.push:
            self.node_ended(node)

    def _validate(self, node: SimulatedNode, effect: Validate) -> None:
        assert node.trainer is not None, f"{node.name} cannot validate"
        loss, tokens = node.trainer.validate(node.plane.lend(effect.blob))
        self._scheduler.give((node, Validated(effect.version, loss, tokens)))
