"""The report of a node that broke an invariant, replayed to a fresh machine: it answers as the one that crashed
did, and breaks in the same way."""

import json
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch

from gps.regions import Region as ServedRegion
from gps.state import Gps
from lps.exchange import Exchanges
from lps.machine_settings import LpsSettings
from lps.state import Lps
from pelago.core.errors import CheckpointError
from pelago.core.leases import SampleLedger
from pelago.core.machine import PS_PER_MS, PeerLost, Received, Send, Started, Tick
from pelago.core.names import Version
from pelago.core.tensor_effects import Measured, Pin, Release
from pelago.net import crash_report
from pelago.net.crash_report import RecentEvents, parse, read, replay, summarise
from pelago.net.durability import journal
from pelago.net.durability.restore import restore
from pelago.net.node import CRASHED
from pelago.tensor.manifest import Manifest
from pelago.tensor.optim import DelayedNesterov
from pelago.tensor.plane import Plane
from pelago.wire.messages import Ack, Effect, Event, Hello, Model, Pull, TensorSpec, Welcome
from tests.net.golden_updates import (
    HELLO,
    MANIFEST,
    START,
    GoldenRegion,
    empty_plane,
    global_plane,
    gps_settings,
    sender_plane,
)
from tests.net.nodes import RUN, Nodes, Script

NOT_FINITE = 2
"""The update of the region that a GPS rejects."""
LAST = 5


# --- bugs ----------------------------------------------------------------------------------------


def forgets_what_it_has_applied(patch: pytest.MonkeyPatch) -> None:
    """Found while an event is handled: an update that is sent again is settled again."""
    patch.setattr(ServedRegion, "outcome", lambda _region, _push: None)


def lends_again_what_is_applied(patch: pytest.MonkeyPatch) -> None:
    """Found by the check after an event: samples are in two places. From the fourth update on."""
    consume = SampleLedger.consume

    def spoiled(ledger: SampleLedger, region: str, applied: Any, dropped: Any) -> None:
        consume(ledger, region, applied, dropped)
        if applied[0][0] >= 3:
            ledger.free.add(applied)

    patch.setattr(SampleLedger, "consume", spoiled)


Bug = Callable[[pytest.MonkeyPatch], None]
BUGS: tuple[Bug, ...] = (forgets_what_it_has_applied, lends_again_what_is_applied)
OTHERWISE = "is answered .*, not .*: other settings, another state or other code"


class Doubtful:
    """A region that sends its last update again, as if its answer had been lost."""

    def __init__(self) -> None:
        self.region = GoldenRegion(LAST)

    def __call__(self, event: Event) -> list[Effect]:
        effects = self.region(event)
        match event:
            case Received(_, Ack(push)) if push.lease == LAST:
                self.region._number = LAST
                return self.region._ask()
            case _:
                return effects


async def a_gps_crashes(nodes: Nodes, **more: Any) -> Path:
    """Real updates come to a real GPS that has a bug, one of them not finite; returns its report."""
    torch.set_num_threads(1)
    nodes.start(
        Gps(gps_settings(tick_ms=20)),
        "gps",
        server=nodes.bind(),
        plane=global_plane(),
        loaded=START,
        **more,
    )
    plane = sender_plane()
    plane.release(NOT_FINITE)
    plane.adopt(NOT_FINITE, torch.full((MANIFEST.numel,), float("nan")))
    machine = Script(Doubtful())
    client = nodes.client(machine, "lps-eu", plane=plane)
    await machine.hears(Started)
    for number in range(1, LAST + 1):
        client.tensors.created(number)
    return await the_report(nodes, "gps")


async def the_report(nodes: Nodes, name: str) -> Path:
    finish = await nodes.finish(name)
    assert finish.reason == CRASHED
    # The fixture takes every other report at the end of a test for a failure.
    return (nodes.folder / f"{name}.crash.json").rename(nodes.folder / "crash.json")


def assert_breaks_the_same(
    path: Path, machine: Gps | Lps, after: int | None = None
) -> pytest.ExceptionInfo[AssertionError]:
    with pytest.raises(AssertionError) as broken:
        replay(path, machine, after)
    report = json.loads(path.read_text(encoding="utf-8"))
    assert summarise(broken.value) == report["error"]
    return broken


# --- servers that crash --------------------------------------------------------------------------


@pytest.mark.parametrize("bug", BUGS)
async def test_a_report_replayed_to_a_fresh_machine_gives_the_same_answers_and_the_same_error(
    nodes: Nodes, monkeypatch: pytest.MonkeyPatch, bug: Bug
) -> None:
    """1. A GPS breaks an invariant; its report has all of its events.
    2. A fresh machine answers each event as it did, and the last one breaks it in the same place.
    3. Once the bug is mended it breaks no more: the same report is replayed to its end, or until the machine
       answers better. 4. A machine with other settings is not taken for the one that crashed."""
    bug(monkeypatch)
    path = await a_gps_crashes(nodes)
    events = read(path)
    assert any(isinstance(each.event, Measured) and not each.event.finite for each in events)
    assert isinstance(events[-1].event, Measured)

    assert_breaks_the_same(path, Gps(gps_settings(tick_ms=20)))
    fresh = Gps(gps_settings(tick_ms=20))
    for now, event, effects in events[:-1]:
        assert [repr(effect) for effect in fresh.handle(event, now)] == effects
        fresh.check()

    monkeypatch.undo()
    mended = Gps(gps_settings(tick_ms=20))
    if bug is forgets_what_it_has_applied:
        with pytest.raises(CheckpointError, match=rf"Offer\(.* {OTHERWISE}"):
            replay(path, mended)
    else:
        assert replay(path, mended) == len(events)
    with pytest.raises(CheckpointError, match=rf"event 1, Started\(\), {OTHERWISE}"):
        replay(path, Gps(gps_settings(tick_ms=21)))


