"""Whether memory, descriptors, threads and disk of a run stay flat, from samples of its processes and folders."""

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

MEASURES: Final = ("rss_mb", "anonymous_mb", "descriptors", "threads")
DISK_MEASURES: Final = ("state_mb", "journal_mb", "snapshot_mb", "spare_mb", "unlinked_mb", "files")
AGES_S: Final = {"young": (40.0, 60.0), "grown": (180.0, 300.0)}
LONG_LIVED_S: Final = 600.0
"""A process that reaches this age is long-lived."""
SETTLED_S: Final = 300.0
"""Samples of a long-lived process count from this age on."""
PAIR_S: Final = 60.0
"""Pairs of samples that are nearer than this are left out of a slope."""
GROWTH_MAX: Final = 1.05
MORE_MAX: Final = 2
"""Flat means: the last quarter's median is at most `GROWTH_MAX` times the first's, or for descriptors and threads at
most `MORE_MAX` more."""
STATE_GROWTH_MAX: Final = 1.25
STATE_MAX_MB: Final = 294.0
"""Journals and snapshots grow and shrink, and the number of spares varies: their median may grow by this factor, if
they keep the bound of docs/OPERATIONS.md: 128 MiB of journals and eight models, twice."""
MB: Final = 1e6


@dataclass(frozen=True, slots=True)
class Sample:
    """A node at one time. Sizes are in MB (10^6 bytes); those of the state folder are of blocks on disk."""

    at_s: float
    node: str
    kind: str
    incarnation: int
    """How often the node was started again before."""
    age_s: float
    rss_mb: float
    anonymous_mb: float
    """Resident memory that belongs to no file: the rest are libraries, and state files that a restart has read."""
    descriptors: int
    threads: int
    cpu_s: float
    unlinked_mb: float
    """State files that were removed, and occupy the disk as long as they are mapped."""
    state_mb: float
    """Journals, snapshots and spares: these must be bounded."""
    journal_mb: float
    snapshot_mb: float
    spare_mb: float
    files: int
    history_mb: float
    logs_mb: float


def slope(groups: Iterable[Sequence[tuple[float, float]]]) -> float | None:
    """The slope per hour: the median over all pairs of (second, value) of one group that are not near each other
    (Theil 1950, Sen 1968); None: there is no such pair."""
    found = [
        (later - earlier) / (stop - start) * 3600
        for group in groups
        for place, (start, earlier) in enumerate(group)
        for stop, later in group[place + 1 :]
        if stop - start >= PAIR_S
    ]
    return round(statistics.median(found), 3) if found else None


def _grouped(
    samples: Iterable[Sample], key: Callable[[Sample], Any], measure: str
) -> list[list[tuple[float, float]]]:
    found: dict[Any, list[tuple[float, float]]] = {}
    for each in samples:
        found.setdefault(key(each), []).append((each.at_s, getattr(each, measure)))
    return list(found.values())


def _quarters(samples: Iterable[Sample], measure: str, end_s: float) -> dict[str, float | None]:
    """Median and maximum of a measure in the first and the last quarter of the run."""
    found: dict[str, float | None] = {}
    kept = list(samples)
    for name, start, stop in (("first", 0.0, 0.25), ("last", 0.75, 1.01)):
        values = [getattr(e, measure) for e in kept if start * end_s <= e.at_s < stop * end_s]
        found[name] = round(statistics.median(values), 2) if values else None
        found[f"{name}_max"] = round(max(values), 2) if values else None
        found[f"{name}_samples"] = len(values)
    return found


def sizes(samples: Sequence[Sample], kind: str, end_s: float) -> dict[str, Any]:
    """Figures of each measure for the processes of one kind."""
    of_kind = [each for each in samples if each.kind == kind]
    ends = {(each.node, each.incarnation): each.age_s for each in of_kind}
    long_lives = [
        each
        for each in of_kind
        if ends[each.node, each.incarnation] >= LONG_LIVED_S and each.age_s >= SETTLED_S
    ]
    found: dict[str, Any] = {}
    for measure in MEASURES:
        at_age = {}
        for name, (low, high) in AGES_S.items():
            those = [each for each in of_kind if each.incarnation and low <= each.age_s <= high]
            at_age[name] = _quarters(those, measure, end_s) | {
                "per_hour": slope(_grouped(those, lambda e: e.node, measure))
            }
        within = _grouped(long_lives, lambda e: (e.node, e.incarnation), measure)
        found[measure] = at_age | {
            "long_lives": len(within),
            "longest_s": round(max((e.age_s for e in long_lives), default=0.0)),
            "median": statistics.median(v for each in within for _, v in each) if within else None,
            "per_hour_within_an_incarnation": slope(within),
        }
    return found


def disk(samples: Sequence[Sample], kind: str, end_s: float) -> dict[str, Any]:
    """Figures of each measure for the state folders of one kind."""
    of_kind = [each for each in samples if each.kind == kind]
    found: dict[str, Any] = {}
    for measure in DISK_MEASURES:
        found[measure] = _quarters(of_kind, measure, end_s) | {
            "per_hour": slope(_grouped(of_kind, lambda e: e.node, measure))
        }
    return found


def flat(kinds: dict[str, Any], disks: dict[str, Any]) -> dict[str, bool | None]:
    """Whether each measure is flat; None: the run was too short to tell."""

    def within(found: dict[str, Any], growth: float, more: float) -> bool | None:
        first, last = found["first"], found["last"]
        if first is None or last is None:
            return None
        return bool(last <= first * growth + more)

    def all_of(verdicts: list[bool | None]) -> bool | None:
        known = [each for each in verdicts if each is not None]
        return all(known) if known else None

    # Resident memory is left out, since it depends on which state files a restart maps.
    limits = {
        "anonymous_mb": (GROWTH_MAX, 0),
        "descriptors": (1, MORE_MAX),
        "threads": (1, MORE_MAX),
    }
    found = {
        measure: all_of(
            [within(each[measure][age], *limit) for each in kinds.values() for age in AGES_S]
        )
        for measure, limit in limits.items()
    }
    within_an_incarnation = [
        each[measure]["per_hour_within_an_incarnation"]
        <= (growth - 1) * each[measure]["median"] + more
        for each in kinds.values()
        for measure, (growth, more) in limits.items()
        if each[measure]["per_hour_within_an_incarnation"] is not None
    ]
    return found | {
        "within_an_incarnation": all_of(within_an_incarnation),
        "state": all_of([within(each["state_mb"], STATE_GROWTH_MAX, 0) for each in disks.values()]),
        "state_bound": all_of(
            [
                most <= STATE_MAX_MB
                for each in disks.values()
                if (most := each["state_mb"]["last_max"]) is not None
            ]
        ),
    }
