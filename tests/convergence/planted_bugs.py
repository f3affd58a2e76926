"""Bugs to plant in the real code, which the fuzzer must find. Each is planted by a `pytest.MonkeyPatch`.

`python -m tests.convergence.planted_bugs --find` prints the table of seeds that find them, for
`tests/convergence/test_fuzz.py`: the courses of seeds change with the machines.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import cpu_count, get_context
from typing import Any, Final

import pytest

from convergence.fuzz import scenario
from convergence.fuzz.trial import Verdict, trial
from gps.evaluators import Evaluators
from gps.exchanges import RegionExchanges
from gps.regions import Region
from gps.state import Gps
from lps.exchange import Exchanges
from lps.lease_prefetch import LeasePrefetch
from lps.state import Lps
from pelago.children import end_with
from pelago.core import durable
from pelago.core.leases import LeaseTable, SampleLedger
from pelago.core.listening import Listening
from pelago.core.machine import Send
from pelago.core.refusals import Refusals
from pelago.core.tensor_effects import Measure
from pelago.durable import record
from pelago.protocol.client_session import ClientSession
from pelago.protocol.staging import Staging
from pelago.sim import fault_injector
from pelago.sim.disk import Disk
from pelago.wire.messages import Ack, Goodbye, Hello, Model, Push

Plant = Callable[[pytest.MonkeyPatch], None]
PLANTS: dict[str, Plant] = {}
SEEDS: Final = range(1, 1000)
"""The seeds among which one that finds a bug is looked for."""


def plant(put: Plant) -> Plant:
    """Register a bug."""
    PLANTS[put.__name__] = put
    return put


def only_waiting_rounds(patch: pytest.MonkeyPatch) -> None:
    """No round overlaps with an exchange: the bug is rare, and known from a run without."""
    patch.setattr(scenario, "OVERLAPPING", 0.0)


def around(patch: pytest.MonkeyPatch, kind: type, name: str, wrapped: Callable[..., Any]) -> None:
    """Replace a method by ``wrapped(original, self, ...)``."""
    original = getattr(kind, name)

    def method(self: Any, *args: Any, **named: Any) -> Any:
        return wrapped(original, self, *args, **named)

    patch.setattr(kind, name, method)


def forget(patch: pytest.MonkeyPatch, kind: type, *fields: str) -> None:
    """Leave fields out of the images of a class."""
    patch.setitem(durable.SETTINGS, kind, (*durable.SETTINGS[kind], *fields))


@plant
def an_lps_applies_a_repeated_update_again(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(LeaseTable, "consume", lambda self, push: self.open[push.lease].lease.spans)


@plant
def a_gps_applies_a_repeated_update_again(patch: pytest.MonkeyPatch) -> None:
    def outcome(original: Any, self: Region, push: Any) -> Any:
        return "fenced" if push.fence != self.fence else None

    around(patch, Region, "outcome", outcome)


@plant
def a_gps_counts_a_repeated_update_again(patch: pytest.MonkeyPatch) -> None:
    def on_push(
        original: Any, self: RegionExchanges, region: Region, peer: Any, message: Any, blob: Any
    ) -> Any:
        if region.outcome(message.push) == "applied":
            self._model.counted_steps += message.steps
        return original(self, region, peer, message, blob)

    around(patch, RegionExchanges, "pushed", on_push)


@plant
def answers_leave_before_the_journal_has_their_cause(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(fault_injector, "UNCOMMITTED", (*fault_injector.UNCOMMITTED, Ack, Model))


@plant
def an_image_forgets_what_no_exchange_holds_yet(patch: pytest.MonkeyPatch) -> None:
    forget(patch, Exchanges, "_fresh", "_flight")


@plant
def an_image_forgets_the_number_of_the_next_lease(patch: pytest.MonkeyPatch) -> None:
    forget(patch, LeaseTable, "_next")


@plant
def an_image_forgets_the_number_of_the_last_request(patch: pytest.MonkeyPatch) -> None:
    forget(patch, LeasePrefetch, "_requests")


@plant
def an_image_forgets_the_number_of_the_last_exchange(patch: pytest.MonkeyPatch) -> None:
    forget(patch, Exchanges, "_number")


@plant
def lease_numbers_begin_again_with_every_process(patch: pytest.MonkeyPatch) -> None:
    around(patch, LeaseTable, "__init__", lambda original, self, _: original(self, 0))


@plant
def a_lease_is_lent_twice(patch: pytest.MonkeyPatch) -> None:
    def lend(original: Any, self: LeaseTable, *args: int) -> Any:
        lease = original(self, *args)
        if lease is not None:
            self.pool.add(lease.spans)
        return lease

    around(patch, LeaseTable, "lend", lend)


@plant
def a_gps_checks_no_fence(patch: pytest.MonkeyPatch) -> None:
    def outcome(original: Any, self: Region, push: Any) -> Any:
        return original(self, replace_fence(push, self.fence))

    around(patch, Region, "outcome", outcome)
    # It forgets what it granted too, since a driver would turn most of these updates away.
    patch.setattr(Gps, "expects", lambda self, peer, message: isinstance(message, Push))


def replace_fence(push: Any, fence: int) -> Any:
    return push._replace(fence=fence)


@plant
def fences_begin_again_with_every_incarnation(patch: pytest.MonkeyPatch) -> None:
    """The fuzzer found this: a region went on with the samples of a GPS that was lost, and the next GPS lent
    them to it again under the same fence."""
    only_waiting_rounds(patch)

    def begin(original: Any, self: Gps, settings: Any) -> None:
        original(self, settings)
        for region in self.regions.values():
            region.fence = 0

    around(patch, Gps, "__init__", begin)


@plant
def a_restarted_lps_believes_its_models_to_be_on_their_way(patch: pytest.MonkeyPatch) -> None:
    def on_restarted(original: Any, self: Lps) -> Any:
        replying = [(member, member.replying) for member in self.workers.members]
        effects = original(self)
        for member, blob in replying:
            member.replying = blob
        return effects

    around(patch, Lps, "_on_restarted", on_restarted)


@plant
def a_restarted_gps_believes_its_models_to_be_on_their_way(patch: pytest.MonkeyPatch) -> None:
    def on_restarted(original: Any, self: Gps) -> Any:
        replying = [(region, region.replying) for region in self.regions.values()]
        effects = original(self)
        for region, blob in replying:
            region.replying = blob
        return effects

    around(patch, Gps, "_on_restarted", on_restarted)


@plant
def a_restarted_lps_believes_its_update_to_be_on_its_way(patch: pytest.MonkeyPatch) -> None:
    def restarted(original: Any, self: ClientSession, now: int) -> None:
        self._heard_at = now

    around(patch, ClientSession, "restarted", restarted)


@plant
def a_restarted_server_does_not_measure_what_it_had(patch: pytest.MonkeyPatch) -> None:
    def on_restarted(original: Any, self: Any) -> Any:
        return [each for each in original(self) if not isinstance(each, Measure)]

    around(patch, Lps, "_on_restarted", on_restarted)
    around(patch, Gps, "_on_restarted", on_restarted)


@plant
def a_lost_workers_lease_is_not_given_back(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(LeaseTable, "give_back", lambda self, push, outcome: None)


@plant
def a_lost_regions_samples_are_not_taken_back(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(SampleLedger, "reclaim", lambda self, region: 0)


@plant
def an_evaluators_leave_has_no_finding(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Evaluators, "goodbye", lambda self, peer, message: [Send(peer, Goodbye())])


@plant
def a_later_incarnation_takes_no_samples_back(patch: pytest.MonkeyPatch) -> None:
    def reopen(original: Any, self: Gps) -> None:
        vars(self.ledger)["reclaim"] = lambda region: 0
        original(self)
        del vars(self.ledger)["reclaim"]

    around(patch, Gps, "reopen", reopen)


@plant
def a_later_incarnation_knows_the_processes_of_the_one_before(patch: pytest.MonkeyPatch) -> None:
    def reopen(original: Any, self: Gps) -> None:
        served = {each.name: (each.peer, each.fence) for each in self.regions.values()}
        original(self)
        for region in self.regions.values():
            region.peer, region.fence = served[region.name]

    around(patch, Gps, "reopen", reopen)


@plant
def a_region_that_rejoins_keeps_its_movement(patch: pytest.MonkeyPatch) -> None:
    def void(original: Any, self: Exchanges) -> None:
        self.current = None

    around(patch, Exchanges, "void", void)


@plant
def a_rejected_exchange_keeps_its_samples(patch: pytest.MonkeyPatch) -> None:
    def acknowledge(original: Any, self: Exchanges, outcome: Any) -> None:
        assert self.current is not None
        self.current.state = outcome

    around(patch, Exchanges, "acknowledge", acknowledge)


@plant
def a_place_is_never_free_again(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Staging, "free", lambda self, peer, push=None: [])


@plant
def a_lost_transfer_is_not_noticed(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(ClientSession, "lost", lambda self, now: None)


@plant
def a_snapshot_removes_the_journal_before_it_is_whole(patch: pytest.MonkeyPatch) -> None:
    def snapshot(original: Any, self: Disk, *args: Any) -> None:
        original(self, *args)
        for index in [each for each in self._files if each < self._index]:
            del self._files[index]

    around(patch, Disk, "snapshot", snapshot)


@plant
def a_damaged_record_ends_a_journal_without_an_error(patch: pytest.MonkeyPatch) -> None:
    from pelago.sim import disk

    patch.setattr(disk, "find_later", lambda *_: None)


@plant
def a_restored_plane_has_forgotten_its_momentum(patch: pytest.MonkeyPatch) -> None:
    from pelago.tensor.plane import Plane

    def restore(original: Any, self: Plane, *args: Any) -> None:
        original(self, *args)
        for state in self._states:
            state.momentum = state.accumulator = None

    around(patch, Plane, "restore", restore)


@plant
def what_is_lent_again_has_the_clock_of_its_place(patch: pytest.MonkeyPatch) -> None:
    def lend(original: Any, self: LeaseTable, *args: int) -> Any:
        lease = original(self, *args)
        if lease is not None:
            lease = replace(lease, clock=lease.spans[0][0])
            self.open[lease.push.lease].lease = lease
        return lease

    around(patch, LeaseTable, "lend", lend)


@plant
def failed_rounds_are_not_counted(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Refusals, "verdict", lambda self, client, present: "go on")


@plant
def a_client_waits_without_end(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(ClientSession, "gives_up", lambda self, now: False)


@plant
def a_pause_counts_as_silence(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Listening, "read", lambda self, time_ps: time_ps)


@plant
def a_tick_comes_before_what_waited(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Listening, "has_listened", lambda self, time_ps: True)


@plant
def a_member_that_says_hello_is_not_heard(patch: pytest.MonkeyPatch) -> None:
    def on_message(original: Any, self: Any, peer: Any, message: Any, blob: Any) -> Any:
        known = self.workers.members.get(peer) if isinstance(message, Hello) else None
        before = known and known.heard_at
        effects = original(self, peer, message, blob)
        if known is not None:
            known.heard_at = before
        return effects

    around(patch, Lps, "_on_worker_message", on_message)


@plant
def what_a_worker_waits_for_is_taken_for_in_hand(patch: pytest.MonkeyPatch) -> None:
    def ask(original: Any, self: Any, in_hand: int, wanted: int, needed: int, now: int) -> Any:
        return original(self, in_hand + wanted, wanted, needed, now)

    around(patch, LeasePrefetch, "ask", ask)


@plant
def an_lps_turns_away_the_answer_to_its_exchange(patch: pytest.MonkeyPatch) -> None:
    def expects(original: Any, self: Lps, peer: Any, message: Any) -> Any:
        answer = isinstance(message, Model) and message.answers is not None
        return not answer and original(self, peer, message)

    around(patch, Lps, "expects", expects)


@plant
def a_slow_client_keeps_its_place(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Staging, "tick", lambda self, patience, silent=(): [])


@plant
def a_snapshot_counts_before_it_is_on_the_disk(patch: pytest.MonkeyPatch) -> None:
    only_waiting_rounds(patch)
    patch.setattr(Disk, "_sync", lambda self, snapshot: None)


@plant
def only_the_newest_snapshot_is_tried(patch: pytest.MonkeyPatch) -> None:
    def salvage(original: Any, self: Disk) -> Any:
        del self._snapshots[:-1]
        return original(self)

    around(patch, Disk, "salvage", salvage)


@plant
def what_a_peer_made_up_is_taken_for_a_record(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(record, "_sealed", lambda packed, salt: record.checksum(packed))


# --- the table of seeds --------------------------------------------------------------------------


def find(name: str) -> tuple[str, int | None, float]:
    """The first seed that finds a bug, None if there is none; and how many seconds that seed took."""
    with pytest.MonkeyPatch.context() as patch:
        PLANTS[name](patch)
        for seed in SEEDS:
            begin = time.monotonic()
            if trial(seed).verdict is not Verdict.SOUND:
                return name, seed, time.monotonic() - begin
    return name, None, 0.0


def search(names: list[str], jobs: int) -> Iterator[tuple[str, int | None, float]]:
    """Find all of them on several processes, in the order in which they are asked for."""
    spawn = get_context("spawn")
    with ProcessPoolExecutor(jobs, spawn, initializer=end_with, initargs=(os.getpid(),)) as pool:
        yield from pool.map(find, names)


def main() -> int:
    """Command line. Exit status 1 if a bug is not found."""
    parser = argparse.ArgumentParser(prog="python -m tests.convergence.planted_bugs")
    parser.add_argument("--find", nargs="*", metavar="NAME", help="bugs to look for (default: all)")
    parser.add_argument("--jobs", type=int, default=cpu_count(), metavar="J", help="processes")
    options = parser.parse_args()
    if options.find is None:
        print("\n".join(PLANTS))
        return 0
    missing = 0
    for name, seed, seconds in search(options.find or list(PLANTS), options.jobs):
        missing += seed is None
        found = f"{seconds:.1f} s" if seed is not None else f"not found below {SEEDS.stop}"
        print(f'    "{name}": {seed},  # {found}', flush=True)
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
