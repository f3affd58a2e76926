"""Carries out the effects of training (`pelago.core.training_effects`) with a node's trainer.

A round takes the time that the trainer plans. It ends with `Trained`, without `Progress` in between. The
held-out loss takes no time.
"""

from functools import partial

from pelago.core.training_effects import Cancel, Rebase, Train, Trained, Validate, Validated
from pelago.sim.executor import EffectMethods, Scheduler
from pelago.sim.node import SimulatedNode, TrainingTask
from pelago.sim.planes import FreshStart


class TrainingExecutor:
    """``scheduler``: takes the answers, `Trained` and `Validated`."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler

    def methods(self) -> EffectMethods:
        """All effects of training."""
        return {
            Train: self._train,
            Rebase: self._rebase,
            Cancel: self._cancel,
            Validate: self._validate,
        }

    def node_ended(self, node: SimulatedNode) -> None:
        """Cancel the round under way."""
        if node.training is not None:
            assert node.trainer is not None
            node.trainer.cancel(node.training.lease)
            node.training = None

    def _train(self, node: SimulatedNode, effect: Train) -> None:
        assert node.trainer is not None, f"{node.name} cannot train"
        assert node.training is None, f"{node.name} trains already"
        start = None if effect.blob is None else FreshStart(node.plane.lend(effect.blob))
        plan = node.trainer.begin(effect.lease, start)
        scheduler = self._scheduler
        node.training = task = TrainingTask(effect.lease, plan, scheduler.now)
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
        event = Trained(lease.push, blob, task.plan.steps, found.tokens, found.loss, found.skipped)
        self._scheduler.give((node, event))

    def _rebase(self, node: SimulatedNode, effect: Rebase) -> None:
        assert node.trainer is not None
        task = node.training
        done = None if task is None else task.steps_begun(self._scheduler.now)
        node.trainer.rebase(node.plane.lend(effect.blob), done)

    def _cancel(self, node: SimulatedNode, effect: Cancel) -> None:
        if node.training is not None and node.training.lease.push == effect.push:
            self.node_ended(node)

    def _validate(self, node: SimulatedNode, effect: Validate) -> None:
        assert node.trainer is not None, f"{node.name} cannot validate"
        loss, tokens = node.trainer.validate(node.plane.lend(effect.blob))
        self._scheduler.give((node, Validated(effect.version, loss, tokens)))
