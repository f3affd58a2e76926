"""Resuming a run from the state of an earlier incarnation of its GPS: a folder of results, or a copy of a snapshot.

A GPS that is killed and started again needs none of this: it continues as the same incarnation, and its peers
notice a pause only. A resume is needed if the end of its state is not known, because the disk is lost or the
host was booted again, if the run came to its end and is to go on, or if the run file was changed. Then a later
incarnation starts from the newest state that is known. Its higher fences make void what peers hold of earlier
incarnations. They join again, and samples that are not in the model are lent again.
"""

import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from gps.settings import settings
from gps.state import Gps
from pelago.config import run_toml
from pelago.config.run_file import RunFile
from pelago.core.errors import CheckpointError, ConfigError, ForeignState
from pelago.core.machine import PS_PER_MINUTE
from pelago.durable import image, record
from pelago.net import daemon
from pelago.net.durability import file_header, snapshot_writer
from pelago.net.durability.archive import Archive
from pelago.net.durability.restore import Restored, SnapshotContents, restore, state
from pelago.net.durability.state_folder import StateFolder
from pelago.net.durability.state_reader import RecoveredState, StoredSnapshot
from pelago.net.files import lock, sync_folder
from pelago.runlog.history import HistoryLine, RunResumed, history_line, history_until
from pelago.tensor.manifest import Manifest
from pelago.tensor.optim import DelayedNesterov
from pelago.tensor.plane import Plane

NODE: Final = "gps"
FIXED: Final = ("model", "data")
"""Tables of the run file that say what the state is of. Paths in them may change."""
PATHS: Final = ("preset", "source", "tokenizer")


def plane_of(run: RunFile, manifest: Manifest) -> Plane:
    """The GPS's plane, without a model."""
    gps = run.gps
    outer = DelayedNesterov.from_eta(
        gps.lr, gps.momentum, gps.momentum_delay, gps.momentum_activation
    )
    return Plane(manifest, outer, exchanges=False, average=gps.average)


def facts_of(run: RunFile, corpus: str) -> dict[str, str]:
    """The run file and the corpus digest, which a GPS's snapshots hold besides its state."""
    return {"run": run_toml.dump(run), "corpus": corpus}


def machine_of(run: RunFile, incarnation: int, manifest: Manifest, corpus: str) -> Gps:
    """A fresh machine."""
    return Gps(
        settings(
            run,
            incarnation=incarnation,
            manifest=manifest.specs,
            fingerprint=manifest.fingerprint,
            corpus=corpus,
        )
    )


# --- the source -------------------------------------------------------------------------


def open_state(
    run: RunFile, out: Path, source: str | None
) -> tuple[StateFolder, RecoveredState | None, str]:
    """The GPS's state folder, the state to continue from, and a line for the user.

    ``source``: of ``--resume``: a folder of results or of state, or where `gps.snapshots` went; a state of
    this very run in ``out`` is nearer than that. Raises `ConfigError`, `CheckpointError`.
    """
    folder = daemon.state_folder(out, NODE)
    # A folder that is put in the place of another is for a moment in neither place.
    with _alone(folder):
        _finish_swap(folder)
        return _open(run, out, source, folder)


def _open(
    run: RunFile, out: Path, source: str | None, folder: Path
) -> tuple[StateFolder, RecoveredState | None, str]:
    store = StateFolder(folder, run.run_id, NODE)
    here = source is not None and _is_same(source, out, folder)
    fault: CheckpointError | None = None
    try:
        recovered = store.recovered()
    except CheckpointError as error:
        recovered, fault = None, error
    if fault is not None:
        torn = daemon.may_be_torn(store, run.gps.durability)
        if source is None and torn and not isinstance(fault, ForeignState):
            if store.has_snapshots:
                return _resume(run, store, str(folder))
            store.clear()  # It had hardly begun.
            return store, None, f"beginning anew: {fault}"
        if here:
            return _resume(run, store, str(folder))
        if source is None or isinstance(fault, ForeignState):
            store.close()
            if isinstance(fault, ForeignState):
                raise fault
            raise CheckpointError(
                f"{fault}; --resume {out} resumes the run, as a later incarnation, from the state before the damage"
            )
    elif recovered is not None and daemon.is_certain(recovered, run.gps.durability):
        idle = f"going on with {folder}: --resume is for folders without a state of this run"
        return store, recovered, "" if source is None else idle
    elif recovered is not None and recovered.snapshot is not None:
        return _resume(run, store, str(folder))
    elif recovered is not None:
        if recovered.passed_over:
            store.close()
        _check_snapshot(recovered, str(folder))
        store.clear()  # It had hardly begun.
    return (store, None, "") if source is None else _resume(run, store, source)


