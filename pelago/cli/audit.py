"""`pelago audit`: proves from what the servers wrote down that no sample and no update counts twice.

Every server keeps a history that is never cut: a line for each update that it applied, with the samples in
it, and for each that came to nothing. The GPS's says which samples are in the global model, the LPSs' which
updates of workers they are from. Whoever reads them together can say of every range what became of it.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from pelago.core.errors import CheckpointError, ConfigError
from pelago.core.spans import SpanSet
from pelago.net.store import BEGUN, HISTORY, Told, read_history

EXCEPTIONS_SHOWN = 20


@dataclass(slots=True)
class Audit:
    """What was found."""

    updates: int = 0
    """Of workers, applied by an LPS."""
    exchanges: int = 0
    """Applied by the GPS."""
    applied: int = 0
    """Samples in the global model."""
    dropped: int = 0
    """Samples that were trained on, and are not in it: their movement was dropped in flight."""
    waiting: int = 0
    """Samples that an LPS applied, and never exchanged."""
    doubled: int = 0
    """Samples that count twice, or more."""
    exceptions: list[str] = field(default_factory=list)


def audit(out: Path) -> int:
    """Read the histories below a run's folder and say what they prove. Returns 0 if nothing is wrong, else 1.

    Raises `ConfigError` where there is nothing to read, `CheckpointError` for a history that is damaged.
    """
    found = examine(histories(out))
    _compare(found, out / "result.json")
    print(f"updates of workers    {found.updates:,} applied, each once")
    print(f"exchanges             {found.exchanges:,} applied, each once")
    print(
        f"samples               {found.applied:,} in the global model, {found.dropped:,} dropped in flight"
    )
    print(f"                      {found.waiting:,} applied in a region and not exchanged")
    print(f"doubled               {found.doubled:,}")
    for line in found.exceptions[:EXCEPTIONS_SHOWN]:
        print(f"exception             {line}")
    if len(found.exceptions) > EXCEPTIONS_SHOWN:
        print(f"                      and {len(found.exceptions) - EXCEPTIONS_SHOWN:,} more")
    print("clean" if not found.exceptions else f"{len(found.exceptions):,} exceptions")
    return 1 if found.exceptions else 0


def histories(out: Path) -> dict[str, list[Told]]:
    """The histories of a run's servers, by node. Raises `ConfigError`, `CheckpointError`."""
    paths = sorted(out.glob(f"*/state/{HISTORY}"))
    if not paths:
        raise ConfigError(
            f"{out}: no server of this run kept a history; there is one unless durability = 'none'"
        )
    return {path.parent.parent.name: read_history(path) for path in paths}


def examine(told: dict[str, list[Told]]) -> Audit:
    """What the histories of one run's servers prove together."""
    found = Audit()
    trained: dict[str, SpanSet] = {}
    for node, lines in told.items():
        if node != "gps":
            trained[node.removeprefix("lps-")] = _region(node, lines, found)
    _global(told.get("gps", []), trained, found)
    return found


def _region(node: str, lines: Sequence[Told], found: Audit) -> SpanSet:
    """Check an LPS's history; returns the samples that it applied."""
    every, samples, leases, versions = SpanSet(), SpanSet(), set(), [0]
    for line in lines:
        if line.kind in (BEGUN, "rejoining"):
            # The GPS lent to others what this region had not exchanged; it may be lent here again.
            samples = SpanSet()
        if line.kind == BEGUN:
            _check_steps(node, versions, found)
            versions = [0]
        if line.kind != "update":
            continue
        lease, spans = line.fields["lease"], _spans(line.fields["spans"])
        if lease in leases:
            found.exceptions.append(f"{node}: lease {lease} was applied twice")
        leases.add(lease)
        versions.append(line.fields["version"])
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


def _global(lines: Sequence[Told], trained: dict[str, SpanSet], found: Audit) -> None:
    """Check the GPS's history against those of the regions."""
    applied, dropped = SpanSet(), SpanSet()
    pushes: set[tuple[str, int, int]] = set()
    versions = [0]
    for line in lines:
        if line.kind != "arrival":
            continue
        fields = line.fields
        region = fields["region"]
        push = (region, fields["exchange"], fields["fence"])
        name = f"exchange {push[1]} of {region} (fence {push[2]})"
        if push in pushes:
            found.exceptions.append(f"gps: {name} was applied twice")
        pushes.add(push)
        versions.append(fields["version"])
        spans, lost = _spans(fields["spans"]), _spans(fields["dropped"])
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


def _spans(spans: Iterable[Sequence[int]]) -> tuple[tuple[int, int], ...]:
    return tuple((start, stop) for start, stop in spans)
