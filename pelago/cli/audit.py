"""`pelago audit`: proves from the servers' histories that no sample and no update counts twice.

Every server keeps a history that is never cut: a line for each update that it applied, with the samples in
it, and for each that was rejected. The GPS's history says which samples are in the global model. The LPSs'
histories say which updates of workers the samples are from. Together they account for every range of samples.

A GPS that continues from a snapshot (`--resume`) does not know what the incarnation before it did after that
snapshot. The regions do. An exchange is lost if an earlier incarnation acknowledged it as applied and the GPS
does not know it. An exchange of the incarnation that continued (its fence says so) is an exception as usual.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeAlias

from pelago.core.errors import CheckpointError, ConfigError
from pelago.core.names import Spans
from pelago.core.notes.gps import ExchangeArrived
from pelago.core.notes.lps import ExchangeAnswered, ExchangeBegun, Rejoining, UpdateApplied
from pelago.core.spans import SpanSet
from pelago.net.telemetry import say
from pelago.runlog.history import HISTORY, HistoryLine, IncarnationBegun, RunResumed, read_history

LINES_SHOWN = 20


_Push: TypeAlias = tuple[str, int, int]
"""Region, number and fence of an exchange."""


@dataclass(slots=True)
class Audit:
    """Sums and faults that an audit found."""

    updates: int = 0
    """Updates of workers that an LPS applied."""
    exchanges: int = 0
    """Exchanges that the GPS applied."""
    applied: int = 0
    """Samples in the global model."""
    dropped: int = 0
    """Samples that were trained on, and are not in it: their movement was dropped in flight."""
    waiting: int = 0
    """Samples that an LPS applied, and never exchanged."""
    doubled: int = 0
    """Samples that count twice, or more."""
    resumed: list[str] = field(default_factory=list)
    """The states of other incarnations that the GPS continued from."""
    incarnation: int = -1
    """The last incarnation of the GPS that was resumed: its fences begin there; those of earlier ones are lower."""
    lost: list[str] = field(default_factory=list)
    """Exchanges that were acknowledged, and are not in what the GPS went on from."""
    lost_samples: int = 0
    trained_again: int = 0
    """Lost samples that are in the global model nevertheless, from another exchange."""
    exceptions: list[str] = field(default_factory=list)


def audit(out: Path) -> int:
    """Read the histories below a run's folder and say what they prove. Returns 0 if nothing is wrong or
    lost, else 1.

    Raises `ConfigError` where there is nothing to read, `CheckpointError` for a history that is damaged.
    """
    found = examine(histories(out))
    _compare(found, out / "result.json")
    say(f"updates of workers    {found.updates:,} applied, each once")
    say(f"exchanges             {found.exchanges:,} applied, each once")
    say(
        f"samples               {found.applied:,} in the global model, {found.dropped:,} dropped in flight"
    )
    say(f"                      {found.waiting:,} applied in a region and not exchanged")
    say(f"doubled               {found.doubled:,}")
    say(
        f"lost                  {found.lost_samples:,} samples in {len(found.lost):,} exchanges; "
        f"{found.trained_again:,} of them were trained on again"
    )
    _print("resumed", found.resumed)
    _print("lost", found.lost)
    _print("exception", found.exceptions)
    if not found.exceptions and not found.lost:
        say("clean")
    else:
        say(f"{len(found.exceptions):,} exceptions, {len(found.lost):,} exchanges lost")
    return 1 if found.exceptions or found.lost else 0


def _print(what: str, lines: Sequence[str]) -> None:
    for line in lines[:LINES_SHOWN]:
        say(f"{what:<21} {line}")
    if len(lines) > LINES_SHOWN:
        say(f"{'':<21} and {len(lines) - LINES_SHOWN:,} more")


def histories(out: Path) -> dict[str, list[HistoryLine]]:
    """The histories of a run's servers, by node. Raises `ConfigError`, `CheckpointError`."""
    paths = sorted(out.glob(f"*/state/{HISTORY}"))
    if not paths:
        raise ConfigError(
            f"{out}: no server of this run kept a history; there is one unless durability = 'none'"
        )
    return {path.parent.parent.name: read_history(path) for path in paths}


def examine(recorded: dict[str, list[HistoryLine]]) -> Audit:
    """Audit the histories of one run's servers, given by node."""
    found = Audit()
    trained: dict[str, SpanSet] = {}
    for node, lines in recorded.items():
        if node != "gps":
            trained[node.removeprefix("lps-")] = _region(node, lines, found)
    pushes, samples = _global(recorded.get("gps", []), trained, found)
    if "gps" in recorded:
        for region in trained:
            _acknowledged(region, recorded[f"lps-{region}"], pushes, samples, found)
    return found


