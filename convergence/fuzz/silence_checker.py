"""Checks that a peer that was given up had been silent for as long as the run file says.

The time is counted while the node that gives up ran. Time in which that node was frozen does not count: it
could not listen.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

from gps.state import Gps
from lps.state import Lps
from pelago.core.machine import Finish, Send, Tick
from pelago.core.notes.common import Waiting
from pelago.protocol.client_session import UNANSWERED
from pelago.sim.fault_profile import LISTENS_PS
from pelago.sim.node import SimulatedNode
from pelago.sim.process import ProcessState
from pelago.wire.messages import Effect, Event, Rejoin
from worker.evaluator.state import Evaluator
from worker.state import Worker


@dataclass(frozen=True, slots=True)
class Reception:
    """When a message arrived, by the time for which the receiving node really ran, and its clock's state then."""

    ran_ps: int
    freezes: int
    jumps: int
    missed_ps: int
    """How much of the pauses that it noticed the clock had left out by then."""
    before: "Reception | None" = None
    """The last message before the node was frozen, if this one arrived while it was frozen."""


class SilenceChecker:
    """``state``: returns the state of the process with a name. ``now``: returns the time of the simulation."""

    def __init__(self, state: Callable[[str], ProcessState], now: Callable[[], int]) -> None:
        self._state = state
        self._now = now
        self._heard: dict[str, dict[str, Reception]] = {}
        """The last message that a node received, by node and sender."""
        self._begun: dict[str, Reception] = {}
        """The clock of each process when it last began."""

    def heard(self, node: SimulatedNode, peer: str) -> None:
        """A message of a peer has arrived at a node, which may be frozen."""
        state, before = self._state(node.name), self._last(node, peer)
        clock = state.clock
        # A frozen node handles what waits for it only after any jump of its clock meanwhile.
        jumps = before.jumps if state.frozen_until else clock.jumps
        heard = Reception(clock.ran_ps(self._now()), clock.freezes, jumps, clock.missed_ps)
        if state.frozen_until:
            waits = before.before is not None and before.ran_ps == heard.ran_ps
            heard = replace(heard, before=before.before if waits else replace(before, before=None))
        self._heard.setdefault(node.name, {})[peer] = heard

    def begins(self, node: SimulatedNode) -> None:
        """A process begins, or continues with a clock that was set."""
        self._heard.pop(node.name, None)
        clock = self._state(node.name).clock
        self._begun[node.name] = Reception(0, clock.freezes, clock.jumps, clock.missed_ps)

    def handled(self, node: SimulatedNode, event: Event, effects: list[Effect]) -> None:
        """C14: assert that a peer that was given up was silent."""
        if type(event) is not Tick:
            return
        machine = node.machine
        for effect in effects:
            if isinstance(effect, Send):
                if isinstance(effect.message, Rejoin) and isinstance(machine, Gps | Lps):
                    self._check_silent(node, effect.peer, machine.settings.lost_after_ps)
            elif isinstance(machine, Lps | Worker | Evaluator):
                settings = machine.settings if isinstance(machine, Lps) else machine.settings.client
                if isinstance(effect, Finish) and effect.reason == UNANSWERED:
                    self._check_silent(node, machine.session.server, settings.give_up_after_ps)
                elif (
                    isinstance(effect, Waiting)
                    and machine.session.has_heard  # Otherwise it waits from the start.
                ):
                    self._check_silent(node, machine.session.server, settings.lost_after_ps)

    def _check_silent(self, node: SimulatedNode, peer: str, for_ps: int) -> None:
        clock = self._state(node.name).clock
        heard, ran_ps = self._last(node, peer), clock.ran_ps(self._now())
        if heard.before and ran_ps == heard.ran_ps and clock.missed_ps == heard.missed_ps:
            # It came during a pause too short to be noticed, after which the tick is handled first.
            heard = heard.before
        if clock.jumps > heard.jumps:
            return
        # A node counts the part of a pause that it does not notice.
        unnoticed_ps = (1 + clock.freezes - heard.freezes) * LISTENS_PS
        silent_ps = ran_ps - heard.ran_ps
        assert silent_ps + unnoticed_ps >= for_ps, (
            f"{node.name} gives {peer} up, which is silent for {silent_ps} ps, not {for_ps}"
        )

    def _last(self, node: SimulatedNode, peer: str) -> Reception:
        begun = self._begun.get(node.name, Reception(0, 0, 0, 0))
        return self._heard.get(node.name, {}).get(peer, begun)
