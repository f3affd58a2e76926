"""What must hold of a whole cluster, whatever befalls it; each is asserted as soon as it can be seen.

C1  A server applies an update at most once, and just what its client made.
C2  A sample is in one applied update of a region at most between two resets, in one exchange at most,
    and once at most in the GPS's books: applied or dropped.
C3  An exchange holds what its region was trained on since the last one, all of it.
C4  What a server answered once about an update it never contradicts: not after a restart either.
C5  Versions that leave for a peer never go back.
C6  A lease names one set of samples, of one holder, and an update counts from the model that came with it.
C7  An honest update is never rejected but for what it was measured to be, and nobody is refused, unless
    nothing can be learned any more: then the run ends with an error.
C8  A server that comes back noted what it noted before, as far as its disk goes.
C9  The GPS's books are those of the updates that arrived, and balance.
C10 A server's parameters are those of the operations that it ordered and its disk kept.
C11 An evaluator that went in good order was heard.
C12 Nobody ends unasked while the run goes on.
C13 No payload is kept that no machine needs.
C14 Nobody is given up who was not silent while somebody listened (silence.py).
C15 Whoever has a link that is well gets on, however slow others are (trial.py).
C16 After a loss of power a GPS finds its newest snapshot, or if that is damaged the one before it (fault_injector.py).
"""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field

from convergence.fuzz.ledgers import GlobalLedger, LedgerEntry, LedgerNote, LocalLedger
from convergence.fuzz.scenario import Draw
from convergence.fuzz.silence_checker import Silences
from gps.state import Gps
from lps.state import Lps
from pelago.core.machine import Finish, Machine, Received, Send
from pelago.core.names import Lease, PushId, Version
from pelago.core.notes.gps import ExchangeArrived, ExchangeRejected
from pelago.core.notes.lps import ExchangeBegun, Rejoining, RoundRejected, UpdateApplied
from pelago.core.ports import Payload, TensorPort
from pelago.core.tensor_effects import Apply, Difference, Operation
from pelago.core.training_effects import Trained
from pelago.protocol.client_session import UNANSWERED
from pelago.sim.node import SimulatedNode
from pelago.sim.planes import DurablePlane, TimingPlane
from pelago.sim.process import ProcessState
from pelago.sim.recovery import ReplayedServer
from pelago.wire.messages import Ack, Effect, Event, Goodbye, Message, Model, Outcome, Push, Stop
from worker.evaluator.state import Evaluator
from worker.state import Worker


@dataclass(frozen=True, slots=True)
class Done:
    """A tensor operation that a machine ordered; ``operation`` None: a difference was taken."""

    number: int
    operation: Operation | None
    payload: Payload
    weight: float


@dataclass(slots=True)
class ServerRecord:
    """What was seen of a server's process."""

    make: Callable[[], tuple[Machine[Message], DurablePlane]]
    ledger: LocalLedger | GlobalLedger
    begun_with: LocalLedger | GlobalLedger
    """What was in it at the beginning of this process."""
    entries: list[LedgerEntry] = field(default_factory=list)
    done: list[Done] = field(default_factory=list)
    answered: dict[tuple[str, PushId], Outcome] = field(default_factory=dict)
    """By client and update."""
    received: dict[tuple[str, PushId], Push] = field(default_factory=dict)
    sent: dict[str, Version] = field(default_factory=dict)
    """Newest version that left, by peer."""
    lent: dict[PushId, tuple[str, Lease, Version]] = field(default_factory=dict)
    """What left with a model."""