def _is_same(source: str, out: Path, folder: Path) -> bool:
    return "://" not in source and Path(source).resolve() in (out.resolve(), folder.resolve())


@dataclass(frozen=True, slots=True)
class _Found:
    """The state of an earlier incarnation, as far as it is known."""

    recovered: RecoveredState
    kept: SnapshotContents
    restored: Restored
    machine: Gps
    run: RunFile
    history: bytes
    used: str
    """The snapshot, or the copy of one, that is used."""
    passed_over: tuple[str, ...]
    """Faults of newer ones."""


def _resume(
    run: RunFile, store: StateFolder, source: str
) -> tuple[StateFolder, RecoveredState | None, str]:
    """Replace what a state folder holds, if anything, by the state of a later incarnation."""
    folder = store.folder
    store.close()
    beside, _ = _places(folder)
    shutil.rmtree(beside, ignore_errors=True)
    with ExitStack() as stack:
        found = _find(folder, source, stack)
        _check_fixed(found.run, run)
        gps = _write(found, run, source, beside)
        _swap(folder)
    word = f"resumed from {source} at version {gps.model.version.counter:,}, {gps.model.counted_steps:,} local steps"
    if found.passed_over:
        word += f", with {found.used}, since {'; '.join(found.passed_over)}"
    store = StateFolder(folder, run.run_id, NODE)
    return store, store.recovered(), word


def _find(folder: Path, source: str, stack: ExitStack) -> _Found:
    """Read what the source holds, up to its end or the first damage; of copies the newest sound one."""
    place = local_state(source)
    if place is not None:
        return _read(place, source, stack)
    place = folder.with_name(folder.name + ".fetched")
    stack.callback(shutil.rmtree, place, ignore_errors=True)
    archive, names = _copies(source)
    faults: list[CheckpointError] = []
    for name in names:
        with ExitStack() as attempt:
            try:
                shutil.rmtree(place, ignore_errors=True)
                place.mkdir(parents=True)
                archive.fetch(name, place)
                found = _read(place, source, attempt)
            except CheckpointError as error:
                faults.append(CheckpointError(f"{archive.url}/{name}: {error}"))
                continue
            stack.push(attempt.pop_all())
            return replace(found, used=name, passed_over=tuple(map(str, faults)))
    raise faults[0]


def _read(place: Path, source: str, stack: ExitStack) -> _Found:
    """Read a folder of state. Raises `CheckpointError`."""
    store = StateFolder(place, None, NODE, read=True)
    stack.callback(store.close)
    recovered = store.recovered(salvage=True)
    if recovered is not None:
        _check_snapshot(recovered, source)
    if recovered is None or recovered.snapshot is None:
        raise CheckpointError(f"{source}: the GPS that began there wrote no snapshot; begin anew")
    kept, run, machine, restored = restored_state(recovered, recovered.snapshot, source)
    history = history_until(store.history, recovered.snapshot.number)
    replayed = b"".join(history_line(each) for each in restored.history)
    used = recovered.snapshot.name
    return _Found(
        recovered, kept, restored, machine, run, history + replayed, used, recovered.passed_over
    )


def restored_state(
    recovered: RecoveredState, snapshot: StoredSnapshot, source: str
) -> tuple[SnapshotContents, RunFile, Gps, Restored]:
    """The snapshot's contents, its run file, the machine, and the restored tensors. Raises `CheckpointError`."""
    kept = SnapshotContents.of(snapshot)
    if kept.manifest is None or not kept.facts.keys() >= {"run", "corpus"}:
        raise CheckpointError(f"{source}: the snapshot is not of a GPS")
    run = run_toml.parse(kept.facts["run"], f"run file in {source}")
    machine = machine_of(run, recovered.header.incarnation, kept.manifest, kept.facts["corpus"])
    restored = restore(recovered, recovered.header.run, machine, None, lambda m: plane_of(run, m))
    return kept, run, machine, restored


def _check_snapshot(recovered: RecoveredState, source: str) -> None:
    """Raises `CheckpointError` if there were snapshots, and none is sound."""
    if recovered.snapshot is None and recovered.passed_over:
        raise CheckpointError(
            f"{source}: no snapshot is sound: {'; '.join(recovered.passed_over)}; go on from a copy with --resume, or"
            " begin anew"
        )


def local_state(source: str) -> Path | None:
    """The state folder that a path names; None: it is a folder of copies, or a URL."""
    if "://" in source:
        return None
    for each in (daemon.state_folder(Path(source), NODE), Path(source)):
        if any(each.glob("journal-*")) or any(each.glob("snapshot-*")):
            return each
    return None


