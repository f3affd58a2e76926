"""An LPS that was restored from its image goes on as if it had never been gone."""

from copy import deepcopy
from dataclasses import replace
from random import Random

import pytest

from lps.exchange import InFlight
from lps.state import Lps
from pelago.core.errors import CheckpointError
from pelago.core.machine import Received, StopRequested, Tick
from pelago.core.names import PushId, Version
from pelago.core.tensor_effects import Apply, Loaded
from pelago.durable.image import Plain, restore, take
from pelago.wire.messages import Ack, Heartbeat, Offer, Pull
from tests.lps.driver import REPORT, SETTINGS, LpsDriver, global_model, hello, update
from tests.lps.scenario import LpsScenario
from tests.restored_doubles import Doubles, restored

E1 = PushId(1, 1)


def used() -> LpsDriver:
    """An exchange is in flight, one worker holds a lease and the staging place, another one waits."""
    driver = LpsDriver().serve().join("w-1").join("w-2")
    driver.hears("w-1", Heartbeat(REPORT))
    driver.updates("w-1", 3)
    lease = driver.work("w-1")
    driver.hears("w-1", Offer(lease.push))
    driver.hears("w-1", update(lease, base=3), -7)
    driver.hears("w-2", Pull(4, 0))
    assert driver.lps.exchanges.current is not None
    return driver


@pytest.mark.parametrize(
    ("seed", "in_flight", "ahead_ticks"), [(10, "drop", 0), (11, "carry", 8), (12, "replay", 0)]
)
def test_in_the_middle_of_any_run_it_can_be_restored(
    seed: int, in_flight: InFlight, ahead_ticks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    doubles = Doubles(monkeypatch, Lps, seed, chance=0.05)
    scenario = LpsScenario(seed, in_flight=in_flight, ahead_ticks=ahead_ticks, budget=160)
    scenario.run(ticks=100)
    scenario.end_faults()
    scenario.run(ticks=300)
    assert scenario.nodes["gps"].finish is not None
    doubles.assert_all_are_alike()
    assert doubles.count > 10
    assert doubles.classes >= {
        *(
            "ClientSession",
            "Hello",
            "Upload",
            "Push",
            "Exchange",
            "OpenLease",
            "Lease",
            "OrderedDict",
        ),
        *("Member", "WorkerReport", "deque", "tuple"),
    }


def test_the_run_file_may_have_changed() -> None:
    """Movement in flight is kept now, two updates may be under way, and the GPS has another name."""
    driver = used()
    settings = replace(SETTINGS, gps="gps-2", in_flight="replay", staged_max=2, merge_weight=0.5)
    lps = restored(driver.lps, settings)
    assert (lps.settings, lps.session.server) == (settings, "gps-2")
    lps.handle(Received("gps-2", Ack(E1, "applied")), driver.now)
    effects = lps.handle(Received("gps-2", global_model(1, E1), -8), driver.now)
    assert Apply("merge_replay", -8, 0.5) in effects
    assert lps.admission.staging.ask("w-2", PushId(9, 1))
    lps.check()


def test_a_restored_server_knows_its_members() -> None:
    driver = used()
    lps = restored(driver.lps)
    member = lps.workers.members.get("w-1")
    assert member is not driver.lps.workers.members.get("w-1")
    assert member == driver.lps.workers.members.get("w-1")
    lps.handle(Received("w-3", hello()), driver.now)
    assert lps.workers.members.get("w-3").group == 2


def test_short_lived_states_are_restored_too() -> None:
    """Between the start and the Welcome, and while a Leave is not answered."""
    starting, leaving = LpsDriver(), LpsDriver().serve()
    starting.happens(Loaded(Version(9, 0)))
    leaving.happens(StopRequested("enough"))
    leaving.happens(Tick())
    for driver in (starting, leaving):
        restored(driver.lps)


@pytest.mark.parametrize("content", [set(), object(), lambda: None])
def test_an_attribute_that_is_neither_state_nor_a_setting_is_noticed(content: object) -> None:
    lps = used().lps
    parts = (
        lps,
        lps.session,
        lps.workers.leases,
        lps.workers.leases.outcomes,
        lps.workers.members,
        lps.admission,
        lps.admission.staging,
    )
    for part in (*parts, lps.exchanges, lps.workers.prefetch):
        take(lps)
        part._added = content  # type: ignore[attr-defined]
        with pytest.raises(AssertionError, match="not durable"):
            take(lps)
        del part._added  # type: ignore[attr-defined]


def test_an_image_that_was_altered_is_restored_or_refused_in_words() -> None:
    """However an image is altered, there is never a `KeyError`."""
    random, sound, refused = Random(0), take(used().lps), 0
    others: tuple[Plain, ...] = (
        None,
        True,
        -1,
        0.5,
        "tuple",
        "list",
        "dict",
        "Staging",
        "Lease",
        [],
    )
    for _ in range(400):
        image = deepcopy(sound)
        place = image
        while isinstance(place, list) and place:
            within = place
            index = random.randrange(len(place))
            place = place[index]
        if random.random() < 0.3:
            del within[index]
        else:
            within[index] = random.choice(others)
        try:
            restore(Lps(SETTINGS), image)
        except CheckpointError as error:
            refused += 1
            assert "\n" not in str(error)
    assert 200 < refused < 400
