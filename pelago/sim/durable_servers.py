"""Durable servers under faults: they write records and snapshots, restart from them, and lose power."""

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from pelago.core.errors import CheckpointError
from pelago.core.machine import Restarted
from pelago.durable import image
from pelago.sim.disk import Disk
from pelago.sim.fault_draws import FaultDraws
from pelago.sim.observer import Observer
from pelago.sim.process import ProcessState, SimulatedStore
from pelago.sim.recovery import ReplayedServer, recover
from pelago.sim.simulation import Simulation


@dataclass(frozen=True, slots=True)
class SalvagedServer:
    """What a loss of power left of a server."""

    machine: image.Plain
    plane: object
    number: int
    """Number of the last event in it."""
    recovered: ReplayedServer


class DurableServers:
    """``run``: the run id. ``draws``: chances and counts of faults. ``decay``: chance of damaged snapshots."""

    def __init__(
        self,
        simulation: Simulation,
        run: str,
        draws: FaultDraws,
        observer: Observer,
        decay: Random | None,
    ) -> None:
        self._simulation = simulation
        self._run = run
        self._draws = draws
        self._observer = observer
        self._decay = decay
        self._full_until = 0

    def fill_disks(self, until_ps: int) -> None:
        """No disk takes any writes for a while."""
        self._draws.count("full_disks")
        self._full_until = until_ps

    def empty_disks(self) -> None:
        """Disks take writes again."""
        self._full_until = 0

    def keep(self, state: ProcessState, store: SimulatedStore, now: int) -> None:
        """Write the records that were queued; begin a snapshot now and then. ``now``: on the process's clock."""
        disk, draws = store.disk, self._draws
        if draws.happens(draws.profile.snapshot) and not disk.snapshotting:
            draws.count("snapshots")
            taken = [image.take(state.node.machine), state.node.blobs]
            disk.snapshot(taken, store.plane.image(state.blobs), tuple(state.blobs), now)
            self._later(draws.profile.disk_ps, state, disk.finish_snapshot)
        if not state.writing:
            self._write(state, store)

    def restart_later(self, state: ProcessState, store: SimulatedStore) -> None:
        """A durable server's process has crashed: another one starts after a while, under its name."""
        state.writing = False
        store.disk.crash(self._draws.random)
        at_ps = self._simulation.now + self._draws.down_ps()
        incarnation = state.incarnation
        self._simulation.call(at_ps, lambda: self._restart(state, incarnation))

    def salvage(self, store: SimulatedStore, random: Random) -> SalvagedServer | None:
        """The machine of a server has lost its power, and whatever was not synced. Returns the state up to the
        last sound record after a snapshot; None: there is none. Raises `AssertionError` if a snapshot is lost
        that was on the disk."""
        disk = store.disk
        disk.lose_power(random)
        contents = disk.salvage()
        if contents is None:
            assert not disk.promised, (
                "no snapshot is sound after a loss of power, and one was whole"
            )
            return None
        assert contents.snapshot is not None
        found = contents.snapshot.number
        assert found >= disk.promised, (
            f"snapshot {disk.promised} was whole, and the server continues from {found}"
        )
        self._draws.count("salvages")
        machine, plane = store.make()
        recovered = recover(contents, self._run, machine, plane)
        return SalvagedServer(image.take(machine), plane.image(()), contents.number, recovered)

    def _write(self, state: ProcessState, store: SimulatedStore) -> None:
        disk, through = store.disk, store.disk.last
        state.writing = disk.durable < through
        if not state.writing:
            return

        def written() -> None:
            disk.written(through)
            while state.held and state.held[0][0] <= through:
                state.held.popleft()[1]()
            self._write(state, store)

        full_ps = max(0, self._full_until - self._simulation.now)
        disk_ps = self._draws.profile.disk_ps
        if not disk_ps and not full_ps:
            written()
        else:
            self._later(disk_ps, state, written, full_ps)

    def _restart(self, state: ProcessState, incarnation: int) -> None:
        """A durable server comes back, unless its host was lost meanwhile."""
        node, store, draws = state.node, state.store, self._draws
        if state.incarnation != incarnation:
            return
        assert store is not None
        if draws.happens(draws.profile.damage):
            self._damage(store.disk)
        decays = self._decay is not None and self._decay.random() < draws.profile.damage
        if self._decay is not None and decays and store.disk.damage_newest(self._decay):
            draws.count("snapshots_rotten")
        contents = store.disk.read()
        machine, store.plane = store.make()
        recovered = recover(contents, self._run, machine, store.plane)
        state.blobs = recovered.blobs
        machine.check()
        draws.count("restarts")
        self._simulation.revive(node, machine, store.plane)
        node.blobs = recovered.last_blob
        gone_ps = draws.random.randint(0, max(1, draws.profile.down_ps))
        state.clock.set(self._simulation.now, recovered.now + gone_ps)
        self._observer.restarted(node, contents.number, recovered)
        for event in (Restarted(), *store.first):
            self._simulation.give((node, event))

    def _damage(self, disk: Disk) -> None:
        mend = disk.damage(self._draws.random)
        if mend is None:
            return
        self._draws.count("damages")
        try:
            disk.read()
        except CheckpointError:
            mend()
        else:
            raise AssertionError("a damaged journal was taken for a sound one")

    def _later(
        self, within_ps: int, state: ProcessState, action: Callable[[], None], after_ps: int = 0
    ) -> None:
        """Do something after a while, unless the process is gone by then."""
        incarnation = state.incarnation
        at_ps = self._simulation.now + after_ps + self._draws.random.randint(0, max(0, within_ps))

        def act() -> None:
            if state.incarnation != incarnation:
                return
            if state.frozen_until:
                state.deferred.append(act)
            else:
                action()

        self._simulation.call(at_ps, act)
