"""Tables of transitions say what the code does: each move is made where its row says, and is really made."""

import ast
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Final, Literal, TypeGuard

import pytest

from convergence.fuzz.trial import Verdict, trial
from gps.phases import GPS_PHASES
from gps.state import Gps
from lps.exchange import EXCHANGE, Exchanges
from lps.phases import LPS_PHASES
from pelago.core.machine import Restarted, StopRequested
from pelago.core.names import PushId, Version
from pelago.core.tensor_effects import Loaded
from pelago.core.transitions import TransitionTable
from pelago.durable.image import restore, take
from pelago.protocol.client_session import UPLOAD, Upload
from pelago.protocol.transfer import RECEIVER, SENDER, Receiver, Sender
from pelago.wire.messages import Goodbye, Push, Refuse, Rejoin, Stop
from tests import draw_transitions
from tests.draw_transitions import METHOD, StateMachine, files, machines, moves, tables
from tests.gps.driver import SETTINGS, GpsDriver
from tests.lps.driver import LpsDriver, gps_welcome

MACHINES: Final = machines()
TABLES: Final = tables()


def name_of(value: StateMachine | TransitionTable) -> str:
    """For the names of tests."""
    return value.table.name if isinstance(value, StateMachine) else value.name


def methods(of_class: ast.ClassDef) -> Iterator[ast.FunctionDef]:
    """Those that a class defines."""
    return (each for each in of_class.body if isinstance(each, ast.FunctionDef))


def sets_attribute(node: ast.AST) -> TypeGuard[ast.Attribute]:
    """Whether this is the left side of an assignment to an attribute."""
    return isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)


def of_self(node: ast.Attribute) -> bool:
    """Whether it is an attribute of ``self``."""
    return ast.unparse(node.value) == "self"


def entered(machine: StateMachine) -> set[tuple[str, str]]:
    """(method, target) of every call of `_enter` in a machine's class; the target must be a literal."""
    found = set()
    for method in methods(machine.of_class):
        for node in ast.walk(method):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == f"self.{METHOD}":
                [target] = node.args
                found.add((method.name, ast.literal_eval(target)))
    return found


def test_each_table_has_one_machine() -> None:
    assert len(TABLES) > 6
    assert len({each.name for each in TABLES}) == len(TABLES)
    assert sorted(map(name_of, MACHINES)) == sorted(map(name_of, TABLES))


@pytest.mark.parametrize("machine", MACHINES, ids=name_of)
def test_each_move_is_made_where_its_row_says(machine: StateMachine) -> None:
    assert entered(machine) == {(each.method, each.target) for each in machine.table.transitions}


@pytest.mark.parametrize("machine", MACHINES, ids=name_of)
def test_the_state_is_set_in_one_method_only(machine: StateMachine) -> None:
    setters = set()
    for method in methods(machine.of_class):
        for node in ast.walk(method):
            if sets_attribute(node) and node.attr == machine.attribute:
                setters.add(method.name)
    assert setters - {"__init__"} == {METHOD}


def test_no_object_sets_the_state_of_another_one() -> None:
    attributes = {each.attribute for each in MACHINES}
    found = []
    for path in files():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if sets_attribute(node) and node.attr in attributes and not of_self(node):
                found.append(f"{path}: {ast.unparse(node)}")
    assert found == []


@pytest.mark.parametrize("table", TABLES, ids=name_of)
def test_each_state_can_be_reached_and_no_row_stands_twice(table: TransitionTable) -> None:
    reached, new = {table.start}, [table.start]
    while new:
        source = new.pop()
        targets = {target for before, target in moves(table) if before == source} - reached
        reached |= targets
        new += targets
    assert reached == set(table.states)
    assert len(set(table.transitions)) == len(table.transitions)


def test_the_document_shows_the_tables() -> None:
    _, between, after = draw_transitions.parts()
    assert between.strip() == draw_transitions.section(), "run 'make tables'"
    assert after


# --- moves that are made -------------------------------------------------------------------------

Seen = dict[str, set[tuple[str, str]]]


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Seen:
    """Moves by table, of all machines from now on."""
    found: Seen = defaultdict(set)
    original = TransitionTable.move

    def move(self: TransitionTable, source: str, target: str) -> str:
        found[self.name].add((source, target))
        return original(self, source, target)

    monkeypatch.setattr(TransitionTable, "move", move)
    return found


def later(gps: Gps) -> None:
    """Another incarnation goes on with the state of a GPS."""
    machine = Gps(replace(SETTINGS, incarnation=1000))
    restore(machine, take(gps))
    machine.reopen()