@pytest.mark.parametrize("bug", BUGS)
async def test_events_before_those_of_a_report_are_in_the_state_folder(
    nodes: Nodes, monkeypatch: pytest.MonkeyPatch, bug: Bug
) -> None:
    """1. A GPS has handled more events than a report holds when it breaks an invariant.
    2. A machine that is restored from its folder is what it was just before, and breaks in the same way."""
    monkeypatch.setattr(crash_report, "EVENTS_MAX", 4)
    monkeypatch.setattr(journal, "SNAPSHOT_EVENTS", 10)
    bug(monkeypatch)
    path = await a_gps_crashes(nodes, plane_factory=empty_plane, state_store=nodes.state_store())
    assert len(read(path)) == 4
    with pytest.raises(CheckpointError, match="does not have the first events"):
        replay(path, Gps(gps_settings(tick_ms=20)))

    state_store = nodes.state_store()
    machine = Gps(gps_settings(tick_ms=20))
    assert state_store.recovered is not None
    restored = restore(state_store.recovered, RUN, machine, None, empty_plane)
    state_store.store.close()
    later = [each for each in read(path) if each.now > restored.now]
    assert later == read(path)[-1:]  # All but the one that broke it is in the journal.
    assert_breaks_the_same(path, machine, after=restored.now)


async def test_a_message_as_large_as_the_manifest_of_a_model_is_reported_whole(
    nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An LPS that breaks an invariant when its first model comes has received the names of all its tensors."""
    manifest = Manifest(tuple(TensorSpec(f"model.layers.{i}.weight", (4, 4)) for i in range(300)))

    blobs = count(1)

    def a_plane(of: Manifest) -> Plane:
        return Plane(of, DelayedNesterov(0.5, 0.9, 1))

    def answer(event: Event) -> list[Effect]:
        match event:
            case Received(peer, Hello()):
                fingerprint = manifest.fingerprint
                return [Send(peer, Welcome(1, 1, -1, manifest.specs, fingerprint, "corpus"))]
            case Received(peer, Pull()):
                # On a slow machine it asks again before the first answer is there.
                model, blob = Model(Version(1, 0), 0, None, None, False), next(blobs)
                return [Pin(blob), Send(peer, model, blob), Release(blob)]
            case _:
                return []

    reset = Exchanges.reset

    def spoiled(exchanges: Exchanges, base: Version, version: int) -> None:
        reset(exchanges, base, version + 1)

    monkeypatch.setattr(Exchanges, "reset", spoiled)
    plane = a_plane(manifest)
    plane.adopt(-1, torch.zeros(manifest.numel))
    plane.apply("load", -1)
    nodes.server(Script(answer), plane=plane)
    nodes.client(Lps(lps_settings()), "lps-eu", plane_factory=a_plane)
    path = await the_report(nodes, "lps-eu")

    events = [each.event for each in read(path)]
    assert any(
        isinstance(each, Received)
        and isinstance(each.message, Welcome)
        and each.message.manifest == manifest.specs
        for each in events
    )
    assert "_merged" in str(assert_breaks_the_same(path, Lps(lps_settings())).traceback[-1])


def lps_settings() -> LpsSettings:
    return LpsSettings(
        gps="gps",
        region="eu",
        incarnation=1,
        updates_per_exchange=4,
        merge_weight=0.5,
        in_flight="drop",
        lease_ahead_ps=10**12,
        round_samples_max=16,
        sample_tokens=64,
        update_norm_max=1e9,
        rejected_max=4,
        max_lr=0.5,
        staged_max=1,
        wan=False,
        tick_ps=20 * PS_PER_MS,
        retry_ps=100 * PS_PER_MS,
        lost_after_ps=2000 * PS_PER_MS,
    )


# --- files ---------------------------------------------------------------------------------------


def test_events_without_room_are_left_out_whole_the_oldest_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "crash.json"
    events = [PeerLost("lps-eu", "x" * 100)] * 10
    for room, kept in ((10**6, 10), (500, 3), (1, 1)):
        monkeypatch.setattr(crash_report, "CHARACTERS_MAX", room)
        story = RecentEvents()
        for now, event in enumerate(events):
            story.begin(now, event).effects = []
        story.report(AssertionError("x"), path)
        assert [each.now for each in read(path)] == list(range(10 - kept, 10)), room


@pytest.mark.parametrize(
    "text",
    [
        "Tick(",
        "tick",
        "Tick(1)",
        "Tick(peer=1)",
        "Machine()",
        "open(file='/etc/passwd')",
        "__import__('os').system('true')",
        "Received(peer=[x for x in ()], message=Tick())",
        "(" * 500 + ")" * 500,
        "-" * 100_000 + "1",
        "",
    ],
)
def test_text_that_is_no_event_is_refused_and_not_executed(text: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError):
        parse(text)
    path = tmp_path / "crash.json"
    path.write_text(json.dumps({"events": [{"now": 0, "event": text, "effects": []}]}))
    with pytest.raises(CheckpointError):
        read(path)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"events": [3]}', '{"events": [{"now": 0}]}'])
def test_a_file_that_is_no_report_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "crash.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"crash\.json is not a report"):
        read(path)
    path.unlink()
    with pytest.raises(CheckpointError):
        replay(path, Gps(gps_settings()))


def test_every_number_and_text_of_an_event_is_read_back() -> None:
    for event in (
        Tick(),
        Measured(-3, float("inf"), False),
        Measured(-3, float("-inf"), False),
        Measured(-3, 5e-324, True),
        Received("lps-'\"\\\n\x00é\udc80", HELLO, -1),
    ):
        assert parse(repr(event)) == event
