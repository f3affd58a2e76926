"""The invariants of a whole cluster under any faults; each is asserted as soon as it can be checked.

C1  A server applies an update at most once, exactly as its client made it.
C2  A sample is in at most one applied update of a region between two resets, in at most one exchange,
    and at most once in the GPS's ledger: applied or dropped.
C3  An exchange holds all samples that its region was trained on since the last one.
C4  A server never contradicts its earlier answer about an update, even after a restart.
C5  The versions that are sent to a peer never decrease.
C6  A lease names one set of samples, of one holder, and an update counts from a model that its client got.
C7  An honest update is rejected only because of its measured norm or finiteness, and no process is refused,
    unless no update can be applied any more: then the run ends with an error.
C8  A recovered server's replay gives the same notes as before, as far as its disk reaches.
C9  The GPS's ledger holds the updates that arrived, and balances.
C10 A server's parameters are the result of the operations that it ordered and its disk kept.
C11 The last result of an evaluator that ended in good order has reached the GPS.
C12 No node ends before the run does, unless it was asked to.
C13 No payload is kept that no machine needs.
C14 A peer is given up only if it was silent while the node listened (silence_checker.py).
C15 A node with a sound link makes progress, however slow the links of others are (trial.py).
C16 After a loss of power a GPS finds its newest snapshot, or the one before it if that is damaged (durable_servers.py).
"""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field

from convergence.fuzz.ledgers import GlobalLedger, LedgerEntry, LedgerNote, LocalLedger
from convergence.fuzz.scenario import Scenario
from convergence.fuzz.silence_checker import SilenceChecker
from gps.state import Gps
from lps.state import Lps
from pelago.core.machine import Finish, Machine, Received, Send
from pelago.core.names import Lease, PushId, Version
from pelago.core.notes.gps import ExchangeArrived, ExchangeRejected
from pelago.core.notes.lps import ExchangeBegun, Rejoining, RoundRejected, UpdateApplied
from pelago.core.ports import Payload, TensorPort
from pelago.core.tensor_effects import Apply, Difference, Operation
from pelago.protocol.client_session import UNANSWERED
from pelago.sim.node import SimulatedNode
from pelago.sim.planes import DurablePlane, TimingPlane
from pelago.sim.process import ProcessState
from pelago.sim.recovery import ReplayedServer
from pelago.wire.messages import (
    Ack,
    Effect,
    Event,
    Goodbye,
    Lent,
    Message,
    Model,
    Offer,
    Outcome,
    Push,
    Stop,
)
from worker.evaluator.state import Evaluator
from worker.state import Worker


@dataclass(frozen=True, slots=True)
class OrderedOperation:
    """A tensor operation that a machine ordered; ``operation`` None: a difference was taken."""

    number: int
    operation: Operation | None
    payload: Payload
    weight: float


@dataclass(slots=True)
class ServerRecord:
    """What the checker knows of a server's process."""

    make: Callable[[], tuple[Machine[Message], DurablePlane]]
    ledger: LocalLedger | GlobalLedger
    begun_with: LocalLedger | GlobalLedger
    """The ledger as it was when this process began."""
    entries: list[LedgerEntry] = field(default_factory=list)
    done: list[OrderedOperation] = field(default_factory=list)
    answered: dict[tuple[str, PushId], Outcome] = field(default_factory=dict)
    """Outcomes, by client and update."""
    received: dict[tuple[str, PushId], Push] = field(default_factory=dict)
    sent: dict[str, Version] = field(default_factory=dict)
    """The newest version that left for each peer."""
    versions: dict[str, list[Version]] = field(default_factory=dict)
    """All versions that left for each worker, each once, in their order."""
    lent: dict[PushId, tuple[str, Lease]] = field(default_factory=dict)
    """Leases that left for a worker: the holder and the lease."""