def gps_conversations() -> None:
    """A GPS from its start to its end; ends in every phase; every phase is reopened."""
    stop = StopRequested("enough")
    GpsDriver().happens(stop)
    later(GpsDriver().gps)
    draining = GpsDriver().load().join("lps-1", "eu")
    draining.happens(stop)
    later(draining.gps)
    finished = GpsDriver().load()
    finished.happens(stop)
    later(finished.gps)


def in_phase(phase: str) -> LpsDriver:
    """An LPS that is in a phase."""
    driver = LpsDriver()
    if phase == "loading":
        driver.hears("gps", gps_welcome())
    elif phase != "joining":
        driver.serve()
    if phase == "draining":
        driver.join("w0")
    if phase in ("draining", "leaving"):
        driver.hears("gps", Stop("over"))
    assert driver.lps.membership.phase == phase
    return driver


def lps_conversations() -> None:
    """Each phase is stopped and refused; some join anew, one has its model from the start."""
    for phase in ("joining", "loading", "serving", "draining", "leaving"):
        in_phase(phase).hears("gps", Refuse("go away"))
        in_phase(phase).happens(StopRequested("enough"))
    in_phase("leaving").hears("gps", Goodbye())
    in_phase("serving").hears("gps", Rejoin())
    away = in_phase("loading")
    away.hears("gps", Rejoin())
    away.happens(StopRequested("enough"))
    refused = in_phase("joining")
    refused.hears("gps", Refuse("go away"))
    refused.happens(Restarted())
    preloaded = LpsDriver()
    preloaded.happens(Loaded(Version(9, 0)))
    preloaded.hears("gps", gps_welcome())


def exchanges() -> None:
    """Every answer to an exchange that the GPS can give, and contradictions."""
    answers: tuple[tuple[Literal["applied", "rejected"], ...], ...] = (
        (),
        ("applied",),
        ("rejected",),
        ("applied", "rejected", "applied"),
    )
    for outcomes in answers:
        for ends in (lambda ledger: ledger.merged(Version(0, 1), 0), Exchanges.void):
            ledger = Exchanges(1, "drop")
            ledger.begin(1, 0)
            for outcome in outcomes:
                ledger.acknowledge(outcome)
            ends(ledger)


def uploads() -> None:
    """One that is lost and arrives, one that must be sent again, and early outcomes."""
    message = Push(PushId(1, 1), Version(0, 0), 1, 1, 1, 0.0, (), (), 0)
    lost, again, decided, early = (Upload(message, -1, 0) for _ in range(4))
    lost.send(1)
    lost.lose(2)
    lost.deliver(3)
    again.send(1)
    again.deliver(2)
    again.send(3)
    decided.decide()
    early.send(1)
    early.decide()


def transfers() -> None:
    """Senders that begin, are done at once or are asked to end; receivers of whole payloads."""
    ended, known, whole, unused = (Sender(1, [4], 8, 1) for _ in range(4))
    ended.start(0)
    ended.abort("enough")
    known.have(0, 1, (), 0)
    whole.start(0)
    whole.have(1, 1, (), 1)
    unused.abort("enough")
    Receiver(1, 1).chunk(0, intact=True)
    Receiver(1, 1, arrived=((0, 1),)).recover_completed()


@pytest.mark.parametrize(
    ("table", "talk"),
    [
        (GPS_PHASES, gps_conversations),
        (LPS_PHASES, lps_conversations),
        (EXCHANGE, exchanges),
        (UPLOAD, uploads),
        (SENDER, transfers),
        (RECEIVER, transfers),
    ],
)
def test_every_row_is_a_move_that_is_made(
    seen: Seen, table: TransitionTable, talk: Callable[[], None]
) -> None:
    talk()
    assert seen[table.name] == moves(table)


@pytest.mark.parametrize("seed", [500, 513])
def test_machines_under_faults_make_no_other_move(seen: Seen, seed: int) -> None:
    """Every simulated machine with a table moves, and only as its table says."""
    assert trial(seed).verdict is Verdict.SOUND
    simulated = {"GPS", "LPS", "exchange", "upload", "worker"}
    assert simulated <= set(seen)
    for table in TABLES:
        assert seen[table.name] <= moves(table)


def test_a_move_that_is_not_in_the_table_is_a_fault() -> None:
    with pytest.raises(AssertionError, match="GPS: finished -> draining is no move"):
        GPS_PHASES.move("finished", "draining")