def _copies(source: str) -> tuple[Archive, list[str]]:
    """An archive and the copies in it, the newest first; of a named copy only that. Raises `ConfigError`."""
    archive, names = Archive(source), [source.rstrip("/").rpartition("/")[2]]
    above = Archive(source.rstrip("/").rpartition("/")[0] or "/")
    if names[0] in above.names():
        archive = above
    else:
        names = archive.names()
    if not names:
        raise ConfigError(f"--resume {source}: there is no state of a GPS and no snapshot of one")
    return archive, names[::-1]


def _check_fixed(old: RunFile, new: RunFile) -> None:
    """Check that the keys on which the state depends are unchanged. Raises `ConfigError`."""
    was, wanted = _fixed(old), _fixed(new)
    for key, value in wanted.items():
        if was.get(key) != value:
            raise ConfigError(
                f"{key} = {value!r}: the run that is resumed began with {was.get(key)!r}, and its state depends on it"
            )
    if old.gps.average and not new.gps.average:
        raise ConfigError(
            f"gps.average = 0: the run that is resumed keeps a mean, with gps.average = {old.gps.average}"
        )


def _fixed(run: RunFile) -> dict[str, Any]:
    tables = {name: getattr(run, name).model_dump(mode="json") for name in FIXED}
    found = {
        f"{name}.{key}": value
        for name, table in tables.items()
        for key, value in table.items()
        if key not in PATHS
    }
    return found | {"run.seed": run.run.seed}


# --- the state of the later incarnation -----------------------------------------------------------


def _write(found: _Found, run: RunFile, source: str, beside: Path) -> Gps:
    """Write a folder of state beside its place. Returns the machine that is in it."""
    manifest, plane, header = found.kept.manifest, found.restored.plane, found.recovered.header
    assert manifest is not None
    assert plane is not None
    incarnation = max(daemon.incarnation(), header.incarnation + 1)
    corpus = found.kept.facts["corpus"]
    gps = machine_of(run, incarnation, manifest, corpus)
    image.restore(gps, image.take(found.machine))
    gps.reopen()
    gps.check()
    _check_budget(gps, run, source)
    number = found.recovered.next_number - 1
    resumed = RunResumed(
        gps.model.version.counter, incarnation, gps.model.counted_steps, resumed_from=source
    )
    snapshot = plane.snapshot()
    store = StateFolder(beside, run.run_id, NODE)
    try:
        snapshot_writer.begin_with(
            store,
            file_header.new_header(
                run.run_id, NODE, daemon.process_name(NODE, daemon.random_bits()), incarnation
            ),
            number,
            found.restored.now,
            state(gps, manifest, found.restored.last_blob, facts_of(run, corpus)),
            record.pack(snapshot.layout()),
            snapshot.chunks,
            found.history + history_line(HistoryLine(number, resumed)),
        )
    except OSError as error:
        raise CheckpointError(
            f"cannot write the state that is resumed to {beside}: {error}"
        ) from None
    finally:
        store.close()
    return gps


def _check_budget(gps: Gps, run: RunFile, source: str) -> None:
    if gps.model.counted_steps >= run.run.budget_local_steps:
        raise ConfigError(
            f"run.budget_local_steps = {run.run.budget_local_steps}: {source} has done {gps.model.counted_steps}"
            " already; give a larger budget to go on"
        )
    if 0 < gps.settings.budget_ps <= gps.clock.elapsed_ps():
        raise ConfigError(
            f"run.budget_minutes = {run.run.budget_minutes:g}: {source} has"
            f" {gps.clock.elapsed_ps() / PS_PER_MINUTE:.4g} behind it; give a larger budget to go on"
        )


# --- replacing a folder ----------------------------------------------------------


def _places(folder: Path) -> tuple[Path, Path]:
    return folder.with_name(folder.name + ".new"), folder.with_name(folder.name + ".old")


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keep other processes from opening this state. Raises `ConfigError`."""
    path = folder.with_name(folder.name + ".lock")
    try:
        held = lock(path)
    except BlockingIOError:
        raise ConfigError(
            f"{folder}: another process of {NODE} is starting with this state"
        ) from None
    except OSError as error:
        raise ConfigError(f"cannot write to the folder of results: {path}: {error}") from None
    with held:
        yield


def _swap(folder: Path) -> None:
    """Replace the old folder by the new one, which is complete."""
    new, old = _places(folder)
    shutil.rmtree(old, ignore_errors=True)
    folder.rename(old)
    new.rename(folder)
    sync_folder(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


def _finish_swap(folder: Path) -> None:
    """Complete the replacement of a folder after the process that was doing it was killed."""
    new, old = _places(folder)
    if old.exists() and not folder.exists():
        new.rename(folder)
    shutil.rmtree(old, ignore_errors=True)