class InvariantChecker:
    """The observer of a simulation with faults. ``find``: returns the process with a name. ``now``: returns the time
    of the simulation. ``value``: returns a server's parameters, if they are one number. ``scenario``: the faults
    that may happen."""

    def __init__(
        self,
        find: Callable[[str], ProcessState],
        now: Callable[[], int],
        value: Callable[[TensorPort], float | None],
        scenario: Scenario,
    ) -> None:
        self.servers: dict[str, ServerRecord] = {}
        self._find = find
        self._silence_checker = SilenceChecker(find, now)
        self._value = value
        self._scenario = scenario
        self._made: dict[tuple[str, PushId], list[Push]] = {}
        """Updates that workers made, by process. There are several on a lease if a late message made the worker drop
        the first one while its payload was on its way."""
        self._asked: dict[str, None] = {}
        """Processes that were asked to stop, by the trial or by a server that was itself asked to."""

    # --- what it observes -------------------------------------------------------------------------

    def begins(
        self,
        node: SimulatedNode,
        make: Callable[[], tuple[Machine[Message], DurablePlane]],
        ledger: LocalLedger | GlobalLedger | None = None,
    ) -> None:
        """A server's process begins; ``ledger``: of the state from which it continues, if it does."""
        if ledger is None:
            ledger = GlobalLedger() if isinstance(node.machine, Gps) else LocalLedger()
        self.servers[node.name] = ServerRecord(make, deepcopy(ledger), ledger)

    def asked_to_stop(self, name: str) -> None:
        """A process is asked to end in good order."""
        self._asked[name] = None

    def handled(
        self, node: SimulatedNode, number: int, event: Event, effects: list[Effect]
    ) -> None:
        """A machine handled an event."""
        server = self.servers.get(node.name)
        if server is not None:
            if type(event) is Received and isinstance(event.message, Push):
                server.received[event.peer, event.message.push] = event.message
            self._check_server(node, server, number, effects)
        elif isinstance(node.machine, Worker):
            self._keep_made(node, node.machine, effects)
        self._silence_checker.handled(node, event, effects)
        for effect in effects:
            if type(effect) is Finish:
                self._check_end_of(node, event, effect)

    @staticmethod
    def _check_lent(server: ServerRecord, peer: str, lease: Lease) -> None:
        """C6."""
        known = server.lent.setdefault(lease.push, (peer, lease))
        assert known == (peer, lease), (known, peer, lease)

    def _keep_made(self, node: SimulatedNode, machine: Worker, effects: list[Effect]) -> None:
        """Keep the update that a worker offers, perhaps again."""
        upload = machine.session.upload
        if upload is None or not any(
            isinstance(each, Send) and isinstance(each.message, Offer) for each in effects
        ):
            return
        made = self._made.setdefault((node.name, upload.push), [])
        if upload.message not in made:
            made.append(upload.message)

    def departed(self, node: SimulatedNode, peer: str, message: Message) -> None:
        """A message left a node."""
        server = self.servers.get(node.name)
        if server is None:
            return
        if isinstance(message, Ack):
            self._check_answer(node, server, peer, message)
        elif isinstance(message, Model):
            newest = server.sent.get(peer)
            assert newest is None or message.version >= newest, (newest, message)  # C5
            server.sent[peer] = message.version
            if message.lease is not None:
                self._check_lent(server, peer, message.lease)
                versions = server.versions.setdefault(peer, [])
                if message.version != newest:
                    versions.append(message.version)
        elif isinstance(message, Lent):
            self._check_lent(server, peer, message.lease)
        elif isinstance(message, Stop) and node.name in self._asked:
            self._asked[peer] = None

    def arrived(self, node: SimulatedNode, sender: SimulatedNode, message: Message) -> None:
        """A message has arrived at a node."""
        self._silence_checker.heard(node, sender.name_for(node))

    def restarted(self, node: SimulatedNode, number: int, recovered: ReplayedServer) -> None:
        """A durable server is back."""
        self._silence_checker.begins(node)
        server = self.servers[node.name]
        kept = self._check_recovered(server, number, recovered)
        lost = len(server.entries) - len(kept)
        server.entries = kept
        server.done = [each for each in server.done if each.number <= number]
        if lost:
            server.ledger = _ledger_of(server, kept)
        self._check_answers(node, server)
        self._check_parameters(node, server)

    def salvaged(self, name: str, number: int, recovered: ReplayedServer) -> GlobalLedger:
        """The records of a lost GPS were recovered up to a number. Returns the ledger up to there."""
        server = self.servers[name]
        ledger = _ledger_of(server, self._check_recovered(server, number, recovered))
        assert isinstance(ledger, GlobalLedger)
        return ledger

    @staticmethod
    def _check_recovered(
        server: ServerRecord, number: int, recovered: ReplayedServer
    ) -> list[LedgerEntry]:
        """C8. Returns the entries up to a number."""
        first = recovered.replayed[0][0] if recovered.replayed else number + 1
        kept = [each for each in server.entries if each.number <= number]
        before = [(each.number, each.note) for each in kept if each.number >= first]
        again = [pair for pair in recovered.notes if isinstance(pair[1], LedgerNote)]
        assert again == before, (again, before)
        return kept

    # --- servers ---------------------------------------------------------------------------------

    def _check_server(
        self, node: SimulatedNode, server: ServerRecord, number: int, effects: list[Effect]
    ) -> None:
        about, peer = None, ""
        for effect in effects:
            if isinstance(effect, Send) and isinstance(effect.message, Ack):
                if effect.message.outcome != "applied":
                    continue
                about, peer = effect.message.push, effect.peer
        for effect in effects:
            match effect:
                case UpdateApplied() | ExchangeBegun() | Rejoining() | ExchangeArrived():
                    self._keep(node, server, number, effect, about, peer)
                case RoundRejected(why=why) | ExchangeRejected(why=why):  # C7
                    if why.startswith("no gradient"):
                        assert self._scenario.failing or self._scenario.hopeless, effect
                    else:
                        assert why == "not finite", effect
                        assert self._scenario.profile.unfit, effect
                case Apply(operation, blob, weight):
                    payload = node.plane.lend(blob)
                    server.done.append(OrderedOperation(number, operation, payload, weight))
                case Difference():
                    server.done.append(OrderedOperation(number, None, None, 0.0))
                case _:
                    pass

    def _keep(
        self,
        node: SimulatedNode,
        server: ServerRecord,
        number: int,
        note: LedgerNote,
        about: PushId | None,
        peer: str,
    ) -> None:
        machine, push = node.machine, None
        if isinstance(note, ExchangeBegun):
            assert isinstance(machine, Lps)
            assert machine.session.upload is not None
            push, peer = machine.session.upload.message, ""
        elif isinstance(note, UpdateApplied | ExchangeArrived):
            assert about is not None, "an update was applied and not acknowledged"
            push = server.received[peer, about]
            self._check_honest(node, server, peer, push)
            denied = server.answered.get((peer, about), "applied")
            assert denied == "applied", f"{about} of {peer} was {denied}, and is applied"  # C4
        entry = LedgerEntry(number, note, push, peer)
        server.entries.append(entry)
        server.ledger.add(entry)

    def _check_honest(
        self, node: SimulatedNode, server: ServerRecord, peer: str, push: Push
    ) -> None:
        """C1, C6: assert that an update is the one that its client made, from a model that it got."""
        if isinstance(server.ledger, GlobalLedger):
            region = self.servers[peer].ledger
            assert isinstance(region, LocalLedger)
            begun = region.begun.get(push.push)
            made = [] if begun is None else [begun]
        else:
            made = self._made.get((peer, push.push), [])
            holder, lease = server.lent[push.push]
            assert (holder, lease.spans) == (peer, push.spans), (holder, lease, peer, push)
            assert push.base in server.versions[peer], push
        assert push in made, f"{peer} made {made}, and {node.name} applies {push}"

    def _check_answer(
        self, node: SimulatedNode, server: ServerRecord, peer: str, message: Ack
    ) -> None:
        """C4."""
        known = server.answered.setdefault((peer, message.push), message.outcome)
        if message.outcome == "fenced" and self._has_earlier_fence(node, peer, message.push):
            return
        assert known == message.outcome, f"{message} to {peer}, which was {known}"
        self._check_outcome(server, peer, message.push, message.outcome)

    @staticmethod
    def _has_earlier_fence(node: SimulatedNode, peer: str, push: PushId) -> bool:
        """Whether an update has an earlier fence: its outcome is forgotten, as its client knows."""
        if not isinstance(node.machine, Gps):
            return False
        serving = [each for each in node.machine.regions.values() if each.peer == peer]
        return not serving or push.fence < serving[0].fence

    def _check_answers(self, node: SimulatedNode, server: ServerRecord) -> None:
        for (client, push), outcome in server.answered.items():
            if outcome != "fenced" or not self._has_earlier_fence(node, client, push):
                self._check_outcome(server, client, push, outcome)

    def _check_outcome(
        self, server: ServerRecord, peer: str, push: PushId, outcome: Outcome
    ) -> None:
        applied = server.ledger.has(peer, push)
        assert applied == (outcome == "applied"), f"{push} of {peer} was {outcome}, not so here"

    # --- ends ------------------------------------------------------------------------------------

    def _check_end_of(self, node: SimulatedNode, event: Event, finish: Finish) -> None:
        if finish.reason == UNANSWERED:
            return  # C14 asserts that it may.
        machine = node.machine
        if self._scenario.hopeless and "can be applied" in finish.error:
            return
        assert not finish.error, f"{node.name} ends: {finish.error}"  # C7
        if isinstance(machine, Evaluator):
            found = machine._found
            if found is None or not isinstance(event, Received):
                return
            if isinstance(event.message, Goodbye):
                self._check_reported(node, found.version, found.counted_steps)
        elif isinstance(machine, Worker | Lps) and node.name not in self._asked:
            gps = self._find(self._newest_gps()).node.machine
            assert isinstance(gps, Gps)
            over = gps.phase in ("draining", "finished") or len(self._all_gps()) > 1
            over = over or self._scenario.hopeless
            assert over, (
                f"{node.name} ends before the run and was not asked to: {finish.reason}"
            )  # C12

    def _check_reported(self, node: SimulatedNode, version: Version, counted_steps: int) -> None:
        """C11."""
        gps = self._find(self._newest_gps()).node.machine
        assert isinstance(gps, Gps)
        if version.incarnation == gps.settings.incarnation and version == gps.model.version:
            known = [steps for _, steps, _ in gps.evaluators.validations]
            assert counted_steps in known, (
                f"{node.name} ended, and the GPS has no result for {counted_steps}"
            )

    def _all_gps(self) -> list[str]:
        return [
            name for name, each in self.servers.items() if isinstance(each.ledger, GlobalLedger)
        ]

    def _newest_gps(self) -> str:
        return self._all_gps()[-1]

    def check_end(self, gps: SimulatedNode, nodes: list[SimulatedNode]) -> None:
        """C9, C4 and C10 at the end; ``nodes``: those that are still there."""
        machine, seen = gps.machine, self.servers[gps.name]
        assert isinstance(machine, Gps)
        ledger = seen.ledger
        assert isinstance(ledger, GlobalLedger)
        totals = machine.ledger.totals()  # C9
        spent = totals.applied + totals.dropped_in_flight + totals.unexchanged
        assert totals.issued == spent + totals.returned + totals.held, totals
        assert totals.duplicated == 0, totals
        assert totals.applied == ledger.applied.total, (totals, ledger.applied.total)
        # Regions name what they dropped in their last exchange only when they leave.
        assert totals.dropped_in_flight >= ledger.dropped.total, (totals, ledger.dropped.total)
        model = machine.model
        counted = (model.counted_steps, model.tokens, model.updates)
        assert counted == (ledger.steps, ledger.tokens, len(ledger.updates)), counted
        assert model.samples == ledger.applied.total + ledger.dropped.total, model.samples
        for node in nodes:
            server = self.servers.get(node.name)
            if server is None:
                continue
            self._check_answers(node, server)
            self._check_parameters(node, server)

    def _check_parameters(self, node: SimulatedNode, server: ServerRecord) -> None:
        """C10: a fresh plane on which the same operations are done has the same parameters."""
        theirs = self._value(node.plane)
        if theirs is None:
            return
        _, fresh = server.make()
        for blob, each in enumerate(server.done, 1):
            if each.operation is None:
                fresh.difference(blob)
            else:
                fresh.adopt(blob, each.payload)
                fresh.apply(each.operation, blob, each.weight)
            fresh.release(blob)
        ours = self._value(fresh)
        assert ours == theirs, f"{node.name} has {theirs}, and should have {ours}"


def _ledger_of(server: ServerRecord, entries: list[LedgerEntry]) -> LocalLedger | GlobalLedger:
    ledger = deepcopy(server.begun_with)
    for entry in entries:
        ledger.add(entry)
    return ledger


def check_payloads(nodes: list[SimulatedNode]) -> None:
    """Check C13 between two events."""
    for node in nodes:
        if isinstance(node.plane, TimingPlane) and isinstance(node.machine, Gps | Lps | Worker):
            _check_payloads(node, node.machine, node.plane)


def _check_payloads(node: SimulatedNode, machine: Gps | Lps | Worker, plane: TimingPlane) -> None:
    needed = set() if isinstance(machine, Worker) else set(machine.admission.measuring)
    if not isinstance(machine, Gps) and machine.session.upload is not None:
        needed.add(machine.session.upload.blob)
    if isinstance(machine, Worker) and machine.overlap.waiting is not None:
        needed.add(machine.overlap.waiting[1])
    assert plane.live == needed, f"{node.name} keeps {plane.live}, needed are {needed}"