def _region(node: str, lines: Sequence[HistoryLine], found: Audit) -> SpanSet:
    """Check an LPS's history; returns the samples that it applied."""
    every, samples, leases, versions = SpanSet(), SpanSet(), set(), [0]
    for line in lines:
        note = line.entry
        if isinstance(note, IncarnationBegun | Rejoining):
            # The GPS lent to others what this region had not exchanged; it may be lent here again.
            samples = SpanSet()
        if isinstance(note, IncarnationBegun):
            _check_steps(node, versions, found)
            versions = [0]
        if not isinstance(note, UpdateApplied):
            continue
        lease, spans = note.lease, note.spans
        if lease in leases:
            found.exceptions.append(f"{node}: lease {lease} was applied twice")
        leases.add(lease)
        versions.append(note.version)
        every.add(spans)
        twice = samples.add(spans)
        if twice:
            found.doubled += twice
            found.exceptions.append(
                f"{node}: lease {lease} has {twice} samples that were applied before"
            )
    found.updates += len(leases)
    _check_steps(node, versions, found)
    return every


def _acknowledged(
    region: str, lines: Sequence[HistoryLine], pushes: set[_Push], samples: SpanSet, found: Audit
) -> None:
    """Whether each exchange that the GPS acknowledged is in its history."""
    spans: dict[_Push, Spans] = {}
    for line in lines:
        note = line.entry
        if not isinstance(note, ExchangeBegun | ExchangeAnswered):
            continue
        push = (region, note.number, note.fence)
        if isinstance(note, ExchangeBegun):
            spans[push] = note.spans
            continue
        if note.outcome != "applied" or push in pushes:
            continue
        if push[2] >= found.incarnation:
            found.exceptions.append(
                f"gps: {_name(push)} was acknowledged, and is not in its history"
            )
            continue
        inside = SpanSet(spans.get(push, ()))
        again = sum(stop - start for start, stop in inside.common(samples))
        found.lost.append(f"{_name(push)}: {inside.total} samples, {again} trained on again")
        found.lost_samples += inside.total
        found.trained_again += again


def _name(push: _Push) -> str:
    return f"exchange {push[1]} of {push[0]} (fence {push[2]})"


def _global(
    lines: Sequence[HistoryLine], trained: dict[str, SpanSet], found: Audit
) -> tuple[set[_Push], SpanSet]:
    """Check the GPS's history against those of the regions. Returns its exchanges, and the samples in it."""
    applied, dropped = SpanSet(), SpanSet()
    pushes: set[_Push] = set()
    versions = [0]
    for line in lines:
        note = line.entry
        if isinstance(note, RunResumed):
            found.resumed.append(f"from {note.resumed_from} at version {note.version:,}")
            found.incarnation = note.incarnation
        if not isinstance(note, ExchangeArrived):
            continue
        region, spans, lost = note.region, note.spans, note.dropped
        push = (region, note.exchange, note.fence)
        name = _name(push)
        if push in pushes:
            found.exceptions.append(f"gps: {name} was applied twice")
        pushes.add(push)
        versions.append(note.version)
        twice = applied.add(spans) + dropped.add(lost)
        twice += sum(stop - start for start, stop in dropped.common(spans))
        if twice:
            found.doubled += twice
            found.exceptions.append(f"gps: {name} has {twice} samples that were applied before")
        known = trained.get(region)
        if known is not None and not known.holds((*spans, *lost)):
            found.exceptions.append(f"gps: {name} has samples that no update of {region} has")
    found.exchanges = len(pushes)
    found.applied, found.dropped = applied.total, dropped.total
    _check_steps("gps", versions, found)
    for samples in trained.values():
        left = SpanSet(samples)
        for done in (applied, dropped):
            left.remove(left.common(done))
        found.waiting += left.total
    return pushes, applied


def _check_steps(node: str, versions: Sequence[int], found: Audit) -> None:
    """Every version follows from the one before it by one update."""
    found.exceptions += [
        f"{node}: version {later} follows {earlier}"
        for earlier, later in pairwise(versions)
        if later != earlier + 1
    ]


def _compare(found: Audit, path: Path) -> None:
    """The GPS's result must say the same."""
    if not path.exists():
        return
    try:
        ledger: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["ledger"]
        pairs = (
            ("applied", ledger["applied"], found.applied),
            ("duplicated", ledger["duplicated"], 0),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"cannot read {path}: {error!r}") from None
    found.exceptions += [
        f"{path.name}: {key} = {theirs:,}, and the histories say {ours:,}"
        for key, theirs, ours in pairs
        if theirs != ours
    ]