class InvariantChecker:
    """Watches a cluster. ``find``: the process with a name. ``now``: the time of the simulation. ``value``: a
    server's parameters, if they are one number. ``drawn``: what may befall them."""

    def __init__(
        self,
        find: Callable[[str], ProcessState],
        now: Callable[[], int],
        value: Callable[[TensorPort], float | None],
        drawn: Draw,
    ) -> None:
        self.servers: dict[str, ServerRecord] = {}
        self._find = find
        self._silences = Silences(find, now)
        self._value = value
        self._drawn = drawn
        self._made: dict[tuple[str, PushId], list[Push]] = {}
        """Updates that workers made, by process; more than one on a lease if a word that came late had
        them drop the first, whose payload was on its way."""
        self._asked: dict[str, None] = {}
        """Processes that were asked to stop, or were told so by one that was."""

    # --- what it hears ---------------------------------------------------------------------------

    def begins(
        self,
        node: SimulatedNode,
        make: Callable[[], tuple[Machine[Message], DurablePlane]],
        ledger: LocalLedger | GlobalLedger | None = None,
    ) -> None:
        """A server's process begins; ``ledger``: what is in the state that it goes on from."""
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
            self._watch_server(node, server, number, effects)
        elif type(event) is Trained and isinstance(node.machine, Worker):
            upload = node.machine.session.upload
            if upload is not None:
                self._made.setdefault((node.name, upload.push), []).append(upload.message)
        self._silences.handled(node, event, effects)
        for effect in effects:
            if type(effect) is Finish:
                self._ends(node, event, effect)

    def departed(self, node: SimulatedNode, peer: str, message: Message) -> None:
        """A message left a node."""
        server = self.servers.get(node.name)
        if server is None:
            return
        if isinstance(message, Ack):
            self._answers(node, server, peer, message)
        elif isinstance(message, Model):
            newest = server.sent.get(peer)
            assert newest is None or message.version >= newest, (newest, message)  # C5
            server.sent[peer] = message.version
            lease = message.lease
            if lease is not None:  # C6
                known = server.lent.setdefault(lease.push, (peer, lease, message.version))
                assert known[:2] == (peer, lease), (known, peer, lease)
                server.lent[lease.push] = (peer, lease, message.version)
        elif isinstance(message, Stop) and node.name in self._asked:
            self._asked[peer] = None

    def arrived(self, node: SimulatedNode, sender: SimulatedNode, message: Message) -> None:
        """A node is about to hear a message."""
        self._silences.heard(node, sender.name_for(node))

    def restarted(self, node: SimulatedNode, number: int, recovered: ReplayedServer) -> None:
        """A durable server is back."""
        self._silences.begins(node)
        server = self.servers[node.name]
        kept = self._remembers(server, number, recovered)
        lost = len(server.entries) - len(kept)
        server.entries = kept
        server.done = [each for each in server.done if each.number <= number]
        if lost:
            server.ledger = _book_of(server, kept)
        self._check_answers(node, server)
        self._check_parameters(node, server)

    def salvaged(self, name: str, number: int, recovered: ReplayedServer) -> GlobalLedger:
        """Of a GPS that is gone was found what was recorded up to a number. Returns what is in it."""
        server = self.servers[name]
        ledger = _book_of(server, self._remembers(server, number, recovered))
        assert isinstance(ledger, GlobalLedger)
        return ledger

    @staticmethod
    def _remembers(
        server: ServerRecord, number: int, recovered: ReplayedServer
    ) -> list[LedgerEntry]:
        """C8. Returns what it noted up to a number."""
        first = recovered.told[0][0] if recovered.told else number + 1
        kept = [each for each in server.entries if each.number <= number]
        before = [(each.number, each.note) for each in kept if each.number >= first]
        again = [pair for pair in recovered.notes if isinstance(pair[1], LedgerNote)]
        assert again == before, (again, before)
        return kept

    # --- servers ---------------------------------------------------------------------------------

    def _watch_server(
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
                        assert self._drawn.failing or self._drawn.hopeless, effect
                    else:
                        assert why == "not finite", effect
                        assert self._drawn.profile.unfit, effect
                case Apply(operation, blob, weight):
                    payload = node.plane.lend(blob)
                    server.done.append(Done(number, operation, payload, weight))
                case Difference():
                    server.done.append(Done(number, None, None, 0.0))
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
            self._is_honest(node, server, peer, push)
            denied = server.answered.get((peer, about), "applied")
            assert denied == "applied", f"{about} of {peer} was {denied}, and is applied"  # C4
        entry = LedgerEntry(number, note, push, peer)
        server.entries.append(entry)
        server.ledger.keep(entry)

    def _is_honest(self, node: SimulatedNode, server: ServerRecord, peer: str, push: Push) -> None:
        """C1, C6: an update is what its client made, from the model that it was lent."""
        if isinstance(server.ledger, GlobalLedger):
            region = self.servers[peer].ledger
            assert isinstance(region, LocalLedger)
            begun = region.begun.get(push.push)
            made = [] if begun is None else [begun]
        else:
            made = self._made.get((peer, push.push), [])
            holder, lease, version = server.lent[push.push]
            assert (holder, lease.spans) == (peer, push.spans), (holder, lease, peer, push)
            assert push.base.incarnation == version.incarnation, (push, version)
        assert push in made, f"{peer} made {made}, and {node.name} applies {push}"

    def _answers(self, node: SimulatedNode, server: ServerRecord, peer: str, message: Ack) -> None:
        """C4."""
        known = server.answered.setdefault((peer, message.push), message.outcome)
        if message.outcome == "fenced" and self._is_past(node, peer, message.push):
            return
        assert known == message.outcome, f"{message} to {peer}, which was {known}"
        self._agrees(server, peer, message.push, message.outcome)

    @staticmethod
    def _is_past(node: SimulatedNode, peer: str, push: PushId) -> bool:
        """Outcomes are forgotten with their fence, and their client knows that it is another."""
        if not isinstance(node.machine, Gps):
            return False
        serving = [each for each in node.machine.regions.values() if each.peer == peer]
        return not serving or push.fence < serving[0].fence

    def _check_answers(self, node: SimulatedNode, server: ServerRecord) -> None:
        for (client, push), outcome in server.answered.items():
            if outcome != "fenced" or not self._is_past(node, client, push):
                self._agrees(server, client, push, outcome)

    def _agrees(self, server: ServerRecord, peer: str, push: PushId, outcome: Outcome) -> None:
        applied = server.ledger.has(peer, push)
        assert applied == (outcome == "applied"), f"{push} of {peer} was {outcome}, not so here"

    # --- ends ------------------------------------------------------------------------------------

    def _ends(self, node: SimulatedNode, event: Event, finish: Finish) -> None:
        if finish.reason == UNANSWERED:
            return  # C14 asserts that it may.
        machine = node.machine
        if self._drawn.hopeless and "can be applied" in finish.error:
            return
        assert not finish.error, f"{node.name} ends: {finish.error}"  # C7
        if isinstance(machine, Evaluator):
            found = machine._found
            if found is None or not isinstance(event, Received):
                return
            if isinstance(event.message, Goodbye):
                self._was_heard(node, found.version, found.counted_steps)
        elif isinstance(machine, Worker | Lps) and node.name not in self._asked:
            gps = self._find(self._newest_gps()).node.machine
            assert isinstance(gps, Gps)
            over = gps.phase in ("draining", "finished") or len(self._all_gps()) > 1
            over = over or self._drawn.hopeless
            assert over, f"{node.name} ends unasked: {finish.reason}"  # C12

    def _was_heard(self, node: SimulatedNode, version: Version, counted_steps: int) -> None:
        """C11."""
        gps = self._find(self._newest_gps()).node.machine
        assert isinstance(gps, Gps)
        if version.incarnation == gps.settings.incarnation and version == gps.model.version:
            known = [steps for _, steps, _ in gps.evaluators.validations]
            assert counted_steps in known, f"{node.name} went, and {counted_steps} is not known"

    def _all_gps(self) -> list[str]:
        return [
            name for name, each in self.servers.items() if isinstance(each.ledger, GlobalLedger)
        ]

    def _newest_gps(self) -> str:
        return self._all_gps()[-1]

    def check_end(self, gps: SimulatedNode, nodes: list[SimulatedNode]) -> None:
        """What must hold when all is over; ``nodes``: those that are there."""
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
        """C10: a server that never crashed, and was ordered the same, has the same parameters."""
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
        assert ours == theirs, f"{node.name} has {theirs}, and would have {ours}"


def _book_of(server: ServerRecord, entries: list[LedgerEntry]) -> LocalLedger | GlobalLedger:
    ledger = deepcopy(server.begun_with)
    for entry in entries:
        ledger.keep(entry)
    return ledger


def check_payloads(nodes: list[SimulatedNode]) -> None:
    """C13, between two events."""
    for node in nodes:
        if isinstance(node.plane, TimingPlane) and isinstance(node.machine, Gps | Lps | Worker):
            _check_payloads(node, node.machine, node.plane)


def _check_payloads(node: SimulatedNode, machine: Gps | Lps | Worker, plane: TimingPlane) -> None:
    needed = set() if isinstance(machine, Worker) else set(machine.admission.measuring)
    if not isinstance(machine, Gps) and machine.session.upload is not None:
        needed.add(machine.session.upload.blob)
    assert plane.live == needed, f"{node.name} keeps {plane.live}, needed are {needed}"
